"""LoRA in all its forms: a run, its checkpoint, the expanded model and the merged one compute the same, or the form is
refused before anything is trained."""

from __future__ import annotations

import copy
import json
from functools import partial

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import speechzoo
from speechzoo.adaptors import Linear
from speechzoo.cli.checkpoint import main as checkpoint_main
from speechzoo.encoders import WhisperEncoder
from speechzoo.interop import pretrained
from speechzoo.interop.hub import load_run
from speechzoo.llms import HFCausalLM
from speechzoo.llms.lora import EXACT
from speechzoo.models import LLaSM
from speechzoo.models.checkpoint import check_frozen
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch

NARROW = {"target_modules": ["q_proj", "v_proj"]}
FORMS = {
    "plain": {},
    "empty": None,
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 5}, "exclude_modules": ["up_proj"]},
    "one_layer": {**NARROW, "layers_to_transform": 1, "layers_pattern": "layers", "lora_dropout": 0.1},
    "bias": {"bias": "all", "task_type": "CAUSAL_LM", "fan_in_fan_out": False},
    "bias_lora": {"bias": "lora_only"},
    "biased": {**NARROW, "lora_bias": True},
    "saved_table": {**NARROW, "modules_to_save": ["embed_tokens"]},
    "saved_head": {"modules_to_save": ["lm_head"]},
    "saved_both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved_part": {**NARROW, "modules_to_save": ["mlp", "norm"]},
    "table": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "dora_table": {"use_dora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tokens": {"trainable_token_indices": [3, 7]},
    "tokens_of_each": {"trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [4]}},
}
BREAKING = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "eva": {"init_lora_weights": "eva"},
    "corda": {"init_lora_weights": "corda"},
    "mica": {"init_lora_weights": "mica"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "unheard of": {"init_lora_weights": "next_year"},
    "one": {"init_lora_weights": 1},
    "replication": {"layer_replication": [[0, 2], [1, 2]]},
    "invocation": {"alora_invocation_tokens": [3]},
    "parameters": {"target_parameters": ["q_proj.weight"]},
    "tying": {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]},
    "inference": {"inference_mode": True},
    "task": {"task_type": "SEQ_CLS"},
    "doubled": {"target_modules": ["embed_tokens"], "trainable_token_indices": [3]},
}


