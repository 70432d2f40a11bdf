"""Reads a checkpoint folder in a released layout, tensor by tensor and without running anything it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechzoo.names.published import nearest
from speechzoo.system.files import read_json, sha256

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def find_source(source: str | Path, **options: Any) -> Path:
    """A local folder, or a hub name (`org/name`, `hf:org/name`) brought to the local cache.

    Args:
        options: of `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: if it is neither; one line that names it.
    """
    source = str(source).removeprefix("hf:")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source}: no such folder{nearest(str(source))}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), **options))
    except Exception as error:  # network, authentication and naming errors of several libraries
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{source}: no such folder, and not available from the hub ({reason})") from error


def read_pickle(file: Path) -> Any:
    """What a torch file holds: tensors and plain containers only, mapped into memory instead of read.

    Raises:
        ValueError: for anything else (a pickle that names code), or a damaged file; one line that names the file.
    """
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            return torch.load(file, mmap=True, **options)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(file, **options)  # the format before torch 1.6 cannot be mapped
    except Exception as error:  # torch raises many kinds for a foreign, hostile or truncated file
        text = str(error)
        if "nsupported" in text:
            raise ValueError(f"{file}: refused, it holds more than tensors (a pickle that could run code)") from error
        raise ValueError(f"{file}: damaged or no torch file ({text.splitlines()[0][:160]})") from error


class Weights:
    """Tensors of a folder with `.safetensors` or `.bin` files, sharded or not; one file is open at a time.

    Raises:
        FileNotFoundError: if weights, or a shard that the index names, are missing.
        ValueError: if a shard is damaged, or does not hold what the index says; if a tensor is in two files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._name: Path | None = None
        self._held: Any = None
        self.files: dict[str, Path] = {}
        self.kind, paths, index = self._find()
        for file in paths:
            for name in self._names(file):
                if name in self.files:  # which of them is meant is not told
                    raise ValueError(f"{file}: {name} is in {self.files[name].name} too: leave one of them")
                self.files[name] = file
        if index is not None:
            absent = sorted(set(index) - set(self.files))
            if absent:
                raise ValueError(f"{folder}: the index names {len(absent)} tensors that no shard holds: {absent[:3]}")

    def _find(self) -> tuple[str, list[Path], dict[str, str] | None]:
        for kind, stem in (("safetensors", "model"), ("bin", "pytorch_model")):
            index_file = self.folder / f"{stem}.{kind}.index.json"
            if index_file.is_file():
                index = read_json(index_file).get("weight_map")
                if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
                    raise ValueError(f"{index_file}: has no weight_map of file names")
                paths = [self.folder / name for name in sorted(set(index.values()))]
                for path in paths:
                    if path.parent != self.folder:
                        raise ValueError(f"{index_file}: names a file outside its folder: {path.name}")
                    if not path.is_file():
                        raise FileNotFoundError(f"{path}: a shard that the index names is missing")
                return kind, paths, index
            whole = self.folder / f"{stem}.{kind}"  # alone: Whisper's folders hold `model.fp32-...` beside it
            single = [whole] if whole.is_file() else sorted(self.folder.glob(f"{stem}*.{kind}"))
            if single:
                return kind, single, None
        raise FileNotFoundError(f"{self.folder}: holds no model.safetensors or pytorch_model.bin")

    def _open(self, file: Path) -> Any:
        if self._name != file:
            self.close()
            if self.kind == "safetensors":
                try:
                    self._held = safe_open(str(file), "pt")
                except (SafetensorError, OSError) as error:
                    raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error
            else:
                held = read_pickle(file)
                if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
                    raise ValueError(f"{file}: not a state dict (names to tensors)")
                self._held = held
            self._name = file
        return self._held

    def close(self) -> None:
        """Let the open file go."""
        self._held, self._name = None, None

    def _names(self, file: Path) -> list[str]:
        return list(self._open(file).keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its header."""
        held = self._open(self.files[name])
        return tuple(held.get_slice(name).get_shape() if self.kind == "safetensors" else held[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        held = self._open(self.files[name])
        try:
            tensor: Tensor = held.get_tensor(name) if self.kind == "safetensors" else held[name]
            return tensor
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{self.files[name]}: {name} cannot be read ({error})") from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        """Names, file by file: the order in which reading opens each file once."""
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class Released:
    """A released checkpoint folder: its `config.json`, weights and tokenizer files.

    Raises:
        FileNotFoundError, ValueError: see `Weights`; also if config.json is of another model type.
    """

    def __init__(self, source: str | Path, model_types: tuple[str, ...]) -> None:
        self.folder = find_source(source)
        self.config = read_json(self.folder / "config.json")
        kind = self.config.get("model_type")
        if kind not in model_types:
            raise ValueError(f"{self.folder}/config.json: model_type is {kind!r}, expected {' or '.join(model_types)}")
        self.weights = Weights(self.folder)

    def setting(self, name: str, *kinds: type, default: Any = None) -> Any:
        """A field of config.json, checked; required if there is no default.

        Raises:
            ValueError: if it is absent or of another type.
        """
        value = self.config.get(name, default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"{self.folder}/config.json: {name} has to be {' or '.join(kind.__name__ for kind in kinds)}, "
                f"it is {'absent' if name not in self.config else repr(value)}"
            )
        return value

    def tokenizer_files(self, folder: str | Path | None = None) -> list[Path]:
        """Tokenizer files here, or in another folder.

        Raises:
            FileNotFoundError: if there are none.
            ValueError: if one is damaged.
        """
        root = self.folder if folder is None else find_source(folder)
        files = [root / name for name in TOKENIZER_FILES if (root / name).is_file()]
        for file in files:
            if file.suffix == ".json":
                read_json(file)
        if not any(file.name in ("tokenizer.json", "tokenizer.model", "vocab.json") for file in files):
            raise FileNotFoundError(f"{root}: holds no tokenizer (tokenizer.json or tokenizer.model): give --tokenizer")
        return files

    def hashes(self) -> dict[str, str]:
        """sha256 of config.json and of every file with weights."""
        files = {self.folder / "config.json", *self.weights.files.values()}
        return {file.name: sha256(file) for file in sorted(files)}


def check_keys(weights: Weights, expected: dict[str, tuple[int, ...]], explained: set[str], where: Path) -> None:
    """Refuse a checkpoint whose tensors are not the expected ones.

    Args:
        expected: shape by name.
        explained: further names that may be there.

    Raises:
        ValueError: listing what is missing, left over, or of another size.
    """
    held = set(weights)
    missing, left = sorted(set(expected) - held), sorted(held - set(expected) - explained)
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {', '.join(missing[:8])}{' ...' if len(missing) > 8 else ''}")
    if left:
        problems.append(f"{len(left)} left over: {', '.join(left[:8])}{' ...' if len(left) > 8 else ''}")
    wrong = [name for name in weights if name in expected and weights.shape(name) != tuple(expected[name])]
    if wrong:
        sizes = [f"{name} is {weights.shape(name)}, config.json says {tuple(expected[name])}" for name in wrong[:3]]
        problems.append(f"{len(wrong)} of another size: {'; '.join(sizes)}")
    if problems:
        raise ValueError(f"{where}: tensors do not fit config.json: {'; '.join(problems)}")
