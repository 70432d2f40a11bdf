"""The quickstart's vocoder: durations in latent frames, the voice's generator in torch, a recipe that learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_runs import saved

from speechzoo.commands.training import run
from speechzoo.interop.hub import load_run
from speechzoo.names.recipes import recipe
from speechzoo.quickstart.piper_generator import piper_generator
from speechzoo.quickstart.vocoder import unit_durations
from speechzoo.vocoders import LatentVocoder
from speechzoo.vocoders.hifigan import HiFiGANGenerator

RATIO = 22050 / 256 / 50


def write_generator(path: Path, generator: HiFiGANGenerator) -> Path:
    """An ONNX file with the generator's weights, named and used as in a Piper voice."""
    from onnx import TensorProto, helper, numpy_helper, save

    state = {f"dec.{name}": tensor.numpy() for name, tensor in generator.state_dict().items()}
    nodes = []
    for name, module in generator.named_modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            kind = "ConvTranspose" if isinstance(module, torch.nn.ConvTranspose1d) else "Conv"
            options = {"strides": list(module.stride), "dilations": list(module.dilation)}
            nodes.append(helper.make_node(kind, ["x", f"dec.{name}.weight"], [name], **options))
    given_ = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, None])
    weights = [numpy_helper.from_array(array, name) for name, array in state.items()]
    save(helper.make_model(helper.make_graph(nodes, "voice", [given_], [], weights)), str(path))
    return path


TINY = {
    "in_dim": 4, "channels": 8, "upsample_rates": [4, 2], "upsample_kernels": [8, 4], "block_kernels": [3, 5],
    "block_dilations": [[1, 2], [3, 1]],
}  # fmt: skip


def test_a_generator_is_read_with_its_shape_from_the_graph(tmp_path: Path) -> None:
    generator = HiFiGANGenerator(**TINY)
    read = piper_generator(write_generator(tmp_path / "voice.onnx", generator))
    assert read.arguments == TINY and not any(p.requires_grad for p in read.parameters())
    x = torch.randn(1, 4, 9)
    torch.testing.assert_close(read(x), generator(x), atol=0, rtol=0)


def test_a_graph_without_a_generator_is_refused(tmp_path: Path) -> None:
    other = torch.nn.Module()
    other.conv_post = torch.nn.Conv1d(4, 1, 7)
    with pytest.raises(ValueError, match="no HiFi-GAN generator"):
        piper_generator(write_generator(tmp_path / "voice.onnx", other))
    with pytest.raises(FileNotFoundError, match="gone.onnx"):
        piper_generator(tmp_path / "gone.onnx")


@pytest.mark.real
def test_the_generator_equals_the_voice() -> None:
    from speechzoo.parts.registry import fetch
    from speechzoo.quickstart.voice import PiperVoice

    folder = fetch("piper-joe")
    voice = PiperVoice(folder / "voice.onnx", folder / "voice.onnx.json", fetch("english-lexicon"))
    samples, latents = voice.speak_with_latents("The capital of Peru is Lima.", 1.1, 0.5, 3)
    generator = piper_generator(folder / "voice.onnx")
    assert sum(p.numel() for p in generator.parameters()) == 1_662_976
    with torch.no_grad():
        ours = generator(torch.tensor(latents).T[None])[0].numpy()
    assert np.abs(ours.clip(-1, 1) - samples).max() < 5e-6


def test_durations_follow_the_clock() -> None:
    units, durations = unit_durations(torch.tensor([4] * 10 + [7] * 5 + [4] * 10), 43, RATIO)
    assert units.tolist() == [4, 7, 4]
    assert durations.tolist() == [17, 9, 17]  # borders at 10 * 1.7227 = 17.2 and 15 * 1.7227 = 25.8


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 120), st.sampled_from([0.4, 1.0, RATIO]))
def test_every_unit_gets_a_frame_and_all_frames_are_given(frames: list[int], length: int, ratio: float) -> None:
    units, durations = unit_durations(torch.tensor(frames), length, ratio)
    assert int(durations.min()) >= 1 and int(durations.sum()) == length
    merged = torch.unique_consecutive(torch.tensor(frames))
    assert units.equal(merged[: len(units)]) and len(units) == min(len(merged), length)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Latents that are a function of the unit: something to learn in a few steps."""
    (tmp_path / "corpus" / "latents").mkdir(parents=True)
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    for split, number in (("train", 24), ("test", 4)):
        lines = []
        for i in range(number):
            units = torch.randint(0, 20, (12,), generator=torch.Generator().manual_seed(i))
            durations = units % 3 + 1
            file = f"latents/{split}{i}.safetensors"
            save_file({"latents": values[units].repeat_interleave(durations, dim=0).half()}, tmp_path / "corpus" / file)
            record = {"id": f"{i}", "units": units.tolist(), "durations": durations.tolist(), "latents": file}
            lines.append(json.dumps(record) + "\n")
        (tmp_path / "corpus" / f"vocoder_{split}.jsonl").write_text("".join(lines))
    return tmp_path


def test_the_recipe_learns_and_leaves_a_vocoder(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    generator = HiFiGANGenerator(**TINY)
    monkeypatch.setattr("speechzoo.parts.registry.fetch", lambda _: corpus)
    write_generator(corpus / "voice.onnx", generator)
    net = "{num_units: 20, latent_dim: 4, dim: 32, dropout: 0.0}"
    options = [f"--vars.out={corpus}", f"--model.init_args.net={net}", "--trainer.max_steps=60"]
    options += ["--trainer.val_check_interval=30", "--data.init_args.batch_size=6", "--trainer.log_every_n_steps=1"]
    trainer = run(["fit", f"--config={recipe('quickstart/vocoder.yaml')}", *options]).trainer
    folder = corpus / "vocoder"
    assert float(trainer.callback_metrics["val/latent_loss"]) < 0.2  # 1.0 says the mean everywhere
    vocoder = LatentVocoder.from_folder(folder)
    units = torch.tensor([1, 5, 2, 9])
    assert len(vocoder(units)) == int((units % 3 + 1).sum()) * 8
    for name, tensor in generator.state_dict().items():
        assert vocoder.generator.state_dict()[name].equal(tensor)
    assert vocoder.mean.mean() == pytest.approx(5, abs=1.5)
    torch.testing.assert_close(load_run(folder).vocoder(units), vocoder(units), atol=0, rtol=0)
    assert all(name.startswith("vocoder.net.") for name in saved(folder / "last.ckpt")["trained"])
