"""What learns: parameters by part, one backward pass, precision, new tokens that nobody trains."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from speechzoo.doctor.findings import Finding, error, note, ok, warning
from speechzoo.names.hugging_face import hub_options
from speechzoo.system.ranks import world_size
from speechzoo.types import AUDIO, SpeechBatch, SpeechOutput


def check_parameters(model: nn.Module) -> list[Finding]:
    """Trainable parameters of each part, and whether they are kept precisely enough to learn."""
    found, trainable = [], 0
    for name, part in model.named_children():
        parameters = list(part.parameters())
        if not parameters:
            continue
        learning = [p for p in parameters if p.requires_grad]
        count, total = sum(p.numel() for p in learning), sum(p.numel() for p in parameters)
        trainable += count
        found.append(note("parameters", f"{name}: {count:,} of {total:,} learn"))
        if low := sorted({str(p.dtype) for p in learning if p.dtype in (torch.bfloat16, torch.float16)}):
            text = f"{name} learns in {low[0].removeprefix('torch.')}: small updates are rounded away"
            found.append(warning("low_precision", text, "dtype: float32 with precision: bf16-mixed"))
    if not trainable:
        found.append(error("nothing_learns", "all parameters are frozen", "see model.freeze"))
    return found


def check_precision(precision: str, pretrained_dtype: torch.dtype | None) -> list[Finding]:
    """fp16 overflows in LLMs that were trained in bf16.

    Args:
        precision: the Trainer's.
        pretrained_dtype: of the LLM's checkpoint.
    """
    if not precision.startswith("16"):
        return [ok("precision", precision)]
    if pretrained_dtype == torch.bfloat16:
        text = f"precision {precision} for an LLM that was trained in bfloat16: activations overflow"
        return [error("fp16", text, "trainer.precision: bf16-mixed (or name fp16 in doctor.ignore)")]
    return [warning("fp16", f"precision {precision} overflows easily", "trainer.precision: bf16-mixed, where possible")]


def pretrained_dtype(name: str | None) -> torch.dtype | None:
    """The dtype a Hugging Face checkpoint was saved in; None if it does not say."""
    from transformers import AutoConfig

    if not name:
        return None
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_options(name))
    except (OSError, ValueError):
        return None
    dtype = getattr(config, "dtype", None)
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def check_new_tokens(llm: Any) -> list[Finding]:
    """Tokens that were added to the vocabulary, whose embeddings are frozen as they were made."""
    if not getattr(llm, "new_tokens", None):
        return []
    own = getattr(llm, "new_embeddings", None)
    if own is None:
        return [note("new_tokens", f"{len(llm.new_tokens)} tokens are new; this LLM does not say how they are trained")]
    if own.requires_grad:
        return [ok("new_tokens", f"{len(llm.new_tokens)} new tokens, whose embeddings learn")]
    start = whole(llm.lm.get_input_embeddings().weight)[llm.new_tokens]
    if torch.equal(whole(own).float(), start.float()):
        text = f"the embeddings of {len(llm.new_tokens)} new tokens are frozen as they were made, and never trained"
        advice = r"freeze ^llm\.lm\. instead of ^llm\., or give the stage that trained them as model.init_from"
        return [error("new_tokens", text, advice)]
    return [ok("new_tokens", f"{len(llm.new_tokens)} new tokens, trained in an earlier stage")]


def check_gradients(model: nn.Module) -> list[Finding]:
    """Who got a gradient, after a backward pass; agreed on by all processes."""
    named = list(model.named_parameters())
    flags = torch.stack([_flags(parameter.grad, named[0][1].device) for _, parameter in named])
    if world_size() > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    missing, wrong = [], []
    alive, learning, bad = Counter[str](), Counter[str](), Counter[str]()
    for (name, parameter), (has, moves, broken) in zip(named, flags.tolist(), strict=True):
        part = name.split(".")[0]
        if parameter.requires_grad:
            learning[part] += 1
            alive[part] += moves
            bad[part] += broken
            if not has:
                missing.append(name)
        elif has:
            wrong.append(name)
    found = []
    if missing:
        text = f"{len(missing)} trained parameters got no gradient: {', '.join(missing[:3])}"
        advice = "freeze them, or give the loss they serve a weight (model.loss_weights) and targets; DDP fails on them"
        found.append(error("no_gradient", text, advice))
    if wrong:
        text = f"{len(wrong)} frozen parameters got a gradient: {', '.join(wrong[:3])}"
        found.append(error("frozen_gradient", text, "a part sets requires_grad behind model.freeze"))
    for part in learning:
        if bad[part]:
            text = f"gradients of {part} are NaN or infinite in {bad[part]} of {learning[part]} parameters"
            found.append(error("gradient_not_finite", text, "look at the batch, the precision and the initial weights"))
        elif not alive[part] and not any(name.startswith(f"{part}.") for name in missing):
            text = f"all gradients of {part} are zero"
            found.append(error("zero_gradient", text, "something cuts the graph: a detach, a mask, a zero weight"))
    return found or [ok("gradients", "every trained parameter gets one, no frozen one does")]


def check_loss(out: SpeechOutput) -> list[Finding]:
    """Losses of the first batch."""
    found = []
    for name, value in out.losses.items():
        loss = float(value.detach())
        if not torch.isfinite(value.detach()):
            text = f"the {name} loss of the first batch is {loss}"
            found.append(error("loss_not_finite", text, "look at the sound, the units and the precision"))
        else:
            found.append(note("first_loss", f"{name} {loss:.3f}"))
    if number := out.counters.get("infeasible_units", 0):
        text = f"{number} answers have units that the unit decoder cannot give: they are left out of the loss"
        advice = "raise a CTC decoder's upsample, merge repeated units, or make units with the model's own k-means"
        found.append(error("ctc_infeasible", text, advice))
    return found


def check_frames(
    batch: SpeechBatch, out: SpeechOutput, adaptor_lens: list[int] | None, promised_lens: list[int] | None
) -> list[Finding]:
    """Positions of the clips: what the length functions promised, what the adaptor gave, what the LLM saw.

    Args:
        adaptor_lens: frames the adaptor gave for each clip; None where the LLM did not run.
        promised_lens: `audio_positions` of each clip; None for cached features.
    """
    if adaptor_lens is None or out.hidden is None:
        return []
    if promised_lens is not None and adaptor_lens != promised_lens:
        pair = next(p for p in zip(adaptor_lens, promised_lens, strict=True) if p[0] != p[1])
        text = f"the adaptor gives {pair[0]} frames for a clip, its out_lens says {pair[1]}"
        return [error("frames", text, "Adaptor.out_lens and Encoder.out_lens have to be exact")]
    clips = (batch.input_ids == AUDIO) & batch.attention_mask
    widths = batch.attention_mask.long()
    if adaptor_lens:
        widths = widths.masked_scatter(clips, torch.tensor(adaptor_lens, device=widths.device))
    expected, seen = widths.sum(dim=1).tolist(), out.mask.sum(dim=1).tolist()
    if expected != seen:
        pair = next(p for p in zip(seen, expected, strict=True) if p[0] != p[1])
        text = f"a row has {pair[0]} positions in the LLM, its text and clips make {pair[1]}"
        return [error("frames", text, "the splice loses or invents positions")]
    return [ok("frames", f"{len(adaptor_lens)} clips take {sum(adaptor_lens)} positions, as promised")]


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; a collective call where it is cut over processes."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _flags(gradient: Tensor | None, device: torch.device) -> Tensor:
    """(there, not all zero, not finite) as `[3]` integers."""
    if gradient is None:
        return torch.zeros(3, dtype=torch.long, device=device)
    own = local(gradient)
    return torch.stack([torch.ones((), dtype=torch.bool, device=own.device), own.any(), ~own.isfinite().all()]).long()
