"""Encoders of transformers: tiny random ones of each family, from folders as they lie on the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speechzoo.encoders import HFSpeechEncoder, WhisperEncoder

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVS = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
WHISPER = WhisperConfig(
    d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=60, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    decoder_start_token_id=3, max_source_positions=1500,
)  # fmt: skip


def moved(model: HubertModel) -> HubertModel:
    """A batch norm of which zeros come out as something else."""
    torch.nn.init.ones_(model.encoder.pos_conv_embed.batch_norm.bias)
    return model


MODELS = {
    # Group norm over time, no attention mask: the first wav2vec 2.0.
    "wav2vec2": (
        lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **CONVS, feat_extract_norm="group")),
        lambda: Wav2Vec2FeatureExtractor(return_attention_mask=False),
    ),
    "hubert": (
        lambda: HubertModel(HubertConfig(**SIZES, **CONVS, feat_extract_norm="layer", do_stable_layer_norm=True)),
        lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "wavlm": (lambda: WavLMModel(WavLMConfig(**SIZES, **CONVS)), lambda: Wav2Vec2FeatureExtractor()),
    # These convolve past the end of a padded clip, where no zeros are left.
    "data2vec": (
        lambda: Data2VecAudioModel(Data2VecAudioConfig(**SIZES, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2)),
        lambda: Wav2Vec2FeatureExtractor(),
    ),
    "conformer": (
        lambda: Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**SIZES, **CONVS)),
        lambda: Wav2Vec2FeatureExtractor(),
    ),
    "hubert with batch norm": (
        lambda: moved(HubertModel(HubertConfig(**SIZES, **CONVS, conv_pos_batch_norm=True))),
        lambda: Wav2Vec2FeatureExtractor(),
    ),
    "w2v-bert": (
        lambda: Wav2Vec2BertModel(Wav2Vec2BertConfig(**SIZES, conv_depthwise_kernel_size=5)),
        lambda: SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80),
    ),
    "whisper": (lambda: WhisperModel(WHISPER), lambda: WhisperFeatureExtractor()),
}
every = pytest.mark.parametrize("name", sorted(MODELS))
BATCH_NORMS = {"conformer", "hubert with batch norm"}  # which hear otherwise while they learn


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            for part in MODELS[name]:
                part().save_pretrained(made[name])
        return made[name]

    return get


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, also past the ends: nobody may look there."""
    lens = torch.tensor([16000, 9999, 5040, 399])
    return torch.randn(4, 16000, generator=torch.Generator().manual_seed(1)) * 0.1, lens


@every
@torch.no_grad()
def test_states_are_those_of_the_library(folders, name):
    """One clip: its own extractor, its own model; whatever stands in the batch beside it."""
    encoder = HFSpeechEncoder(str(folders(name))).eval()
    audio, lens = clips()
    states, frames = encoder(audio, lens)
    assert frames.equal(encoder.out_lens(lens)) and states.shape == (4, int(frames.max()), 16)
    net, extractor = encoder.net, encoder.extractor
    for row, samples in enumerate(lens.tolist()):
        if not frames[row]:
            assert not states[row].any()
            continue
        inputs = extractor(audio[row, :samples].numpy(), sampling_rate=16000, return_tensors="pt")
        expected = net(**inputs).last_hidden_state[0]
        assert 0 <= len(expected) - int(frames[row]) <= (name == "w2v-bert")
        torch.testing.assert_close(states[row, : frames[row]], expected[: frames[row]], atol=1e-6, rtol=1e-5)
        assert not states[row, frames[row] :].any()


@every
@torch.no_grad()
def test_lengths_by_one_function_whatever_the_length(folders, name):
    encoder = HFSpeechEncoder(str(folders(name))).eval()
    for samples in (*range(395, 405), *range(715, 725), 1359, 1360, 1361, 8000, 8001):
        states, lens = encoder(torch.randn(1, samples), torch.tensor([samples]))
        assert int(lens) == states.shape[1] or not int(lens)


def test_a_second_is_as_many_frames_as_the_papers_say(folders):
    lens = torch.tensor([16000, 399, 400])
    assert HFSpeechEncoder(str(folders("hubert"))).out_lens(lens).tolist() == [49, 0, 1]
    assert HFSpeechEncoder(str(folders("w2v-bert"))).out_lens(lens).tolist() == [49, 0, 0]
    assert HFSpeechEncoder(str(folders("whisper"))).out_lens(lens).tolist() == [1500] * 3


