"""Ultravox learns from what its LLM makes of the transcripts: against a calculation by hand, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_models import CONVERSATIONS, assistant, make, tone, user

from speechzoo.data import encode_batch, read_manifest
from speechzoo.data.dataset import ConversationDataset
from speechzoo.data.manifest import ManifestError
from speechzoo.models import Ultravox
from speechzoo.models.ultravox import at, ends, predicting
from speechzoo.types import SpeechBatch


@pytest.fixture
def model(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> Ultravox:
    return make("ultravox", tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder", "^llm"]).eval()


@torch.no_grad()
def test_divergences_are_those_of_each_predicted_token(model: Ultravox) -> None:
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    out = model(batch, logits=True)
    whole, last = 0.0, 0.0
    for row, conversation in enumerate(CONVERSATIONS):
        texts = ["".join(p.get("text", p.get("transcript")) for p in m["content"]) for m in conversation[::2]]
        said = [{**m, "content": texts[i // 2]} if m["role"] == "user" else m for i, m in enumerate(conversation)]
        written = model.prompt.encode(said)
        teacher = model.llm.lm(torch.tensor([written.ids])).logits[0]
        student = out.logits[row][out.mask[row]]
        turns = out.turns[row][out.mask[row]].tolist()
        mine = [i for i, turn in enumerate(turns) if turn]
        theirs = [i for i, turn in enumerate(written.turns) if turn]
        for a, b in zip(mine, theirs, strict=True):
            p = (teacher[b - 1] / 2.0).softmax(-1)
            q = (student[a - 1] / 2.0).softmax(-1)
            value = float((p * (p / q).log()).sum())
            whole += value
            last += value if a + 1 == len(turns) or turns[a + 1] != turns[a] else 0.0
    assert float(out.sums["kl"]) == pytest.approx(whole, rel=1e-4)
    assert float(out.sums["kl_end"]) == pytest.approx(last, rel=1e-4)
    assert model.num_targets(batch)["kl_end"] == 4 and model.num_targets(batch)["kl"] == model.num_targets(batch)["lm"]


@torch.no_grad()
def test_who_hears_the_very_embeddings_of_the_transcript_has_nothing_to_learn(model: Ultravox) -> None:
    """The adaptor is made to give the embeddings of the words: student and teacher read the same."""
    batch = encode_batch(model.prompt, [[user(tone(0.9, 200)), assistant("Paris")]], True, "right")
    words = model.prompt.tokenizer.encode("how are you", add_special_tokens=False)
    embeds = model.llm.embed(torch.tensor([words]))
    model.encode = lambda _: (embeds, torch.tensor([len(words)]))
    out = model(batch)
    assert float(out.sums["kl"]) == pytest.approx(0, abs=1e-6) and float(out.sums["lm"]) > 1


def test_no_gradient_reaches_the_teacher(model: Ultravox) -> None:
    """Both read the same LLM; what learns gets gradients from the student's side alone."""
    for weight in model.llm.parameters():
        weight.requires_grad_(True)
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    model(batch).sums["kl"].backward()
    got = model.llm.head.weight.grad.clone()
    model.zero_grad()
    with torch.no_grad():
        none = torch.zeros(0, 1, model.llm.dim), torch.zeros(0, dtype=torch.long)
        w = batch.written
        read = model.llm(w.input_ids, w.attention_mask, w.turns, *none, loss=False)
        wanted = (model.llm.head(read.hidden[:, :-1][read.turns[:, 1:] > 0]) / 2).softmax(-1)
    out = model(batch)
    given = (model.llm.head(out.hidden[:, :-1][out.turns[:, 1:] > 0]) / 2).log_softmax(-1)
    (-(wanted * given).sum()).backward()
    torch.testing.assert_close(got, model.llm.head.weight.grad, atol=1e-6, rtol=1e-4)


def kept_states(model: Ultravox, batch: SpeechBatch) -> torch.Tensor:
    """What the teacher makes of the transcripts of a batch, as it comes from a cache."""
    read = batch.written
    states, lens = model.teacher_states(SpeechBatch(read.input_ids, read.attention_mask, read.turns))
    assert states.shape[:2] == (len(batch), int(lens.max()))
    return torch.cat([row[:length] for row, length in zip(states, lens.tolist(), strict=True)])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cached_states_stand_in_for_the_teacher(tiny_llm_dir: Path, tiny_whisper_pt: Path, temperature: float) -> None:
    """The same losses and gradients, whatever the temperature: logits are made of the states in each step."""
    options = {"freeze": ["^encoder", "^llm"], "temperature": temperature}
    model = make("ultravox", tiny_llm_dir, tiny_whisper_pt, **options).train()
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    ran, found = [], []
    model.llm.register_forward_pre_hook(lambda *_: ran.append("llm"))
    for states in (None, kept_states(model, batch)):
        ran.clear()
        model.zero_grad()
        batch.written.states = states
        sums = model(batch).sums
        (sums["kl"] + sums["kl_end"]).backward()
        found.append((sums, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, len(ran)))
    (plain, before, both), (cached, after, alone) = found
    assert (both, alone) == (2, 1)
    for name, loss in plain.items():
        torch.testing.assert_close(cached[name], loss, atol=0, rtol=1e-6)
    for name, grad in before.items():
        torch.testing.assert_close(after[name], grad, atol=1e-7, rtol=1e-5)


def test_the_end_of_each_answer() -> None:
    turns = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]])
    where = predicting(turns, 7)
    assert where.tolist() == [1, 2, 3, 5, 6, 9, 10]
    assert at(where, ends(turns)).tolist() == [False, False, True, False, True, False, True]
    touching = torch.tensor([[0, 1, 1, 2, 2]])  # answers that follow each other at once
    assert ends(touching).tolist() == [[False, True, False, True, False]]


def test_training_data_need_transcripts(tmp_path: Path, wavs: list[Path], model: Ultravox) -> None:
    def record(name: str, part: dict) -> str:
        asked = {"role": "user", "content": [{"type": "audio", "path": str(wavs[0]), **part}]}
        return json.dumps({"id": name, "messages": [asked, {"role": "assistant", "content": "Paris"}]})

    manifest = tmp_path / "train.jsonl"
    manifest.write_text(record("said", {"transcript": "the capital"}) + "\n" + record("unsaid", {}) + "\n")
    records = read_manifest(manifest)
    with pytest.raises(ManifestError, match="unsaid.*no transcript"):
        ConversationDataset(records, model.prompt, model.audio_positions, written=True)
    data = ConversationDataset(records, model.prompt, model.audio_positions, on_bad="skip", written=True)
    ids, turns = data[0].written
    assert "the capital" in model.prompt.tokenizer.decode(ids) and model.prompt.decode(ids[turns > 0]) == "Paris"
    assert not data[~0].written[1].any()
    manifest.write_text(record("empty", {"transcript": " "}) + "\n")
    with pytest.raises(ManifestError, match="a transcript that is no text"):
        read_manifest(manifest)
