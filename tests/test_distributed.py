"""One process, two under ddp and two under fsdp2 train the same, and take over each other's checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from rank_cases import (
    ANSWERS,
    ENCODER,
    MIXED,
    PRECISION,
    RESHARD,
    STAGES,
    STOPS,
    VALIDATION,
    fit,
    make,
    questions,
    share,
)
from rank_runs import two
from together import run_together
from torch.utils.data import DataLoader

from speechzoo.models import LLaSM
from speechzoo.training import FileCheckpointIO
from speechzoo.training.sharded_folder import is_sharded_folder

# Of a step's loss, relative. Rounding alone gives up to 2e-7 in the stages of the papers; in the joint training, where
# both losses pull at every part, it grows to 9e-7 (measured with the kernels of several instruction sets).
TOLERANCE, JOINT_TOLERANCE = 1e-6, 1e-5
# In bf16-mixed, where a row's rounding depends on what else is in its batch: ddp comes to 6e-4, fsdp2, which rounds
# embeddings and norms too, to 1.9e-3.
MIXED_TOLERANCE = 5e-3


@pytest.fixture(scope="module")
def one_process(tiny_llm_dir: Path, tiny_whisper_pt: Path):
    """What one process sees that has all conversations of a step."""
    done: dict[str, dict[str, Any]] = {}

    def get(stage: str) -> dict[str, Any]:
        if stage not in done:
            model = make(stage, tiny_llm_dir, tiny_whisper_pt)
            _, done[stage] = fit(model, "one", 1, 0, STAGES[stage][2], precision=PRECISION.get(stage, "32-true"))
        return done[stage]

    return get


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> Path:
    """Results of two processes over gloo, which start once."""
    folder = tmp_path_factory.mktemp("ranks")
    model = make(RESHARD, tiny_llm_dir, tiny_whisper_pt)
    trainer, _ = fit(model, "one", 1, 0, 1, max_steps=STOPS[0])
    trainer.save_checkpoint(folder / "first.ckpt")
    run_together(two, (find_free_network_port(), tiny_llm_dir, tiny_whisper_pt, folder, list(STAGES)))
    return folder


def read(out: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(out / f"{name}_{rank}.pt") for rank in range(2)]


def per_step(sums: list[dict[str, float]], accumulate: int) -> list[dict[str, float]]:
    """Sums of the micro-batches of each step."""
    windows = [sums[i : i + accumulate] for i in range(0, len(sums), accumulate)]
    return [{name: sum(s[name] for s in window) for name in window[0]} for window in windows]


def together(ranks: list[dict[str, Any]], accumulate: int) -> list[dict[str, float]]:
    """Losses of each step, summed over both processes."""
    mine, theirs = (per_step(result["sums"], accumulate) for result in ranks)
    return [{name: a[name] + b[name] for name in a} for a, b in zip(mine, theirs, strict=True)]


def assert_same_losses(found: list[dict[str, float]], expected: list[dict[str, float]], stage: str) -> None:
    assert len(found) == len(expected)
    tolerance = JOINT_TOLERANCE if stage == "omni_joint" else TOLERANCE
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one == pytest.approx(other, rel=tolerance), f"step {step}"


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", sorted(set(STAGES) - set(PRECISION)))
def test_two_processes_train_as_one(one_process, out: Path, stage: str, kind: str) -> None:
    """Losses of twenty steps, with few targets against many, a process without speech, one without units."""
    accumulate = STAGES[stage][2]
    expected = one_process(stage)
    ranks = read(out, f"{stage}_{kind}")
    losses = per_step(expected["sums"], accumulate)
    assert_same_losses(together(ranks, accumulate), losses, stage)
    assert len(losses) == 20 and losses[0] != pytest.approx(losses[18], rel=1e-2)  # it learns
    for result in ranks:
        assert result["val"] == pytest.approx(expected["val"], rel=1e-4)
        assert result["kinds"] == ({"DTensor"} if kind == "fsdp2" else {"Parameter"})
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-3)  # of whole weights, not of shards
    assert ranks[0]["whole"].keys() == expected["whole"].keys()


def test_mixed_precision_is_the_same_under_both_strategies(out: Path) -> None:
    """float32 LoRA over a bfloat16 LLM, all in one unit; rounding forbids to compare with one process."""
    plain, sharded = (together(read(out, f"llasm_lora_bf16_{kind}"), 1) for kind in ("ddp", "fsdp2"))
    assert_same_losses(sharded, plain, "llasm_lora_bf16")
    assert read(out, "llasm_lora_bf16_fsdp2")[0]["kinds"] == {"DTensor"}


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_full_fine_tuning_in_mixed_precision(one_process, out: Path, kind: str) -> None:
    """Adaptor, LLM and new embeddings, two micro-batches a step."""
    expected = [step["lm"] for step in per_step(one_process(MIXED)["sums"], 2)]
    found = [step["lm"] for step in together(read(out, f"{MIXED}_{kind}"), 2)]
    assert len(found) == 20 and found == pytest.approx(expected, rel=MIXED_TOLERANCE)
    assert found[18] < 0.7 * found[0]
    for value in read(out, f"{MIXED}_{kind}")[0]["whole"].values():
        assert value.dtype == torch.float32
    # Masters are float32: rounded to bfloat16 they would have lost most of what they learnt.
    learned = read(out, f"{MIXED}_{kind}")[0]["whole"]["llm.lm.model.layers.1.mlp.up_proj.weight"]
    assert (learned != learned.bfloat16().float()).float().mean() > 0.9


def test_weights_travel_in_bfloat16_and_gradients_in_float32(out: Path) -> None:
    for result in read(out, "mixed_fsdp2"):
        found = result["dtypes"]
        assert found["weight"] == {torch.bfloat16}
        # What the LLM holds between its layers stays as it is under ddp.
        assert found["input"] == found["rotary"] == {torch.float32}
        assert found["allgather"] <= {torch.bfloat16, torch.float32}  # the frozen encoder is float32 here
        assert torch.bfloat16 in found["allgather"]
        assert found["reduce_scatter"] == found["kept"] == found["moments"] == {torch.float32}


def test_mixed_precision_is_resumed_exactly_and_by_ddp(out: Path) -> None:
    """From step 7 on; checkpoints hold float32."""
    saved = FileCheckpointIO().load_checkpoint(out / "mixed.ckpt")
    assert {value.dtype for value in saved["state_dict"].values()} == {torch.float32}
    moments = [m for state in saved["optimizer_states"][0]["state"].values() for m in state.values()]
    assert len(moments) > 30 and {m.dtype for m in moments} == {torch.float32}
    unbroken = read(out, f"{MIXED}_fsdp2")
    for rank, result in enumerate(read(out, "mixed_fsdp2")):
        assert len(result["sums"]) == 26 and result["sums"] == unbroken[rank]["sums"][14:]
        assert all(value.equal(unbroken[rank]["whole"][name]) for name, value in result["whole"].items())
    losses = [[step["lm"] for step in together(read(out, f"mixed_{kind}"), 2)] for kind in ("ddp", "fsdp2")]
    assert losses[0] == pytest.approx(losses[1], rel=MIXED_TOLERANCE)


def test_an_answer_gathers_the_weights_once(out: Path) -> None:
    """However many tokens; afterwards the weights are shards again, also after an error in the middle."""
    for result in read(out, "answers"):
        one, five, many, again, *without = result["gathers"]
        assert one == five == many == again
        assert 0 < one <= result["units"]
        assert one + 4 < without[0] < without[1] - 20  # one process has no room: all gather both layers for each token
        assert len(set(result["held"])) == 1
        assert result["error"] == "in the middle of an answer"


def test_answers_of_a_sharded_model_are_those_of_one_process(
    out: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path
) -> None:
    for rank, result in enumerate(read(out, "answers")):
        model = make(ANSWERS, tiny_llm_dir, tiny_whisper_pt)
        model.configure_model()
        model.load_state_dict(result["whole"], strict=False)  # but for buffers, which are not learnt
        model.eval()
        for index, tokens in enumerate((1, 4 + rank, 20 + 10 * rank, 20 + 10 * rank, 4 + rank, 20 + 10 * rank)):
            assert model.respond(questions(model, rank), max_new_tokens=tokens).text == result["texts"][index]


def test_answers_between_the_steps_change_nothing(out: Path) -> None:
    for rank in range(2):
        asked, plain = read(out, "answers")[rank]["sums"], read(out, f"{ANSWERS}_fsdp2")[rank]["sums"]
        assert asked == plain


def test_groups_that_hold_a_copy_each_train_the_same(one_process, out: Path) -> None:
    ranks, expected = read(out, f"{RESHARD}_hsdp"), one_process(RESHARD)
    assert_same_losses(together(ranks, 1), expected["sums"], RESHARD)
    assert ranks[1]["norms"] == pytest.approx(expected["norms"], rel=1e-3)


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {MIXED}))
def test_answers_of_unequal_length_do_not_block(out: Path, stage: str) -> None:
    """Processes answer different questions for a different number of tokens; a sharded LLM needs all for each."""
    for rank in range(2):
        plain, sharded = (read(out, f"{stage}_{kind}")[rank]["reply"] for kind in ("ddp", "fsdp2"))
        assert plain[0] == sharded[0]
        assert (plain[1] is None) == (sharded[1] is None)
        if plain[1] is not None:
            assert [u.tolist() for u in plain[1]] == [u.tolist() for u in sharded[1]]


def test_one_process_two_and_one_again(one_process, out: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """Checkpoints change hands between one process, fsdp2 (a file and a folder) and ddp; the losses go on as if not."""
    unbroken = one_process(RESHARD)["sums"]
    for kind in ("file", "folder"):
        assert_same_losses(together(read(out, f"second_{kind}"), 1), unbroken[STOPS[0] : STOPS[1]], RESHARD)
        assert is_sharded_folder(out / f"second_{kind}.ckpt") == (kind == "folder")
        model = make(RESHARD, tiny_llm_dir, tiny_whisper_pt)
        from_here = {"start": STOPS[1], "ckpt_path": out / f"second_{kind}.ckpt", "plugins": [FileCheckpointIO()]}
        _, result = fit(model, "one", 1, 0, 1, **from_here)
        assert_same_losses(result["sums"], unbroken[STOPS[1] :], RESHARD)
    for kind in ("ddp", "fsdp2"):
        assert_same_losses(together(read(out, f"third_{kind}"), 1), unbroken[STOPS[1] :], RESHARD)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]  # nothing half-written is left


def test_a_file_of_fsdp2_is_what_one_process_writes(out: Path) -> None:
    first, second = (FileCheckpointIO().load_checkpoint(out / f"{name}.ckpt") for name in ("first", "second_file"))
    folder = FileCheckpointIO().load_checkpoint(out / "second_folder.ckpt")
    for other in (second, folder):
        assert first.keys() == other.keys() and first["identity"] == other["identity"]
        assert first["state_dict"].keys() == other["state_dict"].keys()
        states = [saved["optimizer_states"][0]["state"] for saved in (first, other)]
        assert states[0].keys() == states[1].keys()
        for index, moments in states[0].items():
            assert {k: v.shape for k, v in moments.items()} == {k: v.shape for k, v in states[1][index].items()}
    assert all(value.equal(folder["state_dict"][name]) for name, value in second["state_dict"].items())


def test_weights_alone_are_evaluated_but_not_continued(
    out: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    saved = torch.load(out / "first.ckpt", weights_only=True)
    del saved["optimizer_states"]
    torch.save(saved, out / "weights.ckpt")
    model = make(RESHARD, tiny_llm_dir, tiny_whisper_pt)
    settings = {"strategy": "fsdp2", "accelerator": "cpu", "devices": 1, "barebones": True}
    loader = DataLoader(share(model, VALIDATION, 1, 0, 2), batch_size=None)
    try:
        Trainer(**settings).validate(model, loader, ckpt_path=out / "weights.ckpt")
        learned = dict(model.named_parameters())
        assert all(learned[name].full_tensor().equal(value) for name, value in saved["state_dict"].items())
        with pytest.raises(ValueError, match="holds no optimizer state"):
            Trainer(**settings).fit(model, loader, ckpt_path=out / "weights.ckpt")
    finally:
        torch.distributed.destroy_process_group()


def test_what_learns_in_several_dtypes_is_refused(tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    options = {"freeze": [ENCODER], "tokens": True, "dtype": "bfloat16"}
    monkeypatch.setitem(STAGES, "mixed", (LLaSM, options, 1))
    model = make("mixed", tiny_llm_dir, tiny_whisper_pt)
    loader = DataLoader(share(model, VALIDATION, 1, 0, 2), batch_size=None)
    try:
        with pytest.raises(ValueError, match=r"llm: new_embeddings in float32 and lm\..* in bfloat16 cannot learn"):
            Trainer(strategy="fsdp2", accelerator="cpu", devices=1, barebones=True).fit(model, loader)
    finally:
        torch.distributed.destroy_process_group()


LEAVING = """
import atexit, sys
from torch import distributed as dist
atexit.register(lambda: print("left behind" if dist.is_initialized() else "taken down"))  # runs after later ones
import speechzoo.system.ranks
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
if sys.argv[2] == "fails":
    raise ValueError("a run that failed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["well", "fails"])
def test_a_process_takes_its_group_down_at_its_end(tmp_path: Path, ends: str) -> None:
    """A gloo thread that is still there when a process ends may abort it."""
    command = [sys.executable, "-c", LEAVING, str(tmp_path), ends]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "taken down\n" and done.returncode == (ends == "fails"), done.stderr
