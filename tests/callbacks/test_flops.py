"""FLOPs of a step, counted from the weights, against what torch's counter sees in forward and backward."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from test_models import assistant, make, tone, user
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from speechzoo.callbacks import StageCost, cost, flops
from speechzoo.callbacks.flops import training_flops
from speechzoo.data import encode_batch
from speechzoo.training.freeze import freeze
from speechzoo.units import CTCUnitDecoder

TALK = [[user(tone(1.6, 200)), assistant("six and nine is fifteen, and ten minus four is six", [1, 2, 3, 2])]]
STAGES = {
    "all": [],
    "stage1": [r"^encoder\.", r"^unit_decoder\."],
    "lora": [r"^encoder\."],
    "adaptor": [r"^encoder\.", r"^llm\.", r"^unit_decoder\."],
    "stage2": [r"^encoder\.", r"^adaptor\.", r"^llm\."],
}


def staged(stage: str, llm: Path, whisper: Path):
    """A model of a stage, wide enough that it is the parts that cost, and a batch without padding."""
    decoder = partial(CTCUnitDecoder, num_units=12, upsample=5, dim=64, num_layers=2, num_heads=2, ffn_dim=128)
    name, parts = ("llasm_lora", {}) if stage == "lora" else ("llama_omni", {"unit_decoder": decoder})
    model = make(name, llm, whisper, **parts)
    freeze(model, STAGES[stage])
    if stage != "all":
        model.loss_weights.update({"lm": 0.0, "ctc": 1.0} if stage == "stage2" else {"lm": 1.0, "ctc": 0.0})
    return model.train(), encode_batch(model.prompt, TALK, True, "right")


def counted(model, batch) -> tuple[float, float]:
    """By torch, attention and the mel filters left out, and by us."""
    with FlopCounterMode(display=False) as counter:
        out = model(batch)
        sum(model.loss_weights[name] * loss for name, loss in out.losses.items()).backward()
    kinds = {str(kind): number for kind, number in counter.get_flop_counts()["Global"].items()}
    kinds.pop("aten.bmm")  # on a CPU torch counts no attention
    return sum(kinds.values()), float(training_flops(model, batch, out))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_costs_what_torch_counts(stage: str, tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch) -> None:
    monkeypatch.setattr(flops, "_squares", lambda lens: 0.0 * lens.sum())
    theirs, ours = counted(*staged(stage, tiny_llm_dir, tiny_whisper_pt))
    # The first layer that learns needs no gradient of its input, which is not told apart.
    assert ours == pytest.approx(theirs, rel=0.05)


def test_attention_and_what_caches_save(tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch) -> None:
    model, batch = staged("stage2", tiny_llm_dir, tiny_whisper_pt)
    out = model(batch)
    whole = float(training_flops(model, batch, out))
    frames, rows, units = 80, int(out.mask.sum()), int(out.unit_logit_lens.sum())
    with monkeypatch.context() as patch:
        patch.setattr(flops, "_squares", lambda lens: 0.0 * lens.sum())
        attention = whole - float(training_flops(model, batch, out))
    assert attention == 4 * frames**2 * 32 * 2 + 2 * rows**2 * 32 * 2 + 3 * 2 * units**2 * 64 * 2
    states, lens = model.frozen_states(batch)
    batch.answer_states, batch.answer_state_lens, batch.positions = states, lens, out.mask.sum(dim=1)
    cached = float(training_flops(model, batch, model(batch)))
    assert 0 < cached < whole
    decoder = flops.matmul_weights(model.unit_decoder)
    assert cached < 6 * units * decoder + 3 * 2 * units**2 * 64 * 2


def test_utilisation_is_logged_where_the_device_is_known(
    tiny_llm_dir: Path, tiny_whisper_pt: Path, tmp_path: Path, monkeypatch
) -> None:
    """FLOPs of the batches over the time between two logs, over the peak of the device."""
    asked = []
    monkeypatch.setattr(cost, "peak_flops", lambda device, dtype: asked.append(dtype) or 1e9)
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(cost, "time", clock)
    model, batch = staged("stage1", tiny_llm_dir, tiny_whisper_pt)
    need = float(training_flops(model, batch, model(batch)))
    model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 0.5))
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=2,
        log_every_n_steps=1,
        callbacks=[StageCost()],
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader([batch, batch], batch_size=None))
    assert asked == [torch.bfloat16]
    assert float(trainer.callback_metrics["train/mfu"]) == pytest.approx(need / 0.5 / 1e9, rel=1e-5)
