"""Released checkpoints in and out: nothing changes, nothing is run, nothing is left half-written."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from released import llasm, omni
from safetensors.torch import load_file, save_file

import speechzoo
from speechzoo.cli import main
from speechzoo.interop import export_llama_omni, export_llasm, import_llama_omni, import_llasm
from speechzoo.interop.layout import Weights
from speechzoo.interop.shapes import rope
from speechzoo.types import AUDIO, SpeechBatch

FORMS = [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 2)]
TYPES = [torch.float32, torch.float16]


def same(folder: Path, state: dict[str, torch.Tensor]) -> bool:
    held = Weights(folder)
    return set(held) == set(state) and all(
        held[name].dtype == tensor.dtype and torch.equal(held[name], tensor) for name, tensor in state.items()
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "shards"), FORMS)
def test_llama_omni_round_trip(tmp_path, tiny_whisper_pt, kind, shards, dtype):
    state = omni(tmp_path / "src", tiny_whisper_pt, kind, shards, dtype)
    found = import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    assert found["encoder_tensors_inside"] > 20 and found["encoder_tensors_that_differ"] == 0
    export_llama_omni(tmp_path / "ours", tmp_path / "back")
    assert same(tmp_path / "back", state)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("src", "back")]
    assert configs[0] == configs[1]
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (tmp_path / "src" / "tokenizer.json").read_bytes()
    assert not (tmp_path / "ours" / "kept.safetensors").exists()  # the encoder is not stored twice


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "shards"), FORMS)
def test_llasm_round_trip(tmp_path, tiny_whisper_pt, kind, shards, dtype):
    state = llasm(tmp_path / "src", kind, shards, dtype)
    assert import_llasm(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours") == {"kept": 2}
    export_llasm(tmp_path / "ours", tmp_path / "back")
    assert same(tmp_path / "back", state)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("src", "back")]
    assert configs[0] == configs[1]


def test_another_encoder_inside_is_kept_for_export(tmp_path, tiny_whisper_pt):
    state = omni(tmp_path / "src", tiny_whisper_pt)
    state["model.speech_encoder.conv1.bias"] = state["model.speech_encoder.conv1.bias"] + 1
    save_file(state, tmp_path / "src" / "model.safetensors", {"format": "pt"})
    found = import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    assert found["encoder_tensors_that_differ"] == 1
    export_llama_omni(tmp_path / "ours", tmp_path / "back")
    assert same(tmp_path / "back", state)


@pytest.mark.parametrize("system", ["llama-omni", "llasm"])
def test_a_head_beside_the_table_it_is_tied_to(tmp_path, tiny_whisper_pt, system):
    """As .bin files of tied LLMs hold it (Llama 3.2 1B and 3B)."""
    make = partial(omni, whisper=tiny_whisper_pt) if system == "llama-omni" else llasm
    take, give = (import_llama_omni, export_llama_omni) if system == "llama-omni" else (import_llasm, export_llasm)
    state = make(tmp_path / "src", kind="bin", tie_word_embeddings=True)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, tmp_path / "src" / "pytorch_model.bin")
    take(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    model = speechzoo.load(tmp_path / "ours")
    assert torch.equal(model.llm.lm.lm_head.weight, state["model.embed_tokens.weight"])
    give(tmp_path / "ours", tmp_path / "back")
    assert same(tmp_path / "back", state)


def test_configs_of_transformers_5(tmp_path, tiny_whisper_pt):
    """They name the base of the rotary embedding, its scaling and the dtype otherwise."""
    found = []
    for name in ("old", "new"):
        omni(tmp_path / name, tiny_whisper_pt)
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text())
        if name == "new":
            scaling, base = config.pop("rope_scaling"), config.pop("rope_theta")
            config |= {"rope_parameters": {**scaling, "rope_theta": base}, "dtype": config.pop("torch_dtype")}
        file.write_text(json.dumps(config))
        import_llama_omni(tmp_path / name, tiny_whisper_pt, tmp_path / f"our_{name}")
        settings = json.loads((tmp_path / f"our_{name}" / "config.json").read_text())["hyper_parameters"]
        llm = json.loads((tmp_path / f"our_{name}" / "llm" / "config.json").read_text())
        found.append((settings["unit_decoder"]["init_args"], llm))
    assert found[0] == found[1] and found[0][0]["rope_theta"] == 500_000.0
    assert rope({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}) is None


def test_what_a_release_has_no_place_for_is_not_exported(tmp_path, tiny_whisper_pt):
    """A speech encoder that learnt would be left behind, its weights under names that nobody reads."""
    omni(tmp_path / "src", tiny_whisper_pt)
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    speechzoo.save_pretrained(speechzoo.load(tmp_path / "ours", freeze=[]), tmp_path / "trained")
    with pytest.raises(ValueError, match="encoder.* has no place in the released layout"):
        export_llama_omni(tmp_path / "trained", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@torch.no_grad()
def test_loaded_model_has_the_released_weights_and_answers(tmp_path, tiny_whisper_pt):
    state = omni(tmp_path / "src", tiny_whisper_pt, "bin", 2)
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    model = speechzoo.load(tmp_path / "ours")
    own = dict(model.named_parameters())
    assert torch.equal(own["llm.lm.model.embed_tokens.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(own["adaptor.linear1.weight"], state["model.speech_projector.linear1.weight"])
    name = "layers.0.mlp.up_proj.weight"
    assert torch.equal(own[f"unit_decoder.transformer.{name}"], state[f"speech_generator.{name}"])
    assert model.unit_decoder.align == "label" and model.unit_decoder.answer_align == "predict"
    assert model.loss_weights["ctc"] == 0.5 and model.prompt.stop_ids == [3]
    ids = torch.tensor([model.prompt.encode([{"role": "user", "content": [{"type": "audio"}]}], answer=False).ids])
    mask, turns = torch.ones_like(ids).bool(), torch.zeros_like(ids)
    batch = SpeechBatch(ids, mask, turns, audio=torch.zeros(1, 16_000), audio_lens=torch.tensor([16_000]))
    reply = model.respond(batch, max_new_tokens=3)
    assert len(reply.text) == 1 and len(reply.units[0]) <= 9


@torch.no_grad()
def test_half_precision_answers_in_half_precision(tmp_path, tiny_whisper_pt):
    llasm(tmp_path / "src", "bin", 1, torch.float16)
    import_llasm(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    model = speechzoo.load(tmp_path / "ours")
    assert model.adaptor.linear.weight.dtype == model.llm.lm.dtype == torch.float16
    with pytest.raises(ValueError, match="dtype is the name of one, float32, bfloat16, float16, not torch.float32"):
        speechzoo.load(tmp_path / "ours", dtype=torch.float32)
    model = speechzoo.load(tmp_path / "ours", dtype="float32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_a_release_that_gives_no_length_has_the_usual_one(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt, tokenizer_model_max_length=None)
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "out")
    assert speechzoo.load(tmp_path / "out").prompt.max_length == 2048


def test_last_clip_only_is_a_switch(tmp_path, tiny_whisper_pt):
    llasm(tmp_path / "src")
    import_llasm(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    patch = json.loads((tmp_path / "src" / "added_tokens.json").read_text())["<au_patch>"]
    ids = torch.tensor([[AUDIO, 5, AUDIO], [6, AUDIO, 7]])
    features = torch.randn(3, 8, 32)
    batch = SpeechBatch(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids), features=features)
    batch.feature_lens = torch.tensor([8, 8, 8])
    every, _ = speechzoo.load(tmp_path / "ours").encode(batch)
    model = speechzoo.load(tmp_path / "ours", last_clip_only=patch)
    last, _ = model.encode(batch)
    assert torch.equal(last[1:], every[1:])  # the second clip of row 0, and the only one of row 1
    assert torch.equal(last[0], model.llm.embed(torch.tensor([patch])).expand(8, -1))


def test_card_and_config_say_what_it_is(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "research only" in card and "| ctc_align | `label` |" in card
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_class"] == "speechzoo.models.LLaMAOmni"
    assert set(config["source"]["sha256"]) == {"config.json", "model.safetensors", "tiny.pt"}
    assert str(tmp_path) not in json.dumps(config)  # a folder that was moved still loads


# -- what is refused ---------------------------------------------------------------------------------------------------


class Hostile:
    """A pickle that runs a command when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def refused(tmp_path: Path, whisper: Path, system: str = "llama-omni") -> str:
    """The one line that an import in the command line ends with; nothing may be left of it."""
    import contextlib
    import io

    said = io.StringIO()
    before = set(tmp_path.iterdir())
    command = ["import", system, str(tmp_path / "src"), "--speech-encoder", str(whisper)]
    with contextlib.redirect_stderr(said):
        assert main([*command, "--output", str(tmp_path / "ours")]) == 1
    assert set(tmp_path.iterdir()) == before
    lines = said.getvalue().strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("speechzoo: "), lines
    return lines[0]


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, tiny_whisper_pt, legacy):
    state = llasm(tmp_path / "src")
    mark = tmp_path / "src" / "was_here"
    file = tmp_path / "src" / "pytorch_model.bin"
    if legacy:
        file.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        torch.save({**state, "lm_head.weight": Hostile(mark)}, file)
    line = refused(tmp_path, tiny_whisper_pt, "llasm")
    assert "pytorch_model.bin" in line and not mark.exists()
    assert "refused" in line


