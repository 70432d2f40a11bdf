"""Converted checkpoints hold exactly the weights of the file they come from."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from whisper.model import ModelDimensions, Whisper

from speechzoo.parts.ctranslate2 import read_container, whisper_checkpoint

DIMS = ModelDimensions(
    n_mels=8, n_audio_ctx=6, n_audio_state=16, n_audio_head=2, n_audio_layer=2,
    n_vocab=20, n_text_ctx=5, n_text_state=16, n_text_head=4, n_text_layer=1,
)  # fmt: skip
FLOAT32, INT8, INT16, FLOAT16 = 0, 1, 2, 4


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _container(path: Path, arrays: dict[str, np.ndarray], family: str = "WhisperSpec", version: int = 6) -> Path:
    ids = {"float32": FLOAT32, "int8": INT8, "int16": INT16, "float16": FLOAT16}
    data = struct.pack("<I", version) + _text(family) + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data += _text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", ids[str(array.dtype)], array.nbytes) + array.tobytes()
    path.write_bytes(
        data + struct.pack("<I", 1) + _text("decoder/projection/weight") + _text("decoder/embeddings/weight")
    )
    return path


@pytest.fixture(scope="module")
def whisper_model() -> Whisper:
    torch.manual_seed(0)
    model = Whisper(DIMS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.half()


def _fuse(state: dict, name: str, parts: tuple[str, ...], to: str) -> dict[str, np.ndarray]:
    bias = [state.get(f"{name}.{part}.bias", torch.zeros(16).half()) for part in parts]
    weight = [state[f"{name}.{part}.weight"] for part in parts]
    return {f"{to}/weight": torch.cat(weight).numpy(), f"{to}/bias": torch.cat(bias).numpy()}


@pytest.fixture(scope="module")
def arrays(whisper_model) -> dict[str, np.ndarray]:
    """The model laid out as CTranslate2's Whisper exporter does."""
    state = whisper_model.state_dict()
    made = {
        "encoder/num_heads": np.array(DIMS.n_audio_head, dtype=np.int16),
        "decoder/num_heads": np.array(DIMS.n_text_head, dtype=np.int16),
        "encoder/position_encodings/encodings": state["encoder.positional_embedding"].numpy(),
        "decoder/position_encodings/encodings": state["decoder.positional_embedding"].numpy(),
        "decoder/embeddings/weight": state["decoder.token_embedding.weight"].numpy(),
    }

    def linear(name: str, to: str) -> None:
        made.update({f"{to}/{kind}": state[f"{name}.{kind}"].numpy() for kind in ("weight", "bias")})

    def norm(name: str, to: str) -> None:
        made.update({f"{to}/gamma": state[f"{name}.weight"].numpy(), f"{to}/beta": state[f"{name}.bias"].numpy()})

    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    norm("encoder.ln_post", "encoder/layer_norm")
    norm("decoder.ln", "decoder/layer_norm")
    for side, layer in (("encoder", 0), ("encoder", 1), ("decoder", 0)):
        name, to = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
        made.update(_fuse(state, f"{name}.attn", ("query", "key", "value"), f"{to}/self_attention/linear_0"))
        linear(f"{name}.attn.out", f"{to}/self_attention/linear_1")
        norm(f"{name}.attn_ln", f"{to}/self_attention/layer_norm")
        if side == "decoder":
            linear(f"{name}.cross_attn.query", f"{to}/attention/linear_0")
            made.update(_fuse(state, f"{name}.cross_attn", ("key", "value"), f"{to}/attention/linear_1"))
            linear(f"{name}.cross_attn.out", f"{to}/attention/linear_2")
            norm(f"{name}.cross_attn_ln", f"{to}/attention/layer_norm")
        linear(f"{name}.mlp.0", f"{to}/ffn/linear_0")
        linear(f"{name}.mlp.2", f"{to}/ffn/linear_1")
        norm(f"{name}.mlp_ln", f"{to}/ffn/layer_norm")
    return made


