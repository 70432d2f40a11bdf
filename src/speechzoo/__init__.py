"""speechzoo: speech LLMs as trainable, interchangeable LightningModules."""

__version__ = "0.1.0"
