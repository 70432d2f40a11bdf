"""What a run holds whatever the batch is compared with its device before the model goes there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import write_config, zoo

from speechzoo.doctor.memory import Memory, device_bytes
from speechzoo.system.cpu import host_bytes

GB = 10**9


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("memory") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


def of(parameters: float, device: float, world: int = 1, sharded: bool = False) -> Memory:
    """Full fine-tuning of so many parameters in float32 with Adam."""
    one = int(4 * parameters / (world if sharded else 1))
    return Memory(one, one, 2 * one, int(12 * parameters), int(device * GB), world, sharded)


@pytest.mark.parametrize("device", [24, 48, 80])
def test_8b_with_adam_does_not_fit_into_one_device(device: int) -> None:
    memory = of(8.05e9, device, world=4)
    (finding,) = memory.check()
    assert finding.level == "error" and finding.name == "states" and memory.crowded
    assert "128.8 GB before any activation" in finding.text and f"a device of {device}.0 GB" in finding.text
    assert "fsdp2" in finding.advice and "LoRA" in finding.advice and "batch" not in finding.advice
    told = {24: "at least 7 devices", 48: "32.2 GB on each of 4 devices", 80: "32.2 GB on each of 4 devices"}
    assert told[device] in finding.advice


def test_8b_cut_over_four_devices_of_the_paper_fits() -> None:
    assert of(8.05e9, 48.3, 4, sharded=True).check()[0].level == "ok"
    (finding,) = of(8.05e9, 24, 4, sharded=True).check()
    assert finding.level == "error" and "at least 7 devices" in finding.advice and "LoRA" in finding.advice


def test_unknown_memory_is_no_error() -> None:
    memory = of(8e9, 0)
    assert memory.check()[0].level == "ok" and not memory.crowded


def test_a_checkpoint_gathered_in_a_small_host_is_a_warning() -> None:
    memory = of(8.05e9, 48, 4, sharded=True)
    (finding,) = memory.check_host(64 * GB)
    assert finding.level == "warning" and "96.6 GB" in finding.text and "save_distributed_checkpoint" in finding.advice
    assert not memory.check_host(128 * GB) and not memory.check_host(0)


def test_this_machine_has_memory() -> None:
    # Not compared closely: what is available changes with what else runs.
    assert 0 < host_bytes(1000) < device_bytes(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "per_weight"),
    [
        ([], 16),
        (["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.1"], 8),
    ],
)
def test_states_of_a_run(config: Path, options: list[str], per_weight: int) -> None:
    """Counted from the model: 16 bytes a float32 weight with Adam, 4 for a frozen one."""
    cli = zoo("fit", "-c", config, f"--name=states_{per_weight}", "--trainer.max_steps=1", *options)
    memory = Memory.of(cli.trainer, cli.model)
    weights = list(cli.model.parameters())
    learning = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in weights if not p.requires_grad)
    assert learning and frozen and memory.states == per_weight * learning + frozen
    assert memory.checkpoint == (per_weight - 4) * learning
    state = cli.trainer.optimizers[0].state
    assert memory.moments == sum(t.nbytes for s in state.values() for t in s.values() if t.numel() > 1)


def test_it_is_said_before_the_model_goes_to_its_device(config: Path, monkeypatch, capsys) -> None:
    """By `fit` and by `doctor`, with the strategy that would do."""
    from speechzoo.cli import main

    monkeypatch.setattr("speechzoo.doctor.memory.device_bytes", lambda *_: 100_000)
    moved: list[str] = []
    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.model_to_device", lambda _: moved.append(""))
    with pytest.raises(ValueError, match=r"before any activation, on a device of 0.0 GB -> .*fsdp2.*LoRA"):
        zoo("fit", "-c", config, "--name=early", "--preflight.enabled=true")
    assert main(["doctor", "--config", str(config), "--name=doctor", "--preflight.enabled=true"]) == 1
    assert "fsdp2" in capsys.readouterr().err
    assert not moved


def test_a_crowded_device_is_not_blamed_on_the_batch(config: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("speechzoo.callbacks.preflight.there_and_back", full)
    cli = zoo("fit", "-c", config, "--name=roomy", "--trainer.max_steps=1")
    states = Memory.of(cli.trainer, cli.model).states
    monkeypatch.setattr("speechzoo.doctor.memory.device_bytes", lambda *_: int(1.1 * states))
    with pytest.raises(ValueError, match=r"the largest batch.*weights, gradients and moments: .*fsdp2.*LoRA") as caught:
        zoo("fit", "-c", config, "--name=crowded", "--preflight.enabled=true", "--doctor.enabled=false")
    assert "data.batch_size" not in str(caught.value)


def test_weights_too_large_to_be_built(config: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("speechzoo.models.base.SpeechLLM.build", full)
    with pytest.raises(ValueError, match="the weights of .* alone do not fit into cpu: trainer.strategy: fsdp2"):
        zoo("fit", "-c", config, "--name=unbuilt")
