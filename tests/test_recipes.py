"""The shipped recipes: all parse and build, the full-scale ones hold the papers' numbers, the small ones train."""

from __future__ import annotations

import io
import json
import re
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from paper_values import PAPERS
from rich.console import Console
from tiny_runs import printed, saved, zoo
from transformers import AutoTokenizer

from speechzoo.data import encode_batch
from speechzoo.interop.hub import load, load_run
from speechzoo.names.recipes import recipe
from speechzoo.names.spec import resolve, to_factory
from speechzoo.quickstart.scale import SMOKE, STAGES
from speechzoo.quickstart.work import Work
from speechzoo.text import CLIP, ChatPrompt
from speechzoo.training import FSDP2Strategy

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = (str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
OVERLAYS = ("cluster/", "study/", "sweeps/", "zoo/")  # these are no recipes
NAMES = sorted(name for name in ALL if not name.startswith(OVERLAYS))

SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@pytest.fixture
def tiny_parts(monkeypatch: pytest.MonkeyPatch, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """`${part:...}` gives tiny random parts; nothing is downloaded."""
    there = {"smollm2-135m-instruct": tiny_llm_dir, "whisper-tiny.en": tiny_whisper_pt, "piper-joe": tiny_llm_dir}
    monkeypatch.setattr("speechzoo.parts.registry.fetch", there.__getitem__)


def build(spec: dict[str, Any]) -> LightningModule:
    """The model of a printed config; its constructor loads no weights."""
    return to_factory(spec)()


def run_name(recipe_name: str) -> str:
    """Name of the run that a recipe makes: `llasm/pretrain.yaml` makes llasm_pretrain."""
    return recipe_name.removesuffix(".yaml").replace("/", "_").removeprefix("quickstart_")


def at(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_parses_and_its_model_can_be_made(tiny_parts, name: str) -> None:
    config = printed("fit", f"--config={recipe(name)}")
    model = build(config["model"])
    assert isinstance(model, LightningModule) and not list(model.parameters())
    assert type(model) is resolve(config["model"]["class_path"])
    assert config["name"] == run_name(name)
    assert config["recipe"] and f"speechzoo fit --config recipes/{name}" in recipe(name).read_text()
    top = re.findall(r"^\w+(?=:)", recipe(name).read_text(), re.MULTILINE)
    assert len(top) == len(set(top))  # of a key that stands twice YAML takes the last without a word
    folder = config["trainer"]["default_root_dir"]
    assert folder.endswith(f"/{config['name']}")
    for logger in config["trainer"]["logger"]:
        assert logger["init_args"]["save_dir"] == folder
    assert {Path(path).name for path in getattr(model, "init_from", [])} <= {run_name(known) for known in NAMES}


@pytest.mark.parametrize("name", STAGES)
def test_recipes_of_the_published_models_change_the_quickstarts(tiny_parts, name: str) -> None:
    """More data and more steps; the parts stay, so that one's result starts the other's next stage."""
    small = printed("fit", f"--config={recipe(f'quickstart/{name}.yaml')}")
    large = printed("fit", f"--config={recipe(f'quickstart/{name}.yaml')}", f"--config={recipe(f'zoo/{name}.yaml')}")
    assert large["trainer"]["max_steps"] > small["trainer"]["max_steps"]
    assert set(_listed(small["data"]["init_args"]["train"])) <= set(_listed(large["data"]["init_args"]["train"]))
    for part in ("encoder", "adaptor", "prompt", "unit_decoder", "freeze", "net"):
        assert large["model"]["init_args"].get(part) == small["model"]["init_args"].get(part)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_full_scale_recipes_hold_the_numbers_of_the_papers(name: str) -> None:
    model, trainer = PAPERS[name]
    config = printed("fit", f"--config={recipe(name)}")
    there = {key: at(config["model"], key) for key in model}
    assert there == model
    given = config["trainer"]
    assert given["max_epochs"] == trainer["max_epochs"]
    devices = trainer.get("devices", 8)
    assert given["devices"] == trainer.get("devices", "auto")
    batch = config["data"]["init_args"]["batch_size"] * (given["accumulate_grad_batches"] or 1) * devices
    assert batch == trainer["global_batch"]


SINGLE = {  # overlay for one GPU -> its recipe
    "llama_omni_stage1_lora": "llama_omni/stage1.yaml",
    "llama_omni_stage2_one": "llama_omni/stage2.yaml",
    "llasm_pretrain_one": "llasm/pretrain.yaml",
    "llasm_finetune_lora": "llasm/finetune.yaml",
}


@pytest.mark.parametrize("name", SINGLE)
def test_overlays_for_one_gpu_keep_the_global_batch(name: str) -> None:
    config = printed("fit", f"--config={recipe(SINGLE[name])}", f"--config={recipe(f'cluster/{name}.yaml')}")
    given = config["trainer"]
    assert (given["devices"], given["strategy"]) == (1, "auto")
    batch = config["data"]["init_args"]["batch_size"] * given["accumulate_grad_batches"]
    assert batch == PAPERS[SINGLE[name]][1]["global_batch"]
    assert bool(config["model"]["init_args"]["llm"]["init_args"]["lora"]) == name.endswith("_lora")


@pytest.mark.parametrize(("name", "strategy"), [("ddp", DDPStrategy), ("fsdp2", FSDP2Strategy)])
def test_the_watchdog_speaks_before_the_process_group_ends_the_run(name: str, strategy: type) -> None:
    overlay = yaml.safe_load(recipe(f"cluster/{name}.yaml").read_text())
    (watchdog,) = (one for one in overlay["trainer"]["callbacks+"] if one["class_path"] == "Watchdog")
    limit = signature(strategy).parameters["timeout"].default
    assert watchdog["init_args"]["timeout_seconds"] < limit.total_seconds()


def test_weights_in_bfloat16_learn_at_the_rate_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-Omni 2's is another one than that of both systems; torchao is stood in for."""

    class _AdamW(torch.optim.AdamW):
        def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.01, bf16_stochastic_round: bool = False):
            super().__init__(params, lr=lr, weight_decay=weight_decay)

    stand_in = ModuleType("torchao.optim")
    _AdamW.__module__, _AdamW.__qualname__, stand_in._AdamW = "torchao.optim", "_AdamW", _AdamW
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.optim", stand_in)
    for name, rate in (("llama_omni2/stage1.yaml", 5e-5), ("llasm/finetune.yaml", 2e-5)):
        config = printed("fit", f"-c={recipe(name)}", f"-c={recipe('cluster/bf16_weights.yaml')}")
        optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
        assert optimizer == {"lr": rate, "weight_decay": 0.0, "bf16_stochastic_round": True}


def test_all_full_scale_recipes_are_checked() -> None:
    assert sorted(PAPERS) == [name for name in NAMES if not name.startswith("quickstart/")]
    small = [f"quickstart/{name}.yaml" for name in (*STAGES, "llama_omni2", "ultravox")]
    assert sorted(small) == [n for n in NAMES if n.startswith("quickstart/")]


TURNS = [
    {"role": "user", "content": [{"type": "audio", "path": "1.wav"}]},
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": [{"type": "text", "text": "And of Spain?"}]},
    {"role": "assistant", "content": "Madrid."},
]
LLAMA3 = (
    f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{CLIP}\nPlease directly answer the questions in the user's speech."
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is Paris.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd of Spain?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
ULTRAVOX = LLAMA3.replace(f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>", "").replace(
    f"{CLIP}\nPlease directly answer the questions in the user's speech.", CLIP
)
QWEN = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{CLIP}<|im_end|>\n<|im_start|>assistant\nIt is Paris.<|im_end|>\n"
    "<|im_start|>user\nAnd of Spain?<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA2 = f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{CLIP} [/INST] It is Paris. </s><s>[INST] And of Spain? [/INST] "
EXPECTED = {
    "llasm/pretrain.yaml": (LLAMA2, "Madrid. </s>"),
    "llasm/finetune.yaml": (LLAMA2, "Madrid. </s>"),
    "llama_omni/stage1.yaml": (LLAMA3, "Madrid.<|eot_id|>"),
    "llama_omni/stage2.yaml": (LLAMA3, "Madrid.<|eot_id|>"),
    "llama_omni2/stage1.yaml": (QWEN, "Madrid.<|im_end|>"),
    "llama_omni2/stage1b.yaml": (QWEN, "Madrid.<|im_end|>"),
    "llama_omni2/stage2.yaml": (QWEN, "Madrid.<|im_end|>"),
    "ultravox/train.yaml": (ULTRAVOX, "Madrid.<|eot_id|>"),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_templates_render_what_the_papers_and_their_code_render(
    name: str, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """Two turns with the system sentence: the prompt of the second answer, and the whole conversation."""
    options = printed("fit", f"--config={recipe(name)}")["model"]["init_args"]["prompt"]["init_args"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    assert tokenizer.unk_token_id is None  # every character has a token, so that decoding gives the text back
    tokenizer.add_special_tokens({"additional_special_tokens": [options["end_of_turn"]]})  # as the LLM's own has it
    tokenizer.save_pretrained(tmp_path)
    prompt = ChatPrompt(**{**options, "tokenizer": str(tmp_path)})
    asked, answered = EXPECTED[name]

    def text(encoded: Any, supervised: bool | None = None) -> str:
        marks = prompt.audio_tokens or []
        kept = [i for i, turn in zip(encoded.ids, encoded.turns, strict=True) if supervised in (None, turn > 0)]
        pieces = [CLIP if i < 0 else prompt.tokenizer.decode([i]) for i in kept if i not in set(prompt.new_tokens)]
        assert not marks or encoded.ids.count(prompt.new_tokens[0]) == encoded.num_audio
        return "".join(pieces)

    assert text(prompt.encode(TURNS, answer=False)) == asked
    whole = prompt.encode(TURNS, answer=True)
    assert text(whole) == asked + answered
    first = answered.replace("Madrid.", "It is Paris.")
    assert text(whole, supervised=True) == first + answered


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, manifest: Path) -> Path:
    """The manifests that quickstart recipes read, all of them the tiny one with absolute paths."""
    out = tmp_path_factory.mktemp("quickstart")
    (out / "corpus").mkdir()
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        for message in row["messages"]:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "audio":
                    part |= {"path": str(manifest.parent / part["path"]), "transcript": "how are you"}
    for kind in ("asr", "qa", "qa_units"):
        for split in ("train", "test"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (out / "corpus" / f"{kind}_{split}.jsonl").write_text(text)
    written = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]}
    (out / "corpus" / "qa_text_train.jsonl").write_text(json.dumps(written) + "\n")
    return out


LEARNS = {
    "llasm_pretrain": {"adaptor", "llm"},
    "llasm_finetune": {"adaptor", "llm"},
    "llama_omni_warmup": {"adaptor"},
    "llama_omni_stage1": {"adaptor", "llm"},
    "llama_omni_stage2": {"unit_decoder"},
}


def test_every_quickstart_stage_trains(tiny_parts, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages in their order in one process, each from the one before, at the smoke scale."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert {*LEARNS, "vocoder"} == set(STAGES)  # which has a test of its own
    quickstart = Work(corpus, SMOKE, 0, Console(file=io.StringIO()))
    for name in LEARNS:
        quickstart.train(name)
        folder = corpus / name
        file, model = saved(folder / "last.ckpt"), load_run(folder)
        assert file["global_step"] == 3
        learned = sorted(n for n, p in model.named_parameters() if p.requires_grad)
        assert sorted(file["state_dict"]) == file["trained"] == learned
        assert {n.split(".")[0] for n in learned} == LEARNS[name]
        if name == "llasm_pretrain":
            assert [n for n in learned if n.startswith("llm.")] == ["llm.new_embeddings"]
        assert (folder / "config.yaml").is_file() and (folder / "summary.json").is_file()
        (metrics,) = (folder / "csv").glob("version_*/metrics.csv")
        assert "val/loss" in metrics.read_text()
        assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_the_small_llama_omni2_trains_and_is_asked(
    tiny_parts, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the small LLaMA-Omni's stage 1, whose weights it finds under their names; saved, read again, asked."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    few = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    few += [f"--vars.out={corpus}", "--data.init_args.batch_size=2"]
    first = ["--model.init_args.init_from=[]", f"--trainer.default_root_dir={tmp_path}/llama_omni_stage1"]
    zoo("fit", f"--config={recipe('quickstart/llama_omni_stage1.yaml')}", *few, *first)
    second = [
        f"--model.init_args.init_from=[{tmp_path}/llama_omni_stage1]",
        f"--trainer.default_root_dir={tmp_path}/run",
    ]
    zoo("fit", f"--config={recipe('quickstart/llama_omni2.yaml')}", *few, *second)
    model = load_run(tmp_path / "run")
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert sorted(saved(tmp_path / "run" / "last.ckpt")["state_dict"]) == sorted(learned)
    assert {name.split(".")[0] for name in learned} == {"unit_decoder"}
    assert any(".gate." in name for name in learned) and any(".input_proj." in name for name in learned)
    (metrics,) = (tmp_path / "run" / "csv").glob("version_*/metrics.csv")
    assert "val/unit_loss" in metrics.read_text().splitlines()[0].split(",")
    model.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    question = [[{"role": "user", "content": "Who?"}]]
    said = []
    for one in (model.eval(), again.eval()):
        torch.manual_seed(3)
        said.append(one.respond(encode_batch(one.prompt, question), max_new_tokens=7))
    assert said[0].text == said[1].text and said[0].units[0].equal(said[1].units[0]) and len(said[0].units[0])


def test_the_small_ultravox_trains_and_is_read_again(tiny_parts, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    few = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    config = recipe("quickstart/ultravox.yaml")
    zoo("fit", f"--config={config}", f"--vars.out={corpus}", *few, "--data.init_args.batch_size=2")
    model = load_run(corpus / "ultravox")
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert sorted(saved(corpus / "ultravox" / "last.ckpt")["state_dict"]) == sorted(learned)
    assert {name.split(".")[0] for name in learned} == {"adaptor"}
    (metrics,) = (corpus / "ultravox" / "csv").glob("version_*/metrics.csv")
    assert {"val/kl_loss", "val/kl_end_loss", "val/lm_loss"} <= set(metrics.read_text().splitlines()[0].split(","))
