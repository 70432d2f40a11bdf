"""Speech encoders of transformers by name: wav2vec 2.0 and its kin (HuBERT, WavLM, ...), w2v-BERT, Whisper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
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
MASKED = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Models that give a padded clip, with a mask, the states it has alone. Others convolve past its end again, where no
zeros are left."""


class HFSpeechEncoder(Encoder):
    """States of a speech encoder of transformers, heard through its own feature extractor.

    Rows do not influence each other. The group norm of wav2vec 2.0's first models and all extractors' normalisation
    look at whole rows, so these run on each clip alone; the transformers of `MASKED` then run on all clips together,
    with a mask, and the others on each clip alone (as with `mix`). SpecAugment does not happen here.

    Args:
        model: name or folder for `AutoModel`. Where it has no `preprocessor_config.json`, raw sound is brought to mean
            0 and variance 1 if its convolutions end in layer norms, as fairseq trained these models.
        layer: states after this many layers, before a norm that ends the encoder (fairseq's `output_layer`); None: the
            model's last state; `mix`: a learned weighted mean of all layers and the input of the first (SUPERB, arXiv
            2105.01051), whose weights are `encoder.mix`. To train them and not the model, freeze `^encoder\\.net\\.`.
        dtype: of the weights; the states come out in it.

    Raises:
        ValueError: for a model whose extractor, sampling rate, frames or number of layers does not fit.
    """

    def __init__(
        self,
        model: str,
        layer: int | Literal["mix"] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {**hub_options(model), "trust_remote_code": False}
        config = AutoConfig.from_pretrained(model, **options)
        if hasattr(config, "squeeze_factor"):  # SEW
            raise ValueError(f"{model} joins frames inside and takes no clip of a single one: take another encoder")
        self.raw = hasattr(config, "conv_kernel")  # hears samples
        # Batch norm in front of the positions' convolution moves the zeros of padding.
        masked = config.model_type in MASKED and not getattr(config, "conv_pos_batch_norm", False)
        self.together = masked and layer != "mix"
        self.extractor = _extractor(model, config, options)
        if getattr(config, "add_adapter", False):
            raise ValueError(f"{model} ends in layers that shorten (config.add_adapter), which an adaptor here does")
        layers = int(config.encoder_layers if config.is_encoder_decoder else config.num_hidden_layers)
        if isinstance(layer, int) and not 1 <= layer <= layers:
            raise ValueError(f"{model} has {layers} layers: layer {layer} does not exist")
        net: Any = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype), **options)
        self.net: Any = net.get_encoder() if config.is_encoder_decoder else net
        self.net.config.apply_spec_augment = False  # on by default, where the net learns
        if isinstance(layer, int):
            stack = self.net if config.is_encoder_decoder else self.net.encoder
            stack.layers = stack.layers[:layer]  # those after it are not needed
            if config.is_encoder_decoder or getattr(config, "do_stable_layer_norm", False):
                stack.layer_norm = nn.Identity()  # it ends the encoder
        self.layer = layer
        self.mix = nn.Parameter(torch.zeros(layers + 1)) if layer == "mix" else None
        self.out_dim = int(config.hidden_size)

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
            ValueError: if a clip is longer than Whisper's window, of which its extractor would cut the rest.
        """
        lens = self.out_lens(audio_lens)
        heard = [row for row, frames in enumerate(lens.tolist()) if frames]
        learns = any(parameter.requires_grad for parameter in self.net.parameters())
        clips = [audio[row, : int(audio_lens[row])] for row in heard]
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            found = self._together(clips) if self.together and clips else [self._alone(clip) for clip in clips]
        rows = list(next(self.net.parameters()).new_zeros(len(lens), 0, self.out_dim))
        for row, states in zip(heard, found, strict=True):
            # w2v-BERT's extractor fills up to an even number of frames, and leaves out of its mask what it filled.
            if not 0 <= states.shape[-2] - int(lens[row]) <= (not self.raw):
                kind = type(self.net).__name__
                raise RuntimeError(f"{kind} gave {states.shape[-2]} frames where {int(lens[row])} were expected")
            rows[row] = self._mixed(states)[: int(lens[row])]
        return pad_sequence(rows, batch_first=True) if rows else audio.new_zeros(0, 1, self.out_dim), lens

    def _inputs(self, clip: Tensor) -> dict[str, Tensor]:
        """What the extractor makes of samples `[T]`, as a batch of one."""
        window = getattr(self.extractor, "n_samples", len(clip))
        if len(clip) > window:
            raise ValueError(
                f"a clip of {len(clip) / SAMPLE_RATE:.1f} s is longer than the encoder's "
                f"{window / SAMPLE_RATE:.0f} s window: split it"
            )
        dtype = next(self.net.parameters()).dtype
        heard = self.extractor(clip.float().cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = {name: value.to(clip.device) for name, value in heard.items()}
        return {name: v.to(dtype) if v.is_floating_point() else v for name, v in inputs.items()}

    def _together(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """States of raw clips. Shape: N times `[T] -> [F, D]`."""
        features = [self.net.feature_extractor(self._inputs(clip)["input_values"])[0].T for clip in clips]
        lens = torch.tensor([len(feature) for feature in features])
        hidden = self.net.feature_projection(pad_sequence(features, batch_first=True))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # wav2vec 2.0 gives its input beside it
        whole = bool((lens == lens.max()).all())
        mask = None if whole else (torch.arange(int(lens.max())) < lens[:, None]).to(hidden.device)
        states = self.net.encoder(hidden, attention_mask=mask).last_hidden_state
        return [row[:frames] for row, frames in zip(states, lens.tolist(), strict=True)]

    def _alone(self, clip: Tensor) -> Tensor:
        """States of a clip, with `mix` of all layers. Shape: `[T] -> [F, D]` or `[L + 1, F, D]`."""
        out = self.net(**self._inputs(clip), output_hidden_states=self.layer is not None)
        if self.mix is not None:
            return torch.stack([layer[0] for layer in out.hidden_states])
        states: Tensor = out.last_hidden_state[0] if self.layer is None else out.hidden_states[self.layer][0]
        return states

    def _mixed(self, states: Tensor) -> Tensor:
        if self.mix is None:
            return states
        return torch.einsum("l,lfd->fd", self.mix.softmax(0).to(states.dtype), states)

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


def _extractor(model: str, config: Any, options: dict[str, Any]) -> Any:
    try:
        found: Any = AutoFeatureExtractor.from_pretrained(model, **options)
    except (OSError, ValueError):
        if not hasattr(config, "conv_kernel"):
            raise
        found = Wav2Vec2FeatureExtractor(do_normalize=config.feat_extract_norm == "layer")
    known = (Wav2Vec2FeatureExtractor, WhisperFeatureExtractor, SeamlessM4TFeatureExtractor)
    if not isinstance(found, known):
        names = ", ".join(kind.__name__ for kind in known)
        raise ValueError(f"{model} hears by {type(found).__name__}; HFSpeechEncoder knows {names}")
    if found.sampling_rate != SAMPLE_RATE:
        raise ValueError(f"{model} takes sound at {found.sampling_rate} Hz, not {SAMPLE_RATE}")
    return found
