"""A stream is the reply, collected; each row is answered as if alone, by the tokens of transformers."""

from __future__ import annotations

import pytest
import torch
from asked_models import QUESTIONS, a_stop, batch_of

from speechzoo.generation import answer, collect, stream
from speechzoo.generation.sampling import Chooser, Decoding
from speechzoo.types import StreamEnd, TextDelta, UnitDelta


@pytest.mark.parametrize("name", ["omni", "label", "llasm"])
@pytest.mark.parametrize("unit_tokens", [1, 4, None])
def test_a_stream_is_the_reply_and_each_row_is_as_if_alone(request, name, unit_tokens):
    model = request.getfixturevalue(name)
    options = {"max_new_tokens": 12, "eos_token_id": a_stop(model, QUESTIONS)}
    reply = model.respond(batch_of(model, QUESTIONS), **options)
    events = list(model.stream(batch_of(model, QUESTIONS), chunk_units=3, unit_tokens=unit_tokens, **options))
    together = collect(events)
    assert together.text == reply.text
    ends = [event for event in events if isinstance(event, StreamEnd)]
    assert len({len(end.ids) for end in ends}) > 1 and sorted(end.row for end in ends) == [0, 1, 2]
    for row, question in enumerate(QUESTIONS):
        alone = collect(model.stream(batch_of(model, [question]), **options))
        assert alone.text[0] == together.text[row]
        if name == "llasm":
            assert alone.units is None and reply.units is None
        else:
            assert alone.units[0].tolist() == together.units[row].tolist() == reply.units[row].tolist()
            assert len(alone.units[0])
    for end in ends:
        mine = [event for event in events if event.row == end.row]
        assert mine[-1] is end and "".join(e.text for e in mine if isinstance(e, TextDelta)) == end.text
        assert end.stopped == (end.ids[-1] in options["eos_token_id"])
        assert end.first_text_seconds <= end.seconds
        assert [u for e in mine if isinstance(e, UnitDelta) for u in e.units.tolist()] == (
            [] if end.units is None else end.units.tolist()
        )


@pytest.mark.parametrize("name", ["omni", "label"])
@torch.no_grad()
def test_states_of_the_loop_are_those_of_one_pass(request, name):
    """Those that predict each token, or those that have read it, over question and answer in one go."""
    model = request.getfixturevalue(name)
    batch = batch_of(model, QUESTIONS[1:2])
    speech, lens = model.encode(batch)
    read_last = name == "label"
    answered = model.llm.generate_states(
        batch.input_ids, batch.attention_mask, speech, lens, read_last, max_new_tokens=9, eos_token_id=[]
    )
    ids = torch.cat([batch.input_ids, answered.ids[0][None]], dim=1)
    whole = model.llm(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids), speech, lens, loss=False).hidden[0]
    expected = whole[-9:] if read_last else whole[-10:-1]
    assert answered.lens.tolist() == [9]
    torch.testing.assert_close(answered.states[0], expected, atol=2e-5, rtol=1e-4)


def test_greedy_ids_are_those_of_transformers(omni):
    """The loop is our own: it has to say what the library's says."""
    batch = batch_of(omni, QUESTIONS)
    with torch.no_grad():
        speech, lens = omni.encode(batch)
        turns = torch.zeros_like(batch.input_ids)
        row = omni.llm.splice(batch.input_ids, batch.attention_mask, turns, speech, lens, padding_side="left")
        theirs = omni.llm.lm.generate(
            inputs_embeds=row.embeds,
            attention_mask=row.mask.long(),
            max_new_tokens=15,
            min_new_tokens=15,
            do_sample=False,
        )
    ours = omni.answer_ids(batch, speech, lens, max_new_tokens=15, eos_token_id=[])
    stop = set(omni.prompt.stop_ids)
    for mine, other in zip(ours, theirs, strict=True):
        cut = next((i for i, t in enumerate(mine.tolist()) if t in stop), 15)  # theirs avoids the stop token
        assert mine[:cut].tolist() == other[:cut].tolist() and cut > 3


