"""A config with tiny parts for the command line, and ways to run it in the test's own process."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from speechzoo.commands.training import ZooCLI, run
from speechzoo.models import LLaMAOmni
from speechzoo.types import SpeechBatch

CONFIG = """
name: tiny
vars: {{out: "{out}", steps: 2}}
seed_everything: 0
model:
  class_path: LLaSM
  init_args:
    encoder: {{class_path: WhisperEncoder, init_args: {{model: "{whisper}", window: trimmed}}}}
    adaptor: {{class_path: Linear, init_args: {{stack: 4}}}}
    llm: {{class_path: HFCausalLM, init_args: {{model: "{llm}"}}}}
    prompt: {{class_path: ChatPrompt, init_args: {{tokenizer: "{llm}"}}}}
    freeze: ["^encoder\\\\."]
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.001}}}}
    lr_scheduler: {{class_path: WarmupCosine, init_args: {{warmup_ratio: 0.1}}}}
data:
  class_path: SpeechDataModule
  init_args: {{train: "{manifest}", val: "{manifest}", test: "{manifest}", predict: "{manifest}", batch_size: 2}}
trainer:
  default_root_dir: ${{vars.out}}/${{name}}
  max_steps: ${{vars.steps}}
  accelerator: cpu
  devices: 1
  num_sanity_val_steps: 0
  limit_val_batches: 1
  limit_test_batches: 1
  limit_predict_batches: 1
  log_every_n_steps: ${{trainer.max_steps}}
  enable_progress_bar: false
  enable_model_summary: false
  plugins:
    - class_path: FileCheckpointIO
  logger:
    - class_path: CSVLogger
      init_args: {{save_dir: "${{trainer.default_root_dir}}", name: csv}}
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{dirpath: "${{trainer.default_root_dir}}", save_last: true, save_top_k: 0, every_n_train_steps: 1}}
"""

UNIT_DECODER = [
    "--model.unit_decoder=CTCUnitDecoder",
    "--model.unit_decoder.num_units=12",
    "--model.unit_decoder.upsample=3",
    "--model.unit_decoder.dim=16",
    "--model.unit_decoder.num_layers=1",
    "--model.unit_decoder.num_heads=2",
    "--model.unit_decoder.ffn_dim=32",
]


def write_config(path: Path, llm: Path, whisper: Path, manifest: Path) -> Path:
    """The config of a LLaSM with tiny parts whose run goes beside it."""
    path.write_text(CONFIG.format(out=path.parent, llm=llm, whisper=whisper, manifest=manifest))
    return path


def zoo(*arguments: object) -> ZooCLI:
    """`speechzoo ARGUMENTS`, in this process, without Lightning's advice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run([str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, Any]:
    """What `speechzoo ARGUMENTS --print_config` prints, as data."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        zoo(*arguments, "--print_config")
    return yaml.safe_load(out.getvalue())


def saved(path: Path) -> dict[str, Any]:
    """A checkpoint, read as the package reads it: plain data and tensors only."""
    return torch.load(path, map_location="cpu", weights_only=True)


def num_targets(batch: SpeechBatch) -> dict[str, int]:
    """Targets of both losses, as LLaMA-Omni counts them."""
    return {name: count(batch) for name, count in LLaMAOmni.objectives.items()}
