"""Checkpoints: a run continued is the run unbroken, they hold what was trained, and another model refuses them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import UNIT_DECODER, saved, write_config, zoo

from speechzoo.cli import main
from speechzoo.data import encode_batch
from speechzoo.interop.hub import load, load_run
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaSM

STAGE2 = ["--model=LLaMAOmni", *UNIT_DECODER, r"--model.init_args.freeze=['^encoder\.','^adaptor\.','^llm\.']"]
STAGE2 += ["--model.init_args.loss_weights={lm: 0.0}", "--trainer.limit_val_batches=0"]
STAGE1 = ["--model=LLaMAOmni", *UNIT_DECODER, r"--model.init_args.freeze=['^encoder\.','^unit_decoder\.']"]
STAGE1 += ["--model.init_args.loss_weights={ctc: 0.0}"]
# A constant rate: a cosine would depend on how many steps the first half believes there are.
STEADY = ["--model.init_args.lr_scheduler=null"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("runs") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


@pytest.fixture(scope="module")
def runs(config: Path) -> dict[str, Any]:
    """A LLaSM and both stages of a LLaMA-Omni, trained; the CLI objects by name of their folder."""
    folder = config.parent
    done = {"llasm": zoo("fit", "-c", config, "--name=llasm")}
    done["stage1"] = zoo("fit", "-c", config, "--name=stage1", *STAGE1)
    first = f"--model.init_args.init_from=['{folder / 'stage1'}']"
    done["stage2"] = zoo("fit", "-c", config, "--name=stage2", *STAGE2, first)
    return {name: (folder / name, cli.model.eval()) for name, cli in done.items()}


def assert_same(one: Any, other: Any) -> None:
    """Equality to the bit of nested data with tensors."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("stage", [[], STAGE2], ids=["llasm", "llama_omni_stage2"])
