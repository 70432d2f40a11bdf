"""The static cache says what the growing one says; questions in slots of ended answers what they hear alone."""

from __future__ import annotations

import copy
import random
from functools import partial

import pytest
import torch
from asked_models import QUESTIONS, a_stop, asked, batch_of, tone
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from speechzoo.generation import answer, collect, stream
from speechzoo.generation.cache import growing_cache
from speechzoo.generation.slots import Slots
from speechzoo.generation.tokens import Generated
from speechzoo.llms import HFCausalLM
from speechzoo.types import AUDIO

STATIC = {"cache_implementation": "static"}
WIDTH = 48
SIZES = {
    "vocab_size": 97,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 96,
    "initializer_range": 0.3,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}, {}),
    "eager": (LlamaForCausalLM, LlamaConfig, {}, {"attn_implementation": "eager"}),
    "lora": (LlamaForCausalLM, LlamaConfig, {}, {"lora": {"r": 2, "init_lora_weights": False}}),
    "local": (GPTNeoForCausalLM, GPTNeoConfig, {"attention_types": [[["global", "local"], 1]], "window_size": 8}, {}),
    "window": (MistralForCausalLM, MistralConfig, {"sliding_window": 16}, {}),
}


@pytest.fixture(scope="module")
def make_llm(tmp_path_factory):
    made: dict[str, HFCausalLM] = {}

    def make(kind: str) -> HFCausalLM:
        if kind not in made:
            model, config, more, options = KINDS[kind]
            folder = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model(config(**SIZES, **more)).save_pretrained(folder)
                made[kind] = HFCausalLM([95], str(folder), **options).eval()
        return made[kind]

    return make


def prompts(*lens: int) -> tuple[torch.Tensor, ...]:
    """Left-padded rows of so many tokens, the second one with a clip of 5 frames at its start."""
    generator = torch.Generator().manual_seed(sum(lens))
    ids = torch.randint(96, (len(lens), max(lens)), generator=generator)
    mask = torch.arange(max(lens)) >= max(lens) - torch.tensor(lens)[:, None]
    spoken = len(lens) > 1
    if spoken:
        ids[1, max(lens) - lens[1]] = AUDIO
    return ids, mask, torch.randn(int(spoken), 5, WIDTH, generator=generator), torch.tensor([5] * spoken)


def alike(plain: Generated, static: Generated) -> None:
    """The same states, to bfloat16's digits, as long as the tokens before them are the same: most of three tokens."""
    same = 0
    for row, (ids, others) in enumerate(zip(plain.ids, static.ids, strict=True)):
        known = 1 + int((ids == others).long().cumprod(0)[:-1].sum())
        torch.testing.assert_close(static.states[row, :known], plain.states[row, :known], atol=0.1, rtol=0.1)
        same += known
    assert same >= 3 * len(plain.ids)


def lists(rows: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "eager", "lora"])
@pytest.mark.parametrize("lens", [(4,), (11,), (30,), (11, 30, 4, 17)])
def test_64_greedy_tokens_are_those_of_the_growing_cache(make_llm, kind, lens):
    llm, rows = make_llm(kind), prompts(*lens)
    free = {"max_new_tokens": 64, "eos_token_id": []}
    expected = lists(llm.generate(*rows, **free))
    assert all(len(set(row)) > 8 for row in expected)  # not one token over and over
    assert lists(llm.generate(*rows, **free, **STATIC)) == expected
    ends = {"max_new_tokens": 64, "eos_token_id": sorted({row[5 + 9 * i] for i, row in enumerate(expected)})}
    stopped = lists(llm.generate(*rows, **ends, **STATIC))
    cut = [next(i + 1 for i, token in enumerate(row) if token in ends["eos_token_id"]) for row in expected]
    assert stopped == [row[:size] for row, size in zip(expected, cut, strict=True)]
    assert len(lens) == 1 or len(set(cut)) > 1


