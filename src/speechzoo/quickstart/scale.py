"""How much the quickstart does: the default, what the zoo's models took, or the one-minute smoke run of CI."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from speechzoo.names.recipes import recipe


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    `overrides` are command-line values for `speechzoo fit`, by stage; the recipes hold the default scale.
    """

    from_scratch: bool = False  # else adaptors, units and vocoder are the zoo's
    sentences: int = 0  # everyday sentences, which are spoken in several voices to learn hearing from

    names: int = 0  # at most: sentences with names that no question holds

    train_pairs: int = 660
    test_pairs: int = 100
    num_units: int = 200
    batch: int = 25  # questions answered together
    spoken: int = 30  # answers of each speaking system that are made audible and transcribed
    overrides: dict[str, list[str]] = field(default_factory=dict)

    def settings(self, seed: int) -> dict[str, Any]:
        """What decides the results of a run, as plain data."""
        return {"seed": seed, **asdict(self)}

    @property
    def lanes(self) -> tuple[tuple[str, ...], ...]:
        """Stages that need nothing of each other: both systems are trained, and asked, at the same time."""
        held = () if self.from_scratch else PUBLISHED
        return tuple((*(stage for stage in lane if stage not in held), ASKED[n]) for n, lane in enumerate(LANES))


LANES = (
    ("llasm_pretrain", "llasm_finetune"),
    ("llama_omni_warmup", "llama_omni_stage1", "llama_omni_stage2", "vocoder"),
)

ASKED = ("llasm_answers", "llama_omni_answers")
"""The last stage of each lane."""

STAGES = tuple(stage for lane in LANES for stage in lane)

PUBLISHED = {
    "llasm_pretrain": "llasm-tiny-asr",
    "llama_omni_warmup": "llama-omni-tiny-asr",
    "vocoder": "unit-vocoder-tiny",
}
"""Stages whose result the zoo has, by its name there."""

STARTS = {"llasm_finetune": "llasm_pretrain", "llama_omni_stage1": "llama_omni_warmup"}
"""Stages that go on from one of these."""

UNITS = {"llama_omni": "unit_decoder.init_args.num_units", "vocoder": "net.num_units"}

DEFAULT = Scale()

SMOKE = Scale(
    from_scratch=True,
    sentences=2,
    names=4,
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

ZOO = Scale(
    from_scratch=True,
    sentences=1000,
    names=2000,
    train_pairs=2700,
    test_pairs=200,
    spoken=60,
    overrides={name: [f"--config={recipe(f'zoo/{name}.yaml')}"] for name in STAGES},
)
"""What the published models were trained with: about three hours."""

SCALES = {"default": DEFAULT, "zoo": ZOO, "smoke": SMOKE}
