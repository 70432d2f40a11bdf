"""A run is published, listed, checked, and used by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tiny_runs import write_config, zoo

import speechzoo
from speechzoo.cli import main
from speechzoo.evaluation.answers import Answer, save_answers
from speechzoo.evaluation.runs import find_runs
from speechzoo.interop.hub import load_run
from speechzoo.names import published as names
from speechzoo.zoo.card import check_card
from speechzoo.zoo.publish import hub_names, merged_state, write_index
from speechzoo.zoo.records import costs, results_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    """Two stages: the adaptor alone, then adaptor and LoRA from it."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder / "config.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    cost = "--trainer.callbacks+=StageCost"
    zoo("fit", f"--config={config}", "--name=first", '--model.init_args.freeze=["^encoder\\\\.", "^llm\\\\."]', cost)
    second = ["--name=second", f"--model.init_args.init_from=[{folder / 'first'}]"]
    zoo("fit", f"--config={config}", *second, "--model.init_args.llm.init_args.lora={r: 2, lora_alpha: 4}", cost)
    return folder


@pytest.fixture
def shelf(tmp_path, monkeypatch: pytest.MonkeyPatch, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> Path:
    """A zoo of one's own whose parts are tiny."""
    there = {"smollm2-135m-instruct": tiny_llm_dir, "whisper-tiny.en": tiny_whisper_pt}
    fetched = lambda name, cache=None: there.get(name, tmp_path / name)  # noqa: E731
    for place in ("parts.registry.fetch", "zoo.publish.find_cached", "cli.zoo.fetch", "cli.zoo.find_cached"):
        monkeypatch.setattr(f"speechzoo.{place}", fetched)
    folder = tmp_path / "shelf"
    folder.mkdir()
    released = "released: {architecture: LLaSM, about: x, licence: y, source: hf:a/b}"
    (folder / "index.yaml").write_text(f"# by hand\n{released}\n")
    monkeypatch.setenv("SPEECHZOO_ZOO", str(folder))
    return folder


def answers(file: Path) -> Path:
    told = [("one", "one two", "one two"), ("two", "three", "four")]
    save_answers(file, [_answer(name, text, wanted) for name, text, wanted in told])
    return file


def _answer(name: str, text: str, reference: str) -> Answer:
    empty: dict[str, Any] = dict.fromkeys(Answer.__dataclass_fields__)
    return Answer(**{**empty, "id": name, "kind": "k", "question": name, "reference": reference, "text": text})


def publish(run: Path, name: str, *more: object) -> int:
    words = ["publish", run, name, "--about=A tiny one.", "--recipe=speechzoo fit", *more]
    return main([str(word) for word in words])


def test_a_published_model_is_the_run_in_half_precision(runs: Path, shelf: Path, tmp_path: Path, capsys):
    told = answers(tmp_path / "a.jsonl")
    assert publish(runs / "second", "tiny", "--answers", "two questions", told, "--command=speechzoo predict") == 0
    run, model = load_run(runs / "second"), speechzoo.load("tiny")
    state = torch.nn.Module.state_dict(run)
    learned = dict(merged_state(runs / "second"))
    assert {name.split(".")[0] for name in learned} == {"adaptor", "llm"}
    for name, tensor in torch.nn.Module.state_dict(model).items():
        wanted = state[name].half().to(tensor) if name in learned else state[name]
        assert torch.equal(tensor, wanted), name
    assert yaml.safe_load((shelf / "tiny/config.yaml").read_text())["model"]["init_args"]["llm"]["init_args"] == {
        **run.specs["llm"]["init_args"],
        "model": "${part:smollm2-135m-instruct}",
    }
    entry = names.entry("tiny")
    first = entry["results"][0]
    assert (first["metric"], first["value"], first["command"]) == ("wer", 0.5, "speechzoo predict")
    assert list(entry["training"]) == ["first", "second"] and entry["training"]["first"]["steps"] == 2
    made_by = json.loads((runs / "first/summary.json").read_text())["commit"]
    assert entry["training"]["first"]["commit"] == made_by
    assert (shelf / "index.yaml").read_text().startswith("# by hand\nreleased:")
    check_card(shelf / "tiny/README.md")
    header = ModelCard.load(shelf / "tiny/README.md").data
    assert header.base_model == ["openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert {(r.metric_type, r.metric_value, r.dataset_name) for r in header.eval_results} >= {
        ("wer", 0.5, "two questions (2)")
    }
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"released", "tiny", "llasm-tiny-asr"} <= set(listed)  # one's own beside ours
    assert listed["tiny"]["shelf"] == str(shelf)
    assert main(["show", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "wer 0.5000" in shown and f"commit {made_by}" in shown
    assert main(["pull", "tiny"]) == 0


def test_an_entry_of_the_index_is_put_in_and_the_rest_stays_as_it_is_written(tmp_path: Path):
    index = tmp_path / "index.yaml"
    write_index(tmp_path, "a", {"x": 1})
    assert index.read_text() == "a:\n  x: 1\n"
    written = "# head\na:\n  x: 1  # one\n\n# about b\n'b':\n  y: '2'\n\n# about c\nc: {z: 3}"
    index.write_text(written)
    write_index(tmp_path, "d", {"w": "ä"})
    assert index.read_text() == f"{written}\nd:\n  w: ä\n"
    write_index(tmp_path, "b", {"y": 4})
    assert index.read_text() == written.replace("'b':\n  y: '2'", "b:\n  y: 4") + "\nd:\n  w: ä\n"
    for empty in ("# head\n", "# head\n{}\n"):
        index.write_text(empty)
        write_index(tmp_path, "a", {"x": 1})
        assert index.read_text() == "# head\na:\n  x: 1\n"


def test_a_result_tells_how_many_answers_it_is_of(tmp_path: Path):
    told = [Answer(name, "k", name, reference, "t") for name, reference in (("1", "r"), ("2", ""), ("3", "r"))]
    told[2] = replace(told[2], spoken="t", quality={"Distill-MOS": 4.0})
    save_answers(tmp_path / "a.jsonl", told)
    found = {result.metric: result.data for result in results_of(tmp_path / "a.jsonl", "mine", "c")}
    assert found == {"wer": "mine (2)", "cer": "mine (2)", "exact_match": "mine (2)", "Distill-MOS": "mine (1)"} | {
        "asr_wer": "mine (1)",
        "asr_cer": "mine (1)",
    }


def test_a_name_stands_where_a_run_does(runs: Path, shelf: Path, tmp_path: Path, wavs, capsys):
    publish(runs / "second", "tiny", "--answers", "two questions", answers(tmp_path / "a.jsonl"))
    publish(runs / "first", "tiny-ear")
    capsys.readouterr()
    assert main(["ask", "tiny", str(wavs[0]), "--max-new-tokens=4"]) == 0
    assert main(["compare", "tiny", "--out", str(tmp_path / "comparison")]) == 0
    report = capsys.readouterr().out
    assert "50.0 %" in report
    # what all stages cost, not the last one alone, by name and by folder
    both = find_runs([Path("tiny"), shelf / "tiny"])
    assert [run.total("steps") for run in both] == [4] and [stage.name for stage in both[0].stages] == [
        "first",
        "second",
    ]
    config = runs / "config.yaml"
    told = [f"--vars.out={tmp_path}", "--name=third", "--trainer.callbacks+=StageCost"]
    fitted = zoo("fit", f"--config={config}", *told, "--model.init_args.init_from=[tiny-ear]")
    assert list(dict(costs(tmp_path / "third"))) == ["first", "third"]
    assert fitted.model.identity["stages"][0]["path"] == "tiny-ear"
    assert dict(costs(tmp_path / "third" / "last.ckpt")) == dict(costs(tmp_path / "third"))
    lora = "--model.init_args.llm.init_args.lora={r: 2, lora_alpha: 4}"
    losses = []
    for path, stages in (("tiny", ""), (runs / "second", runs / "first")):
        given = [lora, f"--model.init_args.init_from=[{stages}]", f"--ckpt_path={path}"]
        losses.append(float(zoo("validate", f"--config={config}", *given).trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_what_is_wrong_with_a_name_is_one_line(shelf: Path, capsys):
    assert main(["show", "relased"]) == 1
    assert capsys.readouterr().err == "speechzoo: no model is called 'relased'; near: released\n"
    assert main(["ask", "relased", "--text=hi"]) == 1
    assert capsys.readouterr().err == "speechzoo ask: relased: no such folder; the zoo has released\n"
    assert main(["pull", "released"]) == 1
    assert "not distributed with speechzoo, take it from hf:a/b" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "config.yaml", "README.md"])
def test_a_changed_file_is_named_and_nothing_is_loaded(runs: Path, shelf: Path, file: str, capsys):
    publish(runs / "second", "tiny")
    content = (shelf / "tiny" / file).read_bytes()
    (shelf / "tiny" / file).write_bytes(content[:-1] + b"x")
    wanted = names.entry("tiny")["files"][file]
    told = rf"tiny/{file}: damaged or changed \(sha256 {wanted} expected, found [0-9a-f]{{64}}"
    with pytest.raises(ValueError, match=told):
        speechzoo.load("tiny")


def test_other_base_weights_are_refused(runs: Path, shelf: Path, tmp_path: Path, tiny_llm_dir: Path, monkeypatch):
    publish(runs / "second", "tiny")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny_llm_dir)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_llm_dir).save_pretrained(tmp_path / "other")
    fetch = speechzoo.parts.registry.fetch
    there = lambda name: tmp_path / "other" if name.startswith("smol") else fetch(name)  # noqa: E731
    monkeypatch.setattr("speechzoo.parts.registry.fetch", there)
    with pytest.raises(ValueError, match="LLaSM: it was trained on another llm"):
        speechzoo.load("tiny")


