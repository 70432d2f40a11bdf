"""Errors of the command line: one line that says what to do; the traceback with --debug; less noise."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tiny_runs import write_config

from speechzoo.adaptors import ConcatMLP, Conv, Linear
from speechzoo.callbacks import SampleTable
from speechzoo.cli import main
from speechzoo.commands.arguments import brief
from speechzoo.models import LLaSM
from speechzoo.names.hugging_face import hub_options
from speechzoo.system import terminal
from speechzoo.system.terminal import explain, run_command
from speechzoo.text import ChatPrompt
from speechzoo.training import WarmupCosine
from speechzoo.units import CTCUnitDecoder


@pytest.fixture(autouse=True)
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(terminal.DEBUG, "0")


@pytest.fixture
def config(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


def failed(work) -> BaseException:
    """The error of a call, with its traceback."""
    with pytest.raises(BaseException) as raised:
        work()
    return raised.value


def told(capsys: pytest.CaptureFixture, *arguments: object, code: int = 1) -> str:
    """The only line that a command which fails leaves on standard error, besides what Lightning says before."""
    capsys.readouterr()
    try:
        got = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        got = stopped.code
    assert got == code
    ours = [line for line in capsys.readouterr().err.splitlines() if line.startswith("speechzoo")]
    assert len(ours) == 1 and len(ours[0]) < 700
    return ours[0]


# -- what an error is told as ------------------------------------------------------------------------------------------


def test_own_errors_keep_their_words_and_those_of_libraries_their_place() -> None:
    assert explain(failed(lambda: Linear(2, 2, 0))) == "Linear.stack has to be at least 1, not 0"
    assert explain(KeyboardInterrupt()) == "interrupted"
    missing = failed(lambda: open("/no/such/file"))  # noqa: SIM115
    assert explain(missing) == "/no/such/file: No such file or directory"
    assert explain(OSError(28, "No space left on device")) == "No space left on device"
    number = explain(failed(lambda: int("x")))
    assert re.fullmatch(r"invalid literal .* \(ValueError at .*test_terminal\.py:\d+; --debug shows .*\)", number)
    shapes = explain(failed(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))
    assert shapes.startswith("internal error: RuntimeError: mat1 and mat2") and shapes.endswith("for the traceback")
    assert "\n" not in explain(failed(lambda: {}["a\nb"]))
    assert explain(AssertionError()).startswith("internal error: AssertionError: AssertionError")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MisconfigurationException("No supported gpu backend found!"), "--trainer.accelerator=cpu"),
        (AssertionError("Torch not compiled with CUDA enabled"), "--device cpu"),
        (RuntimeError("No API key configured. Use `wandb login` to log in."), "WANDB_MODE=offline"),
        (MisconfigurationException("two\n lines"), "two lines"),
    ],
)
def test_errors_of_libraries_that_users_meet(error: Exception, words: str) -> None:
    assert words in explain(error) and "\n" not in explain(error)


def test_the_reason_of_a_part_that_cannot_be_made_is_told() -> None:
    """jsonargparse writes it under the part's name, as of a logger whose package is not there."""
    text = """Parser key "trainer.logger":
Does not validate against any of the Union subtypes
Errors:
  - Problem with given class_path 'lightning.pytorch.loggers.TensorBoardLogger':
    Neither `tensorboard` nor `tensorboardX` is available.
  - Expected a <class 'NoneType'>"""
    assert explain(ValueError(text)).endswith(
        "TensorBoardLogger': Neither `tensorboard` nor `tensorboardX` is available."
    )


def test_what_a_started_process_says() -> None:
    ProcessRaisedException = torch.multiprocessing.ProcessRaisedException
    text = "\n\n-- Process 1 terminated with the following error:\nTraceback ...\n  x\nValueError: data.train: none"
    assert explain(ProcessRaisedException(text, 1, 2)) == "data.train: none"


