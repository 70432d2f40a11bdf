"""Golden first look: merged embeddings, logits and losses of the official code, on its own checkpoints and inputs.

The data is not part of the repository; it is looked for in $SPEECHZOO_GOLDEN, then in ../shared/golden.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import whisper
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from speechzoo.adaptors import ConcatMLP, Linear
from speechzoo.audio import log_mel
from speechzoo.encoders import WhisperEncoder, WhisperQueries
from speechzoo.llms import HFCausalLM
from speechzoo.models.llama_omni import answer_states
from speechzoo.types import AUDIO, IGNORE
from speechzoo.units import CTCUnitDecoder
from speechzoo.vocoders import UnitHiFiGAN

ROOT = Path(os.environ.get("SPEECHZOO_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def need(name: str) -> Path:
    if not (ROOT / name / "golden.safetensors").is_file():
        pytest.skip(f"no golden data in {ROOT / name} (set SPEECHZOO_GOLDEN)")
    return ROOT / name


def llama_folder(state: dict, config: dict, folder: Path) -> str:
    """The LLM inside an official checkpoint as an ordinary Hugging Face folder."""
    keys = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
        "rms_norm_eps max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id"
    ).split()
    rope = {"rope_type": "default", **(config.get("rope_scaling") or {}), "rope_theta": config.get("rope_theta", 1e4)}
    lm = LlamaForCausalLM(LlamaConfig(**{k: config[k] for k in keys if k in config}, rope_parameters=rope))
    own = set(lm.state_dict())
    lm.load_state_dict({k: v for k, v in state.items() if k in own})
    lm.save_pretrained(folder)
    return str(folder)


def to_clips(ids: torch.Tensor, turns: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Official LLaSM ids, each run of `<au_patch>` replaced by one placeholder."""
    keep = (ids != patch) | (torch.roll(ids, 1) != patch)
    return torch.where(ids == patch, AUDIO, ids)[keep], turns[keep]


@pytest.fixture(scope="module")
def llasm(tmp_path_factory):
    root = need("llasm")
    gold, meta = load_file(root / "golden.safetensors"), json.loads((root / "meta.json").read_text())
    state = load_file(root / "checkpoint_safetensors" / "model.safetensors")
    config = json.loads((root / "checkpoint" / "config.json").read_text())
    folder = llama_folder(state, config, tmp_path_factory.mktemp("llasm"))
    ids = meta["token_ids"]
    llm = HFCausalLM([ids["<au_start>"], ids["<au_end>"]], folder).eval()
    encoder = WhisperQueries(str(root / "whisper"), meta["audio_token_len"])
    adaptor = Linear(encoder.out_dim, llm.dim)
    adaptor.linear.load_state_dict({k: state[f"model.mm_projector.{k}"] for k in ("weight", "bias")})
    return gold, meta, encoder, adaptor, llm


