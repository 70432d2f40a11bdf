"""Which weights a run stands on: content hashes of what is frozen, and the refusal of others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (64 hex digits) over names, types, shapes and every byte of tensors, whatever their order.

    Tensors are hashed side by side, as hashlib lets other threads run: several GB a second on a server.
    """

    def one(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        held = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        held.update(flat.view(torch.uint8).numpy().data)
        return held.digest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(one, sorted(tensors, key=lambda item: item[0])))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def frozen_parts(module: nn.Module, names: Iterable[str], sources: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What each part's frozen tensors are: `{part: {"sha256", "dtype", "source"}}`, parts without any left out.

    Whole tensors are needed: call it before a model is sharded.

    Args:
        module: its children are the parts.
        names: the parts to hash.
        sources: name of the pretrained weights of a part, for messages alone.
    """
    parts: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in names}
    # nn.Module's own: a speech LLM's `state_dict` leaves out what is wanted here.
    for name, tensor in nn.Module.state_dict(module, keep_vars=True).items():
        part, _, rest = name.partition(".")
        if part in parts and not tensor.requires_grad:
            parts[part].append((rest, tensor))
    return {part: known_by(tensors, sources.get(part, "")) for part, tensors in sorted(parts.items()) if tensors}


def known_by(tensors: Sequence[tuple[str, Tensor]], source: str) -> dict[str, str]:
    """What frozen tensors of a part are: `{"sha256", "dtype", "source"}`."""
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors})
    return {"sha256": digest(tensors), "dtype": ", ".join(dtypes), "source": source}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for each frozen part, and each earlier stage, that is not what a checkpoint was trained on.

    Args:
        saved, now: `{"bases": as from frozen_parts, "stages": [{"path", "sha256"}]}`.
    """
    found = []
    theirs, ours = saved["bases"], now["bases"]
    for part in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(part), ours.get(part)
        if one is None or other is None:
            found.append(f"{part} is frozen only {'now' if one is None else 'in the checkpoint'}")
        elif one["sha256"] != other["sha256"]:
            found.append(changed(part, one, other))
    for index, (one, other) in enumerate(zip_longest(saved["stages"], now["stages"])):
        if one is None or other is None:
            found.append(f"init_from names {len(now['stages'])} stages, it was {len(saved['stages'])}")
            break
        if one["sha256"] != other["sha256"]:
            found.append(
                f"the stage it started from, init_from[{index}], has changed: {one['path']} held weights "
                f"{one['sha256'][:12]}, {other['path']} holds {other['sha256'][:12]}"
            )
    return found


def changed(part: str, one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What is said of a part that was frozen as one thing and is another now."""
    return f"the frozen {part} was {_describe(one)}, now it is {_describe(other)}"


def _describe(base: Mapping[str, str]) -> str:
    source = f"{base['source']}, " if base["source"] else ""
    return f"{source}{base['dtype']}, sha256 {base['sha256'][:12]}"