@pytest.mark.parametrize("read_last", [False, True])
def test_states_are_those_of_the_growing_cache(make_llm, read_last):
    llm, rows = make_llm("llama"), prompts(11, 30, 4, 17)
    first = lists(llm.generate(*rows, max_new_tokens=12, eos_token_id=[]))
    options = {"max_new_tokens": 12, "eos_token_id": [first[0][3], first[2][7]]}
    plain = llm.generate_states(*rows, read_last, **options)
    static = llm.generate_states(*rows, read_last, **options, **STATIC)
    assert static.lens.tolist() == plain.lens.tolist() and lists(static.ids) == lists(plain.ids)
    torch.testing.assert_close(static.states, plain.states, atol=2e-5, rtol=1e-4)


def test_draws_are_those_of_the_growing_cache(make_llm):
    llm, rows = make_llm("qwen2"), prompts(11, 30, 4, 17)
    options = {"max_new_tokens": 40, "temperature": 1.3, "top_p": 0.95, "top_k": 40, "eos_token_id": [3, 5, 8]}
    for seed in (7, [1, 2, 3, 4]):
        expected = lists(llm.generate(*rows, seed=seed, **options))
        assert lists(llm.generate(*rows, seed=seed, **options, **STATIC)) == expected
    assert len({len(row) for row in expected}) > 1
    with pytest.raises(ValueError, match="3 seeds for 4 rows"):
        llm.generate(*rows, seed=[1, 2, 3], **options, **STATIC)


def test_bfloat16_autocast_fits_the_static_cache(make_llm):
    llm, rows = make_llm("llama"), prompts(11, 30)
    with torch.autocast("cpu", torch.bfloat16):
        answers = [llm.generate_states(*rows, max_new_tokens=8, eos_token_id=[], **more) for more in ({}, STATIC)]
    alike(*answers)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("read_last", [False, True])
def test_questions_take_the_slots_of_ended_answers(make_llm, monkeypatch, late, read_last):
    """Eleven questions in three slots, also where tokens are read back one step late, as on a GPU."""
    made, advance, advanced = Slots.__init__, Slots.advance, []
    monkeypatch.setattr(Slots, "__init__", lambda self, *a: (made(self, *a), setattr(self, "late", late))[0])
    monkeypatch.setattr(Slots, "advance", lambda self: (advanced.append(self.rows), advance(self))[1])
    llm, lens = make_llm("llama"), [random.Random(i).randrange(3, 25) for i in range(11)]
    questions = [prompts(size) for size in lens]
    free = [llm.generate(*question, max_new_tokens=12, eos_token_id=[])[0].tolist() for question in questions[:3]]
    options = {"max_new_tokens": 14, "eos_token_id": [free[0][2], free[1][7], free[2][11]]}
    alone = [llm.generate_states(*question, read_last, **options) for question in questions]
    expected = [one.ids[0].tolist() for one in alone]
    assert len({len(row) for row in expected}) > 2

    batches = [together(questions[start : start + 4]) for start in (0, 4, 8)]
    taken: list[int] = []
    steps = []
    for step in llm.refilled(
        (taken.append(i) or batch for i, batch in enumerate(batches)), read_last, slots=3, **options
    ):
        steps.append(step)
        assert len(step.rows) <= 3
        assert len(steps) > 1 or taken == [0]  # batches are taken as they are needed
    for row, one in enumerate(alone):
        mine = [(step, step.rows.index(row)) for step in steps if row in step.rows]
        assert [step.ids[at] for step, at in mine if step.ids[at] >= 0] == expected[row]
        assert [step.ended[at] for step, at in mine] == [False] * (len(mine) - 1) + [True]
        states = torch.stack([step.states[at] for step, at in mine])[int(read_last) :]
        torch.testing.assert_close(states, one.states[0], atol=2e-5, rtol=1e-4)
    assert set(advanced) == {3}
    if not late:  # three hands take the next answer when they are free; its first token comes with the prompt
        busy = [0, 0, 0]
        for ids in expected:
            busy[busy.index(min(busy))] += len(ids) - 1 + read_last
        assert len(advanced) == max(busy)