@torch.no_grad()
def test_llasm_tower_and_adaptor(llasm):
    gold, meta, encoder, adaptor, _ = llasm
    for name in meta["wav_source"]:
        wave = gold[f"wav.{name}"][None]
        mel, _ = log_mel(wave, torch.tensor([wave.shape[1]]), encoder.n_mels)
        torch.testing.assert_close(mel, gold[f"mel.{name}"], atol=2e-5, rtol=0)
        states, _ = encoder.encode_mel(gold[f"mel.{name}"], torch.tensor([3000]))
        torch.testing.assert_close(states, gold[f"tower.encoder_out.{name}"], atol=1e-5, rtol=0)
        queries, lens = encoder.queries(states)
        torch.testing.assert_close(queries, gold[f"tower.decoder_out.{name}"], atol=1e-5, rtol=0)
        torch.testing.assert_close(adaptor(queries, lens)[0], gold[f"adaptor_out.{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sample", ["asr", "asr_pre", "multi2", "textonly"])
@torch.no_grad()
def test_llasm_samples(llasm, sample):
    gold, meta, _, _, llm = llasm
    audios = meta["samples"][sample]["audios"]
    key = f"{sample}.fixed" if len(audios) > 1 else sample  # the release merges the last of several clips only
    ids, labels = gold[f"{sample}.input_ids"][0], gold[f"{sample}.labels"][0]
    ids, turns = to_clips(ids, (labels != IGNORE).long(), meta["token_ids"]["<au_patch>"])
    speech = torch.cat([gold[f"adaptor_out.{a}"] for a in audios]) if audios else torch.zeros(0, 1, llm.dim)
    lens = torch.full((len(audios),), meta["audio_token_len"])
    batch = (ids[None], torch.ones_like(ids[None], dtype=torch.bool), turns[None], speech, lens)
    torch.testing.assert_close(llm.splice(*batch).embeds, gold[f"{key}.inputs_embeds"], atol=1e-5, rtol=0)
    out = llm(*batch, logits=True)
    torch.testing.assert_close(out.logits, gold[f"{key}.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss_sum / turns.sum(), gold[f"{key}.loss"][0], atol=0, rtol=1e-5)


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    root = need("llama_omni")
    gold, meta = load_file(root / "golden.safetensors"), json.loads((root / "meta.json").read_text())
    state = load_file(root / "ckpt" / "model.safetensors")
    config = json.loads((root / "ckpt" / "config.json").read_text())
    llm = HFCausalLM([], llama_folder(state, config, tmp_path_factory.mktemp("omni"))).eval()
    encoder = WhisperEncoder(str(next((root / "models" / "speech_encoder").glob("*.pt"))))
    adaptor = ConcatMLP(encoder.out_dim, llm.dim, stack=config["speech_encoder_ds_rate"])
    prefix = "model.speech_projector."
    adaptor.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    layers, dim, heads, ffn = map(int, config["ctc_decoder_config"].strip("()").split(","))
    decoder = CTCUnitDecoder(
        llm.dim, config["unit_vocab_size"], config["ctc_upsample_factor"], dim, layers, heads, None, ffn,
        config["rope_theta"], config["rope_scaling"], config["rms_norm_eps"], align="label",
    )  # fmt: skip
    renamed = {k[len("speech_generator.") :]: v for k, v in state.items() if k.startswith("speech_generator.")}
    decoder.load_state_dict({k.replace("layers.", "transformer.layers.", 1): v for k, v in renamed.items()})
    return gold, meta, encoder, adaptor, llm, decoder


def omni_batch(gold, speech_lens=None):
    ids, labels = gold["batch.input_ids"], gold["batch.labels"]
    lens = torch.tensor([gold["projector_out"].shape[1]] * 2) if speech_lens is None else speech_lens
    return ids, gold["batch.attention_mask"].bool(), (labels != IGNORE).long(), gold["projector_out"], lens


@torch.no_grad()
def test_omni_encoder_and_projector(omni):
    gold, _, encoder, adaptor, _, _ = omni
    for i in range(2):
        wave = gold[f"wave.{i}"][None]
        mel, _ = log_mel(wave, torch.tensor([wave.shape[1]]), encoder.n_mels)
        # whisper's own function is as far from the golden mel here: FFT kernels differ between machines
        torch.testing.assert_close(mel[0].T, gold[f"mel.{i}"], atol=5e-5, rtol=0)
        theirs = whisper.log_mel_spectrogram(whisper.pad_or_trim(wave[0]), encoder.n_mels)
        torch.testing.assert_close(mel[0], theirs, atol=1e-6, rtol=0)
        states, lens = encoder.encode_mel(gold[f"mel.{i}"].T[None], torch.tensor([3000]))
        torch.testing.assert_close(states[0], gold["encoder_out"][i], atol=1e-5, rtol=0)
        torch.testing.assert_close(adaptor(states, lens)[0][0], gold["projector_out"][i], atol=1e-5, rtol=0)


@torch.no_grad()
def test_omni_merge_logits_and_loss(omni):
    gold, _, _, _, llm, _ = omni
    batch = omni_batch(gold)
    merged = llm.splice(*batch)
    torch.testing.assert_close(merged.embeds, gold["merge.train_right.inputs_embeds"], atol=1e-5, rtol=0)
    assert merged.mask.long().equal(gold["merge.train_right.attention_mask"])
    short = omni_batch(gold, torch.tensor([300, 120]))  # clips shorter than their row of frames
    for side in ("right", "left"):
        name = {"right": "merge.train_shortspeech", "left": "merge.train_left"}[side]
        merged = llm.splice(*short, padding_side=side)
        torch.testing.assert_close(merged.embeds.sum(-1), gold[f"{name}.inputs_embeds_sum"], atol=1e-5, rtol=0)
        assert merged.mask.long().equal(gold[f"{name}.attention_mask"])
    out = llm(*batch, logits=True)
    assert out.labels.equal(gold["merge.train_right.labels"])
    real = out.mask
    torch.testing.assert_close(out.logits[real], gold["eval.logits"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.hidden[real], gold["eval.last_hidden"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.loss_sum / batch[2].sum(), gold["stage1.loss"], atol=0, rtol=1e-5)


@torch.no_grad()
def test_omni_unit_decoder(omni):
    gold, _, _, _, llm, decoder = omni
    out = llm(*omni_batch(gold), loss=False)
    units = gold["batch.tgt_units"]
    unit_lens = (units != IGNORE).sum(1)
    where = torch.tensor([[0, 1], [1, 1]])
    for align in ("label", "predict"):
        states, lens = answer_states(out.hidden, out.turns, where, align)
        result = decoder(states, lens, units, unit_lens)
        loss = result.loss_sum / unit_lens.sum()
        name = {"label": "code", "predict": "paper"}[align]
        torch.testing.assert_close(loss, gold[f"stage2.ctc_loss_{name}_alignment"], atol=0, rtol=1e-5)
        assert not result.infeasible.any()
        if align == "label":
            assert result.lens.equal(gold["stage2.up_lens"])
            real = gold["stage2.upsample_mask"].bool()
            torch.testing.assert_close(result.logits[real], gold["stage2.unit_logits"][real], atol=5e-4, rtol=0)


def test_omni_offline_units(omni):
    gold, meta, _, _, _, decoder = omni
    for i, _ in enumerate(meta["generate"][:3]):
        hidden = gold[f"gen.{i}.hidden"]
        units = decoder.decode(hidden[None], torch.tensor([len(hidden)]))[0]
        assert units.equal(gold[f"gen.{i}.units"])


@torch.no_grad()
def test_unit_hifigan():
    root = need("llama_omni")
    gold = load_file(root / "golden_vocoder.safetensors")
    vocoder = UnitHiFiGAN(str(root / "vocoder"))
    for i in range(2):
        units = gold[f"voc.{i}.units"]
        assert vocoder.predict_durations(units).equal(gold[f"voc.{i}.dur"])
        wave, plain = vocoder([units])[0], vocoder([units], durations=False)[0]
        torch.testing.assert_close(wave, gold[f"voc.{i}.wav"], atol=1e-5, rtol=0)
        torch.testing.assert_close(plain, gold[f"voc.{i}.wav_nodur"], atol=1e-5, rtol=0)
