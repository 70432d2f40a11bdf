"""How much the quickstart does: the default twenty minutes, or the one-minute smoke run of CI."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    `overrides` are command-line values for `speechzoo fit`, by stage; the recipes hold the default scale.
    """

    train_pairs: int = 660
    test_pairs: int = 100
    num_units: int = 200
    batch: int = 25  # questions answered together
    overrides: dict[str, list[str]] = field(default_factory=dict)


STAGES = ("llasm_pretrain", "llasm_finetune", "llama_omni_warmup", "llama_omni_stage1", "llama_omni_stage2")

DEFAULT = Scale()

SMOKE = Scale(
    train_pairs=24,
    test_pairs=19,  # one of each kind of question
    num_units=20,
    overrides={
        name: [
            "--trainer.max_steps=3",
            "--trainer.val_check_interval=3",
            "--data.init_args.batch_size=4",
            "--trainer.limit_val_batches=2",
        ]
        + (["--model.init_args.unit_decoder.init_args.num_units=20"] if name.startswith("llama_omni") else [])
        for name in STAGES
    },
)
