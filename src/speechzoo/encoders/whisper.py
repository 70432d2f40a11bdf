"""Whisper's encoder as a feature extractor, and LLaSM's 64 decoder states."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from whisper.model import LayerNorm, MultiHeadAttention, ResidualAttentionBlock

from speechzoo.audio import HOP, MAX_SAMPLES, log_mel, mel_lens
from speechzoo.encoders.base import Encoder
from speechzoo.encoders.whisper_weights import fingerprint, load_whisper
from speechzoo.names.spec import at_least


class WhisperEncoder(Encoder):
    """States of Whisper's encoder.

    Args:
        model: Whisper's name (`large-v3`), an openai-whisper file, or a Hugging Face folder.
        window: `padded` computes every clip as 30 s, 1500 frames, as both papers do; `trimmed` stops at the real end
            (50 frames a second), several times cheaper and equally usable after training, but not what released
            checkpoints were trained with, and never for transcribing: Whisper's own decoder loops on such states.
        layer: states after this many blocks instead of after the last one and its norm; `mix`: a learned weighted mean
            of the input of the first block and the states after each, the last one's after its norm (SUPERB, arXiv
            2105.01051), whose weights are `encoder.mix`. To train them and not Whisper, freeze `^encoder\\.net\\.`.
        dtype: of the weights; the states come out in it.
        gradient_checkpointing: where the encoder learns, recompute its blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        model: str,
        window: Literal["padded", "trimmed"] = "padded",
        layer: int | Literal["mix"] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if window not in ("padded", "trimmed"):
            raise ValueError(f"WhisperEncoder.window is padded or trimmed, not {window!r}")
        net, self._start_token = load_whisper(model)
        if layer not in (None, "mix", *range(1, net.dims.n_audio_layer + 1)):
            raise ValueError(
                f"{model} has {net.dims.n_audio_layer} blocks: layer {layer!r} does not exist, nor is it mix"
            )
        self.net: Any = self._keep(net)  # openai-whisper has no types
        for module in self.net.modules():
            if isinstance(module, LayerNorm):
                module.__class__ = AnyDtypeNorm
        for block in self._encoder().blocks:
            block.__class__ = MaskedBlock
        self.n_mels, self.out_dim = net.dims.n_mels, net.dims.n_audio_state
        self.window, self.layer = window, layer
        self.gradient_checkpointing = gradient_checkpointing
        self.to(getattr(torch, dtype))
        # After that: in half precision small steps of its weights would be lost.
        self.mix = torch.nn.Parameter(torch.zeros(net.dims.n_audio_layer + 1)) if layer == "mix" else None

    def _keep(self, net: Any) -> Any:
        return net.encoder  # the text decoder would only take memory

    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, T], [N] -> [N, 1500 or F, D], [N]`."""
        mel, lens = log_mel(audio, audio_lens, self.n_mels, MAX_SAMPLES if self.window == "padded" else None)
        return self.encode_mel(mel, lens, whole=self.window == "padded" or None)

    def encode_mel(self, mel: Tensor, mel_lens: Tensor, whole: bool | None = None) -> tuple[Tensor, Tensor]:
        """States for log-mels whose rows end at `mel_lens`. Shape: `[N, n_mels, 2F], [N] -> [N, F, D], [N]`.

        Args:
            whole: whether all rows are as long as the longest; asked of the device where it is not given.

        Raises:
            ValueError: if they are longer than the encoder's window.
        """
        net = self._encoder()
        lens = (mel_lens + 1) // 2
        whole = bool((mel_lens == mel.shape[-1]).all()) if whole is None else whole
        inside = None if whole else torch.arange(mel.shape[-1] // 2, device=mel.device) < lens[:, None]
        x = F.gelu(net.conv1(mel.to(net.conv1.weight.dtype)))
        x = F.gelu(net.conv2(x)).transpose(1, 2)  # stride 2: a row's last frame sees nothing past its end
        if x.shape[1] > net.positional_embedding.shape[0]:
            raise ValueError(
                f"{x.shape[1]} frames exceed the encoder's {net.positional_embedding.shape[0]}: a clip of "
                f"{x.shape[1] / 50:.1f} s is longer than the encoder's 30 s window: split it"
            )
        x = (x + net.positional_embedding[: x.shape[1]]).to(x.dtype)
        layers = [x]
        for block in net.blocks[: self.layer if isinstance(self.layer, int) else None]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, inside, use_reentrant=False)
            else:
                x = block(x, inside)
            if self.mix is not None:
                layers.append(x)
        if not isinstance(self.layer, int):
            x = net.ln_post(x)
        if self.mix is not None:
            x = torch.einsum("l,lnfd->nfd", self.mix.softmax(0).to(x.dtype), torch.stack([*layers[:-1], x]))
        return (x if inside is None else x * inside[..., None]), lens

    def _encoder(self) -> Any:
        return self.net

    def out_lens(self, audio_lens: Tensor) -> Tensor:
        if self.window == "padded":
            return torch.full_like(audio_lens, MAX_SAMPLES // HOP // 2)
        return mel_lens(audio_lens) // 2

    def computed_lens(self, audio_lens: Tensor) -> Tensor:
        return torch.full_like(audio_lens, MAX_SAMPLES) if self.window == "padded" else audio_lens

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.state_dict(), f"{type(self).__name__} {self.window} {self.layer}")


def attend(attention: MultiHeadAttention, x: Tensor, inside: Tensor | None) -> Tensor:
    """Whisper's self-attention with a padding mask, which openai-whisper does not take.

    Shape: `[N, F, D], [N, F] -> [N, F, D]`.
    """
    n, frames, dim = x.shape
    heads = (n, frames, attention.n_head, dim // attention.n_head)
    q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (attention.query, attention.key, attention.value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if inside is None else inside[:, None, None])
    return attention.out(out.transpose(1, 2).reshape(n, frames, dim))


class MaskedBlock(ResidualAttentionBlock):
    """A block of Whisper's encoder that takes a padding mask; called as a module, so that FSDP can gather its weights.

    Shape: `[N, F, D], [N, F] -> [N, F, D]`.
    """

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        x = x + attend(self.attn, self.attn_ln(x), inside)
        return x + self.mlp(self.mlp_ln(x))


class QueryBlock(ResidualAttentionBlock):
    """A block of Whisper's decoder whose self-attention runs once where all clips have the same states, as before the
    first block they have.

    Shape: `[1 or N, Q, D], [N, F, D] -> [N, Q, D]`.
    """

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask=mask)[0]
        x = x.expand(len(states), -1, -1)
        x = x + self.cross_attn(self.cross_attn_ln(x), states)[0]
        return x + self.mlp(self.mlp_ln(x))


class AnyDtypeNorm(LayerNorm):
    """Whisper's layer norm, computed in float32 for weights of any dtype; openai's own takes float32 weights only."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return out.to(x.dtype)


class WhisperQueries(WhisperEncoder):
    """LLaSM's released feature: 64 start tokens through Whisper's *decoder*, its last hidden states.

    The paper says "Whisper encodes the audio"; the released code (llasm.py:105-107) feeds `num_queries` copies of the
    start token to the text decoder in one causal pass and keeps the states after its final norm: 64 vectors a clip,
    whatever the length, told apart only by the decoder's positions. For the paper's plain reading use `WhisperEncoder`.

    Args:
        model, dtype: as for `WhisperEncoder`; the window is always 30 s, the decoder needs it.
        num_queries: start tokens fed, 64 in the release (`audio_token_len`).
        start_token: its id; default from the model (50258 multilingual, 50257 English).
    """

    def __init__(
        self,
        model: str,
        num_queries: int = 64,
        start_token: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__(model, "padded", None, dtype)
        at_least(1, "WhisperQueries", num_queries=num_queries)
        if num_queries > len(self.net.decoder.positional_embedding):
            positions = len(self.net.decoder.positional_embedding)
            raise ValueError(f"WhisperQueries.num_queries: {model} has {positions} positions, not {num_queries}")
        for block in self.net.decoder.blocks:
            block.__class__ = QueryBlock
        self.num_queries = num_queries
        self.start_token = self._start_token if start_token is None else start_token

    def _keep(self, net: Any) -> Any:
        return net

    def _encoder(self) -> Any:
        return self.net.encoder

    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, T], [N] -> [N, num_queries, D], [N]`."""
        mel, lens = log_mel(audio, audio_lens, self.n_mels)
        return self.queries(self.encode_mel(mel, lens, whole=True)[0])

    def queries(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder states that cross-attend to encoder states. Shape: `[N, 1500, D] -> [N, num_queries, D], [N]`."""
        decoder = self.net.decoder
        start = torch.full((1, self.num_queries), self.start_token, device=states.device)
        x = decoder.token_embedding(start) + decoder.positional_embedding[: self.num_queries]
        x = x.to(states.dtype)
        for block in decoder.blocks:
            x = block(x, states, decoder.mask)
        return decoder.ln(x), start.new_full((len(states),), self.num_queries)

    def out_lens(self, audio_lens: Tensor) -> Tensor:
        return torch.full_like(audio_lens, self.num_queries)

    @property
    def fingerprint(self) -> str:
        settings = f"{type(self).__name__} {self.num_queries} {self.start_token}"
        return fingerprint(self.state_dict(), settings)
