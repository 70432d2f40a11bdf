"""What only a GPU can show, by the same bodies on the CPU: `pytest -m gpu tests/test_devices.py` (90 s on one GPU).

Bounds hold for both devices.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from tiny_runs import saved, write_config, zoo
from torch.nn import functional as F

from speechzoo.callbacks import FreeFrozen
from speechzoo.data import SpeechDataModule
from speechzoo.fidelity.checks import Checks, Golden
from speechzoo.fidelity.llasm_case import LlasmCase
from speechzoo.fidelity.omni_case import OmniCase
from speechzoo.fidelity.verify import find_checkpoint
from speechzoo.interop.llama_omni import import_llama_omni
from speechzoo.interop.llasm import import_llasm
from speechzoo.interop.saved import load_saved
from speechzoo.models import SpeechLLM
from speechzoo.types import SpeechBatch
from speechzoo.units import CTCUnitDecoder

ROOT = Path(__file__).parent
CASES = ("llama_omni", "llasm")
LOGITS, LOSS, GRADIENT = 3e-2, 1e-2, 0.15
"""What bfloat16 (of 8 bits: 4e-3) may move of the golden cases: relative, of the norm where it is a tensor."""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    yield request.param
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Golden, Path]]:
    """The held values of a system, and its official checkpoint in our form."""
    root = Path(os.environ.get("SPEECHZOO_GOLDEN", ROOT.parents[1] / "shared" / "golden"))
    made: dict[str, tuple[Golden, Path]] = {}

    def get(name: str) -> tuple[Golden, Path]:
        if name not in made:
            folder = root / name
            if not (folder / "golden.safetensors").is_file():
                pytest.skip(f"no golden data in {folder} (set SPEECHZOO_GOLDEN)")
            _, checkpoint = find_checkpoint(folder)
            out = tmp_path_factory.mktemp(name) / "model"
            if name == "llasm":
                import_llasm(checkpoint, folder / "whisper", out, str(folder / "checkpoint"), "cllama2")
            else:
                encoder = folder / "models" / "speech_encoder"
                file = next(encoder.glob("*.pt"))
                import_llama_omni(checkpoint, file, out, str(folder / "tokenizer"), None)
            made[name] = Golden(folder), out
        return made[name]

    return get


def golden_batch(name: str, model: SpeechLLM, held: Golden) -> SpeechBatch:
    if name == "llasm":
        return LlasmCase(model, held, Checks(held)).sample("asr")
    return OmniCase(model, held, Checks(held)).batch()


def moved(found: torch.Tensor, held: torch.Tensor) -> float:
    """Norm of the difference over that of what is held."""
    return float((found.double().cpu() - held.double().cpu()).norm() / held.double().cpu().norm())


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_beside_float32_on_the_golden_cases(golden, name: str, device: str) -> None:
    """Logits, loss and the adaptor's gradient, in float32 also beside the official code's."""
    held, folder = golden(name)
    found: dict[str, tuple[torch.Tensor, float, torch.Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        model = load_saved(folder)
        batch = golden_batch(name, model, held).to(device)
        model.to(device)
        half = dtype == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            out = model(batch, logits=True)
        model.adaptor.requires_grad_(True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(batch).losses["lm"]
        loss.backward()
        weight = next(p for p in model.adaptor.parameters() if p.dim() > 1)
        found[dtype] = out.logits[out.mask].detach().float(), loss.item(), weight.grad.float()
    exact, rounded = found["float32"], found["bfloat16"]
    official = held["eval.lm_loss" if name == "llama_omni" else "asr.loss"]
    assert exact[1] == pytest.approx(float(official), rel=1e-4)
    assert 1e-5 < moved(rounded[0], exact[0]) < LOGITS
    assert rounded[1] == pytest.approx(exact[1], rel=LOSS)
    assert moved(rounded[2], exact[2]) < GRADIENT


def run(config: Path, name: str, device: str, *more: object) -> Any:
    kind = "gpu" if device == "cuda" else "cpu"
    return zoo("fit", "-c", config, f"--name={name}", f"--trainer.accelerator={kind}", "--doctor.enabled=false", *more)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("devices") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fsdp2_of_one_process_goes_on_exactly(config: Path, device: str, precision: str) -> None:
    """Over NCCL or gloo: two steps and two more are four steps, to the bit."""
    # A schedule would know how many steps there are.
    options = ["--trainer.strategy=fsdp2", f"--trainer.precision={precision}", "--model.init_args.lr_scheduler=null"]
    files = {}
    for name, steps in (("whole", [4]), ("halves", [2, 4])):
        for step in steps:
            torch.use_deterministic_algorithms(True, warn_only=True)
            try:
                more = f"--vars.steps={step}", "--ckpt_path=last"
                run(config, f"{name}_{precision}_{device}", device, *options, *more)
            finally:
                torch.use_deterministic_algorithms(False)
            torch.distributed.destroy_process_group()
        files[name] = saved(config.parent / f"{name}_{precision}_{device}" / "last.ckpt")
    for key in ("state_dict", "optimizer_states"):
        whole, halves = (torch.utils._pytree.tree_leaves(files[name][key]) for name in ("whole", "halves"))
        assert len(whole) == len(halves) > 4
        for a, b in zip(whole, halves, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_step_that_is_not_finite_is_skipped_under_bf16(config: Path, device: str, monkeypatch) -> None:
    """Its weights are those before, in float32 under autocast; the next steps go on."""
    from speechzoo.models import LLaSM

    plain, seen = LLaSM.training_step, []

    def broken(self: Any, batch: SpeechBatch, index: int) -> torch.Tensor:
        seen.append({name: weight.detach().cpu().clone() for name, weight in self.named_parameters()})
        return plain(self, batch, index) * (float("nan") if index == 1 else 1.0)

    monkeypatch.setattr(LLaSM, "training_step", broken)
    callback = '[{"class_path": "NonFiniteGuard", "init_args": {"policy": "skip"}}]'
    cli = run(config, f"guard_{device}", device, "--vars.steps=3", "--trainer.precision=bf16-mixed",
                  f"--trainer.callbacks={callback}", "--trainer.enable_checkpointing=false")  # fmt: skip
    before, bad, after = seen
    learning = [name for name, weight in cli.model.named_parameters() if weight.requires_grad]
    assert any(not before[name].equal(bad[name]) for name in learning)
    assert all(bad[name].equal(after[name]) for name in learning)
    end = dict(cli.model.named_parameters())
    assert any(not after[name].equal(end[name].detach().cpu()) for name in learning)
    assert all(weight.isfinite().all() for weight in end.values())


def test_ctc_beside_the_cpus_in_float64(device: str) -> None:
    """The unit decoder's loss and gradient; on a GPU also torch's own kernels in float32 (cuDNN's, native)."""
    torch.manual_seed(0)
    decoder = CTCUnitDecoder(16, num_units=50, upsample=12, dim=32, num_layers=1, num_heads=2, ffn_dim=32)
    states, lens = torch.randn(3, 20, 16), torch.tensor([20, 11, 5])
    units = torch.randint(0, 50, (3, 200))
    unit_lens = torch.tensor([200, 90, 40])
    found = {}
    for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
        twin = CTCUnitDecoder(16, num_units=50, upsample=12, dim=32, num_layers=1, num_heads=2, ffn_dim=32)
        twin.load_state_dict(decoder.state_dict())
        twin.to(place, dtype)
        given = [t.to(place) for t in (lens, units, unit_lens)]
        out = twin(states.to(place, dtype), *given)
        out.loss_sum.backward()
        found[dtype] = out.loss_sum.item(), twin.output_proj.weight.grad
    exact, ours = found[torch.float64], found[torch.float32]
    assert ours[0] == pytest.approx(exact[0], rel=1e-5)
    assert moved(ours[1], exact[1]) < 1e-4
    if device == "cuda":  # short targets with blank 0 and lengths on the CPU are what cuDNN's takes
        log_probs = torch.randn(100, 2, 20, dtype=torch.float64).log_softmax(-1)
        targets, long, short = torch.randint(1, 20, (50,)), torch.tensor([100, 80]), torch.tensor([30, 20])
        exact_loss = F.ctc_loss(log_probs, targets, long, short)
        for cudnn in (True, False):
            with torch.backends.cudnn.flags(enabled=cudnn):
                loss = F.ctc_loss(log_probs.float().cuda(), targets.int(), long.int(), short.int())
            assert float(loss) == pytest.approx(float(exact_loss), rel=1e-4)


def test_stage_2_learns_the_same_with_its_frozen_parts_freed(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path, device: str
) -> None:
    """From cached states; what is freed on a GPU is free there."""
    from test_states import Keep, omni

    losses = {}
    for frees in (False, True):
        keep, module = Keep(), omni(tiny_llm_dir, tiny_whisper_pt)
        torch.manual_seed(7)
        engine = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_epochs=2,
            limit_val_batches=0,
            callbacks=[*([FreeFrozen()] if frees else []), keep],
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = SpeechDataModule(train=str(manifest), batch_size=2, state_cache=str(tmp_path / "states"))
        engine.fit(module, datamodule=data)
        losses[frees] = keep.train
        frozen = [p for part in (module.encoder, module.adaptor, module.llm) for p in part.parameters()]
        held = sum(p.untyped_storage().nbytes() for p in {p.untyped_storage().data_ptr(): p for p in frozen}.values())
        assert (held < 16 * len(frozen)) == frees
    assert losses[True] == losses[False] and len(losses[True]) >= 4


EXPORT = """
import resource, sys
from functools import partial
from pathlib import Path
from speechzoo.interop import transfer
from speechzoo.interop.llama_omni import export_llama_omni
plain = transfer.ShardWriter
transfer.ShardWriter = lambda folder, kind, _: plain(folder, kind, int(sys.argv[3]))
def peak():
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024
before = peak()
export_llama_omni(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory of a process is read from /proc")
def test_export_needs_little_more_memory_than_the_checkpoint_has(
    tmp_path: Path, tiny_whisper_pt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the released layout, at most 1.3 times its bytes; shards are as large a part of it as 5 GB are of 16."""
    import released

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 7, "max_position_embeddings": 512}
    monkeypatch.setattr(released, "LLAMA", {**released.LLAMA, **sizes, "torch_dtype": "bfloat16"})
    state = released.omni(tmp_path / "release", tiny_whisper_pt, dtype=torch.bfloat16, shards=4)
    import_llama_omni(tmp_path / "release", tiny_whisper_pt, tmp_path / "saved")
    size = sum(tensor.nbytes for tensor in state.values())
    command = [sys.executable, "-c", EXPORT, str(tmp_path / "saved"), str(tmp_path / "out"), str(size * 5 // 16)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert size > 2e8 and int(done.stdout) < 1.3 * size
