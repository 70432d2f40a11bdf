"""What a run needs by arithmetic and fake numbers, beside torch's own accounting of real steps and beside paper and pencil."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_config
from torch.distributed._tools.mem_tracker import MemTracker

from speechzoo.adaptors import ConcatMLP
from speechzoo.cli import main
from speechzoo.data import SpeechDataModule
from speechzoo.doctor.fakes import Work, count_step, fake_batch, fill_with_fakes, without_weights
from speechzoo.doctor.memory import state_bytes
from speechzoo.doctor.plan import Machine, Setting, plan
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.names.recipes import recipe
from speechzoo.text import ChatPrompt
from speechzoo.training.exact_loss import step_loss
from speechzoo.units import CTCUnitDecoder

ENCODER, ADAPTOR, LM, DECODER = (f"^{part}\\." for part in ("encoder", "adaptor", "llm", "unit_decoder"))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # options of the LLM, of the model, precision
    "all": ({}, {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}}, "bf16-mixed"),
    "all_float32": ({}, {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}}, "32-true"),
    "recomputed": (
        {"gradient_checkpointing": True},
        {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "lora": (
        {"dtype": "bfloat16", "lora": {"r": 4}},
        {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "adaptor": (
        {"dtype": "bfloat16", "gradient_checkpointing": True},
        {"freeze": [ENCODER, LM, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "units": ({"dtype": "bfloat16"}, {"freeze": [ENCODER, ADAPTOR, LM], "loss_weights": {"lm": 0.0}}, "bf16-mixed"),
    "encoder_too": ({}, {"freeze": [DECODER], "loss_weights": {"ctc": 0.0}}, "bf16-mixed"),
}
WORK = Work(2, 340, 24, 60)
TOLERANCE = 0.05


def make(llm_dir: Path, whisper: Path, llm: dict[str, Any], options: dict[str, Any]) -> LLaMAOmni:
    return LLaMAOmni(
        encoder=partial(WhisperEncoder, model=str(whisper)),
        adaptor=partial(ConcatMLP, stack=5, hidden_dim=24),
        llm=partial(HFCausalLM, model=str(llm_dir), **llm),
        prompt=partial(ChatPrompt, tokenizer=str(llm_dir)),
        unit_decoder=partial(CTCUnitDecoder, num_units=40, upsample=5, dim=16, num_layers=2, num_heads=2, ffn_dim=32),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, foreach=False),
        **options,
    )


class Tracker(MemTracker):
    """Torch's accounting, without the hooks that it cannot put on frozen weights; it then calls gradients otherwise."""

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def tracked(model: LLaMAOmni, work: Work, half: bool) -> int:
    """Peak bytes of forward and backward of the second step of a real model, as torch's MemTracker counts them."""
    model.configure_model()
    model.train()
    optimizer = model.optimizer_factory([p for p in model.parameters() if p.requires_grad])
    batch = fake_batch(model, work, nullcontext())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = model(batch)
            loss = step_loss(out.sums, model.num_targets(batch), model.loss_weights, 1, 1)
        del out
        loss.backward()

    step()
    optimizer.step()
    optimizer.zero_grad()
    tracker = Tracker()
    tracker.track_external(model, optimizer)
    with tracker:
        step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("name", CASES)
def test_a_real_step_takes_what_was_planned(name: str, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    llm, options, precision = CASES[name]
    model = make(tiny_llm_dir, tiny_whisper_pt, llm, options)
    cache = None if name == "encoder_too" else "features"  # whose states are else the largest thing here
    data = SpeechDataModule(batch_size=WORK.rows, feature_cache=cache)
    (found,) = plan(model, Setting(precision=precision), data, [Machine("here", 1, 0)], WORK.positions, WORK.answer)
    assert not hasattr(model, "llm")  # nothing was built
    work = Work(WORK.rows, WORK.positions, WORK.answer, 11 * WORK.answer, encoded=cache is not None)
    real = tracked(make(tiny_llm_dir, tiny_whisper_pt, llm, options), work, precision == "bf16-mixed")
    print(name, found.peak, real, found.peak / real, found)
    assert found.peak == pytest.approx(real, rel=TOLERANCE)