def test_a_part_of_this_machine_alone_is_refused(runs: Path, shelf: Path, monkeypatch, capsys):
    monkeypatch.setattr("speechzoo.zoo.publish.find_cached", lambda _: None)
    assert publish(runs / "second", "tiny") == 1
    assert "is on this machine alone: a published model names its parts by part or hub name" in capsys.readouterr().err
    assert not (shelf / "tiny").exists()


def test_publishing_leaves_nothing_half_done(runs: Path, shelf: Path, tmp_path: Path, monkeypatch, capsys):
    assert publish(runs / "second", "Tiny") == 1
    assert "'Tiny': a model's name has lower-case letters" in capsys.readouterr().err
    assert publish(runs / "second", "tiny", "--vocoder=unit-vocoder-tyny") == 1
    assert "no model is called 'unit-vocoder-tyny'; near: unit-vocoder-tiny" in capsys.readouterr().err
    monkeypatch.setattr("speechzoo.zoo.publish.card", lambda *_: "---\nlicense: [\n---\n")
    assert publish(runs / "second", "tiny") == 1
    assert "its header is not YAML" in capsys.readouterr().err
    assert [path.name for path in shelf.iterdir()] == ["index.yaml"]


def test_a_saved_model_is_no_run(runs: Path, shelf: Path, tmp_path: Path, capsys):
    """`save_pretrained` merges what was trained into its parts: nothing says what to publish."""
    load_run(runs / "second").save_pretrained(tmp_path / "saved")
    assert publish(tmp_path / "saved", "tiny") == 1
    told = capsys.readouterr().err
    assert "last.ckpt: no such checkpoint" in told
    assert sorted(path.name for path in shelf.iterdir()) == ["index.yaml"]


def test_base_models_by_their_own_names():
    def part(model: str) -> dict[str, Any]:
        return {"class_path": "x", "init_args": {"model": model}}

    assert hub_names({"encoder": part("tiny.en"), "llm": part("gpt2")}) == ["openai/whisper-tiny.en", "gpt2"]
    assert hub_names({"encoder": part("a/b"), "llm": part("c/d")}) == ["a/b", "c/d"]


def test_what_brackets_hold_is_shown(shelf: Path, capsys):
    (shelf / "index.yaml").write_text("mine: {architecture: LLaSM, about: 'of [en] and [/de]'}\n")
    assert main(["list"]) == 0
    assert "of [en] and [/de]" in " ".join(capsys.readouterr().out.split())
