"""A random LLaMA-Omni of the paper's size with sounds of noise: real recipes and benches run where no weights are."""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import LlamaConfig

from speechzoo.audio import SAMPLE_RATE, write_audio
from speechzoo.bench.sizes import SIZES, Size, random_model, random_vocoder, tokenizer
from speechzoo.interop.pretrained import save_pretrained
from speechzoo.interop.saved import new_folder
from speechzoo.system.files import write_atomically, write_json, write_jsonl
from speechzoo.system.terminal import tell_error

TOKENS, UNITS, SECONDS = 50, 553, 7.5
"""Of an answer, and of a question: the means of InstructS2S-200K (arXiv 2409.06666, section 4.1)."""


def write_parts(folder: Path, size: Size, records: int, device: str, seed: int = 0) -> None:
    """Write `folder`, whole or not at all: the saved form of a model with `vocoder/`, `train.jsonl` with its `audio/`,
    and `overlay.yaml`, which given after a recipe makes it use them.

    Raises:
        FileExistsError: if there is something at `folder`.
    """
    with new_folder(folder) as work:
        with tempfile.TemporaryDirectory(dir=work.parent) as temporary:
            model = random_model(Path(temporary), size, seed, device)
            save_pretrained(model, work, licence={"id": "cc0-1.0", "text": "random numbers"})
        random_vocoder(work / "vocoder", size, seed)
        write_records(work, records, size.units, seed)
        write_atomically(work / "overlay.yaml", yaml.safe_dump(overlay(folder, size), sort_keys=False))


def write_shapes(folder: Path, size: Size, records: int, seed: int = 0) -> None:
    """As `write_parts`, with configurations in the place of weights: recipes run with them inside `without_reading`.

    Answers are of several lengths, so that batches are padded as real ones are.
    """
    folder.mkdir(parents=True)
    LlamaConfig(**size.llm, bos_token_id=None, eos_token_id=None, dtype=size.dtype).save_pretrained(folder / "llm")
    tokenizer(size.llm["vocab_size"]).save_pretrained(folder / "llm")
    mels, dim, heads, layers = size.whisper
    whisper = {"model_type": "whisper", "num_mel_bins": mels, "d_model": dim, "vocab_size": 51_866}
    whisper |= {"max_source_positions": 1500, "max_target_positions": 448, "decoder_start_token_id": 50_258}
    for side, number in (("encoder", layers), ("decoder", 1)):
        whisper |= {f"{side}_layers": number, f"{side}_attention_heads": heads, f"{side}_ffn_dim": 4 * dim}
    (folder / "whisper").mkdir()
    write_json(folder / "whisper" / "config.json", whisper)
    random_vocoder(folder / "vocoder", size, seed)
    write_records(folder, records, size.units, seed, spread=0.4)
    write_atomically(folder / "overlay.yaml", yaml.safe_dump(overlay(folder, size, "whisper"), sort_keys=False))


def write_records(folder: Path, number: int, num_units: int, seed: int, spread: float = 0.0) -> None:
    """Spoken questions of noise with answers of random letters and units, of the lengths that the paper's data has.

    Args:
        spread: standard deviation of the logarithm of an answer's length; 0: all are of the mean length.
    """
    rng = random.Random(seed)
    noise = np.random.default_rng(seed)
    records = []
    for index in range(number):
        file = f"audio/{index:04d}.flac"
        (folder / "audio").mkdir(exist_ok=True)
        write_audio(folder / file, 0.1 * noise.standard_normal(int(SECONDS * SAMPLE_RATE)).astype(np.float32))
        longer = math.exp(rng.gauss(0, spread)) if spread else 1.0
        tokens, spoken = max(1, round(TOKENS * longer)), max(1, round(UNITS * longer))
        units = [rng.randrange(num_units)]
        while len(units) < spoken:
            units.append((units[-1] + rng.randrange(1, num_units)) % num_units)  # no unit twice in a row
        answer = "".join(rng.choice("abcdefghijklmnop") for _ in range(tokens))  # a token each
        question = {"role": "user", "content": [{"type": "audio", "path": file}]}
        records.append(
            {"id": f"{index}", "messages": [question, {"role": "assistant", "content": answer, "units": units}]}
        )
    write_jsonl(folder / "train.jsonl", records)


def overlay(folder: Path, size: Size, whisper: str = "encoder.pt") -> dict[str, Any]:
    """What a LLaMA-Omni recipe needs to run with the parts in a folder; `whisper` is the encoder's name there."""
    home = folder.absolute()
    csv = {"class_path": "CSVLogger", "init_args": {"save_dir": "${trainer.default_root_dir}", "name": "csv"}}
    data = {"train": f"{home}/train.jsonl", "val": f"{home}/train.jsonl", "num_workers": 0}
    return {
        "vars": {"llm": f"{home}/llm", "whisper": f"{home}/{whisper}"},
        "model": {
            "init_args": {
                # A token for each byte: short sentences make a prompt as long as the paper's.
                "prompt": {"init_args": {"system": "Answer the questions.", "user": "{audio}\nPlease answer."}},
                "adaptor": {"init_args": {"hidden_dim": size.adaptor_dim}},
                "unit_decoder": {"init_args": {"num_units": size.units, **size.decoder}},
                "init_from": None,
            }
        },
        "data": {"init_args": data},
        "trainer": {"logger": [csv], "limit_val_batches": 0, "devices": 1, "strategy": "auto", "log_every_n_steps": 1},
    }


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench parts`; returns the exit code."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        write_parts(args.folder, SIZES[args.size], args.records, device)
    except OSError as error:
        return tell_error(error)
    print(f"{args.folder}: random parts of size {args.size}, {args.records} records, overlay.yaml for recipes")
    return 0
