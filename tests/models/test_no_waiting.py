"""A training step, with optimizer, logs and the recipes' callbacks, does not wait for the device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback
from test_models import CONVERSATIONS, make
from test_ultravox import kept_states
from torch.utils.data import DataLoader
from waits import Waits

from speechzoo.callbacks import AllBlank, DeadPart, ExplodingNorms, NonFiniteGuard, StageCost
from speechzoo.data import encode_batch, with_windows
from speechzoo.encoders import WhisperEncoder
from speechzoo.types import SpeechBatch

STEPS, FIRST = 4, 2  # the first steps make what is kept for all (Lightning's metrics, the optimizer's state)
ONCE_A_STEP = ("transformers/masking_utils.py",)  # whether positions are packed; no argument of a model says so


class Watch(Callback):
    """Looks at all steps but the first ones, from the moved batch to the last callback."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.mode: Waits | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: SpeechBatch, batch_idx: int) -> None:
        if batch_idx < FIRST:
            return
        self.mode = Waits([*pl_module.parameters(), *pl_module.buffers()])
        read = {} if batch.written is None else vars(batch.written)
        self.mode.put(value for value in (*vars(batch).values(), *read.values()) if isinstance(value, torch.Tensor))
        self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.found += self.mode.found
            self.mode = None


def moved(self: Any, batch: SpeechBatch, *_: Any) -> SpeechBatch:
    """A copy, as a device would have it, so that the host's tensors are others."""
    return type(self).transfer_batch_to_device(self, batch, torch.device("cpu"), 0)._map(torch.clone)


STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "llasm, adaptor": ("llasm", {"freeze": ["^encoder\\.", "^llm\\."]}),
    "llasm, new tokens": ("llasm_tokens", {"freeze": ["^encoder\\."]}),
    "llasm, queries and lora": ("llasm_queries", {"freeze": ["^encoder\\."]}),
    "omni, stage 1": ("llama_omni", {"freeze": ["^encoder\\.", "^unit_decoder\\."], "loss_weights": {"ctc": 0.0}}),
    "omni, stage 2": (
        "llama_omni",
        {"freeze": ["^encoder\\.", "^adaptor\\.", "^llm\\."], "loss_weights": {"lm": 0.0}},
    ),
    "omni 2, stage 2": (
        "llama_omni2",
        {"freeze": ["^encoder\\.", "^adaptor\\.", "^llm\\."], "loss_weights": {"lm": 0.0}},
    ),
    "omni 2, both": ("llama_omni2", {"freeze": ["^encoder\\."]}),
    "ultravox": ("ultravox", {"freeze": ["^encoder\\.", "^llm\\."], "loss_weights": {"lm": 0.0}}),
    "omni, both": ("llama_omni_label", {"freeze": ["^encoder\\."]}),
}


def watched(model: Any, batches: list[SpeechBatch]) -> list[str]:
    model.transfer_batch_to_device = partial(moved, model)
    watch = Watch()
    alarms = [cls(every_n_steps=1000) for cls in (DeadPart, ExplodingNorms)]
    if model.num_units:
        alarms.append(AllBlank(every_n_steps=1000))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=1,
        gradient_clip_val=1.0,
        log_every_n_steps=1000,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        callbacks=[StageCost(filename=None), *alarms, NonFiniteGuard(), watch],
    )
    loader = DataLoader(batches * STEPS, batch_size=None)
    trainer.fit(model, with_windows(loader, model.num_targets, 1))
    assert trainer.global_step == STEPS
    return [line for line in watch.found if not any(known in line for known in ONCE_A_STEP)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_waits(tiny_llm_dir: Path, tiny_whisper_pt: Path, stage: str) -> None:
    name, options = STAGES[stage]
    if name != "llasm_queries":
        options = {**options, "encoder": partial(WhisperEncoder, model=str(tiny_whisper_pt), window="padded")}
    options["optimizer"] = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    model = make(name, tiny_llm_dir, tiny_whisper_pt, **options)
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    assert watched(model, [batch]) == []
    if batch.written is not None and hasattr(model, "teacher_states"):
        batch.written.states = kept_states(model, batch)
        assert watched(make(name, tiny_llm_dir, tiny_whisper_pt, **options), [batch]) == []


def test_what_waits_is_found(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """The same step asks the device where the host's sizes are missing."""
    model = make("llama_omni", tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."])
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    with Waits([*model.parameters(), *(v for v in vars(batch).values() if isinstance(v, torch.Tensor))]) as mode:
        model(batch)
    found = "\n".join(mode.found)
    for place in ("llms/splice.py", "llms/hf.py", "models/llama_omni.py", "units/ctc.py", "encoders/whisper.py"):
        assert place in found


def test_the_host_knows_the_sizes(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """Taken before the batch moves, and left behind; four turns of three conversations have units."""
    model = make("llama_omni", tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."])
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "left")
    there = model.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert there.input_ids.device.type == there.units.device.type == "meta" and batch.host is None
    out = model(batch)
    assert there.host.width == out.mask.shape[1] and there.counts == model.num_targets(batch)
    tokens = [int((batch.turns[row] == turn).sum()) for row, turn in ((0, 1), (1, 1), (1, 2), (2, 1))]
    assert there.host.answer_lens.tolist() == tokens and there.host.units.tolist() == batch.units.tolist()
    with pytest.raises(ValueError, match="placeholders in the batch, but 2 clips"):
        model.transfer_batch_to_device(
            replace(batch, audio=batch.audio[:2], audio_lens=batch.audio_lens[:2]), torch.device("cpu"), 0
        )
