"""speechzoo: speech LLMs as trainable, interchangeable LightningModules."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`speechzoo.load`, imported when it is asked for: it brings torch and transformers along."""
    if name in ("load", "save_pretrained"):
        from speechzoo.interop import hub

        return getattr(hub, name)
    raise AttributeError(f"module 'speechzoo' has no attribute {name!r}")