@torch.no_grad()
def test_a_layer_of_choice(folders):
    encoder = HFSpeechEncoder(str(folders("hubert")), layer=1).eval()
    audio = torch.randn(1, 4000) * 0.1
    inputs = encoder.extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    expected = encoder.net(**inputs, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(encoder(audio, torch.tensor([4000]))[0], expected, atol=1e-6, rtol=1e-5)
    ears = HFSpeechEncoder(str(folders("w2v-bert")))
    inputs = ears.extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    expected = ears.eval().net(**inputs, output_hidden_states=True).hidden_states[1]
    states, lens = HFSpeechEncoder(str(folders("w2v-bert")), layer=1).eval()(audio, torch.tensor([4000]))
    torch.testing.assert_close(states, expected[:, : int(lens)], atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="has 2 layers: layer 3 does not exist"):
        HFSpeechEncoder(str(folders("hubert")), layer=3)


def test_a_learned_mix_begins_as_the_mean_and_learns_alone(folders):
    encoder = HFSpeechEncoder(str(folders("wavlm")), layer="mix")
    encoder.net.requires_grad_(False)
    encoder.train()
    assert not encoder.net.training  # neither dropout nor masks of time
    audio, lens = torch.randn(1, 4000) * 0.1, torch.tensor([4000])
    states, _ = encoder(audio, lens)
    inputs = encoder.extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt")
    layers = encoder.net(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, torch.stack(layers).mean(dim=0), atol=1e-6, rtol=1e-5)
    (states * torch.linspace(-1, 1, 16)).sum().backward()
    assert encoder.mix.grad.abs().max() > 0
    assert all(weight.grad is None for weight in encoder.net.parameters())


@pytest.mark.parametrize("layer", [None, "mix"])
@pytest.mark.parametrize("name", sorted(set(MODELS) - BATCH_NORMS))
def test_nothing_is_masked_where_the_encoder_learns(folders, tmp_path, name, layer):
    shutil.copytree(folders(name), tmp_path / name)
    file = tmp_path / name / "config.json"
    config = json.loads(file.read_text())
    config |= {key: 0.0 for key, value in config.items() if "drop" in key and isinstance(value, float)}
    file.write_text(json.dumps({**config, "apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 2}))
    encoder = HFSpeechEncoder(str(tmp_path / name), layer=layer)
    wanted = encoder.eval()(*clips())[0]
    encoder.train()
    assert encoder.net.training
    torch.testing.assert_close(encoder(*clips())[0], wanted)


def test_fingerprints_tell_weights_layers_and_extractors_apart(folders, tmp_path):
    model = str(folders("hubert"))
    kinds = [HFSpeechEncoder(model), HFSpeechEncoder(model, layer=1), HFSpeechEncoder(model, layer="mix")]
    assert HFSpeechEncoder(model).fingerprint == kinds[0].fingerprint
    HubertModel.from_pretrained(model).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    kinds.append(HFSpeechEncoder(str(tmp_path)))
    assert len({kind.fingerprint for kind in kinds}) == 4


def test_what_cannot_be_heard_is_refused(folders, tmp_path):
    HubertModel.from_pretrained(str(folders("hubert"))).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sound at 8000 Hz, not 16000"):
        HFSpeechEncoder(str(tmp_path))
    SEWModel(SEWConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="joins frames inside"):
        HFSpeechEncoder(str(tmp_path))


@torch.no_grad()
def test_the_last_layer_of_whisper_stands_before_the_norm(folders):
    """As `WhisperEncoder` has it; transformers lists it after the norm."""
    audio, lens = torch.randn(1, 4000) * 0.1, torch.tensor([4000])
    for layer in (1, 2):
        encoder = HFSpeechEncoder(str(folders("whisper")), layer=layer).eval()
        expected = WhisperEncoder(str(folders("whisper")), layer=layer)(audio, lens)[0]
        torch.testing.assert_close(encoder(audio, lens)[0], expected, atol=1e-5, rtol=1e-5)
        assert len(encoder.net.layers) == layer


def test_whispers_extractor_cuts_no_clip(folders):
    encoder = HFSpeechEncoder(str(folders("whisper")))
    with pytest.raises(ValueError, match=r"a clip of 30\.1 s is longer than the encoder's 30 s window: split it"):
        encoder(torch.zeros(1, 481_600), torch.tensor([481_600]))


def test_fingerprints_tell_the_dtype_of_weights_stored_in_half_precision(folders):
    half = HFSpeechEncoder(str(folders("whisper")), dtype="float16")
    assert half.fingerprint != half.float().fingerprint
