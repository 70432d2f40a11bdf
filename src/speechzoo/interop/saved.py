"""speechzoo's saved form: a self-describing folder, written completely or not at all.

```
OUT/config.json          class and parts (as `names.spec` writes them), compat switches, licence, hashes of bases
    model.safetensors    the weights that are no part's own: adaptor, unit decoder
    llm/                 an ordinary Hugging Face folder: config, safetensors shards, tokenizer
    encoder.pt, encoder/ the speech encoder as it was released
    vocoder/             the unit vocoder's files, where there is one
    kept.safetensors     tensors of the release that are not used, kept so that export is complete
```
Paths in `config.json` that start with `./` are inside the folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import speechzoo
from speechzoo.interop.layout import Weights
from speechzoo.llms.lora import base_name
from speechzoo.models.base import SpeechLLM
from speechzoo.names.spec import resolve
from speechzoo.names.trust import check_model
from speechzoo.system.digests import check_files, file_digest
from speechzoo.system.files import (
    check_room,
    clear_parts,
    part_beside,
    read_json,
    telling_room,
    write_atomically,
    write_json,
)
from speechzoo.training.checkpoint_file import save_synced

FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")
SHARD_BYTES = 1 << 30


def check_new(path: str | Path) -> None:
    """Refuse a folder that holds something, before the work for it is begun.

    Raises:
        FileExistsError: if there is something at `path` already.
    """
    path = Path(path).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already: choose another folder or remove it")


@contextlib.contextmanager
def new_folder(path: str | Path, need: int | None = None) -> Iterator[Path]:
    """A folder to write into, which gets its name only when the block ends well.

    Args:
        need: bytes that will be written, as far as that is known.

    Raises:
        DiskFullError: if there is too little room.
        FileExistsError: if there is something at `path` already.
    """
    path = Path(path).expanduser()
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent)
    if need is not None:
        check_room(path.parent, need, str(path))
    work = part_beside(path)
    work.mkdir()
    with telling_room(path, need):
        try:
            yield work
            if path.exists():
                path.rmdir()
            work.rename(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)


class ShardWriter:
    """Writes tensors one by one into shards of bounded size, with the index transformers reads.

    Args:
        kind: `safetensors` or `bin`.
    """

    def __init__(self, folder: Path, kind: str = "safetensors", limit: int = SHARD_BYTES) -> None:
        self.folder, self.kind, self.limit = folder, kind, limit
        self.stem = "model" if kind == "safetensors" else "pytorch_model"
        self.buffer: dict[str, Tensor] = {}
        self.size = self.total = 0
        self.shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; a full shard is written and let go."""
        size = tensor.numel() * tensor.element_size()
        if self.buffer and self.size + size > self.limit:
            self._flush()
        self.buffer[name] = tensor.detach().contiguous()
        self.size += size
        self.total += size

    def _path(self, number: int, count: int | None = None) -> Path:
        if count == 1:
            return self.folder / f"{self.stem}.{self.kind}"
        middle = f"{number:05d}.part" if count is None else f"{number:05d}-of-{count:05d}"
        return self.folder / f"{self.stem}-{middle}.{self.kind}"

    def _flush(self) -> None:
        self.shards.append(list(self.buffer))
        path = self._path(len(self.shards))
        if self.kind == "safetensors":
            save_file(self.buffer, path, {"format": "pt"})
        else:
            # clone: a view would bring the whole mapped file along
            save_synced({name: tensor.clone() for name, tensor in self.buffer.items()}, path, seal=False)
        self.buffer, self.size = {}, 0

    def close(self) -> None:
        """Write what is left, give the shards their final names and write the index."""
        if self.buffer or not self.shards:
            self._flush()
        count, index = len(self.shards), {}
        for number, names in enumerate(self.shards, 1):
            final = self._path(number, count)
            self._path(number).rename(final)
            index.update(dict.fromkeys(names, final.name))
        if count > 1:
            data = {"metadata": {"total_size": self.total}, "weight_map": index}
            write_json(self.folder / f"{self.stem}.{self.kind}.index.json", data)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """`config.json` of the saved form, with digests of all that is in the folder, and the model card."""
    # Not of what people edit by hand.
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "generation_config.json"]
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    config = {"format": FORMAT, "speechzoo_version": speechzoo.__version__, **config, "digests": digests}
    write_json(folder / "config.json", config)
    write_atomically(folder / "README.md", model_card(config))


def is_saved(path: str | Path) -> bool:
    """Whether a folder is of this form."""
    file = Path(path) / "config.json"
    return file.is_file() and "model_class" in read_json(file)