def test_codes_of_ends(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(error: BaseException):
        def work(words: list[str]) -> int:
            raise error

        return work

    assert run_command(lambda words: len(words), ["a", "--debug", "b"]) == 2
    monkeypatch.setenv(terminal.DEBUG, "0")
    assert run_command(end(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "speechzoo: interrupted\n"
    assert run_command(end(KeyError("x")), []) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run_command(end(KeyError("x")), ["fit", "--debug"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text and text.splitlines()[-1].startswith("speechzoo: internal error: KeyError")
    monkeypatch.setenv(terminal.DEBUG, "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    run_command(end(ValueError("x")), [])
    assert capsys.readouterr().err.startswith("speechzoo (rank 1): ")

    def lightning(words: list[str]) -> int:  # what its trainer makes of Ctrl-C
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run_command(lightning, []) == 130
    capsys.readouterr()
    assert run_command(end(SIGTERMException()), []) == 143  # its own exit code is 0
    assert "SIGTERM" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run_command(end(SystemExit(2)), [])
    assert stopped.value.code == 2


def test_a_reader_that_leaves() -> None:
    """As `speechzoo --help | head -1`: no word, and the code of a broken pipe."""
    code = "import sys; from speechzoo.system.terminal import run_command\n"
    code += "sys.exit(run_command(lambda words: print('x' * 10_000_000) or 0, []))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""


# -- what may be wrong with a command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--model.init_args.optimizer.init_args.lr=fast", "model.optimizer.lr: 'fast' is not a number"),
        ("--trainer.max_steps=two", "trainer.max_steps: 'two' is not a whole number"),
        ("--data.init_args.on_bad=explode", "data.on_bad: 'explode' is not one of 'raise', 'skip'"),
        ("--model.init_args.freeze=3", "model.freeze: '3' is not a list"),
        ("--model.init_args.adaptor.init_args.stak=3", "Linear has no setting 'stak'; did you mean 'stack' instead"),
        ("--model.init_args.adaptor=nowhere.Adaptor", "model.adaptor: No module named 'nowhere'"),
        ("--config=nope.yaml", "--config nope.yaml: no such file"),
    ],
)
def test_a_wrong_argument_is_one_line(config: Path, capsys, argument: str, words: str) -> None:
    assert words in told(capsys, "fit", "-c", config, argument, code=2)


def test_nobody_is_told_to_write_what_was_written(config: Path, capsys) -> None:
    """The second argument of a schedule is not a setting, though the class has it."""
    kind = "torch.optim.lr_scheduler.ExponentialLR"
    argument = f"--model.init_args.lr_scheduler={{class_path: {kind}, init_args: {{gamma: 0.9}}}}"
    text = told(capsys, "fit", "-c", config, argument, code=2)
    assert "ExponentialLR has no setting 'gamma'" in text and "instead of 'gamma'" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [b\n", ":2: not YAML"),
        (b"- a\n", "holds a list, not the settings of a run"),
        (b"hello", "holds a str"),
        (b"\xff\xfe\x00", "not YAML ('utf-8' codec"),
        (b"a: \x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, capsys, content: bytes, words: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    line = told(capsys, "fit", "--config", tmp_path / "bad.yaml", code=2)
    assert f"{tmp_path}/bad.yaml" in line and words in line


def test_commands_without_what_they_need(tmp_path: Path, capsys) -> None:
    assert "fit needs a configuration: --config recipes/" in told(capsys, "fit", code=2)
    assert told(capsys, "fitt", code=2) == "speechzoo: there is no command 'fitt'; did you mean fit?"
    assert "validate needs a configuration" in told(capsys, "validate", "--trainer.max_steps=3", code=2)
    assert "is a folder" in told(capsys, "fit", f"-c={tmp_path}".replace("-c=", "--config="), code=2)
    assert f"{tmp_path}/none" in told(capsys, "ask", tmp_path / "none", "--text", "hi")
    assert str(tmp_path) in told(capsys, "compare", tmp_path)


def test_an_unknown_reference_names_its_key(config: Path, capsys) -> None:
    line = told(capsys, "fit", "-c", config, "--trainer.max_steps=${vars.nope}")
    assert line.startswith("speechzoo: trainer.max_steps: ") and "vars.nope" in line


def test_errors_before_and_in_training(config: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert "no GPU that torch can use" in told(capsys, "fit", "-c", config, "--trainer.accelerator=gpu")
    line = told(capsys, "fit", "-c", config, "--data.init_args.batch_size=0")
    assert "data.batch_size has to be at least 1, not 0" in line
    line = told(capsys, "fit", "-c", config, "--model.init_args.adaptor.init_args.stack=0")
    assert line == "speechzoo: Linear.stack has to be at least 1, not 0"
    assert main(["fit", "-c", str(config), "--model.init_args.adaptor.init_args.stack=0", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line(config: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(LLaSM, "training_step", lambda *_: torch.ones(2) @ torch.ones(3))
    line = told(capsys, "fit", "-c", config)
    assert line.startswith("speechzoo: internal error: RuntimeError: ") and "test_terminal.py:" in line


def test_ctrl_c_in_training(config: Path, capsys, monkeypatch) -> None:
    """Lightning lets go of the run, and would end with 1."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LLaSM, "training_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert told(capsys, "fit", "-c", config, code=130) == "speechzoo: interrupted"
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning turns it off


def test_no_key_for_wandb(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("wandb").teardown()
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    more = tmp_path / "more.yaml"
    more.write_text(
        f"trainer: {{logger: [{{class_path: WandbLogger, init_args: {{project: p, save_dir: '{tmp_path}'}}}}]}}"
    )
    assert "W&B has no API key: run `wandb login`" in told(capsys, "fit", "-c", config, "-c", more)


def test_a_part_that_there_is_not_is_named_as_it_was_written(config: Path, capsys) -> None:
    line = told(capsys, "fit", "-c", config, "--model.init_args.adaptor=Konv", code=2)
    assert "model.adaptor: there is no class 'Konv'" in line


def test_the_culprit_is_found_in_other_texts_too() -> None:
    assert brief("no\n  structure   here") == "no structure here"
    assert len(brief('Parser key "a":\n' + "x" * 5000)) < 500


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(4, 4, stack=-1), "Linear.stack has to be at least 1, not -1"),
        (lambda: ConcatMLP(4, 4, stack=0), "ConcatMLP.stack"),
        (lambda: ConcatMLP(4, 4, hidden_dim=0), "ConcatMLP.hidden_dim"),
        (lambda: Conv(4, 4, strides=[2, 0]), "Conv.strides"),
        (lambda: Conv(4, 4, kernel_size=-1), "Conv.kernel_size"),
        (lambda: CTCUnitDecoder(4, upsample=0), "CTCUnitDecoder.upsample"),
        (lambda: CTCUnitDecoder(4, num_layers=0), "CTCUnitDecoder.num_layers"),
        (lambda: CTCUnitDecoder(4, num_units=0), "CTCUnitDecoder.num_units"),
        (lambda: CTCUnitDecoder(4, dim=6, num_heads=4), "dim 6 has to be a multiple of num_heads 4"),
        (lambda: CTCUnitDecoder(4, dim=8, num_heads=4, num_kv_heads=3), "num_kv_heads"),
        (lambda: ChatPrompt("x", max_length=0), "prompt.max_length"),
        (lambda: WarmupCosine(None, 10, warmup_ratio=-0.1), "WarmupCosine.warmup_ratio"),
        (lambda: WarmupCosine(None, 10, warmup_ratio=3), "WarmupCosine.warmup_ratio"),
        (lambda: SampleTable(max_new_tokens=0), "max_new_tokens"),
    ],
)
def test_settings_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


@pytest.mark.parametrize(("name", "value"), [("lr_scale", {"^adaptor": -1.0}), ("loss_weights", {"lm": float("nan")})])
def test_factors_of_a_model_are_no_less_than_zero(name: str, value: dict, tiny_llm_dir: Path) -> None:
    parts = {"encoder": Linear, "adaptor": Linear, "llm": Linear, "prompt": {"class_path": "speechzoo.text.ChatPrompt"}}
    parts["prompt"]["init_args"] = {"tokenizer": str(tiny_llm_dir)}
    with pytest.raises(ValueError, match=rf"model.{name}.*has to be at least 0, not "):
        LLaSM(**parts, **{name: value})


# -- models by name ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Hugging Face's hub as a function that takes a name, and an empty cache."""
    from huggingface_hub import constants

    def answer(reply) -> None:
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: reply())

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_options.cache_clear()
    yield answer
    hub_options.cache_clear()


def test_a_name_without_a_network_is_told_at_once(hub, tmp_path: Path, monkeypatch) -> None:
    def unreachable() -> None:
        raise ConnectionError("Name or service not known")

    hub(unreachable)
    with pytest.raises(FileNotFoundError, match="you/model: no such folder, .* cannot be reached: Name or") as error:
        hub_options("you/model")
    assert "hf download you/model" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="you/model: no such folder"):
        ChatPrompt("you/model").tokenizer  # noqa: B018
    assert hub_options(str(tmp_path)) == {}
    with pytest.raises(FileNotFoundError, match="no name of a model"):
        hub_options("not a name/at/all")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: "/somewhere/config.json")
    assert hub_options("you/cached") == {"local_files_only": True}
    hub(lambda: None)
    assert hub_options("you/other") == {}


def test_whisper_without_a_network(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from urllib.error import URLError

    def load_model(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("whisper.load_model", load_model)
    line = told(capsys, "fit", "-c", config, "--model.init_args.encoder.init_args.model=base.en")
    assert line.startswith("speechzoo: base.en: Whisper's weights are not in ") and "path of a .pt file" in line
