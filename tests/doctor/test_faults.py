"""Each fault that others met in practice, planted; the doctor names it.

What the construction rules out is tested where it is made: prompts and padding in `test_text.py` and `test_models.py`
(spans, `test_only_answers_and_their_end_are_supervised`), units beyond the vocabulary in `data/test_dataset.py`,
targets no CTC can align in `units/test_ctc.py`, offline against streamed units in `units/test_streaming.py`, means of
means in `test_exact_loss.py`, steps of ranks and empty validation ranks in `data/test_sampler.py` and
`test_exact_loss.py`, frozen weights in checkpoints and resumed loaders in `test_checkpoint.py`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from test_models import assistant, make, tone, user
from tiny_runs import UNIT_DECODER, saved, write_config, zoo

from speechzoo.adaptors import Linear
from speechzoo.cli import main
from speechzoo.data import TokenBudgetSampler, encode_batch
from speechzoo.doctor.dataset import check_clips, check_padding, first_epoch, uneven
from speechzoo.doctor.examine import look_at
from speechzoo.doctor.findings import Finding
from speechzoo.doctor.weights import check_gradients, check_new_tokens, check_precision, pretrained_dtype
from speechzoo.text import ChatPrompt

TALKS = [
    [user(tone(0.9, 200)), assistant("six and nine is fifteen", [1, 2, 3, 2])],
    [user("say", tone(0.5, 300)), assistant("hello", [4, 5])],
]
ANSWERS = [["six and nine is fifteen"], ["hello"]]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, barebones=True)


@pytest.fixture
def model(tiny_llm_dir: Path, tiny_whisper_pt: Path):
    return make("llama_omni", tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."]).train()


@pytest.fixture
def batch(model):
    return encode_batch(model.prompt, TALKS, True, "right")


def named(found: list[Finding], level: str = "error") -> set[str]:
    return {finding.name for finding in found if finding.level == level}


def test_a_sound_run_has_no_error_and_is_left_as_it_was(trainer, model, batch) -> None:
    """Padding equals the end of an answer here, which is no fault: targets come from spans."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    found = look_at(trainer, model, batch, ANSWERS)
    assert torch.rand(3).equal(expected)
    assert all(p.equal(before[n]) and p.grad is None for n, p in model.named_parameters()) and model.training
    assert not named(found) and not named(found, "warning")
    assert named(found, "ok") == {"pad_is_end", "frames", "gradients"}
    texts = [finding.text for finding in found if finding.name == "supervised"]
    assert texts[1] == "1, answer 1: 'hello<|im_end|>'"


def test_targets_by_padding_id(trainer, model, batch) -> None:
    batch.turns[batch.input_ids == model.prompt.pad_id] = 0
    assert "end_not_learned" in named(look_at(trainer, model, batch, ANSWERS))


def test_prompt_or_padding_or_sound_supervised(trainer, model, batch) -> None:
    from speechzoo.types import AUDIO

    batch.turns[:, :] = (batch.attention_mask & (batch.input_ids != AUDIO)).long()
    assert named(look_at(trainer, model, batch, ANSWERS)) == {"prompt_supervised"}
    batch.turns[:, :] = 1
    assert {"padding_supervised", "audio_supervised"} <= named(look_at(trainer, model, batch, ANSWERS))


def test_nothing_supervised_and_answers_cut(trainer, model, batch) -> None:
    batch.turns[1] = 0
    first = (batch.turns[0] > 0).nonzero()[:4, 0]
    batch.turns[0, first] = 0
    assert {"nothing_supervised", "answer_cut"} <= named(look_at(trainer, model, batch, ANSWERS))


def test_padding_is_text(trainer, model, batch) -> None:
    model.prompt.tokenizer.pad_token = "!"
    found = look_at(trainer, model, batch, ANSWERS)
    assert named(found) == {"pad_is_text"} and "'!'" in str(next(f for f in found if f.name == "pad_is_text"))


