"""How much the quickstart does: the default 15 to 20 minutes, or the one-minute smoke run of CI."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    `overrides` are command-line values for `speechzoo fit`, by stage; the recipes hold the default scale.
    """

    train_pairs: int = 660
    test_pairs: int = 100
    num_units: int = 200
    batch: int = 25  # questions answered together
    spoken: int = 30  # answers of each speaking system that are made audible and transcribed
    overrides: dict[str, list[str]] = field(default_factory=dict)

    def settings(self, seed: int) -> dict[str, Any]:
        """What decides the results of a run, as plain data."""
        return {"seed": seed, **asdict(self)}


LANES = (
    ("llasm_pretrain", "llasm_finetune"),
    ("llama_omni_warmup", "llama_omni_stage1", "llama_omni_stage2", "vocoder"),
)
"""Training stages that need nothing of each other: the two systems are trained at the same time."""

STAGES = tuple(stage for lane in LANES for stage in lane)

UNITS = {"llama_omni": "unit_decoder.init_args.num_units", "vocoder": "net.num_units"}

DEFAULT = Scale()

SMOKE = Scale(
    train_pairs=24,
    test_pairs=19,  # one of each kind of question
    num_units=20,
    spoken=4,
    overrides={
        name: [
            "--trainer.max_steps=3",
            "--trainer.val_check_interval=3",
            "--data.init_args.batch_size=4",
            "--trainer.limit_val_batches=2",
        ]
        + [f"--model.init_args.{option}=20" for prefix, option in UNITS.items() if name.startswith(prefix)]
        for name in STAGES
    },
)
