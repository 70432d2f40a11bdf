"""Units of the autoregressive decoder while an answer is written: streamed = offline, in time with the schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from asked_models import QUESTIONS, Square, a_stop, batch_of
from asked_models import make as make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.generation.events import Speaker
from speechzoo.models import LLaMAOmni2
from speechzoo.types import AudioChunk, StreamEnd, TextDelta, UnitDelta
from speechzoo.units import ARUnitDecoder

K, H, V = 11, 8, 20


def make(weights: int = 0, **changes) -> ARUnitDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights)
        options = {"dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 24, "rope_theta": 100.0}
        options |= {"temperature": 0.0, "max_units": 9, "read": 2, "write": 3, "num_units": K}
        decoder = ARUnitDecoder(H, V, **{**options, **changes}).eval()
        with torch.no_grad():  # initial logits are nearly flat: spread them, so that what is likeliest changes often
            for parameter in decoder.parameters():
                if parameter.dim() > 1:
                    parameter *= 8 if parameter.std() < 0.05 else 3
    return decoder


def never_ending(decoder: ARUnitDecoder) -> ARUnitDecoder:
    """It stops at its bound alone."""
    never = -1e4 * torch.nn.functional.one_hot(torch.tensor(K), K + 1)
    decoder.output_proj.register_forward_hook(lambda _, args, out: out + never)
    return decoder


@st.composite
def decoders(draw) -> ARUnitDecoder:
    return make(
        draw(st.integers(0, 10_000)),
        read=draw(st.integers(1, 4)),
        write=draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 2)),
        temperature=draw(st.sampled_from([0.0, 0.0, 1.0])),
        seed=3,
    )


@torch.no_grad()
def plain(decoder: ARUnitDecoder, states: torch.Tensor, ids: torch.Tensor) -> list[int]:
    """Greedy units of one row the long way: everything is read anew for each unit, and nothing is kept."""
    if not len(states):
        return []
    text, schedule = decoder.fused(states, ids), decoder.schedule
    held, units, at = text[:0], [], 0
    while True:
        last = len(text) - at <= schedule.read
        held = torch.cat([held, text[at : at + schedule.read], decoder.separator[: int(last)]])
        at += schedule.read
        for _ in range(decoder.max_units if last else schedule.write):
            state = decoder.speech_lm(inputs_embeds=held[None]).last_hidden_state[0, -1]
            unit = int(decoder.output_proj(state).argmax())
            if unit == decoder.end:
                return units
            units.append(unit)
            held = torch.cat([held, decoder.unit_embed.weight[unit][None]])
        if last:
            return units


@settings(max_examples=60, deadline=None)
@given(decoder=decoders(), data=st.data())
def test_streamed_units_are_the_offline_units(decoder, data):
    """Rows of different length, tokens in calls of any size, ended rows dropped or carried along."""
    lens = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    width = max(lens)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    states = torch.randn(len(lens), width, H, generator=generator)
    ids = torch.randint(0, V, (len(lens), width), generator=generator)
    offline = [u.tolist() for u in decoder.decode(states, torch.tensor(lens), ids=ids)]
    if not decoder.decoding.do_sample:
        assert offline == [plain(decoder, s[:n], i[:n]) for s, i, n in zip(states, ids, lens, strict=True)]

    stream, rows = decoder.stream(len(lens)), list(range(len(lens)))
    got: list[list[int]] = [[] for _ in lens]
    at = 0
    while at < width:
        size = data.draw(st.integers(1, width - at))
        real = torch.tensor([min(size, max(0, lens[row] - at)) for row in rows])
        ended = torch.tensor([lens[row] <= at + size for row in rows])
        new = stream.push(states[rows, at : at + size], real, ids=ids[rows, at : at + size], ended=ended)
        for row, units in zip(rows, new, strict=True):
            got[row] += units.tolist()
        at += size
        if data.draw(st.booleans()):
            alive = [i for i, row in enumerate(rows) if lens[row] > at]
            if alive:
                stream.keep(alive)
                rows = [rows[i] for i in alive]
    assert got == offline


@torch.no_grad()
def test_paper_schedule_over_a_long_answer_agrees_token_by_token():
    """3 tokens, 10 units, 50 times over, and then what is left."""
    decoder = never_ending(make(read=3, write=10, max_units=60))
    generator = torch.Generator().manual_seed(1)
    states, ids = torch.randn(1, 150, H, generator=generator), torch.randint(0, V, (1, 150), generator=generator)
    (offline,) = decoder.decode(states, torch.tensor([150]), ids=ids)
    stream, counts, units = decoder.stream(1), [], []
    for at in range(150):
        (new,) = stream.push(states[:, at : at + 1], ids=ids[:, at : at + 1], ended=torch.tensor([at == 149]))
        counts.append(len(new))
        units += new.tolist()
    assert units == offline.tolist() and len(set(units)) > 5
    assert counts == [10 if at % 3 == 0 else 0 for at in range(1, 150)] + [60]


def test_each_token_and_unit_is_read_once():
    decoder, read = never_ending(make()), []
    decoder.speech_lm.layers[0].register_forward_hook(lambda _, args, out: read.append(args[0].shape[1]))
    states, ids = torch.randn(1, 9, H), torch.randint(0, V, (1, 9))
    (units,) = decoder.decode(states, torch.tensor([9]), ids=ids)
    assert len(units) == 4 * 3 + 9 and sum(read) == 9 + 1 + len(units) - 1  # nothing is written after the last unit


def test_faults_are_refused():
    decoder = make()
    stream = decoder.stream(2)
    two = {"states": torch.randn(2, 2, H), "ids": torch.zeros(2, 2).long()}
    stream.push(**two, lens=torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="a row that ended got more states"):
        stream.push(**two)
    with pytest.raises(ValueError, match="states of 3 rows, but this stream holds 2"):
        stream.push(torch.randn(3, 1, H), ids=torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="say so in `ended`, with that token"):
        stream.push(two["states"][:, :1], torch.tensor([0, 0]), ids=two["ids"][:, :1])
    with pytest.raises(ValueError, match="there is no ids here"):
        decoder.stream(2).push(two["states"])
    assert [u.tolist() for u in decoder.stream(2).push(torch.randn(2, 0, H))] == [[], []]
    decoder.align = "label"
    with pytest.raises(ValueError, match="ARUnitDecoder reads_ids: it has to align to `predict`"):
        Speaker(decoder)


WRITER = partial(
    ARUnitDecoder,
    num_units=12,
    read=3,
    write=4,
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=32,
    max_units=10,
    temperature=0.0,
)


@pytest.fixture(scope="module")
def omni2(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> LLaMAOmni2:
    model = make_model(LLaMAOmni2, tiny_llm_dir, tiny_whisper_pt, unit_decoder=WRITER)
    with torch.no_grad():
        model.unit_decoder.unit_embed.weight *= 20
        model.unit_decoder.speech_lm.embed_tokens.weight *= 20
        model.unit_decoder.output_proj.weight[-1] = 0  # an end that comes neither at once nor never
    return model


def test_a_stream_is_the_reply_and_its_sound_keeps_time_with_the_schedule(omni2: LLaMAOmni2):
    """The first sound, of W units, follows the R-th token, before the next one is there."""
    options = {"max_new_tokens": 11, "eos_token_id": a_stop(omni2, QUESTIONS)}
    reply = omni2.respond(batch_of(omni2, QUESTIONS), **options)
    events = list(omni2.stream(batch_of(omni2, QUESTIONS), Square(), chunk_units=4, **options))
    assert len({len(units) for units in reply.units}) > 1 and len(torch.cat(reply.units).unique()) > 3
    for row, end in enumerate(e for e in sorted((e for e in events if isinstance(e, StreamEnd)), key=lambda e: e.row)):
        mine = [event for event in events if event.row == row]
        units = [unit for event in mine if isinstance(event, UnitDelta) for unit in event.units.tolist()]
        sound = torch.cat([event.audio for event in mine if isinstance(event, AudioChunk)])
        assert units == end.units.tolist() == reply.units[row].tolist()
        assert sound.equal(Square()(end.units))
        if len(units) >= 4 and len(end.ids) > 3:
            first = mine.index(next(event for event in mine if isinstance(event, AudioChunk)))
            assert sum(len(event.ids) for event in mine[:first] if isinstance(event, TextDelta)) <= 3
            assert isinstance(mine[first - 1], UnitDelta) and len(mine[first - 1].units) == 4
            assert len(mine[first].audio) == 40
    for row, question in enumerate(QUESTIONS):
        (alone,) = omni2.respond(batch_of(omni2, [question]), **options).units
        assert alone.equal(reply.units[row])


@pytest.mark.parametrize("settings", [{"slots": 2}, {"cache_implementation": "static"}])
def test_every_way_of_answering_gives_the_same_units(omni2: LLaMAOmni2, settings: dict):
    options = {"max_new_tokens": 11, "eos_token_id": a_stop(omni2, QUESTIONS)}
    reply = omni2.respond(batch_of(omni2, QUESTIONS), **options)
    if "slots" in settings:
        settings = {**settings, "cache_implementation": "static"}
    other = omni2.respond(batch_of(omni2, QUESTIONS), **options, **settings)
    assert [u.tolist() for u in other.units] == [u.tolist() for u in reply.units]