def test_hostile_speech_encoder_is_refused(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    mark = tmp_path / "src" / "was_here"
    torch.save({"dims": Hostile(mark)}, tmp_path / "bad.pt")
    assert "bad.pt: refused" in refused(tmp_path, tmp_path / "bad.pt") and not mark.exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_truncated_shard(tmp_path, tiny_whisper_pt, kind):
    omni(tmp_path / "src", tiny_whisper_pt, kind, 2)
    file = sorted((tmp_path / "src").glob(f"*-00002-of-00002.{kind}"))[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{file.name}: damaged" in refused(tmp_path, tiny_whisper_pt)


def test_missing_shard_and_missing_weights(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt, "safetensors", 2)
    (tmp_path / "src" / "model-00001-of-00002.safetensors").unlink()
    assert "a shard that the index names is missing" in refused(tmp_path, tiny_whisper_pt)
    for file in (tmp_path / "src").glob("model*"):
        file.unlink()
    assert "holds no model.safetensors" in refused(tmp_path, tiny_whisper_pt)


def test_index_cannot_point_outside(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt, "safetensors", 2)
    index = tmp_path / "src" / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"]["lm_head.weight"] = "../other/model.safetensors"
    index.write_text(json.dumps(held))
    assert "outside its folder" in refused(tmp_path, tiny_whisper_pt)


@pytest.mark.parametrize("place", [5, None, ["model.safetensors"]])
def test_index_names_files(tmp_path, tiny_whisper_pt, place):
    omni(tmp_path / "src", tiny_whisper_pt)
    (tmp_path / "src" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    assert "model.safetensors.index.json: has no weight_map of file names" in refused(tmp_path, tiny_whisper_pt)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_usual_file_goes_before_others_of_another_type(tmp_path, tiny_whisper_pt, kind):
    state = omni(tmp_path / "src", tiny_whisper_pt, kind)
    other = {name: tensor.half() + 1 for name, tensor in state.items()}
    stem = tmp_path / "src" / ("model" if kind == "safetensors" else "pytorch_model")
    for middle in (".fp16", ".variant"):
        save_file(other, f"{stem}{middle}.{kind}") if kind == "safetensors" else torch.save(
            other, f"{stem}{middle}.{kind}"
        )
    weights = Weights(tmp_path / "src")
    assert all(torch.equal(weights[name], state[name]) for name in state)
    Path(f"{stem}.{kind}").unlink()
    with pytest.raises(ValueError, match=r"variant\..*: .* is in .*fp16\..* too"):
        Weights(tmp_path / "src")


def test_keys_missing_and_left_over_are_listed(tmp_path, tiny_whisper_pt):
    state = omni(tmp_path / "src", tiny_whisper_pt)
    state["model.extra.weight"] = state.pop("speech_generator.output_proj.bias")
    save_file(state, tmp_path / "src" / "model.safetensors", {"format": "pt"})
    line = refused(tmp_path, tiny_whisper_pt)
    assert "1 missing: speech_generator.output_proj.bias" in line and "1 left over: model.extra.weight" in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"ctc_decoder_config": "two layers"}, "ctc_decoder_config"),
        ({"unit_vocab_size": None}, "unit_vocab_size has to be int"),
        ({"unit_vocab_size": 30}, "speech_generator.output_proj"),
        ({"hidden_size": 64}, "of another size"),
        ({"num_attention_heads": 5}, "does not describe a Llama"),
        ({"ctc_decoder_config": "(1,16,3,24)"}, "no such network"),
        ({"speech_encoder_hidden_size": 48}, "its width is 32"),
        ({"speech_projector_type": "mlp"}, "speech_projector_type"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported in the unit decoder"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        ({"rope_scaling": "llama3"}, "config.json: the rope's scaling is 'llama3', no mapping"),
        ({"rope_theta": "high"}, "config.json: rope_theta 'high' is no number"),
        ({"tokenizer_model_max_length": "long"}, "tokenizer_model_max_length has to be int or float"),
        ({"ctc_loss_weight": None}, "ctc_loss_weight has to be int or float, it is None"),
    ],
)
def test_wrong_config(tmp_path, tiny_whisper_pt, change, says):
    omni(tmp_path / "src", tiny_whisper_pt, **change)
    assert says in refused(tmp_path, tiny_whisper_pt)


