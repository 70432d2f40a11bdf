"""LLaMA-Omni's golden case: losses, gradients and optimizer steps of stage 1, stage 2 and both together."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speechzoo.fidelity.checks import CHAIN, LOGITS, LOSS, STEPPED, UNIT_LOGITS, set_learning
from speechzoo.fidelity.omni_case import OmniCase
from speechzoo.interop.llama_omni import released_name
from speechzoo.models.llama_omni import answer_states
from speechzoo.types import IGNORE, SpeechBatch, present

HELD = "from the held states"


def compare_gradients(case: OmniCase, stage: str, held: dict[str, Any]) -> None:
    """Norms by parameter and module, and the tensors that are held."""
    model, checks, golden = case.model, case.checks, case.golden
    grads = {released_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}
    norms = {name: float(grad.double().norm()) for name, grad in grads.items()}
    checks.norms(f"{stage}.grad norm by parameter", norms, held["params"])
    modules = {}
    for module in held["modules"]:
        squares = [norm**2 for name, norm in norms.items() if name.startswith(f"{module}.")]
        if squares:
            modules[module] = sum(squares) ** 0.5
    checks.norms(f"{stage}.grad norm by module", modules, held["modules"])
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    checks.norms(f"{stage}.grad norm in all", {"all": total}, {"all": held["total"]})
    for key in golden.names(f"{stage}.grad."):
        name = key.removeprefix(f"{stage}.grad.")
        grad = grads.get(name, grads.get(f"speech_generator.{name}"))
        checks.gradient(key, grad, golden[key])


def stage_1(case: OmniCase) -> None:
    """LM loss; adaptor and LLM learn."""
    with case.checks.step("stage1"):
        set_learning(case.model, ("adaptor.", "llm."))
        loss = case.model(replace(case.batch(), units=None)).losses["lm"]
        case.checks.close("stage1.loss", loss, case.golden["stage1.loss"], rtol=LOSS)
        loss.backward()
        compare_gradients(case, "stage1", case.meta["stage1_grad"])


def stage_2(case: OmniCase) -> None:
    """CTC loss in both alignments; the unit decoder learns."""
    model, checks, g = case.model, case.checks, case.golden
    set_learning(model, ("unit_decoder.",))
    batch = case.batch()
    with checks.step("stage2 states"):
        states, lens = _states(case, batch)
        for i in range(len(lens)):
            if f"stage2.reps.{i}" in g:
                checks.close(f"stage2.reps.{i}", states[i, : lens[i]], g[f"stage2.reps.{i}"], LOGITS)
        checks.equal("stage2.src_lens", lens, g["stage2.src_lens"])
        up_lens = model.unit_decoder.up_lens(lens, batch.units, batch.unit_lens)
        checks.equal("stage2.up_lens", up_lens, g["stage2.up_lens"])
        steps = torch.arange(int(up_lens.max())).expand(len(up_lens), -1)
        real = steps < up_lens[:, None]
        checks.equal("stage2.upsample_mask", real.long(), g["stage2.upsample_mask"].long())
        checks.equal("stage2.position_ids", steps, g["stage2.position_ids"])
        held = g["stage2.uniform_assignment"]
        checks.equal("stage2.uniform_assignment", model.unit_decoder.assignment(lens, up_lens), held, where=real)
    with checks.step("stage2"):
        out = model(batch)
        real = g["stage2.upsample_mask"].bool()
        held = _held_states(case)
        logits = model.unit_decoder.logits(held, g["stage2.src_lens"], g["stage2.up_lens"])
        checks.close("stage2.unit_logits", logits, g["stage2.unit_logits"], UNIT_LOGITS, where=real, note=HELD)
        checks.gradient("stage2.unit_logits from mel", out.unit_logits[real], g["stage2.unit_logits"][real], CHAIN)
        checks.close("stage2.ctc_loss", out.losses["ctc"], g["stage2.ctc_loss"], rtol=LOSS)
        out.losses["ctc"].backward()
        compare_gradients(case, "stage2", case.meta["stage2_grad"])
    with checks.step("stage2 alignments"):
        for align, name in (("label", "code"), ("predict", "paper")):
            key = f"stage2.ctc_loss_{name}_alignment"
            checks.close(key, _ctc(case, batch, align), g[key], rtol=LOSS, note=f"align: {align}")
    with checks.step("stage2 rows alone"):
        for i, key in enumerate(g.names("stage2.ctc_loss_b1.")):
            checks.close(key, _ctc(case, row(batch, i), "label"), g[key], rtol=LOSS)


def optimizer_steps(case: OmniCase) -> None:
    """Losses over AdamW steps of stage 2, from the imported weights."""
    held = case.meta.get("stage2_adamw")
    if not held:
        return
    with case.checks.step("stage2 AdamW"):
        set_learning(case.model, ("unit_decoder.",))
        batch = case.batch()
        states, lens = _states(case, batch)
        decoder = copy.deepcopy(case.model.unit_decoder)
        optimizer = torch.optim.AdamW(
            decoder.parameters(),
            lr=held["lr"],
            betas=tuple(held["betas"]),
            eps=held["eps"],
            weight_decay=held["weight_decay"],
        )
        losses = []
        for _ in held["losses"]:
            lost = decoder(states, lens, batch.units, batch.unit_lens).loss_sum
            loss = lost / present(batch.unit_lens, "unit_lens").sum()
            losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ours, theirs = torch.stack(losses), torch.tensor(held["losses"])
        case.checks.close("stage2 loss before AdamW steps", ours[:1], theirs[:1], rtol=LOSS)
        case.checks.close("stage2 losses after AdamW steps", ours[1:], theirs[1:], rtol=STEPPED)


def joint(case: OmniCase) -> None:
    """LM plus weighted CTC loss, nothing detached."""
    if "joint.loss" not in case.golden:
        return
    with case.checks.step("joint"):
        set_learning(case.model, ("adaptor.", "llm.", "unit_decoder."))
        out = case.model(case.batch())
        loss = sum(case.model.loss_weights[name] * value for name, value in out.losses.items())
        case.checks.close("joint.loss", loss, case.golden["joint.loss"], rtol=LOSS)
        loss.backward()
        compare_gradients(case, "joint", case.meta["joint_grad"])
    set_learning(case.model, ())


def _held_states(case: OmniCase) -> Tensor:
    rows = [case.golden[f"stage2.reps.{i}"] for i in range(len(case.golden.names("stage2.reps.")))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.no_grad()
def _states(case: OmniCase, batch: SpeechBatch, align: str = "label") -> tuple[Tensor, Tensor]:
    out = case.model(replace(batch, units=None))
    return answer_states(out.hidden, out.turns, present(batch.unit_turns, "unit_turns"), align)


@torch.no_grad()
def _ctc(case: OmniCase, batch: Any, align: str) -> Tensor:
    states, lens = _states(case, batch, align)
    return case.model.unit_decoder(states, lens, batch.units, batch.unit_lens).loss_sum / batch.unit_lens.sum()


def row(batch: Any, i: int) -> SpeechBatch:
    """One row of a batch whose clips and units are one a row, without the batch's padding."""
    keep = batch.attention_mask[i]
    units = batch.units[i]
    return SpeechBatch(
        batch.input_ids[i][keep][None],
        torch.ones(1, int(keep.sum()), dtype=torch.bool),
        batch.turns[i][keep][None],
        features=batch.features[i : i + 1],
        feature_lens=batch.feature_lens[i : i + 1],
        units=units[units != IGNORE][None],
        unit_lens=batch.unit_lens[i : i + 1],
        unit_turns=torch.tensor([[0, 1]]),
    )
