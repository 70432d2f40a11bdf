"""Trainings of all stages of both systems that two processes over gloo run, to be compared with one process."""

from __future__ import annotations

import gc
import os
import warnings
from collections import Counter
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from speechzoo.adaptors import Linear
from speechzoo.callbacks import ExplodingNorms
from speechzoo.data import encode_batch, with_windows
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaMAOmni2, LLaSM, SpeechLLM
from speechzoo.text import ChatPrompt
from speechzoo.training import FileCheckpointIO, FSDP2Strategy, sharding
from speechzoo.training.exact_loss import step_loss
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


def two(rank: int, port: int, llm: Path, whisper: Path, out: Path, names: list[str]) -> None:
    """All stages under ddp, fsdp2 (and one under HSDP) in one of two processes; results go to files."""
    be_rank(rank, port)
    for name in names:
        accumulate = STAGES[name][2]
        for kind in ("ddp", "fsdp2", "hsdp"):
            if kind == "hsdp" and name != "omni_joint":
                continue
            strategy = (
                "ddp" if kind == "ddp" else FSDP2Strategy(2 if kind == "hsdp" else 1, timeout=timedelta(seconds=60))
            )
            model = make(name, llm, whisper)
            trainer, result = fit(model, strategy, 2, rank, accumulate, precision=PRECISION.get(name, "32-true"))
            with trainer.precision_plugin.forward_context():
                reply = model.respond(questions(model, rank), max_new_tokens=3 + 4 * rank)
            result["reply"] = reply.text, reply.units
            torch.save(result, out / f"{name}_{kind}_{rank}.pt")
    reshard(rank, llm, whisper, out)
    reshard_mixed(rank, llm, whisper, out)
    answer(rank, llm, whisper, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


RESHARD = "omni_joint"
STOPS = 7, 13


def reshard(rank: int, llm: Path, whisper: Path, out: Path) -> None:
    """Go on from `first.ckpt` of one process; leave a file and a folder of shards, and go on from that folder."""
    for kind, folder in (("file", False), ("folder", True)):
        model = make(RESHARD, llm, whisper)
        strategy = FSDP2Strategy(save_distributed_checkpoint=folder)
        first = {"max_steps": STOPS[1], "ckpt_path": out / "first.ckpt"}
        trainer, result = fit(model, strategy, 2, rank, 1, STOPS[0], **first)
        for _ in range(2):  # the second time over the one that is there
            trainer.save_checkpoint(out / f"second_{kind}.ckpt")
        torch.save(result, out / f"second_{kind}_{rank}.pt")
    for kind in ("ddp", "fsdp2"):
        model = make(RESHARD, llm, whisper)
        strategy = "ddp" if kind == "ddp" else FSDP2Strategy()
        _, result = fit(model, strategy, 2, rank, 1, STOPS[1], ckpt_path=out / "second_folder.ckpt")
        torch.save(result, out / f"third_{kind}_{rank}.pt")


MIXED = "llasm_finetune_bf16"


def reshard_mixed(rank: int, llm: Path, whisper: Path, out: Path) -> None:
    """Full fine-tuning in bf16-mixed, stopped, and taken up again by fsdp2 and by ddp; the dtypes of one step."""
    fsdp2, accumulate = FSDP2Strategy(), STAGES[MIXED][2]
    precision = {"precision": "bf16-mixed"}
    trainer, _ = fit(make(MIXED, llm, whisper), fsdp2, 2, rank, accumulate, max_steps=STOPS[0], **precision)
    trainer.save_checkpoint(out / "mixed.ckpt")
    for kind in ("ddp", "fsdp2"):
        model = make(MIXED, llm, whisper)
        strategy = "ddp" if kind == "ddp" else FSDP2Strategy()
        trainer, result = fit(model, strategy, 2, rank, accumulate, STOPS[0], ckpt_path=out / "mixed.ckpt", **precision)
        if kind == "fsdp2":
            result["dtypes"] = step_dtypes(trainer, model, rank)
        torch.save(result, out / f"mixed_{kind}_{rank}.pt")


class Collectives(TorchDispatchMode):
    """Counts what travels between the processes: (operation, dtype) -> times."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if torch.is_tensor(t)]
            self.seen[func._schema.name.removeprefix("c10d::"), tensors[0].dtype] += 1
        return func(*args, **(kwargs or {}))

    def gathers(self) -> int:
        """Gathers of weights."""
        return sum(number for (name, _), number in self.seen.items() if "allgather" in name)


def step_dtypes(trainer: Trainer, model: SpeechLLM, rank: int) -> dict[str, set[Any]]:
    """Dtypes in one step: of weights and inputs in the LLM's second layer, of collectives, of all that is kept."""
    found: dict[str, set[Any]] = {"weight": set(), "input": set(), "rotary": set()}

    def look(layer, args, kwargs) -> None:
        found["weight"].add(layer.mlp.up_proj.weight.dtype)
        found["input"].add((args[0] if args else kwargs["hidden_states"]).dtype)
        found["rotary"].add(kwargs["position_embeddings"][0].dtype)

    hook = model.llm.lm.model.layers[1].register_forward_pre_hook(look, with_kwargs=True)
    batch = share(model, STEPS[0], 2, rank, 1)[0]
    with Collectives() as collectives:
        with trainer.precision_plugin.forward_context():
            loss = step_loss(model(batch).sums, model.num_targets(batch), model.loss_weights, 2, 1)
        loss.backward()
    hook.remove()
    for name in ("allgather", "reduce_scatter"):
        found[name] = {dtype for (operation, dtype) in collectives.seen if name in operation}
    learning = [p for p in model.parameters() if p.requires_grad]
    found["kept"] = {p.to_local().dtype for p in learning} | {p.grad.to_local().dtype for p in learning}
    states = trainer.optimizers[0].state
    found["moments"] = {v.dtype for p in learning for v in states[p].values() if torch.is_tensor(v)}
    return found


def questions(model: SpeechLLM, rank: int) -> SpeechBatch:
    """Two questions, the first one another in each process."""
    return encode_batch(model.prompt, [VALIDATION[rank][:1], VALIDATION[3][:1]], False, "left")


class Ask(Callback):
    """Answers after each validation, for another number of tokens in each process."""

    def on_validation_end(self, trainer: Trainer, pl_module: SpeechLLM) -> None:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            rank = trainer.global_rank
            pl_module.respond(questions(pl_module, rank), max_new_tokens=2 + 5 * rank)
        assert all(isinstance(p, DTensor) for p in pl_module.llm.parameters())


def held_bytes() -> int:
    """Bytes of all tensors that are alive in this process."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


ANSWERS = "omni_stage1"


def answer(rank: int, llm: Path, whisper: Path, out: Path) -> None:
    """What answers of a sharded model cost in collective calls, and what they leave behind; see the tests."""
    model = make(ANSWERS, llm, whisper)
    _, result = fit(model, FSDP2Strategy(), 2, rank, 1, extra=[Ask()], val_check_interval=5)
    model.eval()
    batch = questions(model, rank)
    texts, gathers, held = [], [], []

    def ask(tokens: int) -> None:
        with Collectives() as collectives:
            texts.append(model.respond(batch, max_new_tokens=tokens).text)
        gathers.append(collectives.gathers())
        held.append(held_bytes())
        assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)

    for tokens in (1, 4 + rank, 20 + 10 * rank):
        ask(tokens)
    result["units"] = sum(type(module).__name__.startswith("FSDP") for module in model.modules())

    read, count = model.llm._read, 0

    def fails(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("in the middle of an answer")
        return read(*args)

    model.llm._read = fails
    try:
        ask(10)
    except RuntimeError as error:
        result["error"] = str(error)
    del model.llm._read
    assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
    held.append(held_bytes())
    ask(20 + 10 * rank)

    plain = sharding._has_room
    sharding._has_room = lambda *_: rank == 0  # in one process the whole LLM does not fit
    try:
        ask(4 + rank)
        ask(20 + 10 * rank)
    finally:
        sharding._has_room = plain
    torch.save(result | {"texts": texts, "gathers": gathers, "held": held}, out / f"answers_{rank}.pt")
