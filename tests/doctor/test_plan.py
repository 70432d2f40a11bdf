"""What a run needs by arithmetic and fake numbers, beside torch's own accounting of real steps and paper and pencil."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from tiny_runs import write_config
from torch import distributed as dist
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig

from speechzoo.adaptors import ConcatMLP
from speechzoo.cli import main
from speechzoo.commands.doctor import setting_of
from speechzoo.data import SpeechDataModule
from speechzoo.doctor.fake_batch import Work, fake_batch
from speechzoo.doctor.fakes import Ledger, fill_with_fakes
from speechzoo.doctor.memory import state_bytes
from speechzoo.doctor.plan import Machine, Setting, plan
from speechzoo.encoders import WhisperEncoder
from speechzoo.encoders.whisper_weights import load_whisper
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaMAOmni2, Ultravox
from speechzoo.names.shapes import llama, without_reading
from speechzoo.text import ChatPrompt
from speechzoo.training.exact_loss import step_loss
from speechzoo.training.freeze import freeze
from speechzoo.training.sharding import shard
from speechzoo.units import ARUnitDecoder, CTCUnitDecoder

ENCODER, ADAPTOR, LM, DECODER = (f"^{part}\\." for part in ("encoder", "adaptor", "llm", "unit_decoder"))
SIZES = {"num_units": 40, "dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 32}
CTC, WRITER = partial(CTCUnitDecoder, upsample=5, **SIZES), partial(ARUnitDecoder, **SIZES)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # options of the LLM, of the model, precision
    "all": ({}, {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}}, "bf16-mixed"),
    "recomputed": (
        {"gradient_checkpointing": True},
        {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "lora": (
        {"dtype": "bfloat16", "lora": {"r": 4}},
        {"freeze": [ENCODER, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "adaptor": (
        {"dtype": "bfloat16", "gradient_checkpointing": True},
        {"freeze": [ENCODER, LM, DECODER], "loss_weights": {"ctc": 0.0}},
        "bf16-mixed",
    ),
    "units": ({"dtype": "bfloat16"}, {"freeze": [ENCODER, ADAPTOR, LM], "loss_weights": {"lm": 0.0}}, "bf16-mixed"),
    "units_written": (
        {"dtype": "bfloat16"},
        {"freeze": [ENCODER, ADAPTOR, LM], "loss_weights": {"lm": 0.0}, "cls": LLaMAOmni2, "unit_decoder": WRITER},
        "bf16-mixed",
    ),
    "distilled": ({}, {"freeze": [ENCODER, LM], "cls": Ultravox, "loss_weights": {"lm": 0.0}}, "bf16-mixed"),
    "distilled_cached": ({}, {"freeze": [ENCODER, LM], "cls": Ultravox, "loss_weights": {"lm": 0.0}}, "bf16-mixed"),
    "encoder_too": ({}, {"freeze": [DECODER], "loss_weights": {"ctc": 0.0}}, "bf16-mixed"),
}
WORK = Work(2, 340, 24, 11 * 24)
TOLERANCE = 0.05


def make(llm_dir: Path, whisper: Path, llm: dict[str, Any], options: dict[str, Any]) -> LLaMAOmni:
    options = {"cls": LLaMAOmni, "unit_decoder": CTC, **options}
    if options["cls"] is Ultravox:
        del options["unit_decoder"]
    return options.pop("cls")(
        encoder=partial(WhisperEncoder, model=str(whisper)),
        adaptor=partial(ConcatMLP, stack=5, hidden_dim=24),
        llm=partial(HFCausalLM, model=str(llm_dir), **llm),
        prompt=partial(ChatPrompt, tokenizer=str(llm_dir)),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, foreach=False),
        **options,
    )


class Tracker(MemTracker):
    """Torch's accounting, without the hooks that it cannot put on frozen weights; it then calls gradients otherwise."""

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def tracked(model: LLaMAOmni, work: Work, half: bool) -> int:
    """Peak bytes of forward and backward of the second step of a real model, as torch's MemTracker counts them."""
    model.configure_model()
    model.train()
    optimizer = model.optimizer_factory([p for p in model.parameters() if p.requires_grad])
    batch = fake_batch(model, work, nullcontext())

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = model(batch)
            loss = step_loss(out.sums, model.num_targets(batch), model.loss_weights, 1, 1)
        del out
        loss.backward()

    step()
    optimizer.step()
    optimizer.zero_grad()
    tracker = Tracker()
    given = [*vars(batch).values(), *(vars(batch.written).values() if batch.written else ())]
    tracker.track_external(model, optimizer, *[value for value in given if torch.is_tensor(value)])
    with tracker:
        step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("name", CASES)
