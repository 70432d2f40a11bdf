"""The command line: what overrides what, the run folder, and what needs nothing heavy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import UNIT_DECODER, printed, saved, write_config, zoo

from speechzoo.adaptors import Conv
from speechzoo.cli import COMMANDS, main
from speechzoo.cli.bench import BENCHES
from speechzoo.commands.arguments import in_yaml
from speechzoo.names.recipes import recipe


@pytest.fixture
def config(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    """Folder of a finished run of two steps."""
    folder = tmp_path_factory.mktemp("fitted")
    zoo("fit", "-c", write_config(folder / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest))
    return folder / "tiny"


def test_a_trial_run_leaves_no_checkpoint(config: Path, tmp_path: Path) -> None:
    """The real run's `last.ckpt` would else be called `last-v1.ckpt`."""
    assert zoo("fit", "-c", config, "--trainer.fast_dev_run=1").trainer.global_step == 1
    assert not (tmp_path / "tiny").exists()


def test_a_trial_run_leaves_a_finished_run_as_it_is(fitted: Path, tmp_path: Path) -> None:
    """Its summary and answers would be those of a single batch."""
    shutil.copytree(fitted, run := tmp_path / "run")
    common = ["-c", fitted.parent / "tiny.yaml", f"--trainer.default_root_dir={run}"]
    answers = [f"--trainer.callbacks+={kind}" for kind in ("AnswerWriter", "SampleTable", "StageCost")]
    (run / "predictions.jsonl").write_text("of all questions")
    (run / "summary.json").write_text("of all steps")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for command in ("fit", "predict", "test"):
        zoo(command, *common, *answers, "--trainer.fast_dev_run=1")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_references_follow_overrides_and_cross_sections(config: Path, tmp_path: Path) -> None:
    plain = printed("fit", "-c", config)
    assert plain["trainer"]["default_root_dir"] == f"{tmp_path}/tiny"
    assert plain["trainer"]["log_every_n_steps"] == 2
    assert plain["trainer"]["logger"][0]["init_args"]["save_dir"] == f"{tmp_path}/tiny"
    assert plain["trainer"]["callbacks"][0]["init_args"]["dirpath"] == f"{tmp_path}/tiny"

    changed = printed("fit", "-c", config, "--name=other", "--vars.out=/far", "--trainer.max_steps=9")
    assert changed["trainer"]["default_root_dir"] == "/far/other"
    assert changed["trainer"]["callbacks"][0]["init_args"]["dirpath"] == "/far/other"
    assert changed["trainer"]["max_steps"] == changed["trainer"]["log_every_n_steps"] == 9
    assert printed("fit", "-c", config, "--vars.steps=5")["trainer"]["log_every_n_steps"] == 5


