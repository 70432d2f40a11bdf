"""Trainings of all stages of both systems that two processes over gloo run, to be compared with one process."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from test_models import SMALL_DECODER, SMALL_WRITER, assistant, parts, tone, user
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from speechzoo.adaptors import Linear
from speechzoo.callbacks import ExplodingNorms
from speechzoo.data import encode_batch, with_windows
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaMAOmni2, LLaSM, SpeechLLM
from speechzoo.text import ChatPrompt
from speechzoo.training import FileCheckpointIO, FSDP2Strategy
from speechzoo.types import SpeechBatch

LONG = "the capital of France is Paris, and six plus nine is fifteen; a quick brown fox jumps over the lazy dog."

# Steps of four conversations. With two processes the first has the first two: few targets against many, a process
# without speech, one without units.
STEPS = [
    [
        [user(tone(0.4, 200)), assistant("no", [1])],
        [user("or", tone(0.3, 250)), assistant("yes", [2])],
        [user(tone(0.5, 300)), assistant(LONG, [3, 4, 5, 6, 5, 4, 3])],
        [user(tone(0.6, 150), "again"), assistant(LONG, list(range(12)) * 2)],
    ],
    [
        [user("hello"), assistant("hi")],
        [user("What is the capital of France?"), assistant("Paris")],
        [user(tone(0.5, 350)), assistant(LONG, [7, 8, 9])],
        [user(tone(0.4, 450)), assistant("It rains.", [10, 11])],
    ],
    [
        [user(tone(0.5, 350)), assistant("It rains.", [7, 8, 9])],
        [user(tone(0.6, 320)), assistant(LONG, [1, 2, 9])],
        [user(tone(0.7, 340)), assistant("six")],
        [user("sum"), assistant("nine")],
    ],
]
# The second process has neither speech nor units.
VALIDATION = [STEPS[0][0], STEPS[0][2], STEPS[1][0], STEPS[1][1]]
NUM_STEPS = 20

NO_CTC, NO_LM = {"ctc": 0.0}, {"lm": 0.0}
ENCODER, LM, DECODER = r"^encoder\.", r"^llm\.", r"^unit_decoder\."
TOKENS = ["<au_start>", "<au_end>"]

# name -> class, options of the model, micro-batches of a step
STAGES: dict[str, tuple[type[SpeechLLM], dict[str, Any], int]] = {
    "llasm_pretrain": (LLaSM, {"freeze": [ENCODER, r"^llm\.lm\."], "tokens": True, "checkpointing": True}, 1),
    "llasm_finetune": (LLaSM, {"freeze": [ENCODER], "tokens": True}, 2),
    "llasm_finetune_bf16": (LLaSM, {"freeze": [ENCODER], "tokens": True}, 2),
    "llasm_lora": (LLaSM, {"freeze": [ENCODER], "lora": {"r": 2}, "checkpointing": True}, 1),
    "llasm_lora_bf16": (LLaSM, {"freeze": [ENCODER], "lora": {"r": 2}, "dtype": "bfloat16"}, 1),
    "llasm_all": (LLaSM, {"freeze": [], "encoder_checkpointing": True}, 1),
    "omni_stage1": (LLaMAOmni, {"freeze": [ENCODER, DECODER], "loss_weights": NO_CTC}, 1),
    "omni_adaptor": (LLaMAOmni, {"freeze": [ENCODER, LM, DECODER], "loss_weights": NO_CTC, "checkpointing": True}, 1),
    "omni_stage2": (LLaMAOmni, {"freeze": [ENCODER, LM, r"^adaptor\."], "loss_weights": NO_LM}, 2),
    "omni2_stage2": (LLaMAOmni2, {"freeze": [ENCODER, LM, r"^adaptor\."], "loss_weights": NO_LM}, 2),
    "omni_joint": (LLaMAOmni, {"freeze": [ENCODER], "loss_weights": {"ctc": 0.5}}, 1),
}

PRECISION = {"llasm_lora_bf16": "bf16-mixed", "llasm_finetune_bf16": "bf16-mixed"}


def make(stage: str, llm: Path, whisper: Path, **more: Any) -> SpeechLLM:
    """The model of a stage, not built yet: the strategy decides who builds it."""
    torch.manual_seed(0)
    cls, options, _ = STAGES[stage]
    options = dict(options)
    lm = {name: options.pop(name) for name in ("lora", "dtype") if name in options}
    lm["gradient_checkpointing"] = options.pop("checkpointing", False)
    options["llm"] = partial(HFCausalLM, model=str(llm), **lm)
    if options.pop("tokens", False):
        options["prompt"] = partial(ChatPrompt, tokenizer=str(llm), audio_tokens=TOKENS)
    if cls is LLaMAOmni2:
        options["unit_decoder"] = partial(SMALL_WRITER, gradient_checkpointing=True)
    elif cls is LLaMAOmni:
        options["unit_decoder"] = partial(SMALL_DECODER, gradient_checkpointing=stage == "omni_stage2")
    else:
        options["adaptor"] = partial(Linear, stack=4)
    given = parts(llm, whisper, **options)
    if given.pop("encoder_checkpointing", False):
        given["encoder"] = partial(given["encoder"].func, **given["encoder"].keywords, gradient_checkpointing=True)
    given["optimizer"] = partial(torch.optim.AdamW, lr=5e-4, eps=1e-4, weight_decay=0.0)
    return cls(**{**given, **more})


class Record(Callback):
    """Sums of each micro-batch's losses over all processes, and whether what learns is sharded."""

    def __init__(self) -> None:
        self.sums: list[dict[str, float]] = []
        self.kinds: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: SpeechLLM) -> None:
        self.kinds = {type(p).__name__ for p in pl_module.parameters() if p.requires_grad}
        forward = pl_module.forward

        def recorded(batch, logits: bool = False):
            out = forward(batch, logits)
            if pl_module.training:
                self.sums.append({name: value.detach().clone() for name, value in out.sums.items()})
            return out

        pl_module.forward = recorded


