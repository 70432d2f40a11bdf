"""The laws that every architecture obeys, on tiny random parts through the real loading code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.adaptors import ConcatMLP, Conv, CrossAttention, Linear, MeanPool, QFormer, StackSwiGLU
from speechzoo.data import encode_batch
from speechzoo.encoders import WhisperEncoder, WhisperQueries
from speechzoo.llms import HFCausalLM
from speechzoo.models import Cascade, LLaMAOmni, LLaMAOmni2, LLaSM, SpeechLLM, Ultravox
from speechzoo.text import ChatPrompt
from speechzoo.training.exact_loss import step_loss
from speechzoo.types import IGNORE, SpeechBatch, SpeechOutput
from speechzoo.units import ARUnitDecoder, CTCUnitDecoder

SMALL_DECODER = partial(CTCUnitDecoder, num_units=12, upsample=3, dim=16, num_layers=1, num_heads=2, ffn_dim=32)
SMALL_WRITER = partial(
    ARUnitDecoder,
    num_units=12,
    read=2,
    write=3,
    dim=16,
    num_layers=1,
    num_heads=2,
    ffn_dim=32,
    max_units=20,
    temperature=0.0,
)
SMALL_QFORMER = {"window": 17, "queries": 2, "dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 24}


class Echo(SpeechLLM):
    """A third architecture, here to show that one class is all it takes."""


class Calm(SpeechLLM):
    """A fourth one with a loss of its own, the power of its states, which counts rows: nothing else knows its name."""

    objectives = {**SpeechLLM.objectives, "power": len}

    def add_losses(self, batch: SpeechBatch, result: SpeechOutput) -> None:
        power = result.hidden.float().pow(2).mean(dim=-1) * result.mask
        result.sums["power"] = (power.sum(dim=1) / result.mask.sum(dim=1)).sum()


def parts(llm_dir: Path, whisper_pt: Path, **changes):
    given = {
        "encoder": partial(WhisperEncoder, model=str(whisper_pt), window="trimmed"),
        "adaptor": partial(ConcatMLP, stack=5, hidden_dim=24),
        "llm": partial(HFCausalLM, model=str(llm_dir)),
        "prompt": partial(ChatPrompt, tokenizer=str(llm_dir)),
    }
    return {**given, **changes}


ARCHITECTURES = {
    "llasm": (LLaSM, {"adaptor": partial(Linear, stack=4)}),
    "llasm_tokens": (LLaSM, {"tokens": True, "adaptor": Linear}),
    "llasm_queries": (LLaSM, {"queries": True, "adaptor": Linear}),
    "llasm_lora": (LLaSM, {"lora": True}),
    "llama_omni": (LLaMAOmni, {"unit_decoder": SMALL_DECODER}),
    "llama_omni_label": (LLaMAOmni, {"unit_decoder": partial(SMALL_DECODER, align="label"), "adaptor": Conv}),
    "llama_omni2": (LLaMAOmni2, {"unit_decoder": SMALL_WRITER}),
    "ultravox": (Ultravox, {"adaptor": partial(StackSwiGLU, stack=8, hidden_dim=24)}),
    "ultravox_lora": (Ultravox, {"adaptor": partial(QFormer, **SMALL_QFORMER), "lora": True, "temperature": 1.0}),
    "pooled": (LLaSM, {"adaptor": partial(MeanPool, stack=4)}),
    "attending": (LLaSM, {"adaptor": partial(CrossAttention, num_heads=2, hidden_dim=24)}),
    "third": (Echo, {"adaptor": partial(Conv, hidden_dim=16)}),
    "own_loss": (Calm, {"adaptor": partial(Linear, stack=4), "loss_weights": {"power": 0.25}}),
}


def make(name: str, llm: Path, whisper: Path, **more) -> SpeechLLM:
    torch.manual_seed(0)
    cls, options = ARCHITECTURES[name]
    options = dict(options)
    if options.pop("tokens", False):
        options["prompt"] = partial(ChatPrompt, tokenizer=str(llm), audio_tokens=["<au_start>", "<au_end>"])
    if options.pop("queries", False):
        options["encoder"] = partial(WhisperQueries, model=str(whisper), num_queries=8, start_token=3)
    if options.pop("lora", False):
        options["llm"] = partial(HFCausalLM, model=str(llm), lora={"r": 2})
    model = cls(**parts(llm, whisper, **{**options, **more}))
    model.configure_model()
    return model


def tone(seconds: float, pitch: float) -> torch.Tensor:
    t = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.5 * torch.sin(2 * torch.pi * pitch * t * (1 + t))


def user(*parts: str | torch.Tensor) -> dict:
    heard = {"type": "audio", "transcript": "how are you"}
    content = [{"type": "text", "text": p} if isinstance(p, str) else {**heard, "array": p} for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str, units: list[int] | None = None) -> dict:
    return {"role": "assistant", "content": text, **({"units": units} if units else {})}


CONVERSATIONS = [
    [user(tone(0.9, 200)), assistant("six and nine is fifteen", [1, 2, 3, 2])],
    [
        user("compare", tone(0.5, 300), "with", tone(1.3, 150)),
        assistant("hello", [4, 5]),
        user(tone(0.4, 500), "again"),
        assistant("the capital of France is Paris", [6, 7, 8, 9, 10]),
    ],
    [user("What is the capital of France?"), assistant("Paris", [11, 0])],
]

every = pytest.mark.parametrize("name", sorted(ARCHITECTURES))


@pytest.fixture(scope="module")
def models(tiny_llm_dir: Path, tiny_whisper_pt: Path):
    made: dict[str, SpeechLLM] = {}

    def get(name: str) -> SpeechLLM:
        if name not in made:
            made[name] = make(name, tiny_llm_dir, tiny_whisper_pt).eval()
        return made[name]

    return get


@every
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_or_the_padding_side(models, name):
    """Losses and logits alone = in a batch = with left padding."""
    model = models(name)
    alone = [model(encode_batch(model.prompt, [c], True, "right"), logits=True) for c in CONVERSATIONS]
    for side in ("right", "left"):
        batch = encode_batch(model.prompt, CONVERSATIONS, True, side)
        out = model(batch, logits=True)
        for loss in out.sums:
            total = sum(a.sums[loss] for a in alone)
            torch.testing.assert_close(out.sums[loss], total, atol=0, rtol=1e-5)
        for row, single in enumerate(alone):
            real = out.logits[row][out.mask[row]]
            torch.testing.assert_close(real, single.logits[0][single.mask[0]], atol=2e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_answers_do_not_depend_on_the_batch(models, name):
    model = models(name)
    together = model.respond(encode_batch(model.prompt, CONVERSATIONS, False, "left"), max_new_tokens=8)
    right = model.respond(encode_batch(model.prompt, CONVERSATIONS, False, "right"), max_new_tokens=8)
    assert together.text == right.text
    for row, conversation in enumerate(CONVERSATIONS):
        single = model.respond(encode_batch(model.prompt, [conversation], False), max_new_tokens=8)
        assert single.text[0] == together.text[row]
        if single.units is not None:
            assert single.units[0].equal(together.units[row]) and single.units[0].equal(right.units[row])


@every
@torch.no_grad()
def test_lengths_come_from_the_length_functions(models, name):
    model = models(name)
    for samples in (1600, 16_000, 16_001, 16_319, 16_320, 16_321, 47_999):
        lens = torch.tensor([samples])
        batch = encode_batch(model.prompt, [[user(tone(samples / 16_000 + 1e-6, 220)[:samples])]])
        speech, frames = model.encode(batch)
        assert frames.tolist() == model.audio_positions(lens).tolist() == [speech.shape[1]]


@every
def test_each_trainable_parameter_learns_and_no_frozen_one(tiny_llm_dir, tiny_whisper_pt, name):
    model = make(name, tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."]).train()
    out = model(encode_batch(model.prompt, CONVERSATIONS, True, "right"))
    sum(out.sums.values()).backward()
    # LoRA's A matrices get exact zeros in the first step because B starts at 0.
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert [n for n in silent if "lora_A" not in n] == []
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.encoder.parameters())
    assert not model.encoder.training


@every
def test_batches_without_speech_or_units_touch_every_trained_part(tiny_llm_dir, tiny_whisper_pt, name):
    model = make(name, tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."]).train()
    text = [[user("What is the capital of France?"), assistant("Paris")]]
    sum(model(encode_batch(model.prompt, text, True, "right")).sums.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_frozen_llm_still_learns_new_tokens(tiny_llm_dir, tiny_whisper_pt):
    """LLaSM stage 1: the rows of <au_start> and <au_end> learn, and nothing else of the LLM."""
    model = make("llasm_tokens", tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\.", "^llm\\.lm\\."]).train()
    model(encode_batch(model.prompt, CONVERSATIONS, True, "right")).sums["lm"].backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"llm.new_embeddings", "adaptor.linear.weight", "adaptor.linear.bias"}
    assert model.llm.new_embeddings.grad.abs().sum(dim=1).gt(0).all()


def test_a_freeze_pattern_that_matches_nothing_is_refused(tiny_llm_dir, tiny_whisper_pt):
    with pytest.raises(ValueError, match=r"'\^encodr' matches no parameter \(parts: adaptor, encoder, llm\)"):
        make("llasm", tiny_llm_dir, tiny_whisper_pt, freeze=["^encodr"])


def test_a_single_pattern_may_stand_alone(tiny_llm_dir, tiny_whisper_pt):
    """Its letters would each match something."""
    model = make("llasm", tiny_llm_dir, tiny_whisper_pt, freeze="^encoder\\.")
    frozen = {name.split(".")[0] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"encoder"}


@every
def test_only_answers_and_their_end_are_supervised(models, name):
    """In every assistant turn, also where pad == eos (the tiny tokenizer's case)."""
    model = models(name)
    tokenizer = model.prompt.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    for row, conversation in enumerate(CONVERSATIONS):
        answers = [m["content"] for m in conversation if m["role"] == "assistant"]
        for turn, answer in enumerate(answers, start=1):
            ids = batch.input_ids[row][batch.turns[row] == turn]
            assert tokenizer.decode(ids) == answer + "<|im_end|>"
        assert int((batch.labels[row] != IGNORE).sum()) == int((batch.turns[row] > 0).sum())
        assert int(batch.turns[row].max()) == len(answers)


@every
def test_hyper_parameters_are_plain_data(models, name, tmp_path):
    """They go through a `weights_only` checkpoint and build the same model again."""
    model = models(name)
    torch.save(dict(model.hparams), tmp_path / "hparams.pt")
    again = type(model)(**torch.load(tmp_path / "hparams.pt", weights_only=True))
    again.configure_model()
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]