def test_references_cross_files(config: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("trainer: {val_check_interval: '${trainer.max_steps}'}\nrecipe: of ${name}\n")
    (tmp_path / "name.yaml").write_text("name: me\n")
    both = printed("fit", "-c", config, "-c", tmp_path / "more.yaml", "-c", tmp_path / "name.yaml")
    assert both["trainer"]["val_check_interval"] == 2
    assert both["recipe"] == "of me" and both["trainer"]["default_root_dir"] == f"{tmp_path}/me"


def test_vars_of_a_later_file_are_added_to_those_before(config: Path, tmp_path: Path) -> None:
    """One that replaced them all would take the recipe the values that it refers to."""
    (tmp_path / "more.yaml").write_text("vars: {steps: 7, mine: 1}\n")
    both = printed("fit", "-c", config, "-c", tmp_path / "more.yaml", "--vars.mine=2")
    assert both["vars"] == {"out": str(tmp_path), "steps": 7, "mine": "2"} and both["trainer"]["max_steps"] == 7


def test_the_command_line_beats_the_file_and_a_later_file_an_earlier_one(config: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: {init_args: {batch_size: 3}}\ntrainer: {max_steps: 5}\n")
    both = printed("fit", "-c", config, "-c", overlay, "--data.init_args.batch_size=7")
    assert both["data"]["init_args"]["batch_size"] == 7
    assert both["trainer"]["max_steps"] == 5


@pytest.mark.parametrize("null", ["null", "None"])
def test_null_reaches_the_settings_of_a_part(config: Path, tmp_path: Path, null: str) -> None:
    """jsonargparse turns it into the text `None` on the way to a part; W&B's agent writes it so in the first place."""
    more = tmp_path / "more.yaml"
    more.write_text(
        "model: {init_args: {llm: {init_args: {lora: {r: 4}}}, prompt: {init_args: {chat_template: x, system: None}}}}"
    )
    parts = [f"--model.init_args.{key}={null}" for key in ("prompt.init_args.chat_template", "llm.init_args.lora")]
    settings = printed("fit", "-c", config, "-c", more, *parts, "--trainer.val_check_interval", null)
    model = settings["model"]["init_args"]
    assert model["prompt"]["init_args"]["chat_template"] is None and model["llm"]["init_args"]["lora"] is None
    assert settings["trainer"]["val_check_interval"] is None
    assert model["prompt"]["init_args"]["system"] == "None"  # a file's words are taken as YAML has them


@pytest.mark.parametrize(
    "typed, read",
    [
        ("--a=None", "--a=null"),
        ("None", "null"),
        ("--a={'b': None, 'c': [True, 'None', 1e-05]}", '--a={"b": null, "c": [true, "None", 1e-05]}'),
        ("--a=['^llm\\\\.', 'x']", '--a=["^llm\\\\.", "x"]'),  # Python writes two backslashes for one
        ("--a=['\\bword']", "--a=['\\bword']"),  # not what Python writes: YAML of whoever typed it
        ("--a={b: None}", "--a={b: None}"),
        ("--a=[1, 2", "--a=[1, 2"),
        ("--a=b=None", "--a=b=None"),
    ],
)
def test_what_python_writes_is_read_as_it_was(typed: str, read: str) -> None:
    assert in_yaml(typed) == read


def test_texts_in_lists_reach_yaml_whole() -> None:
    """JSON writes a character beyond U+FFFF as two halves, which YAML does not put together."""
    given = ["<\U0001f600>", "a\u2028b", "é\x85"]
    assert yaml.safe_load(in_yaml(f"--a={given!r}").removeprefix("--a=")) == given


def test_parts_are_swapped_by_overrides_alone(config: Path, tmp_path: Path, tiny_llm_dir: Path) -> None:
    swapped = printed("fit", "-c", config, "--model.adaptor=Conv", "--model.adaptor.hidden_dim=8")
    adaptor = swapped["model"]["init_args"]["adaptor"]
    assert adaptor["class_path"] == "speechzoo.adaptors.Conv"
    assert adaptor["init_args"]["hidden_dim"] == 8 and "stack" not in adaptor["init_args"]

    elsewhere = tmp_path / "llm"
    elsewhere.symlink_to(tiny_llm_dir)
    cli = zoo(
        *("fit", "-c", config, "--trainer.max_steps=1", "--model.adaptor=Conv"),
        f"--model.init_args.llm.init_args.model={elsewhere}",
    )
    assert isinstance(cli.model.adaptor, Conv)
    assert cli.model.hparams["llm"]["init_args"]["model"] == str(elsewhere)
    weights = saved(tmp_path / "tiny" / "last.ckpt")
    assert weights["hyper_parameters"]["adaptor"]["class_path"] == "speechzoo.adaptors.layers.Conv"


def test_another_architecture_by_overrides_alone(config: Path) -> None:
    other = printed("fit", "-c", config, "--model=LLaMAOmni", *UNIT_DECODER)["model"]
    assert other["class_path"] == "speechzoo.models.LLaMAOmni"
    assert other["init_args"]["adaptor"]["init_args"]["stack"] == 4  # kept
    assert other["init_args"]["unit_decoder"]["init_args"]["num_units"] == 12


def test_the_run_folder_repeats_the_run(fitted: Path, tmp_path: Path) -> None:
    """`config.yaml` is the resolved config: run from another folder, it gives the same weights and metrics."""
    kept = yaml.safe_load((fitted / "config.yaml").read_text())
    assert kept["trainer"]["default_root_dir"] == str(fitted)
    assert kept["seed_everything"] == 0
    before = saved(fitted / "last.ckpt")["state_dict"]
    # Resolved, so the folder is named in three places.
    text = (fitted / "config.yaml").read_text().replace(str(fitted), str(tmp_path / "again"))
    (tmp_path / "config.yaml").write_text(text)
    zoo("fit", "-c", tmp_path / "config.yaml")
    after = saved(tmp_path / "again" / "last.ckpt")["state_dict"]
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    metrics = [path / "csv" / "version_0" / "metrics.csv" for path in (fitted, tmp_path / "again")]
    assert metrics[0].read_text() == metrics[1].read_text()


def test_loggers_get_the_configuration_once(fitted: Path) -> None:
    """Lightning would add the model's settings, each a second time under another name."""
    logged = yaml.unsafe_load((fitted / "csv" / "version_0" / "hparams.yaml").read_text())
    assert {"model", "data", "trainer", "name"} <= set(logged) and not {"encoder", "llm", "freeze"} & set(logged)
    assert logged["model"]["init_args"]["adaptor"]["init_args"]["stack"] == 4


def test_the_command_line_beats_the_hyper_parameters_of_a_checkpoint(fitted: Path, tmp_path: Path) -> None:
    """Lightning's CLI would replace the rate, and even the class of the model, by those of the checkpoint."""
    common = ["-c", fitted / "config.yaml", f"--trainer.default_root_dir={tmp_path}", "--ckpt_path"]
    cli = zoo("fit", *common, fitted / "last.ckpt", "--model.init_args.optimizer.init_args.lr=0.5")
    assert cli.model.hparams["optimizer"]["init_args"]["lr"] == 0.5
    assert cli.trainer.optimizers[0].defaults["lr"] == 0.5
    with pytest.raises(ValueError, match="LLaMAOmni: this checkpoint was trained with other parts"):
        zoo("fit", *common, fitted / "last.ckpt", "--model=LLaMAOmni", *UNIT_DECODER)


def test_validate_test_and_predict_after_fit(fitted: Path) -> None:
    common = ["-c", fitted / "config.yaml", f"--ckpt_path={fitted / 'last.ckpt'}", "--trainer.logger=false"]
    before = (fitted / "config.yaml").read_text()
    metrics = {}
    for command, prefix in (("validate", "val"), ("test", "test")):
        cli = zoo(command, *common)
        metrics[prefix] = float(cli.trainer.callback_metrics[f"{prefix}/loss"])
    assert metrics["val"] == metrics["test"] > 0  # the same manifest
    trained = saved(fitted / "last.ckpt")["state_dict"]
    assert torch.equal(cli.model.adaptor.linear.weight, trained["adaptor.linear.weight"])
    cli = zoo("predict", *common)
    assert len(cli.trainer.predict_loop.predictions[0].text) == 2
    assert (fitted / "config.yaml").read_text() == before


def test_without_arguments_the_commands_are_listed(capsys) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in COMMANDS)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "speechzoo", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "quickstart" in done.stdout and not done.stderr


HEAVY = {"torch", "numpy", "lightning", "transformers", "whisper", "wandb", "peft", "matplotlib", "omegaconf", "gradio"}
AT_ONCE = [
    *([], ["--help"], ["--version"], ["fitt"], ["list"], ["show", "llama-3.1-8b-omni"], ["pull", "nothing"]),
    *([name, "--help"] for name in COMMANDS),
    *(["bench", name, "--help"] for name in BENCHES),
    # wrong arguments
    *(
        ["fit", "--config=nowhere.yaml"],
        ["ask", "run"],
        ["demo"],
        ["compare"],
        ["import", "lasm"],
        ["doctor"],
        ["publish"],
    ),
    *(
        ["quickstart", "--seed=a"],
        ["sweep", "a", "--count=x"],
        ["verify"],
        ["checkpoint", "shrink"],
        ["bench", "nothing"],
        ["bench", "latency", "run"],
    ),
]


def test_help_and_wrong_arguments_import_nothing_heavy() -> None:
    """What is imported is counted, not the time that it takes. One process asks all of it."""
    program = (
        "import sys\n"
        "from speechzoo.cli import main\n"
        f"for words in {AT_ONCE!r}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"    assert not (found := {HEAVY!r} & set(sys.modules)), (words, found)\n"
        "print('light')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("light\n"), done.stdout[-500:] + done.stderr
    assert "did you mean fit?" in done.stderr and "nowhere.yaml: no such file" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--config", "in.yaml", "--json", "in.yaml"],
        ["doctor", "--config=in.yaml", "--for", "80GB", "--json=./in.yaml"],
        ["bench", "cache", "in.yaml", "--json", "in.yaml"],
        ["bench", "data", "--manifest", "in.yaml", "--json", "in.yaml"],
        ["bench", "latency", "llasm-tiny", "--questions", "in.yaml", "--png", "in.yaml"],
    ],
)
def test_figures_never_replace_what_is_read(words: list[str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.yaml").write_text("a: 1\n")
    assert main(words) == 1
    assert "in.yaml: is also an input (in.yaml), which would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "in.yaml").read_text() == "a: 1\n"


def test_no_positions_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--config", "in.yaml", "--positions", "0"])
    assert "--positions is at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("data instruct OUT alpaca.json --style=llasm --limit=-1", "--limit: -1 is below 1"),
        ("data asr OUT librispeech=X --threads=0", "--threads: 0 is below 1"),
        ("data example OUT --questions -1 2", "--questions: -1 is below 1"),
        ("data kmeans OUT --data x.jsonl --clusters=0", "--clusters: 0 is below 1"),
        ("data contamination OUT x.jsonl --ngram=0", "--ngram: 0 is below 1"),
        ("bench data --workers=-1", "--workers: -1 is below 0"),
        ("bench stream --repeats=1 --rerun-repeats=2", "--rerun-repeats is 0 ... repeats"),
    ],
)
def test_numbers_that_count_nothing_are_refused(words: str, says: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(words.split())
    assert says in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["recipes/quickstart/llasm_pretrain.yaml", "recipes/quikstart/llasm_pretrain.yml"])
def test_a_recipe_that_is_elsewhere_is_named(given: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", given]) == 2
    where = recipe("quickstart/llasm_pretrain.yaml")
    assert capsys.readouterr().err == f"speechzoo: --config {given}: no such file; did you mean {where}?\n"


def test_a_folder_that_is_there_is_refused_before_a_model_is_loaded(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert main(["checkpoint", "expand", str(tmp_path / "no_run"), str(tmp_path)]) == 1
    assert f"{tmp_path}: exists already" in capsys.readouterr().err


def test_an_error_of_the_quickstart_is_said_whole(tmp_path: Path, monkeypatch, capsys):
    told = "records of [train.jsonl, val.jsonl] lie in [/tmp]"
    monkeypatch.setattr("speechzoo.cli.quickstart.NEEDS", {})

    def run(*_):
        raise ValueError(told)

    monkeypatch.setattr("speechzoo.quickstart.pipeline.Quickstart.run", run)
    assert main(["quickstart", "--smoke", f"--out={tmp_path / 'q'}"]) == 1
    assert told in " ".join(capsys.readouterr().out.split())