def test_a_doubled_beginning(trainer, model, tiny_llm_dir: Path) -> None:
    own = model.prompt.tokenizer.chat_template
    doubled = ChatPrompt(str(tiny_llm_dir), chat_template="<|im_start|>" + own)
    doubled.tokenizer.bos_token = model.prompt.tokenizer.bos_token = "<|im_start|>"
    found = look_at(trainer, model, encode_batch(doubled, TALKS, True, "right"), ANSWERS)
    assert named(found) == {"double_bos"}
    assert not named(look_at(trainer, model, encode_batch(model.prompt, TALKS, True, "right"), ANSWERS))


def test_another_models_tokenizer(trainer, model, batch) -> None:
    batch.input_ids[0, 0] = 100_000
    assert named(look_at(trainer, model, batch, ANSWERS)) == {"vocabulary"}


def test_positions_that_are_not_the_frames(trainer, model, batch, monkeypatch) -> None:
    right = type(model.encoder).out_lens
    monkeypatch.setattr(type(model.encoder), "out_lens", lambda self, lens: right(self, lens) + 5)
    assert named(look_at(trainer, model, batch, ANSWERS)) == {"frames"}


def test_units_out_of_range_or_padded_with_a_unit(trainer, model, batch) -> None:
    batch.units[1, 2:] = 0
    assert named(look_at(trainer, model, batch, ANSWERS)) == {"unit_padding"}
    batch.units[0, 1] = 12
    assert {"unit_range"} <= named(look_at(trainer, model, batch, ANSWERS))


def test_ctc_without_an_alignment(trainer, model, monkeypatch) -> None:
    """A decoder that does not stretch; ours does, so its targets are feasible by construction."""
    talks = [[user(tone(0.9, 200)), assistant("no", list(range(12)) * 3)]]
    monkeypatch.setattr(
        type(model.unit_decoder), "up_lens", lambda self, lens, units=None, unit_lens=None: lens * self.upsample
    )
    found = look_at(trainer, model, encode_batch(model.prompt, talks, True, "right"), [["no"]])
    assert "ctc_infeasible" in named(found)


