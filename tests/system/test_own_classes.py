"""A model and a part of one's own beside the configuration, used by the command line as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_runs import write_config

from speechzoo import cli

OWN = '''
"""An adaptor and a model that live beside the configuration."""

from speechzoo.adaptors import Linear
from speechzoo.models import LLaSM


class MyAdaptor(Linear):
    """The linear adaptor by another name."""


class MyModel(LLaSM):
    """LLaSM by another name."""
'''


@pytest.mark.slow
def test_own_classes_beside_the_configuration(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path
) -> None:
    """As CONTRIBUTING.md says: the file, the configuration, the commands; nothing of the same name is hidden by it."""
    config = write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    (tmp_path / "mymodel.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "random.py").write_text("raise RuntimeError('the library of this name was wanted')\n")
    text = config.read_text().replace("class_path: LLaSM", "class_path: mymodel.MyModel")
    (tmp_path / "mine.yaml").write_text(text.replace("class_path: Linear", "class_path: mymodel.MyAdaptor"))
    script = [sys.executable, "-c", "import sys; from speechzoo.__main__ import main; sys.exit(main())"]
    script.insert(1, "-P") if sys.version_info >= (3, 11) else None  # as the installed command: no folder on the path
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [*script, "fit", "--config", "mine.yaml"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "tiny" / "last.ckpt", weights_only=True)
    assert saved["model_class"] == "mymodel.MyModel"
    assert saved["hyper_parameters"]["adaptor"]["class_path"] == "mymodel.MyAdaptor"
    # The noise of libraries: what is left is what Lightning says about this run.
    noise = r"💡|available: False|LeafSpec|eval mode|Loading weights|many workers|LightningCLI's args"
    assert not re.search(noise, done.stdout + done.stderr)
    assert "`Trainer.fit` stopped: `max_steps=2` reached." in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) <= 8
