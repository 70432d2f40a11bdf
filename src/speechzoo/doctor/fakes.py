"""A training step of a model without its numbers: what would live on the device, counted tensor by tensor."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from speechzoo.doctor.fake_batch import Work, fake_batch
from speechzoo.models import SpeechLLM
from speechzoo.names.shapes import LLAMAS, without_reading
from speechzoo.training.exact_loss import step_loss
from speechzoo.training.freeze import freeze

KINDS = ("activations", "logits", "gradients")

_aten = torch.ops.aten
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


class Ledger(TorchDispatchMode):
    """Counts the bytes that operations inside it allocate and have not let go.

    Numbers may be fake (`FakeTensor`), for which nothing is computed, while ids, lengths and masks are real, so that
    code which asks for a length gets one. What is in `outside` is not counted.

    Args:
        outside: tensors that were there before.
        wide: widths of vocabularies, by which logits are known.

    Attributes:
        live: bytes now, by kind.
        most: the most of each kind.
        summed: bytes of gradients that were summed over processes, whole.
        peaks: the most of all together, by the number of processes that hold a part of `summed` each.
    """

    def __init__(self, outside: list[Tensor], wide: set[int], shards: Collection[int] = (1,)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wide, self.live, self.summed = wide, dict.fromkeys(KINDS, 0), 0
        self.peaks = dict.fromkeys(shards, 0)
        self.most = dict(self.live)
        self._held: Any = WeakIdKeyDictionary()
        for tensor in outside:
            self._held[tensor.untyped_storage()] = ["", 0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _INDEXED:  # a fake tensor cannot be indexed by a mask: how much comes out is not in its shape
            args = (args[0], _places(args[1]), *args[2:])
        out: Any
        if func is _aten._ctc_loss.Tensor:  # which torch takes for one whose result has an unknown shape
            log_probs, targets = args[:2]
            out = log_probs.new_empty(log_probs.shape[1]), log_probs.new_empty(*_alphas(log_probs, targets))
        elif func is _aten._ctc_loss_backward.Tensor:
            log_probs, alphas = args[1], args[6]
            out = torch.empty_like(log_probs)
            self.add("activations", alphas.nbytes)  # the betas, which the kernel makes and lets go
            self.add("activations", -alphas.nbytes)
        else:
            out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, out)
        return out

    def see(self, tensor: Tensor) -> None:
        """Count a tensor, unless its memory is counted already."""
        storage = tensor.untyped_storage()
        if storage in self._held:
            return
        wide = tensor.dim() > 1 and tensor.shape[-1] in self.wide and tensor.is_floating_point()
        entry: list[Any] = ["logits" if wide else "activations", storage.nbytes()]
        self._held[storage] = entry
        weakref.finalize(storage, self._let_go, entry)
        self.add(entry[0], entry[1])

    def _let_go(self, entry: list[Any]) -> None:
        self.live[entry[0]] -= entry[1]

    def add(self, kind: str, number: int) -> None:
        """Count so many bytes more."""
        self.live[kind] += number
        self.most[kind] = max(self.most[kind], self.live[kind])
        self.look()

    def look(self) -> None:
        """Compare what lives now with the peaks."""
        total = sum(self.live.values())
        for shards, peak in self.peaks.items():
            self.peaks[shards] = max(peak, total + self.summed // shards)

    def claim(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor as another kind from now on."""
        entry = self._held.get(tensor.untyped_storage())
        if entry is not None and entry[0] and entry[0] != kind:
            self.live[entry[0]] -= entry[1]
            entry[0] = kind
            self.add(kind, entry[1])


def _alphas(log_probs: Tensor, targets: Tensor) -> tuple[int, int, int]:
    """Shape of CTC's forward variables: rows, positions, and the targets with a blank around each."""
    return log_probs.shape[1], log_probs.shape[0], 2 * targets.shape[1] + 1


def _places(indices: Any) -> list[Any]:
    found: list[Any] = []
    for index in indices:
        mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero().unbind(1) if mask else [index]
    return found


def without_weights(model: SpeechLLM) -> SpeechLLM:
    """A copy of a model that is not built yet, built and frozen as its settings say, without numbers.

    No weight is read: a configuration of each pretrained part is, or its known sizes (`names.shapes`).

    Raises:
        FileNotFoundError: if neither is to be had.
    """
    hollow = copy.deepcopy(model)
    try:
        _ = hollow.prompt.tokenizer
    except FileNotFoundError:  # its ids do not matter, but how many new ones there are does
        known = LLAMAS.get(hollow.prompt.name)
        if known is None:
            raise
        first: int = known["vocab_size"]
        hollow.prompt._base_size = first
        ids = SimpleNamespace(convert_tokens_to_ids=lambda tokens: [first + i for i in range(len(tokens))])
        vars(hollow.prompt)["tokenizer"] = ids
    with without_reading(), torch.device("meta"):
        hollow.build()
    freeze(hollow, hollow.freeze_patterns)
    return hollow.train()


def fill_with_fakes(module: nn.Module, learning: torch.dtype | None = None) -> FakeTensorMode:
    """Put fake numbers on the CPU in the place of what is on the meta device, tied tables staying tied.

    Args:
        learning: dtype of the weights that learn; None leaves it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    with mode:
        for child in module.modules():
            for tensors in (child._parameters, child._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_meta or isinstance(tensor, FakeTensor):
                        continue
                    if id(tensor) not in made:
                        learns = isinstance(tensor, nn.Parameter) and tensor.requires_grad
                        dtype = learning if learning and learns else tensor.dtype
                        fake = torch.empty(tensor.shape, dtype=dtype, device="cpu")
                        made[id(tensor)] = nn.Parameter(fake, learns) if isinstance(tensor, nn.Parameter) else fake
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]  # a parameter for a parameter
    return mode


def count_step(
    model: SpeechLLM,
    work: Work,
    half: torch.dtype | None,
    mode: FakeTensorMode,
    shards: Collection[int] = (1,),
    bytes_of: Mapping[str, int] | None = None,
    loose: Collection[str] = (),
    repeats: int = 1,
) -> Ledger:
    """Forward and backward of a model of fake numbers.

    Args:
        half: what autocast computes in; None for none.
        shards: numbers of processes to work out the peak for.
        bytes_of: where weights are cut over processes, how large each one's gradient is once it is summed over them, by
            name; each process keeps its part of that.
        loose: names of those outside of blocks, whose gradients are summed at the end.
        repeats: passes before the optimizer's step: gradients stand beside the activations of all but the first.
    """
    batch = fake_batch(model, work, mode)
    llm: Any = model.llm
    vocabulary = llm.lm.get_input_embeddings().weight.shape[0] if hasattr(llm, "lm") else 0
    wide = {int(vocabulary), (model.num_units or -1) + 1} - {0}
    ledger = Ledger([*model.parameters(), *model.buffers()], wide, shards)
    for value in [*vars(batch).values(), *(vars(batch.written).values() if batch.written else ())]:
        if isinstance(value, Tensor):
            ledger.see(value)
    done: set[str] = set()

    def summed(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        if bytes_of is not None and name not in done:
            ledger.summed += bytes_of[name]
            ledger.look()
            done.add(name)
        if bytes_of is None or name in loose:
            ledger.claim(weight.grad, "gradients")
        else:
            weight.grad = None

    learning = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(partial(summed, name)) for name, weight in learning]
    try:
        with ledger:
            for _ in range(repeats):
                with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
                    out = model.forward(batch)
                    loss = step_loss(out.sums, model.num_targets(batch), model.loss_weights, 1, 1)
                del out
                loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return ledger
