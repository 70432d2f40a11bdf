"""Training sees the very ids that generation continues, and supervises answers only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from speechzoo.text import CLIP, ChatPrompt, flatten
from speechzoo.types import AUDIO

CLIP_PART = {"type": "audio", "path": "a.wav"}
FORGETS = (  # shows only the last answer, like templates that drop earlier thoughts
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEVER_ENDS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OWN_END = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}#\n"
    "{% else %}Q: {{ m['content'] }}\n{% endif %}{% endfor %}"
)
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nFrom the template.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(*parts: str | dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def make(tiny_tokenizer_dir):
    return lambda **options: ChatPrompt(str(tiny_tokenizer_dir), **options)


def shown(prompt: ChatPrompt, ids: list[int]) -> str:
    return "".join("[clip]" if i == AUDIO else prompt.tokenizer.decode([i]) for i in ids)


TALK = [user("Hello"), assistant("Hi."), user(CLIP_PART, "?"), assistant("Paris.")]


def test_spans_cover_each_answer_and_its_end(make):
    """The tokenizer has pad == eos == end of turn, so a comparison with the padding id would lose the ends."""
    prompt = make()
    assert prompt.pad_id == prompt.tokenizer.eos_token_id
    encoded = prompt.encode(TALK)
    spans = [[i for i, t in zip(encoded.ids, encoded.turns, strict=True) if t == turn] for turn in (1, 2)]
    assert [shown(prompt, span) for span in spans] == ["Hi.<|im_end|>", "Paris.<|im_end|>"]
    assert all(span[-1] == prompt.pad_id for span in spans)
    assert encoded.num_audio == 1 and max(encoded.turns) == 2
    assert encoded.turns[encoded.ids.index(AUDIO)] == 0


def test_the_whole_text_is_the_rendered_template(make):
    prompt = make()
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    text += "<|im_start|>user\n[clip]?<|im_end|>\n<|im_start|>assistant\n"
    assert shown(prompt, prompt.encode(TALK, answer=False).ids) == text
    assert shown(prompt, prompt.encode(TALK).ids) == text + "Paris.<|im_end|>"


words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<|>\ufffc"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_training_ids_are_the_generation_prompt_and_its_continuation(make, data):
    """At every answer of a conversation: no merge crosses the border, so what is learnt is what is continued."""
    prompt = make(audio_tokens=["<au_start>", "<au_end>"] if data.draw(st.booleans()) else None)
    parts = st.lists(st.one_of(words, st.just(CLIP_PART)), min_size=1, max_size=3)
    talk = []
    for _ in range(data.draw(st.integers(1, 3))):
        talk += [user(*data.draw(parts)), assistant(data.draw(words))]
    whole = prompt.encode(talk)
    turns = list(range(1, len(talk) // 2 + 1))
    for turn in turns:
        start = whole.turns.index(turn)
        span = [i for i, t in zip(whole.ids, whole.turns, strict=True) if t == turn]
        question = prompt.encode(talk[: 2 * turn - 1], answer=False)
        assert whole.ids[:start] == question.ids
        answer = talk[2 * turn - 1]["content"].strip()
        assert span == prompt.tokenizer.encode(answer + prompt.end_of_turn, add_special_tokens=False)
        assert prompt.decode(span) == answer
    assert sorted({t for t in whole.turns if t}) == turns


def test_a_trailing_answer_is_dropped_for_generation(make):
    prompt = make()
    assert prompt.encode(TALK, answer=False).ids == prompt.encode(TALK[:-1], answer=False).ids
    assert set(prompt.encode(TALK[:1], answer=False).turns) == {0}


@pytest.mark.parametrize("answer", [True, False])
def test_a_template_that_rewrites_earlier_turns_is_refused(make, answer):
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        make(chat_template=FORGETS).encode(TALK, answer=answer)
    make(chat_template=FORGETS).encode(TALK[:2], answer=True)  # one answer is not rewritten


def test_a_template_that_does_not_end_answers_is_refused(make):
    with pytest.raises(ValueError, match=r"does not end an answer with '<\|im_end\|>': set prompt.end_of_turn"):
        make(chat_template=NEVER_ENDS).encode(TALK)


def test_a_template_of_its_own_with_an_end_of_its_own(make):
    prompt = make(chat_template=OWN_END, end_of_turn="#")
    encoded = prompt.encode(TALK)
    spans = [[i for i, t in zip(encoded.ids, encoded.turns, strict=True) if t == turn] for turn in (1, 2)]
    assert [shown(prompt, span) for span in spans] == ["Hi.#", "Paris.#"]
    assert spans[0][-1] in prompt.stop_ids and prompt.tokenizer.eos_token_id in prompt.stop_ids


def test_an_end_of_several_ordinary_tokens_is_refused(make):
    """Generation stops at a token: at the last of these it would stop in the middle of answers."""
    prompt = make(chat_template=OWN_END.replace("#", " ###"), end_of_turn=" ###")
    for answer in (True, False):
        with pytest.raises(
            ValueError, match=r"end_of_turn ' ###' is \d tokens .* none of them ends an answer by itself"
        ):
            prompt.encode(TALK, answer=answer)


def test_a_template_that_tells_the_date_tells_the_same_one_every_day(make, tmp_path):
    """Llama 3.2 asks for the day's date, Llama 3.1 has 26 July 2024: neither cached states nor a trained model's prompt
    may change overnight."""
    asks = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    prompt = make(chat_template="Today: " + asks + "{{ date_string }}\n" + OWN_END, end_of_turn="#")
    assert shown(prompt, prompt.encode(TALK[:2]).ids) == "Today: 26 Jul 2024\nQ: Hello\nHi.#"
    tokenizer = AutoTokenizer.from_pretrained(prompt.name)
    tokenizer.chat_template = {"default": prompt.chat_template, "tool_use": "{{ strftime_now('%Y') }}"}
    tokenizer.save_pretrained(tmp_path)
    several = ChatPrompt(str(tmp_path), end_of_turn="#")
    assert several.encode(TALK[:2]) == prompt.encode(TALK[:2])


def test_a_tokenizer_without_a_template_says_what_to_set(tiny_tokenizer_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template: set prompt.chat_template"):
        ChatPrompt(str(tmp_path)).encode(TALK)


def test_defaults_for_system_and_user(make):
    prompt = make(system="Be brief.", user="{audio}\nAnswer the speech.")
    ids = prompt.encode([user(CLIP_PART)], answer=False).ids
    body = "user\n[clip]\nAnswer the speech.<|im_end|>\n<|im_start|>assistant\n"
    assert shown(prompt, ids) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>" + body
    own = [{"role": "system", "content": "Mine."}, user(CLIP_PART, "now")]  # what the conversation brings stays
    text = shown(prompt, prompt.encode(own, answer=False).ids)
    assert text.startswith("<|im_start|>system\nMine.<|im_end|>") and "Be brief" not in text
    assert "[clip]now<|im_end|>" in text and "Answer the speech" not in text
    assert "Answer the speech" not in shown(prompt, prompt.encode([user("Hello")], answer=False).ids)


def test_the_templates_own_system_prompt_unless_told_otherwise(make):
    texts = [
        shown(p, p.encode(TALK[:1], answer=False).ids)
        for p in (make(chat_template=OWN_SYSTEM), make(chat_template=OWN_SYSTEM, system="Mine."))
    ]
    assert "From the template." in texts[0] and "From the template." not in texts[1] and "Mine." in texts[1]


def test_audio_tokens_frame_each_clip_and_are_new(make):
    plain, prompt = make(), make(audio_tokens=["<au_start>", "<au_end>"])
    size = len(plain.tokenizer)
    assert plain.new_tokens == [] and prompt.new_tokens == [size, size + 1]
    ids = prompt.encode([user(CLIP_PART, "and", CLIP_PART)], answer=False).ids
    for at in (i for i, token in enumerate(ids) if token == AUDIO):
        assert (ids[at - 1], ids[at + 1]) == (size, size + 1)
    assert ids.count(AUDIO) == ids.count(size) == ids.count(size + 1) == 2
    framed = {size, size + 1}
    assert [i for i in ids if i not in framed] == plain.encode([user(CLIP_PART, "and", CLIP_PART)], answer=False).ids


def test_tokens_the_tokenizer_knew_are_not_new(make):
    assert make(audio_tokens=["<|im_start|>", "<|im_end|>"]).new_tokens == []


def test_decode_leaves_out_clips_and_special_tokens(make):
    prompt = make()
    ids = prompt.tokenizer.encode(" Hello, Paris. <|im_end|>", add_special_tokens=False)
    assert prompt.decode([AUDIO, *ids]) == "Hello, Paris."


def test_refusals(make, tmp_path):
    with pytest.raises(ValueError, match="no assistant turn"):
        make().encode(TALK[:1])
    with pytest.raises(ValueError, match="assistant turn cannot hold audio"):
        make().encode([user("Hello"), {"role": "assistant", "content": [CLIP_PART]}])
    with pytest.raises(ValueError, match="needs {audio}"):
        make(user="Answer the speech.")
    with pytest.raises(ValueError, match="two tokens"):
        make(audio_tokens=["<au>"])
    with pytest.raises(FileNotFoundError, match="no such tokenizer folder"):
        ChatPrompt(str(tmp_path / "none")).encode(TALK)


def test_flatten():
    assert flatten("a") == "a"
    assert flatten([{"type": "text", "text": "a"}, CLIP_PART, {"type": "text", "text": "b"}]) == f"a{CLIP}b"


def test_a_line_end_after_the_end_of_a_turn_does_not_end_answers(tiny_tokenizer_dir):
    prompt = ChatPrompt(str(tiny_tokenizer_dir), end_of_turn="<|im_end|>\n")
    assert prompt.stop_ids == ChatPrompt(str(tiny_tokenizer_dir), end_of_turn="<|im_end|>").stop_ids
    (line_end,) = prompt.tokenizer.encode("\n", add_special_tokens=False)
    assert line_end not in prompt.stop_ids