def test_new_tokens_that_nobody_trains(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    tokens = partial(make, "llasm_tokens", tiny_llm_dir, tiny_whisper_pt)
    frozen = tokens(freeze=["^encoder\\.", "^llm\\."])
    assert named(check_new_tokens(frozen.llm)) == {"new_tokens"}
    with torch.no_grad():
        frozen.llm.new_embeddings += 0.1
    assert not named(check_new_tokens(frozen.llm))  # an earlier stage trained them
    assert not named(check_new_tokens(tokens(freeze=["^encoder\\.", "^llm\\.lm\\."]).llm))


def test_parts_without_a_gradient_and_frozen_ones_with(trainer, model, batch) -> None:
    model.loss_weights["ctc"] = 0.0
    found = look_at(trainer, model, batch, ANSWERS)
    assert named(found) == {"no_gradient"}
    assert "unit_decoder" in next(f.text for f in found if f.name == "no_gradient")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert named(check_gradients(model)) == {"frozen_gradient"}


def test_a_cut_graph_and_a_broken_weight(trainer, model, batch) -> None:
    hook = model.adaptor.register_forward_hook(lambda _, inputs, output: (output[0] * 0, output[1]))
    assert named(look_at(trainer, model, batch, ANSWERS)) == {"zero_gradient"}
    hook.remove()
    with torch.no_grad():
        next(model.adaptor.parameters()).fill_(float("nan"))
    assert {"loss_not_finite", "gradient_not_finite"} <= named(look_at(trainer, model, batch, ANSWERS))


def test_fp16_with_a_bf16_llm(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(dtype="bfloat16").save_pretrained(tmp_path)
    kind = pretrained_dtype(str(tmp_path))
    assert named(check_precision("16-mixed", kind)) == {"fp16"}
    assert not named(check_precision("bf16-mixed", kind)) and not named(check_precision("16-mixed", torch.float32))


def test_uneven_ranks() -> None:
    assert named(uneven([3, 3, 2])) == {"steps"} and not named(uneven([3, 3]))


def test_padding_waste_is_measured() -> None:
    lengths = [10, 100] * 20
    sampler = TokenBudgetSampler([1] * 40, 8, start=3)
    batches = first_epoch(sampler)
    waste = 1 - sum(lengths) / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    found = check_padding(sampler, lengths)
    assert found[0].level == "warning" and f"{waste:.1%}" in found[0].text and waste > 0.3
    assert check_padding(TokenBudgetSampler(lengths, 8), lengths)[0].level == "note"


def test_clips_longer_than_the_encoder_hears() -> None:
    assert named(check_clips(60.0, 41.5)) == {"clip_cut"} and not check_clips(60.0, 30.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("doctor") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


OMNI = ["--model=LLaMAOmni", *UNIT_DECODER, r"--model.init_args.freeze=['^encoder\.']"]


def test_the_command_says_what_is_supervised(config: Path, tmp_path: Path, capsys) -> None:
    assert main(["doctor", "-c", str(config), *OMNI, "--doctor.rows=6", "--json", str(tmp_path / "d.json")]) == 0
    out = capsys.readouterr().out
    assert "'The capital of France is Paris.<|im_end|>'" in out and "0 error" in out
    told = json.loads((tmp_path / "d.json").read_text())
    assert not told["failed"]
    names = {finding["name"] for finding in told["findings"]}
    assert {"padding", "left_out", "unit_room", "parameters", "frames", "gradients", "precision"} <= names
    assert not (config.parent / "tiny").exists()  # nothing is trained or written


def test_errors_give_exit_code_one_and_stop_fit_before_training(config: Path, tmp_path: Path, capsys) -> None:
    fault = [*OMNI, "--model.init_args.loss_weights={ctc: 0.0}", "--name=fault"]
    assert main(["doctor", "-c", str(config), *fault, "--json", str(tmp_path / "d.json")]) == 1
    assert json.loads((tmp_path / "d.json").read_text())["failed"]
    assert main(["doctor", "-c", str(config), *fault, "--doctor.ignore=[no_gradient]"]) == 0
    capsys.readouterr()
    assert main(["fit", "-c", str(config), *fault]) == 1
    assert "no_gradient" in capsys.readouterr().err
    assert not (config.parent / "fault" / "last.ckpt").exists()
    assert main(["fit", "-c", str(config), *fault, "--doctor.enabled=false"]) == 0


def test_conversations_that_do_not_fit(config: Path, capsys) -> None:
    """One loses its first exchange; the doctor counts it, and an answer is never cut."""
    main(["doctor", "-c", str(config), "--model.init_args.prompt.init_args.max_length=76"])
    assert "1 of 6 conversations lose 1 of their oldest exchanges" in capsys.readouterr().out


def test_training_is_the_same_with_and_without(config: Path) -> None:
    """To the bit, and so are the random numbers drawn and the order of the data."""
    for name, enabled in (("with", "true"), ("without", "false")):
        zoo(
            "fit",
            "-c",
            config,
            *OMNI,
            f"--name={name}",
            f"--doctor.enabled={enabled}",
            f"--preflight.enabled={enabled}",
        )
    one, other = (saved(config.parent / name / "last.ckpt") for name in ("with", "without"))
    assert all(value.equal(other["state_dict"][name]) for name, value in one["state_dict"].items())
    states = [next(v for k, v in run["callbacks"].items() if "ExactResume" in k)["ranks"][0] for run in (one, other)]
    assert states[0]["torch"].equal(states[1]["torch"]) and states[0]["python"] == states[1]["python"]


def test_linear_adaptor_is_seen(trainer, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """Another architecture, with an adaptor of its own and no units."""
    model = make("llasm", tiny_llm_dir, tiny_whisper_pt, adaptor=partial(Linear, stack=2), freeze=["^encoder\\."])
    batch = encode_batch(model.prompt, [*TALKS, [user("hi"), assistant("you")]], True, "right")
    assert not named(look_at(trainer, model.train(), batch, [*ANSWERS, ["you"]]))