@torch.no_grad()
def test_features_from_a_cache_equal_the_encoder(models):
    model = models("llama_omni")
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    states, lens = model.encoder(batch.audio, batch.audio_lens)
    cached = SpeechBatch(**{**vars(batch), "audio": None, "audio_lens": None, "features": states, "feature_lens": lens})
    assert model(cached).sums["lm"].equal(model(batch).sums["lm"])


@torch.no_grad()
def test_a_cascade_answers_like_its_llm_reading_the_transcription(models, tiny_whisper_pt):
    model = models("llasm_tokens")
    cascade = Cascade(str(tiny_whisper_pt), model.llm, model.prompt)
    questions = ["hello, how are you", "What is the capital of France?"]
    spoken = [[user(tone(0.5, 300))], [user("Listen:", tone(0.7, 200))]]
    batch = encode_batch(model.prompt, spoken)
    text = cascade.with_text(batch, questions)
    written = encode_batch(model.prompt, [[user(questions[0])], [user("Listen:", questions[1])]])
    for row in range(2):
        ids = text.input_ids[row][text.attention_mask[row]].tolist()
        assert model.prompt.decode(ids) == model.prompt.decode(written.input_ids[row].tolist())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_splice_keeps_order_and_content(data):
    """Any number of clips at any place, either padding side: positions hold exactly what was put in, and only the text
    that was supervised still is."""
    from speechzoo.llms.splice import splice
    from speechzoo.types import AUDIO

    rows = data.draw(
        st.lists(st.lists(st.one_of(st.integers(1, 9), st.just(AUDIO)), min_size=1, max_size=7), min_size=1, max_size=4)
    )
    clips = sum(row.count(AUDIO) for row in rows)
    lens = data.draw(st.lists(st.integers(1, 4), min_size=clips, max_size=clips))
    width = max(map(len, rows))
    left = data.draw(st.booleans())
    pad = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([p + r if left else r + p for p, r in zip(pad, rows, strict=True)])
    mask = torch.tensor(
        [
            [False] * len(p) + [True] * len(r) if left else [True] * len(r) + [False] * len(p)
            for p, r in zip(pad, rows, strict=True)
        ]
    )
    speech = torch.arange(clips * 4).view(clips, 4, 1) + 100.0
    text = ids[..., None].float()
    turns = torch.where(mask, (7 * ids + torch.arange(width)) % 3, 0)
    side = data.draw(st.sampled_from(["left", "right"]))
    out = splice(text, ids, mask, turns, speech, torch.tensor(lens, dtype=torch.long), side)
    expected, clip = [], 0
    for row, row_turns, real in zip(rows, turns, mask, strict=True):
        values, learnt = [], []
        for token, turn in zip(row, row_turns[real].tolist(), strict=True):
            if token == AUDIO:
                values += speech[clip, : lens[clip], 0].tolist()
                learnt += [0] * lens[clip]
                clip += 1
            else:
                values.append(float(token))
                learnt.append(turn)
        expected.append((values, learnt))
    for row, (values, learnt) in enumerate(expected):
        assert out.embeds[row, :, 0][out.mask[row]].tolist() == values
        assert out.position_ids[row][out.mask[row]].tolist() == list(range(len(values)))
        assert out.turns[row][out.mask[row]].tolist() == learnt
        assert not out.turns[row][~out.mask[row]].any() and not out.ids[row][~out.mask[row]].any()
        assert not out.embeds[row][~out.mask[row]].any()
        edge = out.mask[row, -1] if side == "left" else out.mask[row, 0]
        assert bool(edge)


def test_a_loss_of_ones_own_is_counted_weighed_and_named(models, tiny_llm_dir, tiny_whisper_pt):
    model = models("own_loss")
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    out = model(batch)
    assert model.num_targets(batch) == {"lm": int((batch.turns > 0).sum()), "power": 3}
    torch.testing.assert_close(out.losses["power"], out.sums["power"] / 3)
    window = {"lm": 100, "power": 6}
    weighted = out.sums["lm"] / 100 + 0.25 * out.sums["power"] / 6
    torch.testing.assert_close(step_loss(out.sums, window, model.loss_weights, 1, 1), weighted)
    with pytest.raises(ValueError, match="Calm has no loss 'ctc', it has lm and power"):
        make("own_loss", tiny_llm_dir, tiny_whisper_pt, loss_weights={"ctc": 0.5})
    with pytest.raises(ValueError, match=r"all losses of Calm \(lm, power\) are 0"):
        make("own_loss", tiny_llm_dir, tiny_whisper_pt, loss_weights={"lm": 0, "power": 0.0})
    old = make("own_loss", tiny_llm_dir, tiny_whisper_pt, loss_weights={"ctc": 1.0})  # as runs of earlier versions say
    assert old.loss_weights == {"lm": 1.0, "power": 1.0}
