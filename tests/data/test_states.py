"""Training on cached LLM states is training on the LLM itself; they are found again, and refused where wrong."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kept_runs import Keep
from lightning.pytorch.callbacks import ModelCheckpoint
from standin import Listener, trainer

from speechzoo.adaptors import ConcatMLP
from speechzoo.callbacks import FreeFrozen
from speechzoo.data import SpeechDataModule
from speechzoo.data.states import StateCache
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaMAOmni2
from speechzoo.text import ChatPrompt
from speechzoo.training import FSDP2Strategy
from speechzoo.units import ARUnitDecoder, CTCUnitDecoder

FROZEN = ["^encoder\\.", "^adaptor\\.", "^llm\\."]


def decoder(**changes) -> partial:
    small = {"num_units": 12, "upsample": 3, "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    return partial(CTCUnitDecoder, **small, **changes)


def writer() -> partial:
    small = {"num_units": 12, "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    return partial(ARUnitDecoder, **small)


def omni(llm_dir: Path, whisper_pt: Path, dtype: str = "float32", cls: type = LLaMAOmni, **changes) -> LLaMAOmni:
    parts = {
        "encoder": partial(WhisperEncoder, model=str(whisper_pt), window="trimmed"),
        "adaptor": partial(ConcatMLP, stack=5, hidden_dim=24),
        "llm": partial(HFCausalLM, model=str(llm_dir), dtype=dtype),
        "prompt": partial(ChatPrompt, tokenizer=str(llm_dir)),
        "unit_decoder": decoder(),
        "freeze": FROZEN,
        "loss_weights": {"lm": 0.0},
    }
    return cls(**{**parts, **changes})


def fit(folder: Path, module: LLaMAOmni, manifest: Path, precision: str = "32-true", **data) -> Keep:
    keep = Keep()
    torch.manual_seed(7)
    trainer(folder, max_epochs=3, callbacks=[keep], enable_checkpointing=False, precision=precision,
            limit_val_batches=1.0, num_sanity_val_steps=0, gradient_clip_val=1.0).fit(
        module, datamodule=SpeechDataModule(train=str(manifest), val=str(manifest), batch_size=2, **data)
    )  # fmt: skip
    return keep


def forwards(module: LLaMAOmni) -> list[str]:
    """Names of the parts in the order they run, filled as they do."""
    ran: list[str] = []
    real = module.configure_model

    def configure() -> None:
        real()
        for name in ("encoder", "adaptor", "llm", "unit_decoder"):
            getattr(module, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))

    module.configure_model = configure
    return ran


@pytest.mark.parametrize(
    ("precision", "dtype", "cls", "speaks", "tolerance"),
    [
        ("32-true", "float32", LLaMAOmni, decoder(align="predict"), 1e-5),
        ("bf16-mixed", "bfloat16", LLaMAOmni, decoder(align="label"), 5e-3),
        ("32-true", "float32", LLaMAOmni2, writer(), 1e-5),
    ],
)
def test_training_is_the_same_and_the_llm_runs_once(
    tmp_path, tiny_llm_dir, tiny_whisper_pt, manifest, precision, dtype, cls, speaks, tolerance
) -> None:
    """Losses over three epochs, validation, and answers to validation questions that callbacks ask for."""
    make = partial(omni, tiny_llm_dir, tiny_whisper_pt, dtype, cls, unit_decoder=speaks)
    loss = f"val/{cls.unit_loss}_loss"
    plain = fit(tmp_path, make(), manifest, precision)
    runs = []
    for _ in range(2):
        module = make()
        ran = forwards(module)
        keep = fit(tmp_path, module, manifest, precision, state_cache=str(tmp_path / "states"))
        runs.append((keep, ran))
        assert len(keep.train) == len(plain.train) == 9
        assert keep.train == pytest.approx(plain.train, rel=tolerance)
        assert keep.val["val/loss"] == pytest.approx(keep.val[loss], rel=1e-6)
        assert keep.val[loss] == pytest.approx(plain.val[loss], rel=tolerance)
        assert "val/lm_loss" not in keep.val
        assert all(batch.audio is None and batch.answer_states is not None for batch in keep.batches)
    (first, built), (second, found) = runs
    assert built.count("llm") == 1  # all five conversations with units together; validation found them
    assert set(found) == {"unit_decoder"}
    assert first.train == second.train
    dtypes = {batch.answer_states.dtype for batch in second.batches if len(batch.answer_states)}
    assert dtypes == {getattr(torch, dtype)}
    questions = next(batch for batch in second.asked if batch.audio is not None)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        assert len(module.respond(questions, max_new_tokens=2).text) == 2


def test_one_data_module_serves_another_model_its_own_states(tmp_path, tiny_llm_dir, tiny_whisper_pt, manifest) -> None:
    def module() -> SpeechDataModule:
        return SpeechDataModule(train=str(manifest), batch_size=8, state_cache=str(tmp_path / "states"))

    def states(dim: int, data: SpeechDataModule) -> torch.Tensor:
        torch.manual_seed(7)
        keep, adaptor = Keep(), partial(ConcatMLP, stack=5, hidden_dim=dim)
        once = trainer(tmp_path, max_steps=1, callbacks=[keep], enable_checkpointing=False)
        once.fit(omni(tiny_llm_dir, tiny_whisper_pt, adaptor=adaptor), datamodule=data)
        return keep.batches[0].answer_states

    shared = module()
    first, second = states(24, shared), states(32, shared)
    assert not torch.equal(first, second) and torch.equal(second, states(32, module()))


def test_a_batch_without_units_learns_nothing_and_counts_its_positions(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path
) -> None:
    make = partial(omni, tiny_llm_dir, tiny_whisper_pt)
    states = str(tmp_path / "states")
    fit(tmp_path, make(), manifest, state_cache=states)
    module = make()
    data = SpeechDataModule(train=str(manifest), batch_size=1, state_cache=states)
    keep = Keep()
    trainer(tmp_path, max_epochs=1, callbacks=[keep], enable_checkpointing=False).fit(module, datamodule=data)
    plain = SpeechDataModule(train=str(manifest), batch_size=1)
    plain_keep = Keep()
    trainer(tmp_path, max_epochs=1, callbacks=[plain_keep], enable_checkpointing=False).fit(make(), datamodule=plain)
    texts = [batch for batch in keep.batches if batch.units is None]
    assert [batch.ids for batch in texts] == [["text"]]
    module.zero_grad()
    out = module.train()(texts[0])
    assert float(out.sums["ctc"]) == 0
    out.sums["ctc"].backward()
    learned = [weight.grad for weight in module.unit_decoder.parameters()]
    assert all(grad is not None and not grad.any() for grad in learned)
    for cached, heard in zip(keep.batches, plain_keep.batches, strict=True):
        assert cached.ids == heard.ids
        assert int(module(cached).mask.sum()) == int(module(heard).mask.sum())
    with pytest.raises(ValueError, match="logits need the LLM"):
        module(texts[0], logits=True)


def test_the_fingerprint_follows_all_that_decides_the_states(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    make = partial(omni, tiny_llm_dir, tiny_whisper_pt)

    def of(settings: str = "32-true sound", **changes) -> str:
        torch.manual_seed(0)
        module = make(**changes)
        module.configure_model()
        return module.states_fingerprint(settings)

    same = of()
    assert of() == same
    assert of(optimizer=partial(torch.optim.SGD, lr=1.0), unit_decoder=decoder(rope_theta=1e4)) == same
    different = [
        of("bf16-mixed sound"),
        of(dtype="bfloat16"),
        of(llm=partial(HFCausalLM, model=str(tiny_llm_dir), attn_implementation="eager")),
        of(encoder=partial(WhisperEncoder, model=str(tiny_whisper_pt))),  # padded
        of(adaptor=partial(ConcatMLP, stack=4, hidden_dim=24)),
        of(unit_decoder=decoder(align="label")),
    ]
    torch.manual_seed(0)
    module = make()
    module.configure_model()
    assert module.states_fingerprint("32-true sound") == same
    for part in (module.encoder, module.adaptor, module.llm):
        weight = list(part.parameters())[-1]
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3  # a single number of one tensor
        different.append(module.states_fingerprint("32-true sound"))
    assert len({same, *different}) == 1 + len(different)


def test_the_settings_of_lora_are_the_same_in_every_process(tiny_llm_dir: Path) -> None:
    """peft keeps its targets in a set: their order must not decide what the cache is called."""
    targets = ["v_proj", "q_proj", "k_proj", "o_proj", "up_proj"]
    made = [HFCausalLM([], str(tiny_llm_dir), lora={"r": r, "target_modules": targets}) for r in (2, 2, 4)]
    first, same, other = [llm.settings for llm in made]
    assert first == same != other
    assert json.dumps(sorted(targets)) in first and str(tiny_llm_dir) not in first


def test_what_cannot_be_cached_is_refused(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, tiny_tokenizer_dir: Path, manifest: Path
) -> None:
    make = partial(omni, tiny_llm_dir, tiny_whisper_pt)
    states = str(tmp_path / "states")
    with pytest.raises(ValueError, match="needs a frozen adaptor, but adaptor.linear1.weight learns"):
        fit(tmp_path, make(freeze=FROZEN[::2]), manifest, state_cache=states)
    with pytest.raises(ValueError, match="holds no LM loss: set model.loss_weights.lm to 0"):
        fit(tmp_path, make(loss_weights=None), manifest, state_cache=states)
    with pytest.raises(ValueError, match="for models with a unit decoder, not for Listener"):
        trainer(tmp_path, max_epochs=1).fit(
            Listener(str(tiny_tokenizer_dir)),
            datamodule=SpeechDataModule(train=str(manifest), batch_size=2, state_cache=states),
        )
    assert not Path(states).exists()


def conversations(wavs: list[Path]) -> list[SimpleNamespace]:
    """Five conversations over two sounds; the third has no units, the fifth two answers that have."""
    found = []
    for number in range(5):
        units = {1: np.array([1]), 3: np.array([2])} if number == 4 else {} if number == 2 else {1: np.array([3])}
        turns = np.array([0, 1, 1, 0, 2, 0, 3, 3, 3])
        found.append(SimpleNamespace(ids=np.arange(9) + number, turns=turns, clips=[str(wavs[number % 2])], units=units,
                                     length=20 + number))  # fmt: skip
    return found


def states_of(found: list[SimpleNamespace], passes: list[list[int]], numbers: list[int]) -> tuple[torch.Tensor, ...]:
    """Answer t of conversation n has the states 100 n + 10 t + position."""
    passes.append(numbers)
    rows = [(number, turn) for number in numbers for turn in sorted(found[number].units)]
    first = torch.tensor([100.0 * number + 10 * turn for number, turn in rows])
    lens = torch.tensor([int((found[number].turns == turn).sum()) for number, turn in rows])
    return (first[:, None] + torch.arange(int(lens.max())))[..., None].expand(-1, -1, 4), lens


def test_states_come_back_and_ranks_make_equal_passes(wavs: list[Path], tmp_path: Path) -> None:
    found, cache = conversations(wavs), StateCache(tmp_path, "model")
    assert cache.missing([*found, *found]) == [5, 6, 8, 9]  # one of each kind, none without units
    missing = cache.missing(found)
    for rank in range(3):
        passes: list[list[int]] = []
        cache.build(found, missing, partial(states_of, found, passes), 1, progress=False, rank=rank, world_size=3)
        assert len(passes) == 2  # four conversations, each alone
    assert cache.missing(found) == []
    held = cache.get(found[4])
    assert {turn: states[:, 0].tolist() for turn, states in held.items()} == {1: [410, 411], 3: [430, 431, 432]}
    assert held[3].shape == (3, 4) and cache.get(found[2]) == {}
    assert not list(tmp_path.rglob("*.safetensors.*"))  # no half-written files
    assert StateCache(tmp_path, "another").missing(found) == missing


def test_passes_stay_inside_their_budget(wavs: list[Path], tmp_path: Path) -> None:
    found, passes = conversations(wavs), []
    numbers = [0, 1, 3, 4]
    StateCache(tmp_path, "a").build(found, numbers, partial(states_of, found, passes), 3, progress=False)
    assert passes == [[0, 1, 3], [4]]
    passes.clear()
    StateCache(tmp_path, "b").build(found, numbers, partial(states_of, found, passes), 8, 48, progress=False)
    assert passes == [[0, 1], [3, 4]]  # 2 x 24 positions, padding included


def test_changed_or_damaged_files(wavs: list[Path], tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    shutil.copy(wavs[0], sound)
    found = conversations([sound, wavs[1]])
    cache = StateCache(tmp_path / "cache", "model")
    cache.build(found, [0, 1], partial(states_of, found, []), progress=False)
    cache.file(found[1]).write_bytes(b"half")
    with pytest.raises(ValueError, match="1.wav'] are damaged; delete"):
        cache.get(found[1])
    os.utime(sound, ns=(1, 1))
    assert cache.missing(found[:2]) == [0]
    with pytest.raises(FileNotFoundError, match="no cached states of the conversation with .*sound.wav"):
        cache.get(found[0])
    found[1].ids[0] += 1
    assert cache.missing(found[:2]) == [0, 1]


def test_disk_need_is_said_before_anything_is_written(wavs: list[Path], tmp_path: Path, monkeypatch) -> None:
    found, told = conversations(wavs), []
    monkeypatch.setattr("speechzoo.data.tensor_files.rank_zero_info", told.append)
    cache = StateCache(tmp_path, "model")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="answers of 4 conversations, 11 tokens, need"):  # 16 bytes each
        cache.build(found, [0, 1, 3, 4], partial(states_of, found, []), progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=176))
    cache.build(found, [0, 1, 3, 4], partial(states_of, found, []), progress=False)
    assert len(told) == 1 and "11 tokens" in told[0]
    written = sum(states.numel() * 4 for number in (0, 1, 3, 4) for states in cache.get(found[number]).values())
    assert written == 176


def test_states_that_are_not_finite(wavs: list[Path], tmp_path: Path) -> None:
    def broken(numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(numbers), 2, 4), torch.nan), torch.tensor([2] * len(numbers))

    with pytest.raises(ValueError, match="0.wav.* are not finite; not cached"):
        StateCache(tmp_path, "model").build(conversations(wavs), [0], broken, progress=False)


def test_freed_parts_take_no_memory_and_training_goes_on_as_before(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path
) -> None:
    runs, states = {}, str(tmp_path / "states")
    for name, more in (("kept", []), ("freed", [FreeFrozen()])):
        keep = Keep()
        saving = ModelCheckpoint(tmp_path / name, save_last=True)
        torch.manual_seed(7)
        module = omni(tiny_llm_dir, tiny_whisper_pt)
        data = SpeechDataModule(train=str(manifest), val=str(manifest), batch_size=2, state_cache=states)
        trainer(tmp_path, max_epochs=2, callbacks=[keep, saving, *more], limit_val_batches=1.0).fit(
            module, datamodule=data
        )
        runs[name] = keep, torch.load(tmp_path / name / "last.ckpt", weights_only=True)
    (kept, saved), (freed, saved_freed) = runs["kept"], runs["freed"]
    assert freed.train == kept.train and freed.val == kept.val
    assert saved["state_dict"].keys() == saved_freed["state_dict"].keys()
    assert all(value.equal(saved_freed["state_dict"][name]) for name, value in saved["state_dict"].items())
    frozen = [weight for name, weight in module.named_parameters() if not name.startswith("unit_decoder")]
    assert sum(weight.untyped_storage().nbytes() for weight in frozen) == 4 * len(frozen)
    with pytest.raises(RuntimeError, match="encoder and LLM were freed"):
        module.respond(freed.asked[0])
    again = trainer(tmp_path, max_epochs=3, callbacks=[Keep(), FreeFrozen()], limit_val_batches=1.0)
    data = SpeechDataModule(train=str(manifest), val=str(manifest), batch_size=2, state_cache=states)
    again.fit(omni(tiny_llm_dir, tiny_whisper_pt), datamodule=data, ckpt_path=str(tmp_path / "freed" / "last.ckpt"))
    assert again.global_step == 9
    with pytest.raises(ValueError, match="FreeFrozen needs data.state_cache"):
        plain = SpeechDataModule(train=str(manifest), batch_size=2)
        trainer(tmp_path, max_epochs=1, callbacks=[FreeFrozen()]).fit(
            omni(tiny_llm_dir, tiny_whisper_pt), datamodule=plain
        )
    with pytest.raises(ValueError, match="FreeFrozen is for whole models"):
        FreeFrozen().on_train_start(SimpleNamespace(strategy=FSDP2Strategy()), omni(tiny_llm_dir, tiny_whisper_pt))