def test_four_and_four_steps_are_eight(config: Path, stage: list[str]) -> None:
    """To the bit, in weights and Adam state, though an epoch has three batches and step four lies inside one."""
    folder = config.parent
    kind = "omni" if stage else "llasm"
    common = ["fit", "-c", config, *stage, *STEADY]
    zoo(*common, f"--name={kind}_8", "--trainer.max_steps=8")
    zoo(*common, f"--name={kind}_4", "--trainer.max_steps=4")
    half = saved(folder / f"{kind}_4" / "last.ckpt")
    assert half["global_step"] == 4 and half["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 1
    zoo(*common, f"--name={kind}_4", "--trainer.max_steps=8", "--ckpt_path", folder / f"{kind}_4" / "last.ckpt")
    whole, continued = (saved(folder / f"{kind}_{n}" / "last.ckpt") for n in (8, 4))
    assert continued["global_step"] == 8
    assert_same(whole["state_dict"], continued["state_dict"])
    assert_same(whole["optimizer_states"], continued["optimizer_states"])
    moments = whole["optimizer_states"][0]["state"]
    assert len(moments) == len(whole["state_dict"]) and all(entry["step"] == 8 for entry in moments.values())
    assert not any(value.equal(half["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_only_trained_weights_are_kept(runs) -> None:
    """Names, sizes on disk, and everything as plain data (`saved` reads with `weights_only`)."""
    expected = {"llasm": ("adaptor", "llm"), "stage1": ("adaptor", "llm"), "stage2": ("unit_decoder",)}
    for name, parts in expected.items():
        folder, model = runs[name]
        file = saved(folder / "last.ckpt")
        learned = [n for n, p in model.named_parameters() if p.requires_grad]
        assert sorted(file["state_dict"]) == file["trained"] == sorted(learned)
        assert {n.split(".")[0] for n in learned} == set(parts)
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # Weights and two moments in fp32, and headers that tiny tensors cannot hide.
        assert (folder / "last.ckpt").stat().st_size < 12 * numbers + 4000 * len(learned) + 60_000
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert name != "stage2" or frozen > 5 * numbers


def test_another_model_or_another_freeze_is_refused(config: Path, runs) -> None:
    ckpt = ["--ckpt_path", runs["stage1"][0] / "last.ckpt"]
    with pytest.raises(ValueError, match="LLaMAOmni: this checkpoint was trained with other parts or another `freeze`"):
        zoo("fit", "-c", config, "--name=refused", *STAGE2, *ckpt)
    with pytest.raises(ValueError, match=r"only in the model: \['unit_decoder\..*give it as model.init_from"):
        zoo("fit", "-c", config, "--name=refused", "--model=LLaMAOmni", *UNIT_DECODER, *ckpt)
    # The same parameters, though of another class: LLaSM may go on from stage 1. Another width may not.
    with pytest.raises(ValueError, match=r"this checkpoint: adaptor.linear.weight is \(32, 128\), the model's is"):
        zoo(
            "fit",
            "-c",
            config,
            "--name=refused",
            "--model.adaptor.stack=2",
            "--ckpt_path",
            runs["llasm"][0] / "last.ckpt",
        )
    with pytest.raises(ValueError, match=r"Only in the checkpoint: \['llm\.lm\."):
        zoo(
            *("validate", "-c", config, r"--model.init_args.freeze=['^encoder\.','^llm\.']"),
            *("--ckpt_path", runs["llasm"][0] / "last.ckpt"),
        )


def test_earlier_stages_are_checked(config: Path, runs, tmp_path: Path) -> None:
    stage2 = runs["stage2"][0]
    with pytest.raises(ValueError, match=r"stage2.*: holds unit_decoder\.\S+, which this LLaSM does not have"):
        zoo("fit", "-c", config, "--name=refused", f"--model.init_args.init_from=['{stage2}']")
    with pytest.raises(ValueError, match=r"adaptor\.linear\.weight is \(32, 128\), the model's is \(32, 64\)"):
        first = f"--model.init_args.init_from=['{runs['llasm'][0]}']"
        zoo("fit", "-c", config, "--name=refused", "--model.adaptor.stack=2", first)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'none'}: no such checkpoint")):
        zoo("fit", "-c", config, "--name=refused", f"--model.init_args.init_from=['{tmp_path / 'none'}']")


def conversations() -> list[list[dict]]:
    clip = torch.sin(torch.arange(16_000) / 20) * 0.5
    question = {"role": "user", "content": [{"type": "audio", "array": clip}]}
    return [[question, {"role": "assistant", "content": "The capital of France is Paris.", "units": [1, 2, 3, 1]}]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llasm", "stage1", "stage2"])
def test_a_loaded_run_is_the_trained_model(runs, name: str) -> None:
    """All weights to the bit, its losses and its answers; stage 2 with the LLM that stage 1 trained.

    Stage 1's unit decoder is neither pretrained nor trained, so it is left out: what it says means nothing.
    """
    folder, model = runs[name]
    loaded = load_run(folder)
    assert type(loaded) is (LLaSM if name == "llasm" else LLaMAOmni) and not loaded.training
    theirs = dict(loaded.named_parameters())
    untrained = "unit_decoder." if name == "stage1" else "none"
    differ = [n for n, p in model.named_parameters() if not p.equal(theirs[n])]
    assert [n for n in differ if not n.startswith(untrained)] == []
    batch = encode_batch(model.prompt, conversations(), True, "right")
    before, after = model(batch, logits=True), loaded(batch, logits=True)
    assert_same([before.losses["lm"], before.logits], [after.losses["lm"], after.logits])
    question = encode_batch(model.prompt, conversations(), False, "left")
    one, other = (m.respond(question, max_new_tokens=5) for m in (model, loaded))
    assert one.text == other.text
    if name != "stage1":
        assert_same([before.losses, one.units], [after.losses, other.units])


def test_stage_two_starts_from_the_weights_of_stage_one(runs, tiny_llm_dir: Path) -> None:
    trained = saved(runs["stage1"][0] / "last.ckpt")["state_dict"]
    theirs = dict(runs["stage2"][1].named_parameters())
    assert all(theirs[name].data.equal(value) for name, value in trained.items())
    released = HFCausalLM([], model=str(tiny_llm_dir))
    assert not any(p.equal(theirs[f"llm.{n}"]) for n, p in released.named_parameters())


def test_moved_folders_are_given_to_load_run(runs, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(runs["stage1"][0])
    loaded = load_run(runs["stage2"][0] / "last.ckpt", init_from=[str(moved)])
    assert all(p.equal(q) for p, q in zip(loaded.parameters(), runs["stage2"][1].parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="last.ckpt: no such checkpoint"):
        load_run(tmp_path)


def test_runs_that_were_moved_together_find_each_other(runs, tmp_path: Path) -> None:
    """The stage a run started from is looked for beside it too, and has to be the very same."""
    for name in ("stage1", "stage2"):
        shutil.copytree(runs[name][0], tmp_path / name)
    second = saved(tmp_path / "stage2" / "last.ckpt")
    second["hyper_parameters"]["init_from"] = ["where/it/was/stage1"]
    torch.save(second, tmp_path / "stage2" / "last.ckpt")
    loaded = load_run(tmp_path / "stage2")
    assert all(p.equal(q) for p, q in zip(loaded.parameters(), runs["stage2"][1].parameters(), strict=True))
    first = saved(tmp_path / "stage1" / "last.ckpt")
    first["state_dict"]["adaptor.linear.bias"] += 1
    torch.save(first, tmp_path / "stage1" / "last.ckpt")
    with pytest.raises(ValueError, match=r"started from, init_from\[0\], has changed"):
        load_run(tmp_path / "stage2")


def test_a_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="last.ckpt: not a speechzoo checkpoint"):
        load_run(tmp_path)


def test_a_changed_byte_is_told_on_every_road(config: Path, runs, tmp_path: Path, capsys) -> None:
    """In the middle of a weight, which loads without a word otherwise; and a file that was cut off."""
    folder = tmp_path / "llasm"
    shutil.copytree(runs["llasm"][0], folder)
    file = folder / "last.ckpt"
    whole, weight = file.read_bytes(), saved(file)["state_dict"]["adaptor.linear.weight"]
    place = whole.index(weight.numpy().tobytes()) + weight.nbytes // 2
    for damaged, told in (
        (whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :], "its content does not match its digest"),
        (whole[: len(whole) // 2], "its end is cut off or changed"),
    ):
        file.write_bytes(damaged)
        line = f"{file}: damaged ({told}): copy it again from where it is whole, or go back to an earlier one"
        with pytest.raises(ValueError, match=re.escape(line)):
            load_run(folder)
        with pytest.raises(ValueError, match=re.escape(line)):
            zoo("fit", "-c", config, "--name=refused", f"--model.init_args.init_from=['{folder}']")
        with pytest.raises(ValueError, match=re.escape(line)):
            zoo("validate", "-c", config, "--name=refused", "--ckpt_path", file)
        capsys.readouterr()
        assert main(["fit", "-c", str(config), "--name=refused", "--ckpt_path", str(file)]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"speechzoo: {line}"
        assert main(["checkpoint", "expand", str(folder), str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"speechzoo: {line}" and not (tmp_path / "out").exists()
    file.write_bytes(whole)
    moved = file.rename(tmp_path / "moved.ckpt")
    theirs = dict(runs["llasm"][1].named_parameters())
    assert all(p.equal(theirs[name]) for name, p in load_run(moved).named_parameters())


def test_a_full_disk_ends_training_in_one_line(config: Path, runs, monkeypatch, capsys) -> None:
    """The last good checkpoint stays, and training goes on from it when there is room again."""
    arguments = ["fit", "-c", str(config), "--name=full", "--trainer.max_steps=3", *STEADY]
    zoo("fit", "-c", config, "--name=full", "--trainer.max_steps=1", *STEADY)
    file = config.parent / "full" / "last.ckpt"
    before = file.read_bytes()
    arguments += ["--ckpt_path", str(file)]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        capsys.readouterr()
        assert main(arguments) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"speechzoo: \S+/last\.ckpt: No space left on device: at least \d+ kB needed, 100 kB free in .*",
        told.splitlines()[-1],
    )
    assert "Traceback" not in told
    assert file.read_bytes() == before and not list(file.parent.glob(".*.part"))
    assert main(arguments) == 0 and saved(file)["global_step"] == 3


def test_a_damaged_file_of_an_expanded_model_is_named(runs, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        assert main(["checkpoint", "expand", str(runs["llasm"][0]), str(out)]) == 1
    assert "out: No space left on device: at least " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["checkpoint", "expand", str(runs["llasm"][0]), str(out)]) == 0
    moved = out.rename(tmp_path / "moved")
    kept = load(moved)
    assert all(p.equal(dict(kept.named_parameters())[n]) for n, p in runs["llasm"][1].named_parameters())
    for name in ("model.safetensors", "llm/model.safetensors", "encoder.pt", "llm/tokenizer.json", "llm/config.json"):
        whole = (moved / name).read_bytes()
        place = len(whole) * 2 // 3
        (moved / name).write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(f"{moved / name}: damaged (its content does not fit config.j")):
            load(moved)
        (moved / name).write_bytes(whole)
    load(moved)
