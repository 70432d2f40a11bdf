"""Speech encoders of transformers by name: wav2vec 2.0 and its kin (HuBERT, WavLM, ...), w2v-BERT, Whisper."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from speechzoo.audio import SAMPLE_RATE
from speechzoo.encoders.base import Encoder
from speechzoo.encoders.whisper_weights import fingerprint
from speechzoo.names.hugging_face import hub_options

KALDI_WINDOW, KALDI_HOP = 400, 160  # samples; transformers' extractor of w2v-BERT has them written in


class HFSpeechEncoder(Encoder):
    """States of a speech encoder of transformers, heard through its own feature extractor.

    Each clip runs alone: the group norm of wav2vec 2.0's first models and the extractors' normalisation look at whole
    padded rows, and would let a clip's neighbours change its states. Of a frozen encoder the feature cache
    (`data.feature_cache`) makes that a cost of the first epoch.

    Args:
        model: name or folder for `AutoModel`, with a `preprocessor_config.json`.
        layer: states after this many layers; None: the model's last state; `mix`: a learned weighted mean of all layers
            and the input of the first (SUPERB, arXiv 2105.01051), whose weights are `encoder.mix`. To train them and
            not the model, freeze `^encoder\\.net\\.`.
        dtype: of the weights; the states come out in it.

    Raises:
        ValueError: for a model whose extractor, sampling rate or number of layers does not fit.
    """

    def __init__(
        self,
        model: str,
        layer: int | Literal["mix"] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {**hub_options(model), "trust_remote_code": False}
        self.extractor: Any = AutoFeatureExtractor.from_pretrained(model, **options)
        known = (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, SeamlessM4TFeatureExtractor)
        if not isinstance(self.extractor, known):
            names = ", ".join(kind.__name__ for kind in known)
            raise ValueError(f"{model} hears by {type(self.extractor).__name__}; HFSpeechEncoder knows {names}")
        if self.extractor.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"{model} takes sound at {self.extractor.sampling_rate} Hz, not {SAMPLE_RATE}")
        net: Any = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype), **options)
        if getattr(net.config, "add_adapter", False):
            raise ValueError(f"{model} ends in layers that shorten (config.add_adapter), which an adaptor here does")
        self.net: Any = net.get_encoder() if net.config.is_encoder_decoder else net
        layers = int(net.config.encoder_layers if net.config.is_encoder_decoder else net.config.num_hidden_layers)
        if isinstance(layer, int) and not 1 <= layer <= layers:
            raise ValueError(f"{model} has {layers} layers: layer {layer} does not exist")
        self.layer = layer
        self.mix = nn.Parameter(torch.zeros(layers + 1)) if layer == "mix" else None
        self.out_dim = int(net.config.hidden_size)

    def train(self, mode: bool = True) -> HFSpeechEncoder:
        """Training mode; a net whose weights are frozen stays in eval mode, also where the mix learns: no dropout, and
        no masking of what is heard."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.net.parameters()):
            self.net.eval()
        return self

    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, T], [N] -> [N, F, D], [N]`.

        Raises:
            RuntimeError: if the net gives another number of frames than `out_lens` says.
        """
        lens = self.out_lens(audio_lens)
        rows = [
            self._states(clip[:samples], frames)
            for clip, samples, frames in zip(audio, audio_lens.tolist(), lens.tolist(), strict=True)
        ]
        return pad_sequence(rows, batch_first=True) if rows else audio.new_zeros(0, 1, self.out_dim), lens

    def _states(self, clip: Tensor, frames: int) -> Tensor:
        weight = next(self.net.parameters())
        if not frames:
            return weight.new_zeros(0, self.out_dim)
        heard = self.extractor(clip.float().cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = {name: value.to(clip.device) for name, value in heard.items()}
        inputs = {name: v.to(weight.dtype) if v.is_floating_point() else v for name, v in inputs.items()}
        learns = any(parameter.requires_grad for parameter in self.net.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            out = self.net(**inputs, output_hidden_states=self.layer is not None)
        if self.mix is not None:
            share = self.mix.softmax(0).to(weight.dtype)
            states = torch.einsum("l,lfd->fd", share, torch.stack([layer[0] for layer in out.hidden_states]))
        else:
            states = out.last_hidden_state[0] if self.layer is None else out.hidden_states[self.layer][0]
        # w2v-BERT's extractor fills up to an even number of frames, and leaves out of its mask what it filled.
        if not frames <= len(states) <= frames + 1:
            raise RuntimeError(f"{type(self.net).__name__} gave {len(states)} frames where {frames} were expected")
        return states[:frames]

    def out_lens(self, audio_lens: Tensor) -> Tensor:
        if isinstance(self.extractor, WhisperFeatureExtractor):
            return torch.full_like(audio_lens, self.net.config.max_source_positions)
        if isinstance(self.extractor, SeamlessM4TFeatureExtractor):
            frames = (audio_lens - KALDI_WINDOW).div(KALDI_HOP, rounding_mode="floor") + 1
            return (frames // self.extractor.stride).clamp(min=0)
        lens = audio_lens
        for kernel, stride in zip(self.net.config.conv_kernel, self.net.config.conv_stride, strict=True):
            lens = (lens - kernel).div(stride, rounding_mode="floor") + 1
        return lens.clamp(min=0)

    def computed_lens(self, audio_lens: Tensor) -> Tensor:
        if not isinstance(self.extractor, WhisperFeatureExtractor):
            return audio_lens
        return torch.full_like(audio_lens, self.extractor.n_samples)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.state_dict(), f"{type(self).__name__} {self.layer} {self.extractor.to_json_string()}")
