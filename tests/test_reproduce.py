"""The scripts that go from raw data to tables: what they ask for, what they run at full scale, and the smallest run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import printed

from speechzoo.system.files import read_jsonl, write_json

ROOT = Path(__file__).parents[1]
# Of the person who runs the tests; the fixture `own_cache` would fetch 240 MB into a temporary folder.
CACHE = os.environ.get("SPEECHZOO_CACHE")
NEEDED = {
    "llama_omni": {
        "variables": "DATA WRITER TTS ANSWER_TTS QUESTION_VOICES ANSWER_VOICE".split(),
        "files": "alpaca_data.json ultrachat.jsonl eval/alpaca_eval.json eval/question.jsonl vocoder "
        "mhubert_base_vp_en_es_fr_it3_L11_km1000.bin".split(),
    },
    "llasm": {
        "variables": "DATA TTS QUESTION_VOICES".split(),
        "files": "LibriSpeech data_aishell magicdata primewords texts eval/alpaca_eval.json "
        "eval/question.jsonl".split(),
    },
}
RECORD = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit({fail!r} in sys.argv)
"""


def script(system: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    known = {*NEEDED["llama_omni"]["variables"], "SCALE", "OUT", "JUDGE", "JUDGE_MODEL", "FIT", "LLM", "SHARD", "MAKE"}
    environment = {name: value for name, value in os.environ.items() if name not in known}
    return ["bash", str(ROOT / "recipes" / system / "reproduce.sh")], environment | variables


def run(system: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = script(system, **variables)
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("system", NEEDED)
def test_all_that_is_missing_is_told_before_any_work(system: str, tmp_path: Path) -> None:
    needed, out = NEEDED[system], tmp_path / "out"
    ran = run(system, tmp_path, OUT=str(out))
    assert ran.returncode == 2 and not out.exists()
    for name in needed["variables"]:
        assert f"variable {name} is not set" in ran.stderr
    ran = run(system, tmp_path, OUT=str(out), **dict.fromkeys(needed["variables"], str(tmp_path)))
    assert ran.returncode == 2 and not out.exists()
    told = [line.strip() for line in ran.stderr.splitlines() if "is not there" in line]
    assert told == [f"{tmp_path / name} is not there" for name in needed["files"]]
    assert run(system, tmp_path, SCALE="large", OUT=str(out)).returncode == 2


def recorder(tmp_path: Path, fail: str = "") -> tuple[dict[str, str], Path]:
    """A `speechzoo` that notes its arguments, and fails where `fail` is among them."""
    program, log = tmp_path / "bin" / "speechzoo", tmp_path / "commands.jsonl"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RECORD.format(python=sys.executable, log=str(log), fail=fail or None))
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}, log