@pytest.fixture(scope="module")
def llm_dirs(tiny_llm_dir, tmp_path_factory):
    """The tiny LLM with biases, untied and tied."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_llm_dir, attention_bias=True)
    folders = {}
    for name, tie in (("untied", False), ("tied", True)):
        lm.config.tie_word_embeddings = tie
        if tie:
            lm.tie_weights()
        folders[name] = tmp_path_factory.mktemp(name)
        lm.save_pretrained(folders[name])
        for file in tiny_llm_dir.glob("*token*"):
            (folders[name] / file.name).write_bytes(file.read_bytes())
        (folders[name] / "chat_template.jinja").write_bytes((tiny_llm_dir / "chat_template.jinja").read_bytes())
    return folders


def build(llm_dir, whisper, lora, dtype="float32", new=True, freeze=()) -> LLaSM:
    model = LLaSM(
        encoder=partial(WhisperEncoder, model=str(whisper), window="trimmed"),
        adaptor=partial(Linear, stack=10),
        llm=partial(HFCausalLM, model=str(llm_dir), lora=lora, dtype=dtype),
        prompt=partial(ChatPrompt, tokenizer=str(llm_dir), audio_tokens=["<a>", "</a>"] if new else None),
        freeze=["^encoder\\.", *freeze],
    )
    model.configure_model()
    return model


def trained(*args, **kwargs) -> LLaSM:
    """With weights as after training: all that learns is elsewhere than it was born."""
    torch.manual_seed(0)
    model = build(*args, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def loss(model) -> float:
    new = model.prompt.new_tokens
    ids = torch.tensor([[5, 3, *new[:1], AUDIO, *new[1:], 9, 7, 10, 4]])
    turns = torch.zeros_like(ids)
    turns[:, -4:] = 1
    audio = 0.1 * torch.sin(torch.arange(16_000) / 9)[None]
    batch = SpeechBatch(ids, torch.ones_like(ids).bool(), turns, audio=audio, audio_lens=torch.tensor([16_000]))
    with torch.no_grad():
        return float(model(batch).losses["lm"])


def save_ckpt(model, folder):
    """A `.ckpt` as training writes it."""
    folder.mkdir()
    saved = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(saved)
    torch.save(saved, folder / "last.ckpt")
    return folder


CASES = [(form, tie, True) for form in FORMS for tie in ("untied", "tied")]
CASES += [(form, "tied", False) for form in ("plain", "saved_table", "table", "head", "tokens")]


@pytest.mark.parametrize(("form", "tie", "new"), CASES)
def test_every_accepted_form_is_exact(tmp_path, llm_dirs, tiny_whisper_pt, form, tie, new):
    settings = None if FORMS[form] is None else {"r": 4, **FORMS[form]}
    given = copy.deepcopy(settings)
    model = trained(llm_dirs[tie], tiny_whisper_pt, settings if settings is not None else {}, new=new)
    assert settings == given  # peft extends lists in place
    expected, plain = loss(model), loss(build(llm_dirs[tie], tiny_whisper_pt, None, new=new).eval())
    assert abs(expected - plain) > 1e-3  # else nothing is compared
    run = save_ckpt(model, tmp_path / "run")
    torch.manual_seed(1)
    assert loss(load_run(run)) == expected
    assert checkpoint_main(["expand", str(run), str(tmp_path / "apart")]) == 0
    torch.manual_seed(2)
    assert loss(speechzoo.load(tmp_path / "apart")) == expected
    assert checkpoint_main(["expand", str(run), str(tmp_path / "merged"), "--merge-lora"]) == 0
    alone = speechzoo.load(tmp_path / "merged")
    assert not hasattr(alone.llm.lm, "peft_config")
    assert loss(alone) == pytest.approx(expected, rel=1e-5)
    assert loss(model) == expected  # not touched by it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tie", ["untied", "tied"])
def test_an_llm_without_lora_is_exact_too(tmp_path, llm_dirs, tiny_whisper_pt, tie, dtype):
    model = trained(llm_dirs[tie], tiny_whisper_pt, None, dtype=dtype)
    speechzoo.save_pretrained(model, tmp_path / "out", merge_lora=True)  # nothing to merge
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32"):
        assert loss(speechzoo.load(tmp_path / "out")) == loss(model)


def test_random_lora_weights_that_do_not_learn_are_refused(tmp_path, llm_dirs, tiny_whisper_pt):
    """They would be drawn anew when the run is loaded; those of an earlier stage are held by its checkpoint."""
    freeze = ["^llm\\."]
    run = save_ckpt(trained(llm_dirs["untied"], tiny_whisper_pt, {"r": 4}), tmp_path / "run")
    model = build(llm_dirs["untied"], tiny_whisper_pt, {"r": 4}, freeze=freeze)
    with pytest.raises(ValueError, match=r"model\.freeze: \d+ random LoRA weights would not learn"):
        check_frozen(model, [])
    check_frozen(model, [str(run)])
    check_frozen(build(llm_dirs["untied"], tiny_whisper_pt, None, freeze=freeze), [])
    check_frozen(build(llm_dirs["untied"], tiny_whisper_pt, {"r": 4}), [])


def test_the_forms_cover_the_accepted_settings():
    named = {name for settings in FORMS.values() for name in settings or ()}
    assert named >= EXACT - {"r"} and set(peft.LoraConfig.__dataclass_fields__) >= EXACT


@pytest.mark.parametrize("form", BREAKING)
def test_other_forms_are_refused_when_the_model_is_built(llm_dirs, tiny_whisper_pt, form):
    with pytest.raises(ValueError, match=r"^llm\.lora: [^\n]*$"):
        build(llm_dirs["tied"], tiny_whisper_pt, {"r": 4, **BREAKING[form]})


def test_every_setting_of_peft_is_accepted_or_refused_by_name(llm_dirs, tiny_whisper_pt):
    """What a later peft adds is refused until it is shown to be exact."""
    others = set(peft.LoraConfig.__dataclass_fields__) - EXACT
    assert {"loftq_config", "layer_replication", "target_parameters"} <= others
    for name in sorted(others):
        with pytest.raises(ValueError, match=rf"llm\.lora: a run with {name} could not be saved"):
            build(llm_dirs["untied"], tiny_whisper_pt, {name: None})


def test_a_bias_that_has_no_place_is_not_merged(tmp_path, tiny_llm_dir, tiny_whisper_pt, capsys):
    """The tiny LLM's layers have no bias to add LoRA's to."""
    model = trained(tiny_llm_dir, tiny_whisper_pt, {"r": 4, "lora_bias": True})
    run = save_ckpt(model, tmp_path / "run")
    assert checkpoint_main(["expand", str(run), str(tmp_path / "apart")]) == 0
    assert loss(speechzoo.load(tmp_path / "apart")) == loss(model)
    assert checkpoint_main(["expand", str(run), str(tmp_path / "merged"), "--merge-lora"]) == 1
    assert "LoRA cannot be merged" in capsys.readouterr().err and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("tie", ["untied", "tied"])
@pytest.mark.parametrize("form", ["plain", "dora", "table", "head", "bias"])
def test_a_merged_bfloat16_llm_is_not_rounded(tmp_path, llm_dirs, tiny_whisper_pt, form, tie):
    model = trained(llm_dirs[tie], tiny_whisper_pt, {"r": 4, **FORMS[form]}, dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss(model)
    speechzoo.save_pretrained(model, tmp_path / "apart")
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(speechzoo.load(tmp_path / "apart")) == expected
    speechzoo.save_pretrained(model, tmp_path / "merged", merge_lora=True)
    alone = speechzoo.load(tmp_path / "merged")
    assert {p.dtype for p in alone.llm.lm.parameters()} == {torch.float32}
    model.llm.float()
    assert loss(alone) == pytest.approx(loss(model), rel=1e-5)
    narrow = speechzoo.load(tmp_path / "merged", dtype="bfloat16")
    assert {p.dtype for p in narrow.llm.lm.parameters()} == {torch.bfloat16}
    assert loss(narrow.float()) == pytest.approx(loss(model), rel=3e-2)


@pytest.mark.parametrize("form", ["dora", "saved_both", "tokens", "bias"])
def test_a_wider_load_of_an_expanded_model(tmp_path, llm_dirs, tiny_whisper_pt, form):
    model = trained(llm_dirs["tied"], tiny_whisper_pt, {"r": 4, **FORMS[form]}, dtype="bfloat16")
    speechzoo.save_pretrained(model, tmp_path / "apart")
    wide = speechzoo.load(tmp_path / "apart", dtype="float32")
    assert loss(wide) == pytest.approx(loss(model.float()), rel=1e-5)


def test_patterns_for_lora_do_not_outlive_it(tmp_path, llm_dirs, tiny_whisper_pt):
    freeze = ["^llm\\.lm\\..*layers\\.0\\..*lora_", "^adaptor\\."]
    model = trained(llm_dirs["untied"], tiny_whisper_pt, {"r": 4}, freeze=freeze)
    speechzoo.save_pretrained(model, tmp_path / "merged", merge_lora=True)
    alone = speechzoo.load(tmp_path / "merged")
    assert alone.freeze_patterns == ["^encoder\\.", "^adaptor\\."]
    assert loss(alone) == pytest.approx(loss(model), rel=1e-5)


def test_what_does_not_come_back_is_not_written(tmp_path, llm_dirs, tiny_whisper_pt, monkeypatch, capsys):
    """Each part of the output is spoilt in turn: expand sees it, says so and leaves nothing."""
    model = trained(llm_dirs["tied"], tiny_whisper_pt, {"r": 4, **NARROW})
    run = save_ckpt(model, tmp_path / "run")

    def spoil(name, change):
        original = getattr(pretrained, name)
        monkeypatch.setattr(pretrained, name, lambda *args, **kwargs: change(original, *args, **kwargs))

    def lose_lora(original, *args):
        return [(name, tensor + 0.01 * ("lora_B" in name)) for name, tensor in original(*args)]

    def merge_less(original, model):
        return _scaled(original(model))

    for name, change, merge in (("_own", lose_lora, []), ("merged", merge_less, ["--merge-lora"])):
        with monkeypatch.context():
            spoil(name, change)
            assert checkpoint_main(["expand", str(run), str(tmp_path / "out"), *merge]) == 1
            monkeypatch.undo()
        said = capsys.readouterr().err
        assert said.count("speechzoo: ") == 1 and "not written" in said.splitlines()[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _scaled(lm):
    with torch.no_grad():
        lm.get_submodule("model.layers.1.self_attn.q_proj").weight.mul_(1.01)
    return lm


def test_lora_weights_that_are_missing_are_no_random_ones(tmp_path, llm_dirs, tiny_whisper_pt):
    from safetensors.torch import load_file, save_file

    model = trained(llm_dirs["untied"], tiny_whisper_pt, {"r": 4, **FORMS["saved_table"]})
    speechzoo.save_pretrained(model, tmp_path / "apart")
    held = load_file(tmp_path / "apart" / "model.safetensors")
    lost = next(name for name in held if "modules_to_save" in name)
    save_file({name: tensor for name, tensor in held.items() if name != lost}, tmp_path / "apart" / "model.safetensors")
    config = json.loads((tmp_path / "apart" / "config.json").read_text())
    assert config["hyper_parameters"]["llm"]
    with pytest.raises(ValueError, match="its content does not fit config.json, which holds its digest"):
        speechzoo.load(tmp_path / "apart")
    (tmp_path / "apart" / "config.json").write_text(json.dumps({**config, "digests": {}}))
    with pytest.raises(ValueError, match="does not fit config.json.*modules_to_save"):
        speechzoo.load(tmp_path / "apart")
