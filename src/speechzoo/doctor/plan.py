"""What a configuration needs on each device, worked out before a weight is loaded, also for machines not at hand.

States are arithmetic over the parts' shapes; activations and logits are counted in a step of fake numbers (`fakes`), so
that every part and setting counts as it is. What a GPU needs beside tensors (CUDA's context, workspaces, fragmentation:
usually 1 to 3 GB) is not in it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from speechzoo.audio import MAX_SAMPLES
from speechzoo.doctor.fake_batch import Work
from speechzoo.doctor.fakes import Ledger, count_step, fill_with_fakes, without_weights
from speechzoo.doctor.findings import Finding, error, ok, warning
from speechzoo.doctor.memory import Memory, state_bytes
from speechzoo.models import SpeechLLM
from speechzoo.training.sharding import blocks, restore_embedded

GPUS = {"L4": 24, "L40": 48, "L40S": 48, "A6000": 48, "A100": 80, "H100": 80, "H200": 141}
"""Memory in GB (10^9 bytes) by name."""

PROMPT = 64
"""Positions around clip and answer where the length of answers is not given."""

UNITS = 11
"""Units a token of an answer has: 553.6 over some 50 in InstructS2S-200K (arXiv 2409.06666, section 4.1)."""

TIGHT = 0.9
"""Share of a device's memory from which a run that fits is told to be tight."""


@dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    Attributes:
        name: for tables.
        devices: processes in all.
        memory: bytes of each; 0 unknown.
    """

    name: str
    devices: int
    memory: int

    @classmethod
    def parse(cls, text: str) -> Machine:
        """`8xH100`, `4x48GB`, `80GB`.

        Raises:
            ValueError: for anything else.
        """
        found = re.fullmatch(r"(?:(\d+)x)?(?:(\d+(?:\.\d+)?)GB|(\w+))", text.strip(), re.IGNORECASE)
        kind = (found[3] or "").upper() if found else ""
        if found is None or (kind and kind not in GPUS) or found[1] == "0":
            raise ValueError(f"{text!r} is no machine: 8xH100, 4x48GB or another of {', '.join(GPUS)}")
        return cls(text, int(found[1] or 1), int(float(found[2] or GPUS.get(kind, 0)) * 1e9))


@dataclass(frozen=True)
class Setting:
    """What the Trainer's settings decide.

    Attributes:
        strategy: `fsdp2`, `ddp`, `auto`, or another of one device.
        replicas: of fsdp2's `replicate_size`.
        precision: as the Trainer has it.
        accumulate: batches a step.
        frees: whether the callback FreeFrozen is there.
    """

    strategy: str = "auto"
    replicas: int = 1
    precision: str = "32-true"
    accumulate: int = 1
    frees: bool = False

    def shards(self, devices: int) -> int:
        """Processes that weights are cut over."""
        return max(1, devices // self.replicas) if self.strategy == "fsdp2" else 1

    @property
    def half(self) -> torch.dtype | None:
        """What autocast computes in."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

    @property
    def all_half(self) -> torch.dtype | None:
        """What all weights are turned into."""
        return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(self.precision)