def at_full_scale(system: str, tmp_path: Path, fail: str = "", **more: str) -> tuple[list[list[str]], str]:
    """What the script runs where all is there, and what it says."""
    for name in NEEDED[system]["files"]:
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "texts" / "sharegpt.json").parent.mkdir(exist_ok=True)
    (tmp_path / "data" / "texts" / "sharegpt.json").touch()
    path, log = recorder(tmp_path, fail)
    given = {name: name.lower() for name in NEEDED[system]["variables"]}
    given |= {"DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out"), "JUDGE": "http://j/v1", "JUDGE_MODEL": "g"}
    ran = run(system, tmp_path, **path, **given, LLM="my/llm", **more)
    assert ran.returncode == int(bool(fail)), ran.stderr
    return read_jsonl(log), ran.stdout


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_llama_omni_at_full_scale_is_the_papers_chain(tmp_path: Path) -> None:
    commands, _ = at_full_scale("llama_omni", tmp_path)
    data, out = tmp_path / "data", tmp_path / "out"
    clusters, instruct, _, stage1, stage2, table = commands
    assert clusters == [
        "data",
        "convert-kmeans",
        str(data / NEEDED["llama_omni"]["files"][-1]),
        f"{out}/km1000.safetensors",
    ]
    assert instruct[3:5] == [f"{data}/alpaca_data.json#50000", f"{data}/ultrachat.jsonl#150000"]
    told = {name: after(instruct, f"--{name}") for name in ("style", "llm", "tts", "answer-tts", "layer", "kmeans")}
    expected = {"style": "llama_omni", "llm": "writer", "tts": "tts", "answer-tts": "answer_tts", "layer": "11"}
    assert told == expected | {"kmeans": f"{out}/km1000.safetensors"}
    one, two = (printed(*(word for word in stage if "--ckpt_path" not in word)) for stage in (stage1, stage2))
    for config, lr, before in ((one, 2e-5, []), (two, 2e-4, [f"{out}/stage1"])):
        init = config["model"]["init_args"]
        assert (init["optimizer"]["init_args"]["lr"], init.get("init_from") or []) == (lr, before)
        assert init["llm"]["init_args"]["model"] == init["prompt"]["init_args"]["tokenizer"] == "my/llm"
        assert config["data"]["init_args"]["train"] == f"{out}/s2s/train.jsonl"
        assert config["trainer"]["default_root_dir"] == f"{out}/{config['name']}"
    assert all("--ckpt_path=last" in stage for stage in (stage1, stage2))
    assert (after(table, "--suite"), after(table, "--judge-model")) == ("instructs2s", "g")
    assert (after(table, "--vocoder"), after(table, "--recogniser")) == (str(data / "vocoder"), "large-v3")


def test_llasm_at_full_scale_is_the_papers_chain(tmp_path: Path) -> None:
    commands, _ = at_full_scale("llasm", tmp_path)
    data, out = tmp_path / "data", tmp_path / "out"
    asr, instruct, _, pretrain, finetune, *tables = commands
    corpora = {"librispeech": "LibriSpeech", "aishell": "data_aishell", "magicdata": "magicdata"}
    corpora["primewords"] = "primewords"
    assert asr[3:8] == [*(f"{name}={data}/{folder}" for name, folder in corpora.items()), "--lower"]
    assert instruct[3] == f"{data}/texts/sharegpt.json" and after(instruct, "--style") == "llasm"
    for stage, train, before in ((pretrain, "asr", []), (finetune, "spoken", [f"{out}/pretrain"])):
        config = printed(*(word for word in stage if "--ckpt_path" not in word))
        assert config["data"]["init_args"]["train"] == f"{out}/{train}/train.jsonl"
        assert (config["model"]["init_args"].get("init_from") or []) == before
    suites = ["librispeech-test-clean", "librispeech-test-other", "aishell-1", "instructs2s"]
    assert [after(table, "--suite") for table in tables] == suites
    assert [after(table, "--data") for table in tables[1:3]] == [str(data / "LibriSpeech"), str(data / "data_aishell")]


def test_what_failed_and_what_comes_after_it_is_done_again_and_nothing_else(tmp_path: Path) -> None:
    first, _ = at_full_scale("llama_omni", tmp_path, fail="contamination")
    assert [command[:2] for command in first] == [
        ["data", "convert-kmeans"],
        ["data", "instruct"],
        ["data", "contamination"],
    ]
    (tmp_path / "commands.jsonl").unlink()
    second, told = at_full_scale("llama_omni", tmp_path)
    assert [command[0] for command in second] == ["data", "fit", "fit", "evaluate"]
    assert told.count("finished before") == 2
    (tmp_path / "commands.jsonl").write_text("")
    third, told = at_full_scale("llama_omni", tmp_path)
    assert third == [] and told.count("finished before") == 6


def test_a_stage_that_was_trained_on_other_data_is_told_of(tmp_path: Path) -> None:
    """What follows would be tables of the old data, and say that it finished before."""
    train = tmp_path / "out" / "asr" / "train.jsonl"
    train.parent.mkdir(parents=True)
    train.write_text("one\n")
    at_full_scale("llasm", tmp_path)
    assert at_full_scale("llasm", tmp_path)[1].count("finished before") == 9
    train.write_text("two\n")
    (tmp_path / "commands.jsonl").write_text("")
    variables = {"DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out"), "JUDGE": "http://j/v1", "LLM": "my/llm"}
    given = {name: name.lower() for name in NEEDED["llasm"]["variables"]} | variables | {"JUDGE_MODEL": "g"}
    ran = run("llasm", tmp_path, **recorder(tmp_path)[0], **given)
    assert ran.returncode == 1 and "pretrain was trained on other data than" in ran.stderr
    assert str(train) in ran.stderr and read_jsonl(tmp_path / "commands.jsonl") == []


