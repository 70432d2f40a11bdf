"""Which token comes next: the settings of an answer, and the choice from logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass
class Decoding:
    """How answers are generated; names as in transformers' `generate`, with which the settings agree.

    Args:
        max_new_tokens: longest answer, the stop token included.
        do_sample: draw tokens instead of taking the likeliest; default: if `temperature`, `top_k` or `top_p` is given.
        temperature: logits are divided by it; 0 means greedy.
        top_k, top_p: draw from the k likeliest tokens (0: from all), from the smallest set of so much probability.
        seed: of the draws: one number for all rows, or one for each; default: drawn from torch's global generator.
            A row's answer depends on its question and seed alone, never on the other rows.
        eos_token_id: ids of tokens that end an answer; [] lets every answer run to `max_new_tokens`.
        cache_implementation: of the keys and values: "dynamic" grows with the answer, "static" has room for the longest
            from the start, so that every step has the same shapes. On a GPU such a step is captured as a CUDA graph.
        compile: run the step of a static cache through `torch.compile`: the first answer then waits for the compiler.
        slots: answers of a batch that are written at a time, in a static cache; a question takes the place of an answer
            that ended. Default: all of the batch. Streams always answer all rows together.

    The same tokens come from any of the last three, up to rounding where two are all but equally likely.

    Raises:
        ValueError: if a value is out of range, or of another type.
    """

    max_new_tokens: int = 256
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    cache_implementation: Literal["dynamic", "static"] = "dynamic"
    compile: bool = False
    slots: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("slots", 1)):
            number = getattr(self, name)
            if not (number is None and name != "max_new_tokens") and not (_whole(number) and number >= least):
                raise ValueError(f"{name} is a whole number, at least {least}, not {number!r}")
        for name in ("do_sample", "compile"):
            if not isinstance(value := getattr(self, name), bool) and not (value is None and name == "do_sample"):
                raise ValueError(f"{name} is true or false, not {value!r}")
        for name in ("seed", "eos_token_id"):
            value = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, str)
            if value is not None and not all(map(_whole, value if several else [value])):
                raise ValueError(f"{name} is a whole number (64 bits) or several, not {value!r}")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is at least 0, not {self.temperature}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is 0 ... 1, not {self.top_p}")
        if self.cache_implementation not in ("dynamic", "static"):
            raise ValueError(f"cache_implementation is dynamic or static, not {self.cache_implementation!r}")
        if self.compile and self.cache_implementation != "static":
            raise ValueError("compile takes steps of the same shapes: it goes with cache_implementation static")
        if self.do_sample is None:
            self.do_sample = any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        if self.temperature == 0:
            self.do_sample, self.temperature = False, None

    @classmethod
    def of(cls, **options: Any) -> Decoding:
        """From the keywords of `generate`; transformers' `pad_token_id` is taken and not needed.

        Raises:
            ValueError: on an unknown keyword, or a value out of range.
        """
        options.pop("pad_token_id", None)
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"generation has no setting {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**options)

    @classmethod
    def defaults(cls, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings of a configuration, checked.

        Raises:
            ValueError: as `of`; the message names the place.
        """
        try:
            cls.of(**(given or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"model.generation: {error}") from error
        return dict(given or {})

    @staticmethod
    def merged(stop_ids: Any, defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of one answer: those asked for, else the model's.

        A temperature, `top_k` or `top_p` that is asked for draws tokens, though the model's settings say otherwise.
        """
        draws = any(asked.get(name) is not None for name in ("temperature", "top_k", "top_p"))
        overruled = {"do_sample", "temperature" if defaults.get("temperature") == 0 else ""} if draws else set()
        known = {key: value for key, value in defaults.items() if key not in overruled}
        settings = {**known, **asked}
        if settings.get("eos_token_id") is None:  # else an answer would end nowhere
            settings["eos_token_id"] = stop_ids
        return settings

    @property
    def stop_ids(self) -> set[int]:
        """`eos_token_id` as a set."""
        if self.eos_token_id is None:
            return set()
        return set(self.eos_token_id) if isinstance(self.eos_token_id, Iterable) else {self.eos_token_id}


def _whole(value: object) -> bool:
    """Of 64 bits, as torch takes seeds."""
    return isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**64


class Chooser:
    """Picks the next token of each row.

    Args:
        decoding: the settings.
        rows: of the batch, None where their number shows later; each gets its own source of random numbers.

    Raises:
        ValueError: if there are not as many seeds as rows.
    """

    def __init__(self, decoding: Decoding, rows: int | None) -> None:
        self.sample = bool(decoding.do_sample)
        if not self.sample:
            return
        self.seeds = decoding.seed
        if rows is not None and isinstance(self.seeds, Sequence) and len(self.seeds) != rows:
            raise ValueError(f"{len(self.seeds)} seeds for {rows} rows")
        self.generators: dict[int, torch.Generator] = {}
        self.warpers: Any = LogitsProcessorList()
        if decoding.temperature is not None:
            self.warpers.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_k:
            self.warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p is not None:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Token of each of some rows. Shape: `[b, V] -> [b]`."""
        if not self.sample:
            return logits.argmax(dim=-1)
        scores = self.warpers(None, logits.float())  # these ask for no tokens so far
        # One uniform number a row, through the inverse of the distribution function: a row needs the same numbers in
        # any company and on any device.
        shares = scores.softmax(dim=-1).double().cumsum(dim=-1)
        draws = torch.stack([torch.rand((), generator=self._source(row), dtype=torch.float64) for row in rows])
        if shares.is_cuda:  # from there the copy waits for nothing
            draws = draws.pin_memory()
        target = draws.to(shares.device, non_blocking=True)[:, None] * shares[:, -1:]
        return torch.searchsorted(shares, target, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]

    def _source(self, row: int) -> torch.Generator:
        if row not in self.generators:
            seed = self.seeds
            if isinstance(seed, Sequence):
                if row >= len(seed):
                    raise ValueError(f"{len(seed)} seeds for more rows")
                seed = seed[row]
            if seed is None:
                seed = int(torch.randint(2**62, ()))
            self.generators[row] = torch.Generator().manual_seed(seed)
        return self.generators[row]
