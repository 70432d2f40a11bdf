"""Make a Piper voice's ONNX graph fit for experiments: its noise comes from outside, its latents go out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NOISE_INPUTS = {"duration_noise": "/dp/RandomNormalLike", "latent_noise": "/RandomNormalLike"}
LATENTS = "/Mul_7_output_0"
LATENT_CHANNELS = 192


def make_reproducible(onnx_path: str | Path) -> None:
    """Rewrite a Piper voice in place: its random numbers become inputs, the generator's latents a second output.

    The exported graph draws normal noise itself, and onnxruntime cannot seed a single run.

    Raises:
        ValueError: the graph is not of the kind that Piper's exporter writes.
    """
    import onnx
    from onnx import TensorProto, helper

    model: Any = onnx.load(str(onnx_path))
    graph = model.graph
    nodes = {node.name: (index, node) for index, node in enumerate(graph.node)}
    if not set(NOISE_INPUTS.values()) <= nodes.keys():
        raise ValueError(f"{onnx_path}: not a Piper voice, its graph lacks {' and '.join(NOISE_INPUTS.values())}")
    for name, node_name in sorted(NOISE_INPUTS.items(), key=lambda item: -nodes[item[1]][0]):
        index, node = nodes[node_name]
        start = helper.make_tensor(f"{name}_start", TensorProto.INT64, [3], [0, 0, 0])
        graph.initializer.append(start)
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None]))
        graph.node.remove(node)
        # Same shape as the tensor the noise was drawn for, cut from the start of the given one.
        graph.node.insert(index, helper.make_node("Slice", [name, start.name, f"{name}_end"], [node.output[0]]))
        graph.node.insert(index, helper.make_node("Shape", [node.input[0]], [f"{name}_end"]))
    graph.output.append(helper.make_tensor_value_info(LATENTS, TensorProto.FLOAT, [1, LATENT_CHANNELS, None]))
    onnx.checker.check_model(model)
    onnx.save(model, str(onnx_path))
