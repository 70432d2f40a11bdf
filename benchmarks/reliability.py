"""Kills a training run at random moments, starts it again, and compares its end with that of an unbroken run.

    python benchmarks/reliability.py --kills 20 --json reliability.json

The run is a real `speechzoo fit` of a tiny LLaMA-Omni (both losses, dropout, gradient accumulation, checkpoints and
validation in mid-epoch) and is killed by SIGKILL: in a batch, while validating, while a checkpoint is being written. It
has to end with the same bits in weights, Adam's moments and every micro-batch's loss. Exit code 1 if it does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import wave
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

HERE = Path(__file__).resolve().parent
WORDS = "the capital of France is Paris and six plus nine makes fifteen while it rains on a quick brown fox".split()
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Recorder(Callback):
    """Writes `micro-batch loss` lines into `losses.txt` of the run folder, each before its gradient counts."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        with (Path(trainer.default_root_dir) / "losses.txt").open("a") as file:
            file.write(f"{number} {float(loss.detach()).hex()}\n")


def write_parts(folder: Path) -> dict[str, str]:
    """Random tiny parts and data, from fixed seeds; the paths by what they are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*letters, "<|im_start|>", "<|im_end|>"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "llm")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=None, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "llm")
    dims = ModelDimensions(80, 1500, 32, 4, 2, 64, 448, 32, 4, 1)
    torch.save({"dims": asdict(dims), "model_state_dict": Whisper(dims).state_dict()}, folder / "whisper.pt")

    chance = random.Random(0)
    lines = []
    for number in range(14):
        samples = (3000 * torch.randn(16_000 // 4 + 800 * number)).short()
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.numpy().tobytes())
        answer = " ".join(chance.choices(WORDS, k=chance.randint(2, 9)))
        said = {
            "role": "assistant",
            "content": answer,
            "units": [3 * (n % 2) + chance.randrange(3) for n in range(len(answer) // 3)],
        }
        asked = {"role": "user", "content": [{"type": "audio", "path": f"{number}.wav"}]}
        lines.append(json.dumps({"id": f"r{number}", "messages": [asked, said]}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return {"llm": str(folder / "llm"), "whisper": str(folder / "whisper.pt"), "data": str(folder / "train.jsonl")}


def write_config(folder: Path, steps: int) -> Path:
    """The run: accumulation of 2 over 7 batches an epoch, a checkpoint every second step, dropout, validation."""
    parts = write_parts(folder)
    decoder = {"num_units": 12, "upsample": 4, "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    model = {
        "encoder": {"class_path": "WhisperEncoder", "init_args": {"model": parts["whisper"], "window": "trimmed"}},
        "adaptor": {"class_path": "ConcatMLP", "init_args": {"stack": 5, "hidden_dim": 24}},
        # LoRA's dropout draws random numbers, which have to go on where they were.
        "llm": {
            "class_path": "HFCausalLM",
            "init_args": {"model": parts["llm"], "lora": {"r": 4, "lora_dropout": 0.1}},
        },
        "prompt": {"class_path": "ChatPrompt", "init_args": {"tokenizer": parts["llm"]}},
        "unit_decoder": {"class_path": "CTCUnitDecoder", "init_args": decoder},
        "freeze": [r"^encoder\."],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        "lr_scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_ratio": 0.1}},
    }
    trainer = {
        "default_root_dir": f"{folder}/${{name}}",
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "accumulate_grad_batches": 2,
        "val_check_interval": 5,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "plugins": [{"class_path": "FileCheckpointIO"}],
        "callbacks": [
            {"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 2}},
            {"class_path": "reliability.Recorder"},
        ],
    }
    data = {"train": parts["data"], "val": parts["data"], "batch_size": 2}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "LLaMAOmni", "init_args": model},
        "data": {"class_path": "SpeechDataModule", "init_args": data},
        "trainer": trainer,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return path


def train(config: str, name: str) -> None:
    """The run of a process: from the last checkpoint, or anew where there is none."""
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE))
    log = (Path(config).parent / f"{name}.log").open("a")  # the process's own output, to its end
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    from speechzoo.commands.training import run

    run(["fit", "--config", config, f"--name={name}", "--ckpt_path=last", "--doctor.enabled=false"])


def start(config: Path, name: str) -> Any:
    """A process of its own; what takes long to import is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speechzoo.commands.training", "transformers", "whisper", "peft"])
    process = context.Process(target=train, args=(str(config), name))
    process.start()
    return process


def with_kills(config: Path, kills: int, steps: int, seed: int) -> list[int]:
    """Run to the end with so many kills; the micro-batches in which they fell."""
    chance = random.Random(seed)
    moments = sorted(chance.uniform(1, 1.7 * steps) for _ in range(kills))
    losses, hit = config.parent / "killed" / "losses.txt", []
    for moment in moments:
        process = start(config, "killed")
        while process.is_alive() and reached(losses) < moment:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))  # some micro-batch, validation or checkpoint later
        if not process.is_alive() and process.exitcode:
            raise failed(config, "killed")
        process.kill()
        process.join()
        hit.append(reached(losses))
    finish(config, "killed")
    return hit


def finish(config: Path, name: str) -> None:
    """Run to the end."""
    process = start(config, name)
    process.join()
    if process.exitcode:
        raise failed(config, name)


def failed(config: Path, name: str) -> SystemExit:
    """What the run's log ends with."""
    return SystemExit("the run failed by itself:\n" + (config.parent / f"{name}.log").read_text()[-2000:])


def reached(losses: Path) -> int:
    """The last micro-batch that is on record."""
    if not losses.exists():
        return 0
    last = losses.read_text().rstrip("\n").rsplit("\n", 1)[-1].split(" ")
    return int(last[0]) if len(last) == 2 else 0


def read_losses(path: Path) -> tuple[dict[int, str], int]:
    """Loss by micro-batch, and how many micro-batches were computed again with another result."""
    found: dict[int, str] = {}
    changed = 0
    for line in path.read_text().splitlines():
        number, _, value = line.partition(" ")
        changed += found.get(int(number), value) != value
        found[int(number)] = value
    return found, changed


def same(one: Any, other: Any) -> bool:
    """Equality to the bit of nested data with tensors."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def compare(folder: Path) -> dict[str, bool]:
    """What of the two runs is equal to the bit."""
    saved = [torch.load(folder / name / "last.ckpt", weights_only=True) for name in ("whole", "killed")]
    (whole, _), (killed, changed) = (read_losses(folder / name / "losses.txt") for name in ("whole", "killed"))
    return {
        "weights": same(*(one["state_dict"] for one in saved)),
        "moments": same(*(one["optimizer_states"] for one in saved)),
        "schedule": same(*(one["lr_schedulers"] for one in saved)),
        "losses": whole == killed and not changed,
    }


def main() -> int:
    """Run both and compare; 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="empty folder for both runs, kept; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        config = write_config(folder, options.steps)
        finish(config, "whole")
        hit = with_kills(config, options.kills, options.steps, options.seed)
        equal = compare(folder)
    result = {"kills": len(hit), "steps": options.steps, "in_micro_batch": hit, "equal": equal}
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
