"""Whisper from every source it may come in, and states that do not depend on the batch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperForConditionalGeneration

from speechzoo.audio import MAX_SAMPLES, log_mel
from speechzoo.encoders import WhisperEncoder, WhisperQueries
from speechzoo.encoders.whisper_weights import load_whisper


@pytest.fixture(scope="module")
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lens = [9_600, 4_001, 320, 1]
    rows = [torch.randn(n, generator=generator) * 0.1 for n in lens]
    return pad_sequence(rows, batch_first=True), torch.tensor(lens)


@pytest.fixture(scope="module")
def theirs() -> WhisperForConditionalGeneration:
    """A Whisper of transformers whose inner widths and head counts are not openai's."""
    config = WhisperConfig(
        vocab_size=70,
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        max_source_positions=1500,
        max_target_positions=20,
        decoder_start_token_id=9,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hf_whisper")
    theirs.save_pretrained(path)
    return path


@torch.no_grad()
def test_a_hugging_face_folder_gives_the_states_of_transformers(theirs, folder, clips):
    mel, lens = log_mel(clips[0][:2], clips[1][:2], 80)
    queries = WhisperQueries(str(folder), num_queries=6).eval()
    states, frames = queries.encode_mel(mel, lens)
    expected = theirs.model.encoder(mel).last_hidden_state
    assert frames.tolist() == [1500, 1500]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    start = torch.full((2, 6), 9)
    decoded = theirs.model.decoder(input_ids=start, encoder_hidden_states=expected, use_cache=False)
    got, lens = queries.queries(states)
    torch.testing.assert_close(got, decoded.last_hidden_state, atol=1e-5, rtol=0)
    assert lens.tolist() == [6, 6] and queries.start_token == 9


@torch.no_grad()
def test_every_layer_can_be_taken(theirs, folder, clips):
    mel, lens = log_mel(clips[0][:1], clips[1][:1], 80)
    hidden = theirs.model.encoder(mel, output_hidden_states=True).hidden_states
    first = WhisperEncoder(str(folder), layer=1).encode_mel(mel, lens)[0]
    torch.testing.assert_close(first, hidden[1], atol=1e-5, rtol=0)
    last, normed = (WhisperEncoder(str(folder), layer=layer).encode_mel(mel, lens)[0] for layer in (2, None))
    norm = theirs.model.encoder.layer_norm
    torch.testing.assert_close(norm(last), normed, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_openai_file_gives_the_states_of_openai_whisper(tiny_whisper_pt, clips):
    net, start = load_whisper(str(tiny_whisper_pt))
    mel, lens = log_mel(clips[0][:2], clips[1][:2], 80)
    encoder = WhisperEncoder(str(tiny_whisper_pt))
    torch.testing.assert_close(encoder.encode_mel(mel, lens)[0], net.encoder(mel), atol=1e-5, rtol=0)
    assert start == 50257  # English-only by the size of its vocabulary
    queries = WhisperQueries(str(tiny_whisper_pt), num_queries=5, start_token=3)
    states = net.encoder(mel)
    x = net.decoder.token_embedding(torch.full((2, 5), 3)) + net.decoder.positional_embedding[:5]
    for block in net.decoder.blocks:
        x = block(x, states, mask=net.decoder.mask)
    torch.testing.assert_close(queries.queries(states)[0], net.decoder.ln(x), atol=1e-5, rtol=0)


def test_a_learned_mix_begins_as_the_mean_and_learns_alone(theirs, folder, clips):
    """Of all that transformers calls hidden states, whose last one is the normed one."""
    encoder = WhisperEncoder(str(folder), layer="mix")
    encoder.net.requires_grad_(False)
    mel, lens = log_mel(*clips, 80)
    states = torch.stack(theirs.model.encoder(mel, output_hidden_states=True).hidden_states)
    assert encoder.mix.shape == (len(states),) == (3,)
    torch.testing.assert_close(encoder.encode_mel(mel, lens, whole=True)[0], states.mean(0), atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        encoder.mix.copy_(torch.tensor([0.0, 1.0, -1.0]))
    found = encoder.encode_mel(mel, lens, whole=True)[0]
    mixed = (encoder.mix.softmax(0)[:, None, None, None] * states).sum(0)
    torch.testing.assert_close(found, mixed, atol=2e-5, rtol=1e-4)
    found.square().sum().backward()
    assert encoder.mix.grad.abs().min() > 0 and all(weight.grad is None for weight in encoder.net.parameters())


@pytest.mark.parametrize("layer", [None, 1, "mix"])
@torch.no_grad()
def test_trimmed_states_do_not_depend_on_the_batch(tiny_whisper_pt, clips, layer):
    encoder = WhisperEncoder(str(tiny_whisper_pt), window="trimmed", layer=layer)
    audio, audio_lens = clips
    states, lens = encoder(audio, audio_lens)
    assert lens.tolist() == encoder.out_lens(audio_lens).tolist() == [30, 13, 1, 1]
    for row, samples in enumerate(audio_lens.tolist()):
        alone, length = encoder(audio[row : row + 1, :samples], audio_lens[row : row + 1])
        torch.testing.assert_close(states[row, : int(length)], alone[0], atol=1e-5, rtol=0)
        assert not states[row, int(length) :].any()


@torch.no_grad()
def test_a_full_window_is_the_same_trimmed_or_padded(tiny_whisper_pt):
    audio = torch.randn(1, MAX_SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1
    lens = torch.tensor([MAX_SAMPLES])
    padded, trimmed = (WhisperEncoder(str(tiny_whisper_pt), window=w) for w in ("padded", "trimmed"))
    assert padded.out_lens(lens).tolist() == trimmed.out_lens(lens).tolist() == [1500]
    # The last window sees the end reflected in Whisper's own padding and silence in the trimmed one.
    states = [encoder(audio, lens)[0] for encoder in (padded, trimmed)]
    torch.testing.assert_close(states[0], states[1], atol=5e-3, rtol=0)


def test_more_than_the_window_is_refused(tiny_whisper_pt):
    audio, lens = torch.zeros(1, MAX_SAMPLES + 320), torch.tensor([MAX_SAMPLES + 320])
    with pytest.raises(ValueError, match="1501 frames exceed the encoder's 1500"):
        WhisperEncoder(str(tiny_whisper_pt), window="trimmed")(audio, lens)
    with pytest.raises(ValueError, match="30 s window"):
        WhisperEncoder(str(tiny_whisper_pt))(audio, lens)


@torch.no_grad()
def test_queries_do_not_depend_on_the_batch(tiny_whisper_pt, clips):
    encoder = WhisperQueries(str(tiny_whisper_pt), num_queries=5, start_token=3)
    audio, audio_lens = clips
    states, lens = encoder(audio, audio_lens)
    assert states.shape == (len(audio), 5, 32) and lens.tolist() == [5] * len(audio)
    assert (states[0] - states[1]).abs().max() > 1e-3  # else nothing is heard
    for row, samples in enumerate(audio_lens.tolist()):
        alone = encoder(audio[row : row + 1, :samples], audio_lens[row : row + 1])[0]
        torch.testing.assert_close(states[row], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [WhisperEncoder, WhisperQueries])
@torch.no_grad()
def test_dtype_is_that_of_the_weights_and_states(tiny_whisper_pt, clips, kind):
    """Given at the start, or by a trainer with `precision: bf16-true`; without autocast."""
    options = {"num_queries": 4, "start_token": 3} if kind is WhisperQueries else {"window": "trimmed"}
    audio, lens = clips[0][:2], clips[1][:2]
    full = kind(str(tiny_whisper_pt), **options)
    states = full(audio, lens)[0]
    for half in (kind(str(tiny_whisper_pt), **options, dtype="bfloat16"), full.to(torch.bfloat16)):
        got = half(audio, lens)[0]
        assert {p.dtype for p in half.parameters()} == {got.dtype} == {torch.bfloat16}
        torch.testing.assert_close(got.float(), states, atol=0.1, rtol=0)


def test_weights_are_read_whole_where_new_ones_are_made_in_half_precision(tiny_whisper_pt, folder):
    """As Lightning builds a model under `bf16-true`, whose checkpoints know the encoder by its numbers."""
    for model in (str(tiny_whisper_pt), str(folder)):
        plain = load_whisper(model)[0].state_dict()
        torch.set_default_dtype(torch.bfloat16)
        try:
            half = load_whisper(model)[0].state_dict()
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(value.equal(half[name]) for name, value in plain.items())


def test_fingerprints_tell_weights_and_settings_apart(tiny_whisper_pt, folder):
    made = [
        WhisperEncoder(str(tiny_whisper_pt)),
        WhisperEncoder(str(tiny_whisper_pt), window="trimmed"),
        WhisperEncoder(str(tiny_whisper_pt), layer=1),
        WhisperEncoder(str(tiny_whisper_pt), layer="mix"),
        WhisperEncoder(str(folder)),
        WhisperQueries(str(tiny_whisper_pt), num_queries=5),
        WhisperQueries(str(tiny_whisper_pt), num_queries=6),
    ]
    prints = [encoder.fingerprint for encoder in made]
    assert len(set(prints)) == len(prints)
    assert WhisperEncoder(str(tiny_whisper_pt)).fingerprint == prints[0]
    with torch.no_grad():
        made[0].net.ln_post.bias[0] += 1e-3
    assert made[0].fingerprint != prints[0]


class Hostile:
    """Pickles to a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_whisper(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_damaged_and_hostile_files_are_refused_in_one_line(tiny_whisper_pt, tmp_path):
    whole = tiny_whisper_pt.read_bytes()
    for name, content in {"noise.pt": b"\x93noise" * 99, "empty.pt": b"", "cut.pt": whole[:-500]}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an openai-whisper checkpoint")
    for name, held in {"list.pt": [1, 2], "other.pt": {"state_dict": {}}, "none.pt": None}.items():
        torch.save(held, tmp_path / name)
        refused(tmp_path / name, "not an openai-whisper checkpoint")
    torch.save({"dims": Hostile(tmp_path / "harm")}, tmp_path / "hostile.pt")
    refused(tmp_path / "hostile.pt", "not an openai-whisper checkpoint")
    assert not (tmp_path / "harm").exists()


def test_tensors_that_do_not_fit_are_named(tiny_whisper_pt, tmp_path):
    held = torch.load(tiny_whisper_pt, weights_only=True)
    state = held["model_state_dict"]
    for changed, match in [
        ({**state, "decoder.ln.bias": torch.zeros(31)}, "do not fit its description: .*decoder.ln.bias"),
        ({k: v for k, v in state.items() if k != "decoder.ln.bias"}, r"missing \['decoder.ln.bias'\]"),
        ({**state, "extra": torch.zeros(1)}, r"left over \['extra'\]"),
    ]:
        torch.save({**held, "model_state_dict": changed}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", match)


def test_folders_that_are_no_whisper_are_refused(folder, tmp_path):
    def copy(name: str, **changes) -> Path:
        path = tmp_path / name
        path.mkdir()
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (path / "config.json").write_text(json.dumps(config))
        return path

    refused(copy("llama", model_type="llama"), "describes a 'llama' model, not whisper")
    refused(copy("bare"), r"holds no \.safetensors")
    (copy("half") / "config.json").write_text('{"model_type": "whisper",')
    refused(tmp_path / "half", r"half/config\.json: not JSON")
    path = copy("damaged")
    (path / "model.safetensors").write_bytes(b"\xffnoise" * 99)
    refused(path, "cannot be read")
    path = copy("hostile")
    torch.save({"a": Hostile(tmp_path / "harm")}, path / "pytorch_model.bin")
    refused(path, "cannot be read")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_whisper(str(tmp_path / "nothing"))


def test_a_folder_in_the_older_format_is_the_same_model(theirs, folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours, again = load_whisper(str(folder))[0].state_dict(), load_whisper(str(tmp_path))[0].state_dict()
    assert all(again[name].equal(tensor) for name, tensor in ours.items())


def test_unknown_names_and_settings_are_refused(tiny_whisper_pt):
    with pytest.raises(FileNotFoundError, match=r"huge-v9: no such file, and not a Whisper model name \(tiny.en"):
        load_whisper("huge-v9")
    with pytest.raises(ValueError, match="padded or trimmed, not 'short'"):
        WhisperEncoder(str(tiny_whisper_pt), window="short")
    for layer in (0, 3, "last"):
        with pytest.raises(ValueError, match=f"has 2 blocks: layer {layer!r} does not exist"):
            WhisperEncoder(str(tiny_whisper_pt), layer=layer)