@dataclass(frozen=True)
class Plan:
    """Bytes on each device: the most of each kind, and of all at one moment.

    Attributes:
        memory: what is there whatever the batch.
        activations, logits: of the step; kept ones, recomputed ones and gradients of them.
        buffers: gathered weights and gradients on their way (fsdp2), buckets (ddp), the optimizer's temporary copy.
        peak: less than the sum, as not all of it is there at once.
    """

    machine: Machine
    memory: Memory
    activations: int
    logits: int
    buffers: int
    peak: int

    @property
    def fits(self) -> bool:
        """Whether the peak is within a device's memory, as far as that is known."""
        return not self.machine.memory or self.peak <= self.machine.memory

    def check(self) -> Finding:
        """An error where it does not fit, with what would help."""
        text = f"{self.machine.name}: peak {self.peak / 1e9:.1f} of {self.machine.memory / 1e9:.1f} GB a device"
        if not self.machine.memory:
            return ok("memory", f"peak {self.peak / 1e9:.1f} GB a device")
        if self.memory.states > self.machine.memory or self.memory.crowded:
            finding = warning if self.fits else error
            return finding("memory", f"{text}, {self.memory.states / 1e9:.1f} of it states", self.memory.advice)
        advice = "lower data.max_tokens or data.batch_size, or recompute layers (llm.gradient_checkpointing)"
        if not self.fits:
            return error("memory", text, advice)
        return warning("memory", text, advice) if self.peak > TIGHT * self.machine.memory else ok("memory", text)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, bytes."""
        return {**asdict(self), "fits": self.fits}


def work_of(hollow: SpeechLLM, data: Any, positions: int | None, answer: int | None) -> Work:
    """The largest batch that a data module's settings allow, or one of rows that long.

    Args:
        positions: of the longest row; None: all that a prompt may take.
        answer: tokens of an answer; None: all that prompt and clip leave.
    """
    longest = positions or hollow.prompt.max_length
    most = getattr(data, "max_tokens", None)
    rows = int(getattr(data, "batch_size", 1))
    if most is not None:
        rows = max(1, min(rows, most // longest))
    clip = int(hollow.audio_positions(torch.tensor([MAX_SAMPLES]))[0])
    tokens = answer or max(1, longest - clip - PROMPT)
    cached = [getattr(data, f"{name}_cache", None) is not None for name in ("feature", "state", "teacher")]
    return Work(rows, longest, tokens, UNITS * tokens, *cached)


def plan(
    model: SpeechLLM,
    setting: Setting,
    data: Any,
    machines: Sequence[Machine],
    positions: int | None = None,
    answer: int | None = None,
) -> list[Plan]:
    """What a model that is not built yet needs on each of some machines.

    Args:
        data: the data module, for the size of batches and what is cached.
        positions, answer: see `work_of`.

    Raises:
        FileNotFoundError: if the shapes of a pretrained part are not to be had.
        ValueError: if the positions are too few.
    """
    hollow = without_weights(model)
    if setting.all_half:
        hollow = hollow.to(setting.all_half)
    work = work_of(hollow, data, positions, answer)
    steps: dict[bool, Ledger] = {}
    shards = {machine: setting.shards(machine.devices) for machine in machines}
    for cut in {number > 1 for number in shards.values()}:
        numbers = {number for number in shards.values() if (number > 1) == cut}
        steps[cut] = _step(hollow, setting, work, numbers)
    return [_on(machine, hollow, setting, work, shards[machine], steps[shards[machine] > 1]) for machine in machines]


def _step(hollow: SpeechLLM, setting: Setting, work: Work, shards: set[int]) -> Ledger:
    model, cut = copy.deepcopy(hollow), max(shards) > 1
    gathered = setting.half if cut else None
    blocked: set[str] = set()
    for part_name, part in model.named_children() if cut else ():
        if gathered:
            restore_embedded(part)
        inside = {id(weight) for block in blocks(part) for weight in block.parameters()}
        blocked |= {f"{part_name}.{name}" for name, weight in part.named_parameters() if id(weight) in inside}
    bytes_of = {name: weight.nbytes for name, weight in model.named_parameters()} if cut else None
    loose = {name for name, _ in model.named_parameters()} - blocked
    mode = fill_with_fakes(model, gathered)
    return count_step(model, work, setting.half, mode, shards, bytes_of, loose, min(2, setting.accumulate))


def _on(machine: Machine, hollow: SpeechLLM, setting: Setting, work: Work, shards: int, step: Ledger) -> Plan:
    held = sum(buffer.nbytes for buffer in hollow.buffers())
    loaded, learning, moments, whole = held, 0, 0, 0
    dtypes = {weight.dtype for weight in hollow.parameters() if weight.requires_grad}
    keeps = {dtype: state_bytes(hollow.optimizer_factory, dtype) for dtype in dtypes}
    for name, weight in hollow.named_parameters():
        loaded += weight.nbytes // shards
        if not (setting.frees and work.read and name.startswith(("encoder.", "adaptor.", "llm."))):
            held += weight.nbytes // shards
        if weight.requires_grad:
            kept = int(weight.numel() * keeps[weight.dtype])
            learning += weight.nbytes // shards
            moments += kept // shards
            whole += weight.nbytes + kept
    sharded = setting.strategy == "fsdp2"
    memory = Memory(held, learning, moments, whole, machine.memory, machine.devices, sharded)
    ddp = setting.strategy == "ddp" or (setting.strategy == "auto" and machine.devices > 1)  # which is then Lightning's
    during = end = learning if ddp else 0  # its buckets
    if shards > 1:
        gathered = [_gathered(part, setting.half) for part in hollow.children()]
        # Of blocks: the one that is computed, the next one and the buffer it comes in; of what learns in a block its
        # gradients, and once more in float32 on their way.
        during = max(loose + 3 * block + 3 * learns for loose, block, learns in gathered)
        end = max((3 * loose for loose, _, learns in gathered if learns), default=0)  # gathered, gradients in float32
    copied = learning if _copies(hollow.any_optimizer()) else 0
    gradients = step.live["gradients"] + step.summed // shards
    peak = held + moments + max(step.peaks[shards] + during, gradients + end, gradients + copied)
    return Plan(
        machine, memory, step.most["activations"], step.most["logits"], max(during, end, copied), max(peak, loaded)
    )


def _gathered(part: nn.Module, half: torch.dtype | None) -> tuple[int, int, int]:
    """Bytes, once they are gathered, of a part's loose weights, of its largest block, and of what learns there."""

    def size(weights: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * (half.itemsize if half and p.requires_grad else p.itemsize) for p in weights)

    inner = list(blocks(part))
    own = {id(p) for block in inner for p in block.parameters()}
    loose = size(p for p in part.parameters() if id(p) not in own)
    largest = max((size(block.parameters()) for block in inner), default=0)
    learns = max((size(p for p in block.parameters() if p.requires_grad) for block in inner), default=0)
    return loose, largest, learns


def _copies(optimizer: Optimizer) -> bool:
    """Whether a step makes a copy of all second moments: torch's Adam and its kin on a GPU, unless they are fused."""
    settings = optimizer.defaults
    plain = settings.get("foreach") is not False and not settings.get("fused")
    return type(optimizer).__module__.startswith("torch.optim") and "betas" in settings and plain


def table(plans: Sequence[Plan]) -> str:
    """A row for each machine, in GB (10^9 bytes) a device."""
    head = ("machine", "weights", "gradients", "optimizer", "activations", "logits", "buffers", "peak", "of", "")
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * 8 + "|---|"]
    for one in plans:
        m = one.memory
        parts = (m.weights, m.gradients, m.moments, one.activations, one.logits, one.buffers, one.peak)
        cells = [f"{part / 1e9:.1f}" for part in parts]
        cells.append(f"{one.machine.memory / 1e9:.0f}" if one.machine.memory else "?")
        lines.append(f"| {one.machine.name} | " + " | ".join(cells) + f" | {'fits' if one.fits else 'does not fit'} |")
    return "\n".join(lines)