def test_sampling_depends_on_the_seed_and_the_row_alone(omni):
    options = {"max_new_tokens": 10, "eos_token_id": [], "temperature": 1.5, "top_p": 0.9, "top_k": 50}
    seeds = [3, 4, 5]
    together = [e.ids for e in stream(omni, QUESTIONS, seed=seeds, **options) if isinstance(e, StreamEnd)]
    for row, question in enumerate(QUESTIONS):
        alone = [e.ids for e in stream(omni, question, seed=seeds[row], **options) if isinstance(e, StreamEnd)]
        assert alone == [together[row]]
    other = [e.ids for e in stream(omni, QUESTIONS, seed=[6, 7, 8], **options) if isinstance(e, StreamEnd)]
    assert other != together
    greedy = answer(omni, QUESTIONS, max_new_tokens=10, eos_token_id=[])
    assert answer(omni, QUESTIONS, **{**options, "top_k": 1}).text == greedy.text
    assert answer(omni, QUESTIONS, **{**options, "temperature": 0}).text == greedy.text


def test_sampled_tokens_follow_the_warped_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0]).log_softmax(-1)
    chooser = Chooser(Decoding(temperature=0.5, top_k=3, seed=0), 1)
    counts = torch.zeros(4)
    for _ in range(3000):
        counts[int(chooser(logits[None], [0]))] += 1
    expected = torch.tensor([4.0, 2.0, 0.0]).softmax(-1)
    assert counts[3] == 0
    torch.testing.assert_close(counts[:3] / 3000, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "no setting 'num_beams'"),
        ({"max_new_tokens": 0}, "max_new_tokens is a whole number, at least 1, not 0"),
        ({"temperature": -1.0}, "temperature is at least 0"),
        ({"chunk_units": 0}, "chunk_units is at least 1"),
    ],
)
def test_bad_settings_are_refused_at_once(omni, options, message):
    with pytest.raises(ValueError, match=message):
        stream(omni, QUESTIONS[0], **options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": -1}, "top_k is a whole number, at least 0, not -1"),
        ({"top_k": 2.5}, "top_k is a whole number, at least 0, not 2.5"),
        ({"top_p": 1.5}, r"top_p is 0 \.\.\. 1, not 1.5"),
        ({"temperature": float("nan")}, "temperature is at least 0, not nan"),
        ({"max_new_tokens": 1e2}, "max_new_tokens is a whole number, at least 1, not 100.0"),
        ({"slots": 2.5}, "slots is a whole number, at least 1, not 2.5"),
        ({"do_sample": "false"}, "do_sample is true or false, not 'false'"),
        ({"eos_token_id": "</s>"}, r"eos_token_id is a whole number \(64 bits\) or several, not '</s>'"),
        ({"seed": "3"}, r"seed is a whole number \(64 bits\) or several, not '3'"),
        ({"seed": [1, 2**64]}, r"seed is a whole number \(64 bits\) or several, not \[1, 18446744073709551616\]"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_model_not_with_its_first_answer(setting: dict, message: str):
    with pytest.raises(ValueError, match=f"model.generation: {message}"):
        Decoding.defaults(setting)


def test_settings_may_be_whole_numbers_and_no_limit_at_all():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    drawn = [Chooser(Decoding(seed=3, **one), 1)(logits, [0]) for one in ({"temperature": 1}, {"temperature": 1.0})]
    assert drawn[0].equal(drawn[1])
    assert Chooser(Decoding(seed=3, top_k=0), 1)(logits, [0]).equal(drawn[0])


def test_answers_end_where_no_token_is_named_to_end_them(omni):
    for defaults, asked in (({"eos_token_id": None}, {}), ({}, {"eos_token_id": None})):
        assert Decoding.of(**Decoding.merged([1, 2], defaults, asked)).stop_ids == {1, 2}
    assert Decoding.of(**Decoding.merged([1], {}, {"eos_token_id": []})).stop_ids == set()
    own = omni.llm.lm.generation_config.eos_token_id
    assert omni.llm._decoding({"eos_token_id": None}).stop_ids == omni.llm._decoding({}).stop_ids == {own}


def test_what_is_asked_for_draws_though_the_model_is_greedy():
    for greedy in ({"temperature": 0}, {"do_sample": False}):
        settings = Decoding.of(**Decoding.merged([1], greedy, {"top_p": 0.9}))
        assert settings.do_sample and settings.top_p == 0.9
    assert not Decoding.of(**Decoding.merged([1], {"top_k": 5}, {"temperature": 0.0})).do_sample