def test_a_job_of_an_array_makes_its_share_and_the_last_start_joins_them(tmp_path: Path) -> None:
    commands, _ = at_full_scale("llama_omni", tmp_path, SHARD="1/2", MAKE="--threads 64")
    assert [command[:2] for command in commands] == [["data", "convert-kmeans"], ["data", "instruct"]]
    assert commands[1][-4:] == ["--threads", "64", "--shard", "1/2"]
    write_json(tmp_path / "out" / "s2s" / "dataset.json", {"shards": 2, "command": ""})  # as `speechzoo data` leaves it
    (tmp_path / "commands.jsonl").unlink()
    commands, _ = at_full_scale("llama_omni", tmp_path)
    assert commands[0] == ["data", "join", f"{tmp_path}/out/s2s"]
    assert [command[0] for command in commands[1:]] == ["data", "fit", "fit", "evaluate"]


def test_clusters_that_are_there_are_not_made_again_and_cdpath_says_nothing(tmp_path: Path) -> None:
    """As where a job of an array was ended between the file and its marker: a second conversion would be refused."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "km1000.safetensors").touch()
    commands, _ = at_full_scale("llama_omni", tmp_path)
    assert [command[:2] for command in commands[:2]] == [["data", "instruct"], ["data", "contamination"]]
    for system in NEEDED:
        command = ["bash", f"{system}/reproduce.sh"]
        environment = {**script(system)[1], "CDPATH": f".:{ROOT}", "OUT": str(tmp_path / "other")}
        ran = subprocess.run(command, env=environment, cwd=ROOT / "recipes", capture_output=True, text=True)
        assert ran.returncode == 2 and "variable DATA is not set" in ran.stderr


@pytest.mark.real
def test_the_smallest_run_of_both_and_again(tmp_path: Path) -> None:
    """Both at once, as there are two cores; the second time nothing is left to do."""
    variables = {"SCALE": "smoke", "PYTHONPATH": str(ROOT / "src")} | ({"SPEECHZOO_CACHE": CACHE} if CACHE else {})
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for attempt in range(2):
        running = []
        for system in NEEDED:
            command, environment = script(system, OUT=str(tmp_path / system), **variables)
            log = (tmp_path / f"{system}{attempt}.log").open("w+")
            running.append((subprocess.Popen(command, env=environment, stdout=log, stderr=log), log))
        for process, log in running:
            try:
                ended = process.wait(timeout=900)
            finally:
                process.kill()
            log.seek(0)
            told = log.read()
            assert ended == 0, told[-3000:]
            assert told.count("finished before") == (0 if attempt == 0 else told.count("\n") - 1)

    tables = {system: json.loads((tmp_path / system / "table" / "results.json").read_text()) for system in NEEDED}
    for found in tables.values():
        (ours,) = found["models"].values()
        assert (ours["answers"], ours["faults"]) == (6, [])
        assert ours["scores"]["same_s2t"]["n"] == 6
    assert tables["llama_omni"]["models"]["ours"]["scores"]["asr_wer"]["n"] > 0
    recognised = json.loads((tmp_path / "llasm" / "librispeech-test-clean" / "results.json").read_text())
    assert recognised["models"]["pretrain"]["scores"]["wer"]["value"] < 0.2  # by the published adaptor
    numbers = json.loads((tmp_path / "llama_omni" / "s2s" / "numbers.json").read_text())
    assert numbers["records"] == 24 and numbers["units_used"] > 50
    train = read_jsonl(tmp_path / "llama_omni" / "s2s" / "train.jsonl")
    assert len(train) == 20 and all(0 <= unit < 200 for row in train for unit in row["messages"][1]["units"])