def share(model: SpeechLLM, conversations: list, world: int, rank: int, number: int) -> list[SpeechBatch]:
    """A process's part of a step's conversations, in so many micro-batches."""
    size = len(conversations) // world
    mine = conversations[rank * size :][:size]
    rows = len(mine) // number
    return [encode_batch(model.prompt, mine[i * rows :][:rows], True, "right") for i in range(number)]


def fit(
    model: SpeechLLM,
    strategy: str | FSDP2Strategy,
    world: int,
    rank: int,
    accumulate: int,
    start: int = 0,
    extra: list[Callback] | None = None,
    **trainer: Any,
) -> tuple[Trainer, dict[str, Any]]:
    """Twenty steps (from `start`); what this process saw."""

    options: dict[str, Any] = {}
    if world > 1:
        options["plugins"] = [LightningEnvironment()]
        options["plugins"].append(FileCheckpointIO())
    if strategy == "ddp":
        options["strategy"] = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    elif strategy != "one":
        options["strategy"] = strategy
    record = Record()
    settings = {"max_steps": NUM_STEPS, "enable_checkpointing": False, "num_sanity_val_steps": 1, **trainer}
    ckpt_path = settings.pop("ckpt_path", None)
    engine = Trainer(
        accelerator="cpu",
        devices=world,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[record, ExplodingNorms(every_n_steps=1), *(extra or [])],
        **options,
        **settings,
    )
    # The loader always is of the same length, and begins where the run does.
    order = [*range(start, NUM_STEPS), *range(start)]
    batches = [batch for step in order for batch in share(model, STEPS[step % 3], world, rank, accumulate)]
    loader = with_windows(DataLoader(batches, batch_size=None), model.num_targets, accumulate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held_out = DataLoader(share(model, VALIDATION, world, rank, 2 // world), batch_size=None)
        engine.fit(model, loader, held_out, ckpt_path=ckpt_path)
    return engine, {
        "sums": [{name: float(value) for name, value in sums.items()} for sums in record.sums],
        "kinds": record.kinds,
        "val": {k: float(v) for k, v in engine.callback_metrics.items() if k.startswith("val")},
        "norms": {k: float(v) for k, v in engine.callback_metrics.items() if k.startswith("norm")},
        "whole": {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in model.named_parameters()
        },
    }


def be_rank(rank: int, port: int) -> None:
    """Make this process one of those of a run on this machine, on one thread."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}


RESHARD = "omni_joint"
STOPS = 7, 13
MIXED = "llasm_finetune_bf16"
ANSWERS = "omni_stage1"


def questions(model: SpeechLLM, rank: int) -> SpeechBatch:
    """Two questions, the first one another in each process."""
    return encode_batch(model.prompt, [VALIDATION[rank][:1], VALIDATION[3][:1]], False, "left")