def read_saved(path: str | Path) -> dict[str, Any]:
    """`config.json` of a saved form.

    Raises:
        FileNotFoundError, ValueError: if the folder is none, or of a newer format.
    """
    config = read_json(Path(path) / "config.json")
    if "model_class" not in config or "hyper_parameters" not in config:
        raise ValueError(f"{path}: not a model saved by speechzoo (config.json names no model_class)")
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: format {config.get('format')}, this speechzoo reads {FORMAT}: upgrade speechzoo")
    return config


def load_saved(path: str | Path, dtype: str | None = None, trust_code: bool = False, **changes: Any) -> SpeechLLM:
    """The model in a folder of the saved form, in eval mode on the CPU.

    Args:
        dtype: of all weights (`float32`, `bfloat16`, `float16`); default: as they were saved.
        trust_code: also take classes that are not speechzoo's or torch's own; they are printed.
        changes: constructor arguments to replace, e.g. `freeze`.

    Raises:
        FileNotFoundError, ValueError: if the folder is incomplete, names a foreign class, or its tensors do not fit.
        DamagedError: if a file is not what was written.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype is the name of one, {', '.join(DTYPES)}, not {dtype!r}")
    folder = Path(path).expanduser()
    config = read_saved(folder)
    check_model(config["model_class"], config["hyper_parameters"], folder / "config.json", trust_code, changes)
    check_files(folder, config.get("digests", {}), "config.json")
    settings = inside(config["hyper_parameters"], folder)
    if dtype is not None:
        for part in ("encoder", "llm"):
            settings[part]["init_args"]["dtype"] = dtype
    # The encoder's and the LLM's weights come from the folder itself, whatever earlier stages they went through.
    model: SpeechLLM = resolve(config["model_class"])(**{**settings, **changes})
    model.configure_model()
    weights = Weights(folder)
    own = dict(model.named_parameters())
    # LoRA's weights too: what is absent would stay as it was born, at random.
    required = {name for name in own if not name.startswith(("encoder.", "llm.")) or base_name(name) is None}
    if required - set(weights) or set(weights) - set(own):
        wrong = sorted((required - set(weights)) | (set(weights) - set(own)))
        raise ValueError(f"{folder}: model.safetensors does not fit config.json: {wrong[:3]}")
    for name in weights:
        tensor, target = weights[name], own[name]
        if tensor.shape != target.shape:
            raise ValueError(f"{folder}: {name} is {tuple(tensor.shape)}, config.json says {tuple(target.shape)}")
        kind = getattr(torch, dtype) if dtype is not None else tensor.dtype if name in required else target.dtype
        target.data = tensor.to(kind).clone()
    vars(model).update(saved=config, saved_in=folder)  # how it came, for whoever saves it again
    return model.eval()


def inside(value: Any, folder: Path) -> Any:
    """The same data, with strings that start with `./` made paths in `folder`."""
    if isinstance(value, dict):
        return {key: inside(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [inside(item, folder) for item in value]
    if isinstance(value, str) and value.startswith("./"):
        return str(folder / value[2:])
    return value


def model_card(config: dict[str, Any]) -> str:
    """A short README from what `config.json` says."""
    name = config["model_class"].rpartition(".")[2]
    licence, compat = config.get("licence", {}), config.get("compat", {})
    source = config.get("source", {})
    lines = [
        "---",
        "library_name: speechzoo",
        f"license: {licence.get('id', 'other')}",
        "tags: [speech, speech-llm]",
        "---",
        "",
        f"# {name}",
        "",
        f"A speech language model in speechzoo's saved form, for `speechzoo.load`. {config.get('about', '')}",
        "",
        f"Licence of the weights: {licence.get('text', 'not stated')}",
        "",
        "## Parts",
        "",
        "| part | class |",
        "|---|---|",
    ]
    for part, spec in config["hyper_parameters"].items():
        if isinstance(spec, dict) and "class_path" in spec and part not in ("optimizer", "lr_scheduler"):
            lines.append(f"| {part} | `{spec['class_path']}` |")
    if compat:
        lines += ["", "## Behaviour of the release that is kept", "", "| switch | value | where |", "|---|---|---|"]
        lines += [f"| {key} | `{item['value']}` | `{item['switch']}` |" for key, item in compat.items()]
    if source.get("sha256"):
        lines += ["", "## Made from", "", "| file | sha256 |", "|---|---|"]
        lines += [f"| {file} | `{digest}` |" for file, digest in source["sha256"].items()]
    return "\n".join(lines) + "\n"
