"""The waveform generator out of a Piper voice's ONNX file, as a torch module with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speechzoo.vocoders.hifigan import HiFiGANGenerator

PREFIX = "dec."


def piper_generator(onnx_path: str | Path) -> HiFiGANGenerator:
    """Read the generator's weights (initialisers `dec.*`) and its shape from the graph.

    Latents come from `PiperVoice.speak_with_latents`; the result equals the voice's own sound to float rounding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the graph holds no generator of this kind (Piper's "high" voices have another residual block).
    """
    import onnx
    from onnx import numpy_helper

    if not Path(onnx_path).is_file():
        raise FileNotFoundError(f"{onnx_path}: no such file; `speechzoo.parts.registry.fetch` gets a voice")
    graph = onnx.load(str(onnx_path)).graph
    held = {tensor.name: tensor for tensor in graph.initializer if tensor.name.startswith(PREFIX)}
    state = {name[len(PREFIX) :]: torch.tensor(numpy_helper.to_array(tensor)) for name, tensor in held.items()}
    if "ups.0.weight" not in state:
        raise ValueError(f"{onnx_path}: no HiFi-GAN generator in this graph (initialisers {PREFIX}*)")
    nodes = {node.input[1]: node for node in graph.node if len(node.input) > 1 and node.input[1] in held}
    try:
        generator = HiFiGANGenerator(**_shape(state, nodes))
        generator.load_state_dict(state)
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"{onnx_path}: no HiFi-GAN generator with resblock 2 in this graph ({error})") from error
    return generator.eval().requires_grad_(False)


def _shape(state: dict[str, torch.Tensor], nodes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `HiFiGANGenerator`, from the shapes of the weights and the attributes of their nodes."""

    def attribute(weight: str, name: str) -> int:
        (values,) = (item.ints for item in nodes[PREFIX + weight].attribute if item.name == name)
        return int(values[0])

    stages = len({name for name in state if name.startswith("ups.") and name.endswith("weight")})
    blocks = len({name.split(".")[1] for name in state if name.startswith("resblocks.")}) // stages
    convs = [[f"resblocks.{b}.convs.{i}.weight" for i in range(2)] for b in range(blocks)]
    return {
        "in_dim": state["conv_pre.weight"].shape[1],
        "channels": state["conv_pre.weight"].shape[0],
        "upsample_rates": [attribute(f"ups.{i}.weight", "strides") for i in range(stages)],
        "upsample_kernels": [state[f"ups.{i}.weight"].shape[2] for i in range(stages)],
        "block_kernels": [state[first].shape[2] for first, _ in convs],
        "block_dilations": [[attribute(conv, "dilations") for conv in pair] for pair in convs],
    }
