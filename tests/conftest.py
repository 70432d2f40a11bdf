"""Tiny real parts for the tests: tokenizer, LLM, Whisper checkpoint, sounds and a manifest, all from fixed seeds."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch  # noqa: F401
import numpy as np
import peft  # noqa: F401
import pytest
import soundfile
import torch
import wandb

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Six plus nine is fifteen, and ten minus four is six.",
    "Please directly answer the questions in the user's speech.",
    "You are a helpful language and speech assistant.",
    "The assistant answers the user: hello, how are you today?",
    "A quick brown fox jumps over the lazy dog while it rains.",
]


# lightning, peft and wandb are imported for their warnings: pytest-xdist makes those of its workers anew in the main
# process, in a thread for each worker, and two threads that import a package for the first time get half of it.
ROOT = Path(__file__).parents[1]
# Python's own, those of the tools, and what a user's runs leave there (see .gitignore).
NOT_OURS = {".git", ".venv", ".hypothesis", ".pytest_cache", ".ruff_cache", ".mypy_cache", "__pycache__", "site"}

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # else each would take all cores
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)


def files_here() -> set[str]:
    """Files of the checkout, without those of tools."""
    found = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS and not name.endswith(".egg-info")]
        found |= {os.path.join(folder, name) for name in names if not name.startswith(".coverage")}
    return found


# pytest-xdist hands out whole files in the order of collection: those that take longest first, or one process works on
# the last of them alone.
LONGEST = (
    *("test_distributed.py", "test_hub.py", "test_checkpoints.py", "test_end_to_end.py", "test_nodes.py"),
    *("test_run_folder.py", "test_study.py", "test_kill.py", "test_recipes.py", "test_session.py", "test_samples.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.files_before = files_here()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No test, and no command that one runs, writes into the checkout (or whatever folder the user stands in)."""
    new = sorted(files_here() - session.config.files_before)
    if new and not hasattr(session.config, "workerinput"):
        print(f"\nERROR: {len(new)} files were written into the checkout, such as {new[0]}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the tests out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


@pytest.fixture(autouse=True)
def own_process_group() -> Iterator[None]:
    """A DDP run inside the tests' process leaves its group and, through Lightning, variables behind by which every
    process started later takes itself for a rank of it."""
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    """Commands that show progress themselves silence libraries for the rest of the process."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def own_wandb_run() -> Iterator[None]:
    """A run that a test leaves open would take in what the next one logs."""
    yield
    if wandb.run is not None:
        wandb.finish()
    if wandb.sdk.wandb_setup._singleton is not None:  # it keeps the first test's WANDB_MODE for all that follow
        wandb.teardown()


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte-level BPE tokenizer with ChatML, no default system prompt and pad == eos == <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    folder = tmp_path_factory.mktemp("tiny_llm")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llm_dir(tiny_tokenizer_dir: Path) -> Path:
    """Folder of a random Llama (2 layers of width 32) with the tiny tokenizer in it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(tiny_tokenizer_dir)
    return tiny_tokenizer_dir


@pytest.fixture(scope="session")
def tiny_whisper_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An openai-whisper checkpoint file `{"dims", "model_state_dict"}` of a random model of width 32."""
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_state=32,
        n_audio_head=4,
        n_audio_layer=2,
        n_vocab=64,
        n_text_ctx=448,
        n_text_state=32,
        n_text_head=4,
        n_text_layer=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Whisper(dims)
        # openai's class leaves this one uninitialised memory, because it is always overwritten by a checkpoint.
        torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    path = tmp_path_factory.mktemp("tiny_whisper") / "tiny.pt"
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path


def tone(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A chirp with noise, `[samples, channels]`, peak about 0.6."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (200 + 50 * seed + 300 * t) * t)
    return chirp[:, None] + rng.normal(0, 0.02, (len(t), channels))


@pytest.fixture(scope="session")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four sounds: 1.0 s at 16 kHz, 2.3 s at 22.05 kHz, 0.7 s stereo at 44.1 kHz, 1.51 s at 8 kHz."""
    folder = tmp_path_factory.mktemp("wavs")
    kinds = [(1.0, 16_000, 1), (2.3, 22_050, 1), (0.7, 44_100, 2), (1.51, 8_000, 1)]
    paths = []
    for index, (seconds, rate, channels) in enumerate(kinds):
        paths.append(folder / f"{index}.wav")
        soundfile.write(paths[-1], tone(seconds, rate, channels, index), rate, subtype="PCM_16")
    return paths


def question(path: Path, answer: str, **extra) -> list[dict]:
    """A spoken question and its answer as messages."""
    return [
        {"role": "user", "content": [{"type": "audio", "path": str(path)}]},
        {"role": "assistant", "content": answer, **extra},
    ]


@pytest.fixture(scope="session")
def manifest(wavs: list[Path]) -> Path:
    """Six conversations beside the sounds: spoken questions with and without units, a multi-turn one, a text one."""
    names = [Path(path.name) for path in wavs]  # relative to the manifest
    records = [
        {"id": "paris", "messages": question(names[0], "The capital of France is Paris.", units=[3, 1, 4, 1, 5])},
        {"id": "sum", "messages": question(names[1], "Six plus nine is fifteen.", units=[9, 2, 6])},
        {"id": "hello", "messages": question(names[2], "Hello, how are you today?", units=[5, 3, 5, 8])},
        {
            "id": "turns",
            "messages": [
                {"role": "system", "content": "You are a helpful speech assistant."},
                *question(names[3], "Hello."),
                *question(names[0], "Paris.", units=[7, 9]),
            ],
        },
        {
            "id": "text",
            "messages": [
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "Paris."},
            ],
        },
        {
            "id": "mixed",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Answer: "}, {"type": "audio", "path": "2.wav"}]},
                {"role": "assistant", "content": "It rains.", "units": [2, 7, 1, 8]},
            ],
        },
    ]
    path = wavs[0].parent / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
