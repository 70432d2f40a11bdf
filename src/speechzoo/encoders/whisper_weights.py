"""Where Whisper's weights come from: a name, an openai-whisper file, or a Hugging Face folder."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
import whisper
from safetensors.torch import load_file
from torch import nn
from whisper.model import AudioEncoder, Linear, ModelDimensions, TextDecoder, Whisper

from speechzoo.names.shapes import unread, whisper_dims
from speechzoo.system.files import read_json

# Where openai-whisper keeps its downloads.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper"

# Hugging Face name -> openai-whisper name, applied in order.
RENAMES = [
    (r"^model\.", ""),
    (r"\blayers\.", "blocks."),
    (r"\bself_attn\.", "attn."),
    (r"\bencoder_attn\.", "cross_attn."),
    (r"\bself_attn_layer_norm\.", "attn_ln."),
    (r"\bencoder_attn_layer_norm\.", "cross_attn_ln."),
    (r"\bfinal_layer_norm\.", "mlp_ln."),
    (r"\bfc1\.", "mlp.0."),
    (r"\bfc2\.", "mlp.2."),
    (r"\bq_proj\.", "query."),
    (r"\bk_proj\.", "key."),
    (r"\bv_proj\.", "value."),
    (r"\bout_proj\.", "out."),
    (r"^encoder\.embed_positions\.weight$", "encoder.positional_embedding"),
    (r"^decoder\.embed_positions\.weight$", "decoder.positional_embedding"),
    (r"^decoder\.embed_tokens\.", "decoder.token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
]


def load_whisper(model: str) -> tuple[Whisper, int]:
    """A Whisper in eval mode on the CPU in fp32, and the id that starts its decoder.

    Inside `names.shapes.without_reading` its numbers are random, and nothing is read but its description.

    Args:
        model: `tiny.en` ... `large-v3` (downloaded and hash-checked by openai-whisper), an openai-whisper `.pt` file,
            or a Hugging Face folder with `config.json`.

    Raises:
        FileNotFoundError: if it is neither a known name nor an existing path.
        ValueError: if the file is no Whisper checkpoint, or its tensors do not fit its own description.
    """
    before = torch.get_default_dtype()  # under `bf16-true` that is bfloat16, which would round what is read
    torch.set_default_dtype(torch.float32)
    try:
        return _load_whisper(model)
    finally:
        torch.set_default_dtype(before)


def _load_whisper(model: str) -> tuple[Whisper, int]:
    path = Path(model).expanduser()
    if path.is_dir():
        return _from_hugging_face(path)
    if path.is_file():
        dims, state = _read_openai(path)
        if unread():
            return (shapes := _Shapes(dims)), _start_token(shapes)
        net = Whisper(dims)
        _load(net, state, path)
        return net.float().eval(), _start_token(net)
    if model not in whisper.available_models():
        raise FileNotFoundError(
            f"{model}: no such file, and not a Whisper model name ({', '.join(whisper.available_models())})"
        )
    if unread() and (known := whisper_dims(model)) is not None:
        return (shapes := _Shapes(ModelDimensions(**known))), _start_token(shapes)
    try:
        net = whisper.load_model(model, device="cpu").float().eval()
    except (OSError, RuntimeError) as error:  # the download failed, or came out wrong
        raise FileNotFoundError(
            f"{model}: Whisper's weights are not in {CACHE} and cannot be downloaded ({_first_line(error)}): give the "
            "path of a .pt file or of a Hugging Face folder, or copy the cache from a machine that has them"
        ) from error
    return net, _start_token(net)


class _Shapes(Whisper):
    """Encoder and decoder; Whisper's own constructor makes a sparse tensor, which the meta device has not."""

    def __init__(self, dims: ModelDimensions) -> None:
        nn.Module.__init__(self)
        d = self.dims = dims
        self.encoder = AudioEncoder(d.n_mels, d.n_audio_ctx, d.n_audio_state, d.n_audio_head, d.n_audio_layer)
        self.decoder = TextDecoder(d.n_vocab, d.n_text_ctx, d.n_text_state, d.n_text_head, d.n_text_layer)


def fingerprint(state: dict[str, torch.Tensor], settings: str) -> str:
    """Hash of weights and settings (16 hex digits): sizes and a sample of every tensor, not every byte."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(state.items()):
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # cut over processes
        flat = whole.detach().float().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64]
        # Weights that were stored in half precision have the same numbers in float32, and give other states.
        dtype = "" if tensor.dtype == torch.float32 else str(tensor.dtype)
        digest.update(f"{name}{tuple(tensor.shape)}{dtype}".encode())
        digest.update(sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _start_token(net: Whisper) -> int:
    # whisper's tokenizer: <|startoftranscript|> is 50258 in multilingual vocabularies and 50257 in English-only ones.
    return 50258 if net.is_multilingual else 50257


def _read_openai(path: Path) -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    try:
        # Mapped, so that who wants the description alone reads no more.
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=unread() or None)
        return ModelDimensions(**held["dims"]), held["model_state_dict"]
    except Exception as error:  # torch raises many kinds for a foreign, hostile or truncated file
        raise ValueError(f"{path}: not an openai-whisper checkpoint ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _from_hugging_face(folder: Path) -> tuple[Whisper, int]:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise ValueError(f"{folder}: config.json describes a {config.get('model_type')!r} model, not whisper")
    dims = ModelDimensions(
        n_mels=config["num_mel_bins"],
        n_audio_ctx=config["max_source_positions"],
        n_audio_state=config["d_model"],
        n_audio_head=config["encoder_attention_heads"],
        n_audio_layer=config["encoder_layers"],
        n_vocab=config["vocab_size"],
        n_text_ctx=config["max_target_positions"],
        n_text_state=config["d_model"],
        n_text_head=config["decoder_attention_heads"],
        n_text_layer=config["decoder_layers"],
    )
    net = _Shapes(dims) if unread() else Whisper(dims)
    _set_ffn(net.encoder, config["encoder_ffn_dim"])
    _set_ffn(net.decoder, config["decoder_ffn_dim"])
    if unread():
        return net, config["decoder_start_token_id"]
    state: dict[str, torch.Tensor] = {}
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"{folder}: holds no .safetensors or pytorch_model.bin")
    for file in files:
        try:
            part = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        except Exception as error:  # safetensors and torch raise many kinds for a damaged or hostile file
            raise ValueError(f"{file}: cannot be read as weights ({_first_line(error)})") from error
        state.update(part)
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in RENAMES:
            name = re.sub(pattern, new, name)
        if name != "proj_out.weight":  # tied to the token embedding
            renamed[name] = tensor
    _load(net, renamed, folder)
    return net.float().eval(), config["decoder_start_token_id"]


def _set_ffn(side: Any, width: int) -> None:
    """openai-whisper fixes the inner width at four times the outer one; Hugging Face configs are free."""
    for block in side.blocks:
        dim = block.mlp_ln.normalized_shape[0]
        if width != 4 * dim:
            block.mlp = nn.Sequential(Linear(dim, width), nn.GELU(), Linear(width, dim))


def _load(net: Whisper, state: dict[str, torch.Tensor], source: Path) -> None:
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{source}: tensors do not fit its description: {str(error).splitlines()[1].strip()}"
        ) from error
    # The Hugging Face and the openai form both compute sinusoids when the encoder's positions are absent.
    missing = [name for name in missing if name != "encoder.positional_embedding"]
    if missing or unexpected:
        raise ValueError(f"{source}: missing {missing[:3]}, left over {list(unexpected)[:3]} (not a complete Whisper)")