def test_whisper_weights_come_back_exactly(whisper_model, arrays, tmp_path):
    checkpoint = whisper_checkpoint(_container(tmp_path / "model.bin", arrays))
    assert ModelDimensions(**checkpoint["dims"]) == DIMS
    wanted = whisper_model.state_dict()
    assert checkpoint["model_state_dict"].keys() == wanted.keys()
    for name, weight in checkpoint["model_state_dict"].items():
        assert torch.equal(weight, wanted[name]), name


def test_whisper_loads_the_checkpoint_file(whisper_model, arrays, tmp_path):
    import whisper

    torch.save(whisper_checkpoint(_container(tmp_path / "model.bin", arrays)), tmp_path / "small.pt")
    loaded = whisper.load_model(str(tmp_path / "small.pt"), device="cpu")
    mel, tokens = torch.randn(1, 8, 12), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(mel, tokens), whisper_model.float()(mel, tokens))
    whisper_model.half()


def test_aliases_name_the_same_array(arrays, tmp_path):
    family, read = read_container(_container(tmp_path / "model.bin", arrays))
    assert family == "WhisperSpec"
    assert read["decoder/projection/weight"] is read["decoder/embeddings/weight"]


def test_bad_containers_are_refused_by_name(arrays, tmp_path):
    path = tmp_path / "model.bin"
    with pytest.raises(ValueError, match=r"model\.bin: CTranslate2 binary version is 5"):
        whisper_checkpoint(_container(path, arrays, version=5))
    with pytest.raises(ValueError, match=r"model\.bin: holds a TransformerSpec"):
        whisper_checkpoint(_container(path, arrays, family="TransformerSpec"))
    quantised = arrays | {"decoder/layer_0/ffn/linear_0/weight": np.ones((64, 16), dtype=np.int8)}
    with pytest.raises(ValueError, match=r"layer_0/ffn/linear_0/weight' is quantised"):
        whisper_checkpoint(_container(path, quantised))
    biased = arrays | {"encoder/layer_1/self_attention/linear_0/bias": np.ones(48, dtype=np.float16)}
    with pytest.raises(ValueError, match="the key bias is not zero"):
        whisper_checkpoint(_container(path, biased))
    whole = _container(path, arrays).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        whisper_checkpoint(path)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(_TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


_TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "Ġ", "1", "2", "ab", "Ġab"]
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


@pytest.fixture(scope="module")
def gguf_file(llama, tmp_path_factory) -> Path:
    """The model written the way llama.cpp's converter does, in float32."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer, config = gguf.GGUFWriter(str(path), "llama"), llama.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(_TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * 7)
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    heads = {"attn_q": 4, "attn_k": 2}
    for name, weight in llama.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        parts = name.removesuffix(".weight").split(".", 3)
        if parts[1] == "layers":
            kind = _NAMES[parts[3]]
            if kind in heads:  # rotary pairs side by side
                weight = weight.view(heads[kind], 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{parts[2]}.{kind}.weight", weight.numpy().copy())
        else:
            target = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]]
            writer.add_tensor(f"{target}.weight", weight.numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llm_answers_as_before_conversion(llama, gguf_file, tmp_path):
    from speechzoo.parts.gguf_llm import convert

    convert(gguf_file, tmp_path, dtype=torch.float32)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert getattr(loaded.config, "quantization_config", None) is None
    assert loaded.config.rms_norm_eps == 1e-5
    tokens = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, llama(tokens).logits)
    loaded.save_pretrained(tmp_path / "again")


def test_llm_tokenizer_round_trip(gguf_file, tmp_path):
    from speechzoo.parts.gguf_llm import convert

    convert(gguf_file, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("ab ab12</s>")
    assert ids == [8, 9, 6, 7, 2]
    assert tokenizer.decode(ids) == "ab ab12</s>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
