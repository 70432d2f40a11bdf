"""What two processes do together: all stages, taken up again, asked; `tests/test_distributed.py` looks at it."""

from __future__ import annotations

import gc
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from rank_cases import (
    ANSWERS,
    MIXED,
    PRECISION,
    RESHARD,
    STAGES,
    STEPS,
    STOPS,
    be_rank,
    fit,
    make,
    questions,
    share,
)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from speechzoo.models import SpeechLLM
from speechzoo.training import FSDP2Strategy, sharding
from speechzoo.training.exact_loss import step_loss


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