def test_a_real_step_takes_what_was_planned(name: str, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    llm, options, precision = CASES[name]
    model = make(tiny_llm_dir, tiny_whisper_pt, llm, options)
    cache = None if name == "encoder_too" else "features"  # whose states are else the largest thing here
    taught = "states" if name == "distilled_cached" else None
    data = SpeechDataModule(batch_size=WORK.rows, feature_cache=cache, teacher_cache=taught)
    (found,) = plan(model, Setting(precision=precision), data, [Machine("here", 1, 0)], WORK.positions, WORK.answer)
    assert not hasattr(model, "llm")  # nothing was built
    work = replace(WORK, encoded=cache is not None, taught=taught is not None)
    real = tracked(make(tiny_llm_dir, tiny_whisper_pt, llm, options), work, precision == "bf16-mixed")
    if name == "units":  # what CTC's kernel makes inside, where torch does not count
        real += 8 * WORK.rows * (11 * WORK.answer) * (2 * 11 * WORK.answer + 1)
    assert found.peak == pytest.approx(real, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["recomputed", "lora"])
def test_a_step_cut_over_four_processes_takes_at_most_what_was_planned(
    name: str, tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path
) -> None:
    """With real tensors in one of four processes, the others being made up by torch. A CPU gathers less in advance."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    llm, options, precision = CASES[name]
    folder = sized(tmp_path, tiny_llm_dir, 256, 896, 2)
    data = SpeechDataModule(batch_size=2, feature_cache="features")
    setting = Setting("fsdp2", precision=precision)
    unbuilt = make(folder, tiny_whisper_pt, llm, options)
    (found,) = plan(unbuilt, setting, data, [Machine("here", 4, 0)], WORK.positions, WORK.answer)

    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    model = make(folder, tiny_whisper_pt, llm, options)
    with without_reading():
        model.build()
    freeze(model, model.freeze_patterns)
    model.train()
    shard(model, init_device_mesh("cpu", (4,), mesh_dim_names=("shard",)), torch.device("cpu"), half=torch.bfloat16)
    real = tracked(model, replace(WORK, encoded=True), True)
    assert real < found.peak < 1.2 * real


def sized(folder: Path, tokenizer: Path, width: int, ffn: int, layers: int) -> Path:
    """The configuration of a Llama with grouped heads, with the tiny tokenizer beside it."""
    copytree(tokenizer, folder, dirs_exist_ok=True, ignore=lambda *_: ["model.safetensors", "config.json"])
    config = llama(width, ffn, layers, width // 32, width // 128, 4000)
    LlamaConfig(**config, bos_token_id=None, eos_token_id=None).save_pretrained(folder)
    return folder


# Bytes that a layer of Llama keeps for the backward pass, a position, by its widths: h residual, q and k (of all key
# heads, repeated where rows are padded) in attention, f between. In bfloat16, norms inside in float32.
LAYER = {
    # two norms: input and normed in float32, with float32 weights that learn; inputs of five projections; queries,
    # keys, values and what attention gives; gate, its SiLU, up and their product
    "all": lambda h, q, f: 16 * h + 10 * h + 8 * q + 8 * f,
    # frozen: norms keep their float32 input, projections nothing
    "frozen": lambda h, q, f: 8 * h + 8 * q + 6 * f,
    # the input alone, in the residual stream's float32
    "recomputed": lambda h, q, f: 4 * h,
}


@pytest.mark.parametrize("name", LAYER)
def test_activations_beside_paper_and_pencil(name: str, tmp_path: Path, tiny_llm_dir: Path) -> None:
    """Four layers of Llama-3.1-8B's widths: what 8 rows of 420 positions leave for the backward pass."""
    folder = sized(tmp_path, tiny_llm_dir, 4096, 14_336, 4)
    dtype = "bfloat16" if name == "frozen" else "float32"
    with without_reading(), torch.device("meta"):
        llm = HFCausalLM([], str(folder), dtype=dtype, gradient_checkpointing=name == "recomputed")
    llm.requires_grad_(name != "frozen")
    mode = fill_with_fakes(llm)
    with mode:
        embeds = torch.empty(8, 420, 4096, dtype=getattr(torch, dtype), requires_grad=True)
    mask = torch.ones(8, 420, dtype=torch.long)
    mask[1:, -1] = 0
    cast = sum(p.numel() for p in llm.backbone.layers.parameters() if p.dim() > 1) * 2 if name == "all" else 0
    with Ledger([*llm.parameters(), *llm.buffers(), embeds], {4000}) as ledger:
        with torch.autocast("cpu", torch.bfloat16):
            out = llm.backbone(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        kept = ledger.live["activations"]
    assert out.shape == embeds.shape
    expected = 4 * 8 * 420 * LAYER[name](4096, 4096, 14_336) + cast
    assert kept == pytest.approx(expected, rel=0.05, abs=3 * 8 * 420 * 4 * 4096)  # and the last norm's


def test_sizes_by_name_are_the_published_ones() -> None:
    with without_reading(), torch.device("meta"):
        large = [load_whisper(name)[0] for name in ("large-v2", "large-v3")]
        llm = HFCausalLM([128_256], "meta-llama/Llama-3.1-8B-Instruct", dtype="bfloat16")
    assert [sum(p.numel() for p in net.parameters()) for net in large] == [1_541_384_960, 1_541_570_560]
    assert sum(p.numel() for p in llm.lm.parameters()) == 8_030_261_248 + 2 * 4096  # a row of each table
    assert {p.device.type for p in llm.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("make_optimizer", "dtype", "expected"),
    [
        (torch.optim.AdamW, torch.float32, 8),
        (partial(torch.optim.AdamW, amsgrad=True), torch.float32, 12),
        (torch.optim.AdamW, torch.bfloat16, 4),
        (partial(torch.optim.SGD, lr=0.1), torch.float32, 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), torch.float32, 4),
    ],
)
def test_what_optimizers_keep_of_a_weight(make_optimizer: Any, dtype: torch.dtype, expected: int) -> None:
    assert state_bytes(make_optimizer, dtype) == expected


@pytest.mark.parametrize(("given", "half", "all_half"), [
    ("bf16", torch.bfloat16, None), (16, torch.float16, None), ("16", torch.float16, None),
    ("bf16-mixed", torch.bfloat16, None), ("bf16-true", None, torch.bfloat16), (32, None, None), (None, None, None),
])  # fmt: skip
def test_short_forms_of_precisions_are_known(given: Any, half: Any, all_half: Any) -> None:
    setting = setting_of({"precision": given})
    assert (setting.half, setting.all_half) == (half, all_half)


def test_machines_are_read() -> None:
    assert Machine.parse("8xH100") == Machine("8xH100", 8, 80 * 10**9)
    assert Machine.parse("4x47.5gb") == Machine("4x47.5gb", 4, 47_500_000_000)
    assert Machine.parse("L40").devices == 1
    for wrong in ("8xH900", "0xA100", "", "80"):
        with pytest.raises(ValueError, match="is no machine: 8xH100"):
            Machine.parse(wrong)


def test_the_command_says_what_fits_before_anything_is_read(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, tmp_path / "not_there.jsonl")
    told = ["doctor", "--config", str(config), "--trainer.accelerator=gpu", "--positions=500", "--answer=52"]
    assert main([*told, "--for", "2xH100", "80GB", f"--json={tmp_path / 'plan.json'}"]) == 0
    assert "| 2xH100 |" in capsys.readouterr().out
    whole, small = json.loads((tmp_path / "plan.json").read_text())
    # On two devices Lightning's `auto` is DDP, whose buckets are as large as the gradients.
    buckets, changed = whole["memory"]["gradients"], ("machine", "memory", "buffers", "peak")
    assert whole["memory"] == {**small["memory"], "world": 2} and whole["buffers"] == buckets > 0
    assert small["peak"] < whole["peak"] <= small["peak"] + buckets
    assert {k: v for k, v in whole.items() if k not in changed} == {k: v for k, v in small.items() if k not in changed}
    assert main([*told, "--trainer.strategy=ddp", "--for", "2xH100", f"--json={tmp_path / 'ddp.json'}"]) == 0
    assert json.loads((tmp_path / "ddp.json").read_text()) == [whole]
    capsys.readouterr()
    assert main([*told, "--for", "0.001GB"]) == 1
    assert "does not fit" in (said := capsys.readouterr().out) and "fsdp2" in said
    assert main([*told, "--for", "80GB", "--positions=310"]) == 1
    assert "too few for a clip of 375" in capsys.readouterr().err