def together(questions: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Rows without clips as one batch, padded on the left."""
    width = max(ids.shape[1] for ids, *_ in questions)
    ids, mask = (
        torch.cat([torch.nn.functional.pad(question[i], (width - question[i].shape[1], 0)) for question in questions])
        for i in (0, 1)
    )
    return ids, mask, *questions[0][2:]


def test_nothing_of_an_ended_answer_reaches_the_next(make_llm):
    llm = make_llm("llama")
    empty = partial(growing_cache, llm.lm.config)
    slots = Slots(llm._read, llm.head, llm.embed, empty, 2, torch.device("cpu"))
    first, second = torch.randn(2, 9, WIDTH)
    slots.admit([0, 1], [first * torch.nan, second], 20)
    slots.admit([0], [first[:5]], 20)
    _, logits = slots.advance()
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["omni", "label", "llasm"])
def test_models_say_and_speak_the_same(request, monkeypatch, name):
    """Offline and streamed, with a static cache; and through fewer slots than questions."""
    model = request.getfixturevalue(name)
    options = {"max_new_tokens": 12, "eos_token_id": a_stop(model, QUESTIONS)}
    plain = answer(model, QUESTIONS, **options)
    streamed = collect(stream(model, QUESTIONS, **options, **STATIC, chunk_units=4, unit_tokens=2))
    offline = model.respond(batch_of(model, QUESTIONS), **options, **STATIC)
    encoded, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda batch: (encoded.append(len(batch)), encode(batch))[1])
    few = model.respond(batch_of(model, QUESTIONS), **options, slots=2)
    assert encoded == [2, 1]
    for reply in (streamed, offline, few):
        assert reply.text == plain.text and reply.stopped == plain.stopped
        assert (reply.units is None) == (name == "llasm")
        for mine, units in zip(reply.units or [], plain.units or [], strict=True):
            assert mine.tolist() == units.tolist()


@pytest.mark.parametrize("name", ["omni", "label"])
def test_replies_come_batch_by_batch_in_order(request, name):
    model = request.getfixturevalue(name)
    questions = [asked("Question", str(number), tone(0.3 + 0.1 * number, 100 + 40 * number)) for number in range(7)]
    options = {"max_new_tokens": 14, "eos_token_id": a_stop(model, questions)}
    batches = [batch_of(model, questions[start:stop]) for start, stop in ((0, 3), (3, 4), (4, 7))]
    replies = list(model.respond_all(iter(batches), slots=2, **options))
    assert [len(reply.text) for reply in replies] == [3, 1, 3]
    said = [(text, units.tolist()) for reply in replies for text, units in zip(reply.text, reply.units, strict=True)]
    alone = [model.respond(batch_of(model, [question]), **options) for question in questions]
    assert said == [(one.text[0], one.units[0].tolist()) for one in alone]
    assert [stopped for reply in replies for stopped in reply.stopped] == [one.stopped[0] for one in alone]


def test_a_compiled_step_is_one_graph_for_all_tokens(make_llm, monkeypatch):
    """Traced for real; only the code that inductor would make of the graph is left out."""
    graphs = []
    backend = lambda graph, inputs: (graphs.append(graph), graph.forward)[1]  # noqa: E731
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    llm = copy.copy(make_llm("llama"))
    rows, options = prompts(11, 30, 4, 17), {"max_new_tokens": 24, "eos_token_id": []}
    expected = lists(llm.generate(*rows, **options))
    for _ in range(2):  # the second answer finds the first one's step
        assert lists(llm.generate(*rows, **options, **STATIC, compile=True)) == expected
    assert len(graphs) == 1


def test_slots_are_kept_for_the_same_weights_in_the_same_mode(make_llm, monkeypatch):
    """As those that were compiled or captured are. Tensors of inference mode, in which `predict` answers, cannot change
    outside it."""
    made, number = Slots.__init__, []
    costly = lambda self, *a: (made(self, *a), setattr(self, "costly", True), number.append(1))[0]  # noqa: E731
    monkeypatch.setattr(Slots, "__init__", costly)
    llm = copy.deepcopy(make_llm("llama"))
    options = {"max_new_tokens": 8, "eos_token_id": []}

    def ask(*lens: int) -> int:
        """Slots made so far."""
        rows = prompts(*lens)
        assert lists(llm.generate(*rows, **options, **STATIC)) == lists(llm.generate(*rows, **options))
        return len(number)

    assert [ask(9, 4), ask(200, 7), ask(5, 4), ask(5)] == [1, 1, 1, 2]
    with torch.inference_mode():
        assert ask(5) == 3
    assert ask(5) == 4
    for weight in llm.parameters():
        weight.data = weight.data.flip(0).contiguous()
    assert ask(5) == 5
    rows = prompts(9, 4)
    pairs = list(zip(*(llm.steps(*rows, **options, **STATIC) for _ in range(2)), strict=True))  # two streams in turn
    assert all(one.ids == other.ids for one, other in pairs) and len(number) == 7
    copy.deepcopy(llm)


def test_what_does_not_go_together_is_refused(make_llm):
    rows = prompts(11)
    for kind, of_it in (("window", "DynamicSlidingWindowLayer"), ("local", "GPTNeoModel")):
        with pytest.raises(ValueError, match=f"this one has {of_it}"):
            make_llm(kind).generate(*rows, **STATIC)
    llm = make_llm("llama")
    for options, message in (
        ({"compile": True}, "compile .* goes with cache_implementation static"),
        ({"cache_implementation": "paged"}, "dynamic or static, not 'paged'"),
        ({"slots": 0}, "slots is a whole number, at least 1, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate(*rows, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen2", "lora"])
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_steps_say_what_plain_ones_say(make_llm, kind, compiled):
    """The same tokens on one GPU; a second answer replays the graph of the first, longer prompts and moved weights do
    not, and two streams side by side do not disturb each other."""
    llm = copy.deepcopy(make_llm(kind)).cuda()
    static = {**STATIC, "compile": compiled}
    options = {"max_new_tokens": 64, "eos_token_id": [5, 17]}
    drawn = {**options, "temperature": 1.3, "top_p": 0.95, "seed": [1, 2, 3, 4]}
    graphs = []
    for lens in ((11, 30, 4, 17), (9, 21, 5, 13), (11, 200, 4, 17)):
        rows = [x.cuda() for x in prompts(*lens)]
        for settings in (options, drawn):
            expected = lists(llm.generate(*rows, **settings))
            assert lists(llm.generate(*rows, **settings, **static)) == expected
        graphs.append(llm._slots._graph)
    assert graphs[0] is graphs[1] is not graphs[2]

    free = {"max_new_tokens": 30, "eos_token_id": []}
    expected = lists(llm.generate(*rows, **free))
    one, other = llm.steps(*rows, **free, **static), llm.steps(*rows, **free, **static)
    pairs = list(zip(one, other, strict=True))
    assert [[step.ids[row] for step, _ in pairs] for row in range(4)] == expected
    assert all(a.ids == b.ids for a, b in pairs)

    for weight in llm.parameters():
        weight.data = weight.data.flip(0).contiguous()
    assert lists(llm.generate(*rows, **free, **static)) == lists(llm.generate(*rows, **free)) != expected


@pytest.mark.gpu
def test_bfloat16_steps_are_captured_with_their_states(make_llm):
    """States of a captured step beside those of a plain one, in bfloat16 weights and under autocast."""
    rows = [x.cuda() for x in prompts(11, 30, 4, 17)]
    options = {"max_new_tokens": 16, "eos_token_id": []}
    llm = copy.deepcopy(make_llm("llama")).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        alike(*(llm.generate_states(*rows, **options, **more) for more in ({}, STATIC)))
    llm.bfloat16()
    alike(*(llm.generate_states(*rows, **options, **more) for more in ({}, STATIC)))


@pytest.mark.gpu
def test_refilled_slots_and_streams_on_a_gpu(omni):
    model = copy.deepcopy(omni).cuda()
    options = {"max_new_tokens": 12, "eos_token_id": a_stop(omni, QUESTIONS)}
    batch = batch_of(model, QUESTIONS).to("cuda")
    plain = model.respond(batch, **options)
    for reply in (
        model.respond(batch, **options, slots=2),
        model.respond(batch, **options, **STATIC),
        collect(model.stream(batch, **options, **STATIC, chunk_units=4)),
    ):
        assert reply.text == plain.text
        assert [units.tolist() for units in reply.units] == [units.tolist() for units in plain.units]
