"""The released prompts on tiny tokenizers: what the BOS rule loses, and how LLaSM's text is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from released import llasm_tokenizer, omni_tokenizer

from speechzoo.data import ConversationDataset, encode_batch, examples, read_manifest
from speechzoo.doctor import errors
from speechzoo.doctor.supervision import check_supervision, check_tokens
from speechzoo.interop import LlamaOmniPrompt, LlasmPrompt
from speechzoo.interop.prompts import SYSTEM, from_item
from speechzoo.types import AUDIO

CLIP = {"role": "user", "content": [{"type": "audio"}]}
ANSWER = {"role": "assistant", "content": "It is Paris."}


@pytest.fixture(scope="module")
def omni_dirs(tmp_path_factory) -> dict[bool, str]:
    folders = {adds: tmp_path_factory.mktemp("omni") for adds in (False, True)}
    for adds, folder in folders.items():
        omni_tokenizer(folder, adds)
    return {adds: str(folder) for adds, folder in folders.items()}


@pytest.fixture(scope="module")
def llasm_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llasm")
    llasm_tokenizer(folder)
    return folder


def test_bos_rule(omni_dirs):
    by_rule = {}
    for bos in ("added", "bare", "clean"):
        both = [LlamaOmniPrompt(omni_dirs[adds], bos=bos).encode([CLIP], answer=False).ids for adds in (False, True)]
        assert both[0] == both[1]  # a rule that is named does not depend on the tokenizer
        by_rule[bos] = both[0]
    assert by_rule["added"] == [0, *by_rule["clean"]] and by_rule["clean"][0] == 0
    at = by_rule["clean"].index(AUDIO) + 1
    assert by_rule["bare"] == by_rule["clean"][:at] + by_rule["clean"][at + 1 :]  # the newline is lost
    assert LlamaOmniPrompt(omni_dirs[True]).bos_rule == "added"
    assert LlamaOmniPrompt(omni_dirs[False]).bos_rule == "bare"


@pytest.mark.parametrize("bos", ["added", "bare", "clean"])
def test_answer_span(omni_dirs, bos):
    prompt = LlamaOmniPrompt(omni_dirs[False], bos=bos)
    encoded = prompt.encode([CLIP, ANSWER])
    supervised = [i for i, turn in zip(encoded.ids, encoded.turns, strict=True) if turn]
    assert supervised == prompt.tokenizer.encode("It is Paris.<|eot_id|>", add_special_tokens=False)
    question = prompt.encode([CLIP], answer=False).ids
    assert encoded.ids[: len(question)] == question
    two = prompt.encode([CLIP, ANSWER, CLIP, ANSWER])
    assert [max(two.turns), two.ids.count(AUDIO)] == [2, 2]
    with pytest.raises(ValueError, match="no assistant turn"):
        prompt.encode([CLIP])


@pytest.mark.parametrize("template", ["cllama2", "baichuan"])
def test_the_doctor_reads_their_tokenizer(llasm_dir, template):
    prompt = LlasmPrompt(str(llasm_dir), template)
    batch = encode_batch(prompt, [[{"role": "user", "content": "Where is Paris?"}, ANSWER]], True, "right")
    found = check_supervision(batch, prompt, [[ANSWER["content"]]]) + check_tokens(batch, prompt, len(prompt.tokenizer))
    assert not errors(found)
    assert "vocabulary" in {finding.name for finding in errors(check_tokens(batch, prompt, 10))}


def test_lengths_of_many_conversations_are_kept(llasm_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "KEPT", 0)
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, ANSWER]}) + "\n")
    records = read_manifest(tmp_path / "m.jsonl", memory=tmp_path / "checks.json")
    for template, pieces in [("cllama2", "fast"), ("cllama2", "slow"), ("cllama2", "fast"), ("baichuan", "fast")]:
        prompt = LlasmPrompt(str(llasm_dir), template, pieces=pieces)
        data = ConversationDataset(records, prompt)
        assert data.lengths == [len(prompt.encode(records[0].messages).ids)] == [len(data[0].input_ids)]
    assert len(list((tmp_path / "indexes").glob("lengths-*"))) == 3


def test_cllama2(llasm_dir):
    once = LlasmPrompt(str(llasm_dir))
    twice = LlasmPrompt(str(llasm_dir), doubled_system=True)
    ids = once.encode([CLIP, ANSWER])
    again = twice.encode([CLIP, ANSWER])
    system = once.tokenizer.encode(f"<<SYS>>\n{SYSTEM}\n<</SYS>>\n\n")
    assert again.ids == system + ids.ids and again.turns == [0] * len(system) + ids.turns
    start, end = once.new_tokens
    at = ids.ids.index(AUDIO)
    assert ids.ids[0] == 1 and ids.ids[at - 1 : at + 2] == [start, AUDIO, end]
    supervised = [i for i, turn in zip(ids.ids, ids.turns, strict=True) if turn]
    assert supervised == [*once.tokenizer.model.encode("It is Paris. "), 2]
    assert once.encode([CLIP], answer=False).ids == ids.ids[: -len(supervised)]
    assert once.decode(supervised) == "It is Paris."


def test_baichuan(llasm_dir):
    prompt = LlasmPrompt(str(llasm_dir), "baichuan")
    encode = prompt.tokenizer.model.encode
    start, end = prompt.new_tokens
    question = [1, *encode(SYSTEM), *encode("USER:"), start, AUDIO, end, *encode("ASSISTANT:")]
    assert prompt.encode([CLIP], answer=False).ids == question
    assert prompt.encode([CLIP, ANSWER]).ids == [*question, *encode("It is Paris."), 2]


def test_items_in_the_official_form():
    block = "<au_start>" + "<au_patch>" * 4 + "<au_end>"
    item = {
        "instruction": "Be brief.",
        "conversations": [{"from": "human", "value": f"Listen: {block}\nNow."}, {"from": "gpt", "value": "Yes."}],
    }
    parts = [{"type": "text", "text": "Listen: "}, {"type": "audio"}, {"type": "text", "text": "\nNow."}]
    assert from_item(item) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]


def test_errors_name_the_file(tmp_path, llasm_dir):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model: no such file"):
        LlasmPrompt(str(tmp_path)).encode([CLIP], answer=False)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        LlasmPrompt(str(tmp_path)).encode([CLIP], answer=False)
    (tmp_path / "tokenizer.model").write_bytes((llasm_dir / "tokenizer.model").read_bytes())
    with pytest.raises(ValueError, match="no <au_start>"):
        LlasmPrompt(str(tmp_path)).encode([CLIP], answer=False)
