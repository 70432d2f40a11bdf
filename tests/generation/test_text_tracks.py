"""Text of a stream: whole characters, never taken back, and cut into sentences."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from speechzoo.generation.events import SentenceTrack, TextTrack
from speechzoo.text import ChatPrompt

load = cache(AutoTokenizer.from_pretrained)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30), noise=st.lists(st.integers(0, 399), max_size=20), data=st.data())
def test_text_comes_in_whole_characters_and_is_never_taken_back(tiny_tokenizer_dir, text, noise, data):
    """Any text of any script cut into bytes, and any token sequence: deltas add up to the decoded whole."""
    prompt = ChatPrompt(str(tiny_tokenizer_dir))
    prompt.tokenizer = load(tiny_tokenizer_dir)
    ids = data.draw(st.sampled_from([prompt.tokenizer.encode(text), noise, prompt.tokenizer.encode(text) + noise]))
    track, told = TextTrack(prompt), ""
    for index, token in enumerate(ids):
        new = track.push(token)
        told += new
        assert prompt.decode(ids).startswith(told), "taken back"
        so_far = prompt.decode(ids[: index + 1])
        assert len(told) <= len(so_far)
    told += track.flush()
    assert told == prompt.decode(ids)


def test_a_character_comes_when_its_last_byte_does(tiny_tokenizer_dir):
    prompt = ChatPrompt(str(tiny_tokenizer_dir))
    ids = prompt.tokenizer.encode("a€ b")
    track = TextTrack(prompt)
    assert [track.push(token) for token in ids] == ["a", "", "", "€", "", " b"] and track.flush() == ""


def test_byte_tokens_wait_for_the_end_of_their_run():
    """Of a run of byte tokens one bad byte makes all of it unreadable (Llama 2's tokenizer)."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁yes", "</s>"]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    prompt = ChatPrompt("none")
    prompt.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    euro = [1 + byte for byte in "€".encode()]
    for ids in (euro + [257], euro + [1 + 0xFF, 257], [257, *euro]):
        track, told = TextTrack(prompt), ""
        for token in ids:
            told += track.push(token)
            assert prompt.decode(ids).startswith(told)
        assert told + track.flush() == prompt.decode(ids)


def test_blanks_are_told_as_the_model_wrote_them(tiny_tokenizer_dir, tmp_path):
    """Llama 3's tokenizer asks for a clean-up that takes blanks from text, of which some was told already."""
    AutoTokenizer.from_pretrained(tiny_tokenizer_dir, clean_up_tokenization_spaces=True).save_pretrained(tmp_path)
    prompt, said = ChatPrompt(str(tmp_path)), "the word 'morning' , I do n't"
    ids = prompt.tokenizer.encode(said)
    track = TextTrack(prompt)
    assert "".join([*map(track.push, ids), track.flush()]) == prompt.decode(ids) == said


def test_sentences_are_cut_when_they_are_complete():
    track = SentenceTrack()
    pieces = ["It is 3", ".5 ", "now. Yes", "! “Go.” ", "好的。", "And"]
    assert [track.push(piece) for piece in pieces] == [[], [], ["It is 3.5 now."], ["Yes!", "“Go.”"], ["好的。"], []]
    assert track.push("", last=True) == ["And"]
