"""States of a HuBERT layer, and units from them, as fairseq extracts them for LLaMA-Omni (mHuBERT, layer 11).

Layer L is what comes out of the Lth transformer layer, counted from 1, before any norm at the end of the encoder: the
`hidden_states[L]` of transformers, fairseq's `output_layer=L`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import SAMPLE_RATE
from speechzoo.system.terminal import quiet

CHUNK = 100 * SAMPLE_RATE
"""Longer clips are cut into pieces that do not see each other, as fairseq's `dump_hubert_feature.py` does."""


class HubertLayer:
    """The layer's states of clips, 50 a second, the same alone and in any batch.

    HuBERT's base models normalise over a whole clip in their convolutions, so that padding would change every frame:
    the convolutions run on each clip alone, the transformer on batches with a mask.

    Args:
        model: a folder or a name on the hub (`voidful/mhubert-base` for LLaMA-Omni), of the classes Hubert or Wav2Vec2.
        layer: from 1.
        device: torch's name of it.

    Raises:
        ValueError: if it is another kind of model, or has fewer layers.
    """

    def __init__(self, model: str, layer: int, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoModel

        quiet()
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        if config.model_type not in ("hubert", "wav2vec2"):
            raise ValueError(f"{model}: is of kind {config.model_type}; a HuBERT is needed")
        if not 1 <= layer <= config.num_hidden_layers:
            raise ValueError(f"--layer {layer}: {model} has the layers 1 to {config.num_hidden_layers}")
        net: Any = AutoModel.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
        net = net.to(device).eval().requires_grad_(False)
        net.encoder.layers = net.encoder.layers[:layer]  # those after it are not needed
        if config.do_stable_layer_norm:
            net.encoder.layer_norm = nn.Identity()
        self.net, self.device, self.dim = net, device, int(config.hidden_size)
        self.normalised, self.shortest = _normalised(model), _shortest(config)

    @torch.inference_mode()
    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Shape: `[T]` at 16 kHz each -> `[F, D]` each, F = 0 for clips of less than 25 ms."""
        pieces = [(index, piece) for index, clip in enumerate(clips) for piece in self._prepared(clip)]
        states: list[list[Tensor]] = [[] for _ in clips]
        if pieces:
            features = [self.net.feature_extractor(piece[None].to(self.device))[0].T for _, piece in pieces]
            lens = torch.tensor([len(feature) for feature in features])
            hidden = self.net.feature_projection(pad_sequence(features, batch_first=True))
            mask = None
            if len(pieces) > 1:  # a single row has no padding
                mask = (torch.arange(hidden.shape[1])[None] < lens[:, None]).to(self.device)
            out = self.net.encoder(hidden, attention_mask=mask).last_hidden_state
            for row, (index, _) in enumerate(pieces):
                states[index].append(out[row, : lens[row]].cpu())
        return [torch.cat(some) if some else torch.zeros(0, self.dim) for some in states]

    def _prepared(self, clip: Tensor) -> Iterator[Tensor]:
        if self.normalised and len(clip):
            clip = (clip - clip.mean()) / (clip.var(unbiased=False) + 1e-7).sqrt()
        for piece in clip.split(CHUNK):
            if len(piece) >= self.shortest:
                yield piece


def batches(lens: Sequence[int], samples: int) -> list[list[int]]:
    """Numbers of clips of like length, at most so many samples together with their padding; a longer clip is alone."""
    made: list[list[int]] = []
    for index in sorted(range(len(lens)), key=lambda i: lens[i]):
        if made and lens[index] * (len(made[-1]) + 1) <= samples:
            made[-1].append(index)
        else:
            made.append([index])
    return made


def _normalised(model: str) -> bool:
    """Whether clips are brought to mean 0 and variance 1: what its feature extractor says; base models do not."""
    from transformers import AutoFeatureExtractor

    try:
        return bool(AutoFeatureExtractor.from_pretrained(model, trust_remote_code=False).do_normalize)
    except (OSError, ValueError):
        return False


def _shortest(config: Any) -> int:
    """Samples that give one frame: 400 for all published ones."""
    need = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        need = (need - 1) * stride + kernel
    return need


def frame_times(frames: int) -> Tensor:
    """The middle of each frame in seconds `[F]`: it sees 400 samples, the next one begins 320 later."""
    return (torch.arange(frames) * 320 + 200) / SAMPLE_RATE
