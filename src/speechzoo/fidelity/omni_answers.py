"""LLaMA-Omni's golden case: generated text, units offline and step by step, sound."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from speechzoo.fidelity.checks import CHAIN, LOGITS, UNIT_LOGITS, WAVE
from speechzoo.fidelity.omni_case import OmniCase
from speechzoo.fidelity.omni_training import HELD
from speechzoo.models.llama_omni import answer_states
from speechzoo.types import SpeechBatch
from speechzoo.vocoders import UnitHiFiGAN


@torch.no_grad()
def answers(case: OmniCase) -> None:
    """Greedy tokens, states, unit logits, units, and how many units each step brings."""
    g, checks, model = case.golden, case.checks, case.model
    limit = case.meta["config"]["max_new_tokens"]
    for i, entry in enumerate(case.meta["generate"]):
        with checks.step(f"gen.{i}"):
            ids = g[f"prompt.{entry['prompt']}.input_ids"]
            batch = case.question(ids, [entry["wave"]], torch.tensor([entry["speech_lengths"]]))
            tokens, states = _answer(case, batch, limit)
            checks.equal(f"gen.{i}.tokens", tokens, g[f"gen.{i}.tokens"])
            checks.close(f"gen.{i}.hidden", states, g[f"gen.{i}.hidden"], LOGITS)
            held = g[f"gen.{i}.unit_logits"]
            logits = _unit_logits(case, g[f"gen.{i}.hidden"])
            checks.close(f"gen.{i}.unit_logits", logits, held, UNIT_LOGITS, note=HELD)
            checks.gradient(f"gen.{i}.unit_logits from mel", _unit_logits(case, states), held, CHAIN)
            checks.equal(f"gen.{i}.ctc_pred", logits.argmax(-1), g[f"gen.{i}.ctc_pred"])
            checks.equal(f"gen.{i}.units", model.respond(batch, max_new_tokens=limit).units[0], g[f"gen.{i}.units"])
            steps = [_units(case, states[:n]) for n in range(1, len(states) + 1)]
            counts = [len(units) for units in steps]
            checks.equal(f"gen.{i}.stream_unit_counts", counts, g[f"gen.{i}.stream_unit_counts"])
            whole = steps[-1]
            stable = [bool(units.equal(whole[: len(units)])) for units in steps]
            checks.equal(f"gen.{i} streamed units are a prefix", stable, [True] * len(stable))
    with checks.step("gen.text"):
        if "gen.text.tokens" in g:
            held = g["gen.text.tokens"]
            batch = case.question(g["prompt.text.input_ids"], [], torch.zeros(0, dtype=torch.long))
            tokens, states = _answer(case, batch, len(held))
            checks.equal("gen.text.tokens", tokens, held)
            checks.equal("gen.text.units", _units(case, states), g["gen.text.units"])
    with checks.step("gen_b2"):
        if "gen_b2.tokens" in g:
            held = g["gen_b2.tokens"]
            lens = g["gen_b2.speech_lengths"]
            batch = case.question(g["gen_b2.input_ids"], list(range(len(lens))), lens)
            batch = replace(batch, attention_mask=g["gen_b2.attention_mask"].bool())
            rows = model.answer_ids(batch, *model.encode(batch), max_new_tokens=held.shape[1])
            for i, ids in enumerate(rows):
                checks.equal(f"gen_b2.tokens row {i}", ids, held[i, : len(ids)])
                rest = held[i, len(ids) :]
                checks.equal(f"gen_b2.tokens row {i} ends there", rest, torch.full_like(rest, model.prompt.pad_id))


def _answer(case: OmniCase, batch: SpeechBatch, limit: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens `[M]` and the states that predict them `[M, H]`."""
    model = case.model
    speech, lens = model.encode(batch)
    tokens = model.answer_ids(batch, speech, lens, max_new_tokens=limit)[0]
    ids = torch.cat([batch.input_ids, tokens[None]], dim=1)
    turns = torch.cat([batch.turns, torch.ones_like(tokens)[None]], dim=1)
    out = model.llm(ids, torch.ones_like(ids, dtype=torch.bool), turns, speech, lens, loss=False)
    states, _ = answer_states(out.hidden, out.turns, torch.tensor([[0, 1]]), model.unit_decoder.answer_align)
    return tokens, states[0]


def _unit_logits(case: OmniCase, states: Tensor) -> Tensor:
    decoder, lens = case.model.unit_decoder, torch.tensor([len(states)])
    return decoder.logits(states[None], lens, decoder.up_lens(lens))[0]


def _units(case: OmniCase, states: Tensor) -> Tensor:
    return case.model.unit_decoder.decode(states[None], torch.tensor([len(states)]))[0]


def chunk_bounds(counts: list[int], size: int) -> list[int]:
    """Ends of the pieces a streamed answer is vocoded in: all new units as soon as there are `size` of them, the rest
    at the end (the released demo; Algorithm 1 of the paper).

    Args:
        counts: units known after each step.
    """
    bounds: list[int] = []
    for count in counts:
        if count - (bounds[-1] if bounds else 0) >= size:
            bounds.append(count)
    if counts and counts[-1] > (bounds[-1] if bounds else 0):
        bounds.append(counts[-1])
    return bounds


@torch.no_grad()
def sound(case: OmniCase, vocoder: UnitHiFiGAN) -> None:
    """Durations and waveforms, whole and in pieces."""
    g, checks = case.golden, case.checks
    numbers = sorted({int(name.split(".")[1]) for name in g.names("voc.")})
    for i in numbers:
        with checks.step(f"voc.{i}"):
            units = g[f"voc.{i}.units"]
            logs = vocoder.durations(vocoder.embedding(units[None]))[0]
            checks.close(f"voc.{i}.log_dur", logs, g[f"voc.{i}.log_dur"], WAVE)
            checks.equal(f"voc.{i}.dur", vocoder.predict_durations(units), g[f"voc.{i}.dur"])
            checks.close(f"voc.{i}.wav", vocoder([units])[0], g[f"voc.{i}.wav"], WAVE)
            plain = vocoder([units], durations=False)[0]
            checks.close(f"voc.{i}.wav_nodur", plain, g[f"voc.{i}.wav_nodur"], WAVE)
            for key in g.names(f"voc.{i}.chunk"):
                if not key.endswith(".bounds"):
                    continue
                base, bounds = key.removesuffix(".bounds"), g[key].tolist()
                starts = [0, *bounds[:-1]]
                wave = torch.cat([vocoder([units[a:b]])[0] for a, b in zip(starts, bounds, strict=True)])
                checks.close(f"{base}.wav", wave, g[f"{base}.wav"], WAVE)
                counts = _streamed(case, units)
                if counts:
                    ours = chunk_bounds(counts, int(base.rpartition("chunk")[2]))
                    checks.equal(f"{base}.bounds", ours, g[key])


def _streamed(case: OmniCase, units: Tensor) -> list[int] | None:
    """Counts per step of the held answer that these units are."""
    for i in range(len(case.meta["generate"])):
        if case.golden[f"gen.{i}.units"].equal(units):
            return case.golden[f"gen.{i}.stream_unit_counts"].tolist()
    return None