def test_a_dtype_that_torch_has_not_is_that_of_the_weights(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt, torch_dtype="float8")
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "llm" / "config.json").read_text())["dtype"] == "float32"


def test_a_damaged_tokenizer_is_refused(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    (tmp_path / "src" / "tokenizer.json").write_text("{")
    assert "src/tokenizer.json" in refused(tmp_path, tiny_whisper_pt)


def test_config_that_is_no_json(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    (tmp_path / "src" / "config.json").write_text("{")
    assert "config.json: not JSON" in refused(tmp_path, tiny_whisper_pt)


def test_wrong_or_missing_encoder_and_source(tmp_path, tiny_whisper_pt):
    assert "no such folder" in refused(tmp_path, tiny_whisper_pt)
    llasm(tmp_path / "src", mm_hidden_size=16)
    assert "its width is 32, config.json says 16" in refused(tmp_path, tiny_whisper_pt, "llasm")
    assert "absent.pt: no such folder" in refused(tmp_path, tmp_path / "absent.pt", "llasm")


def test_failure_in_the_middle_leaves_nothing(tmp_path, tiny_whisper_pt, monkeypatch):
    omni(tmp_path / "src", tiny_whisper_pt)
    import speechzoo.interop.llama_omni as module

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_config", full)
    assert "No space left" in refused(tmp_path, tiny_whisper_pt)


def test_existing_output_is_not_touched(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine.txt").write_text("keep")
    assert "exists already" in refused(tmp_path, tiny_whisper_pt)
    assert (tmp_path / "ours" / "mine.txt").read_text() == "keep"


def test_damaged_saved_form(tmp_path, tiny_whisper_pt):
    omni(tmp_path / "src", tiny_whisper_pt)
    import_llama_omni(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    state = load_file(file)
    state.pop("adaptor.linear1.bias")
    save_file(state, file)
    with pytest.raises(ValueError, match="does not fit config.json"):
        speechzoo.load(tmp_path / "ours")
    with pytest.raises(ValueError, match="was not imported from llasm"):
        export_llasm(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()
