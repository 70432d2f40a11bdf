"""Training on a teacher's cached states is training beside it; they are found again, and refused where wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from datetime import timedelta
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_runs import Keep
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rank_cases import be_rank
from standin import Listener, trainer
from test_models import parts
from together import run_together

from speechzoo.adaptors import StackSwiGLU
from speechzoo.data import SpeechDataModule
from speechzoo.data.states import LLMStates
from speechzoo.data.tensor_files import TensorFiles
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaSM, Ultravox
from speechzoo.text import ChatPrompt
from speechzoo.training import FSDP2Strategy

FROZEN = [r"^encoder\.", r"^llm\."]
# A conversation without a clip teaches nothing: its loss is 0 but for rounding.
SAME = {"rel": 1e-5, "abs": 1e-6}
FRANCE = "What is the capital of France?"


class KeepAll(Keep):
    """Keeps gradients too, and which parts ran."""

    def __init__(self) -> None:
        super().__init__()
        self.grads: list[dict[str, torch.Tensor]] = []
        self.ran: list[str] = []

    def on_model_built(self, trainer, module) -> None:
        for name in ("encoder", "llm"):
            getattr(module, name).register_forward_pre_hook(lambda *_, name=name: self.ran.append(name))

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.grads.append({name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad})


def ultravox(llm_dir: Path, whisper_pt: Path, dtype: str = "float32", **changes: Any) -> Ultravox:
    torch.manual_seed(0)
    given = {
        "llm": partial(HFCausalLM, model=str(llm_dir), dtype=dtype),
        "adaptor": partial(StackSwiGLU, stack=8, hidden_dim=24),
        "freeze": FROZEN,
        "loss_weights": {"lm": 0.0},
        "optimizer": partial(torch.optim.SGD, lr=0.02),
    }
    return Ultravox(**parts(llm_dir, whisper_pt, **{**given, **changes}))


def asked(path: Path, transcript: str, answer: str) -> list[dict]:
    clip = {"type": "audio", "path": str(path), "transcript": transcript}
    return [{"role": "user", "content": [clip]}, {"role": "assistant", "content": answer}]


def write(path: Path, wavs: Sequence[Path], france: str = FRANCE) -> Path:
    """Five conversations: two voices that say the same, a multi-turn one, one of text alone."""
    system = {"role": "system", "content": "You are a helpful speech assistant."}
    who = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model."}]
    records = {
        "paris": asked(wavs[0], france, "The capital of France is Paris."),
        "again": asked(wavs[1], france, "The capital of France is Paris."),
        "sum": asked(wavs[2], "Six plus nine?", "Fifteen."),
        "turns": [system, *asked(wavs[3], "Hello?", "Hello, how are you today?"), *asked(wavs[0], FRANCE, "Paris.")],
        "text": who,
    }
    path.write_text("".join(json.dumps({"id": name, "messages": told}) + "\n" for name, told in records.items()))
    return path


@pytest.fixture
def told(tmp_path: Path, wavs: list[Path]) -> Path:
    return write(tmp_path / "told.jsonl", wavs)


def fit(folder: Path, module: Any, manifest: Path, precision: str = "32-true", epochs: int = 3, **data: Any) -> KeepAll:
    keep = KeepAll()
    options = {"callbacks": [keep], "enable_checkpointing": False, "limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    trainer(folder, max_epochs=epochs, precision=precision, **options).fit(
        module, datamodule=SpeechDataModule(train=str(manifest), val=str(manifest), batch_size=2, **data)
    )
    return keep


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance", "of_gradients"),
    [("32-true", "float32", 1e-5, 1e-4), ("bf16-mixed", "bfloat16", 1e-2, 0.1)],
)
def test_losses_and_gradients_are_the_same_and_the_teacher_reads_once(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path, precision, dtype, tolerance, of_gradients
) -> None:
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt, dtype)
    plain = fit(tmp_path, make(), told, precision)
    assert plain.ran.count("llm") == 36  # 9 steps and 9 batches of validation, student and teacher
    kept = tmp_path / "teacher"
    built, found = (fit(tmp_path, make(), told, precision, teacher_cache=str(kept)) for _ in range(2))
    assert built.ran.count("llm") == 19  # all conversations together; validation found them
    assert found.ran.count("llm") == 18 and built.train == found.train
    assert len(files(kept)) == 4  # the same words by two voices are read once
    assert len(plain.train) == 9 and found.train == pytest.approx(plain.train, rel=tolerance, abs=1e-6)
    assert {"val/kl_loss", "val/kl_end_loss", "val/lm_loss", "val/loss"} <= set(plain.val)
    assert found.val == pytest.approx(plain.val, rel=tolerance)
    for one, other in zip(found.grads, plain.grads, strict=True):
        assert one.keys() == other.keys() and all(name.startswith("adaptor.") for name in one)
        for name, grad in other.items():
            assert float((one[name] - grad).norm()) <= of_gradients * float(grad.norm()) + 1e-6, name
    for batch in found.batches:
        states = batch.written.states
        assert states.shape == (int((batch.turns > 0).sum()), 32) and states.dtype == getattr(torch, dtype)
        assert batch.audio is not None or batch.ids == ["text"]  # the student listens
    assert all(batch.written.states is None for batch in plain.batches)


def test_states_are_those_of_each_supervised_token(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path
) -> None:
    """Against the LLM of transformers, which reads each conversation alone."""
    module = ultravox(tiny_llm_dir, tiny_whisper_pt)
    keep = fit(tmp_path, module, told, epochs=1, teacher_cache=str(tmp_path / "teacher"))
    for batch in keep.batches:
        wanted = []
        read = batch.written
        for ids, mask, turns in zip(read.input_ids, read.attention_mask, read.turns, strict=True):
            with torch.no_grad():
                hidden = module.llm.lm.base_model(ids[mask][None]).last_hidden_state[0]
            wanted.append(hidden[:-1][turns[mask][1:] > 0])
        torch.testing.assert_close(batch.written.states, torch.cat(wanted), atol=1e-5, rtol=1e-4)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path) -> None:
    """After 4 of 9 steps, in the middle of an epoch; the teacher reads nothing again."""
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt)
    data = {"train": str(told), "val": str(told), "batch_size": 2, "teacher_cache": str(tmp_path / "teacher")}
    whole = fit(tmp_path, make(), told, teacher_cache=data["teacher_cache"])
    saving = ModelCheckpoint(tmp_path / "run", save_last=True, every_n_train_steps=1)
    trainer(tmp_path, max_steps=4, callbacks=[saving]).fit(make(), datamodule=SpeechDataModule(**data))
    keep = KeepAll()
    rest = trainer(tmp_path, max_epochs=3, callbacks=[keep], limit_val_batches=1.0, enable_checkpointing=False)
    rest.fit(make(), datamodule=SpeechDataModule(**data), ckpt_path=str(tmp_path / "run" / "last.ckpt"))
    assert rest.global_step == 9 and keep.train == whole.train[4:] and keep.val == whole.val
    assert keep.ran.count("llm") == len(keep.train) + len(keep.asked)


def test_the_fingerprint_follows_all_that_decides_the_states(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt)

    def of(settings: str = "32-true transcripts", **changes: Any) -> str:
        module = make(**changes)
        module.configure_model()
        return module.teacher_fingerprint(settings)

    same = of()
    assert of() == same
    # The teacher neither hears nor is heard through these, and the temperature comes after its states.
    other = partial(StackSwiGLU, stack=4, hidden_dim=24)
    assert of(adaptor=other, temperature=1.0, loss_weights={"kl_end": 0.0}) == same
    eager = partial(HFCausalLM, model=str(tiny_llm_dir), attn_implementation="eager")
    lora = partial(HFCausalLM, model=str(tiny_llm_dir), lora={"r": 2})
    different = [of("bf16-mixed transcripts"), of(dtype="bfloat16"), of(llm=eager), of(llm=lora)]
    module = make()
    module.configure_model()
    assert module.teacher_fingerprint("32-true transcripts") == same
    with torch.no_grad():
        list(module.llm.parameters())[-1].view(-1)[-1] += 1e-3  # a single number of one tensor
    different.append(module.teacher_fingerprint("32-true transcripts"))
    assert len({same, *different}) == 1 + len(different)


def test_what_cannot_be_cached_is_refused(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, tiny_tokenizer_dir: Path, told: Path
) -> None:
    kept = tmp_path / "teacher"
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt)
    refused = partial(fit, tmp_path, manifest=told, teacher_cache=str(kept))
    with pytest.raises(ValueError, match=r"^data.teacher_cache needs a frozen llm, but llm\.\S+ learns: add it to"):
        refused(module=make(freeze=FROZEN[:1]))
    lora = partial(HFCausalLM, model=str(tiny_llm_dir), lora={"r": 2})
    with pytest.raises(ValueError, match=r"needs a frozen llm, but llm\.\S+lora_A\S+ learns"):
        refused(module=make(llm=lora, freeze=[FROZEN[0], "base_layer"]))
    with pytest.raises(ValueError, match="is for the losses kl and kl_end: give one a weight"):
        refused(module=make(loss_weights={"kl": 0.0, "kl_end": 0.0}))
    with pytest.raises(ValueError, match="learn from what their LLM makes of transcripts, not for LLaSM"):
        refused(module=LLaSM(**parts(tiny_llm_dir, tiny_whisper_pt, freeze=FROZEN)))
    with pytest.raises(ValueError, match="data.teacher_cache is for models .* not for Listener"):
        refused(module=Listener(str(tiny_tokenizer_dir), num_units=None))
    assert not kept.exists()


def test_a_damaged_file_is_named_and_a_changed_transcript_read_anew(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path, wavs: list[Path]
) -> None:
    kept = tmp_path / "teacher"
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt)
    fit(tmp_path, make(), told, epochs=1, teacher_cache=str(kept))
    first = files(kept)
    held = first[0].read_bytes()
    changed = bytearray(held)
    changed[-3] ^= 8
    first[0].write_bytes(changed)
    with pytest.raises(ValueError, match=rf"states of the conversation \w+ are damaged; delete {first[0]} and start"):
        fit(tmp_path, make(), told, epochs=1, teacher_cache=str(kept))
    first[0].unlink()
    again = fit(tmp_path, make(), told, epochs=1, teacher_cache=str(kept))
    assert files(kept) == first and again.ran.count("llm") == 7  # one of it, 3 steps, 3 batches of validation
    write(told, wavs, "Tell me the capital of France!")
    plain = fit(tmp_path, make(), told, epochs=1)
    other = fit(tmp_path, make(), told, epochs=1, teacher_cache=str(kept))
    assert len(files(kept)) == len(first) + 1 and other.ran.count("llm") == 7
    assert other.train == pytest.approx(plain.train, **SAME) and other.train != pytest.approx(again.train, rel=1e-3)


def test_what_is_read_is_kept_by_its_tokens(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path
) -> None:
    """Another template or system sentence asks the teacher something else."""
    kept = tmp_path / "teacher"
    make = partial(ultravox, tiny_llm_dir, tiny_whisper_pt)
    fit(tmp_path, make(), told, epochs=1, teacher_cache=str(kept))
    prompt = partial(ChatPrompt, tokenizer=str(tiny_llm_dir), system="Be brief.")
    fit(tmp_path, make(prompt=prompt), told, epochs=1, teacher_cache=str(kept))
    assert len(files(kept)) == 7  # one conversation has a system sentence of its own


def test_questions_to_answer_need_no_teacher(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path
) -> None:
    module = ultravox(tiny_llm_dir, tiny_whisper_pt, generation={"max_new_tokens": 2})
    data = SpeechDataModule(predict=str(told), batch_size=2, teacher_cache=str(tmp_path / "teacher"))
    replies = trainer(tmp_path, callbacks=[], enable_checkpointing=False).predict(module, datamodule=data)
    assert len([text for reply in replies for text in reply.text]) == 5 and not (tmp_path / "teacher").exists()


STRATEGIES = {"ddp": partial(DDPStrategy, process_group_backend="gloo"), "fsdp2": FSDP2Strategy}


def two(rank: int, port: int, llm: Path, whisper: Path, told: Path, out: Path) -> None:
    """Trainings without and with the cache in one of two processes, under ddp and fsdp2; results go to files."""
    be_rank(rank, port)
    wrote: list[Path] = []
    real = TensorFiles.write

    def counted(self: TensorFiles, file: Path, tensors: dict[str, torch.Tensor]) -> None:
        wrote.append(file)
        real(self, file, tensors)

    TensorFiles.write = counted
    LLMStates.build = partialmethod(LLMStates.build, batch_size=1)  # else all four were one pass of one process
    for kind, cached in itertools.product(STRATEGIES, (False, True)):
        keep = KeepAll()
        engine = trainer(
            out,
            max_epochs=2,
            devices=2,
            strategy=STRATEGIES[kind](timeout=timedelta(seconds=60)),
            plugins=[LightningEnvironment()],
            callbacks=[keep],
            enable_checkpointing=False,
            limit_val_batches=1.0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        cache = str(out / kind) if cached else None
        data = SpeechDataModule(train=str(told), val=str(told), batch_size=1, teacher_cache=cache)
        wrote.clear()
        engine.fit(ultravox(llm, whisper), datamodule=data)
        found = {"train": keep.train, "val": keep.val, "wrote": len(wrote), "passes": keep.ran.count("llm")}
        found["fillers"] = [batch.written.states for batch in keep.asked if batch.ids == [""]]
        torch.save(found, out / f"{kind}_{cached}_{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_reading(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, told: Path) -> None:
    """Each writes its part; losses are those without the cache, also with a filler in validation."""
    run_together(two, (find_free_network_port(), tiny_llm_dir, tiny_whisper_pt, told, tmp_path))
    losses, folders = [], set()
    for kind in STRATEGIES:
        plain, cached = (
            [torch.load(tmp_path / f"{kind}_{held}_{rank}.pt") for rank in range(2)] for held in (False, True)
        )
        assert [rank["wrote"] for rank in plain] == [0, 0] and [rank["wrote"] for rank in cached] == [2, 2]
        assert len(files(tmp_path / kind)) == 4
        for before, after in zip(plain, cached, strict=True):
            assert len(after["train"]) == 6 and after["train"] == pytest.approx(before["train"], **SAME)
            assert after["val"] == pytest.approx(before["val"], **SAME)
            assert before["passes"] - after["passes"] == 2 * 6 - 2  # steps and validation, less its share
        (filler, *_) = cached[0]["fillers"] + cached[1]["fillers"]
        assert filler.shape == (0, 32)
        losses.append([rank["train"] for rank in cached])
        folders |= {file.parents[1].name for file in files(tmp_path / kind)}
    assert len(folders) == 1  # one model, however its weights are cut
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, **SAME)
