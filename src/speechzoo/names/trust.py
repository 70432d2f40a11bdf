"""Which classes the description that comes with weights may name: parts of this package and of torch, nothing else.

A name is looked up in a closed list, never followed: no module is imported because a file names it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from speechzoo.names.spec import resolve


@dataclass(frozen=True)
class Slot:
    """What may stand in one place of a description.

    Attributes:
        base: the class whose subclasses are taken, from `modules`.
        modules: where they are looked for.
        names: functions and classes that are taken besides.
        given: positional arguments the model gives itself.
    """

    base: str = ""
    modules: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    given: int = 0


SCHEDULES = tuple(
    f"transformers.{prefix}{name}"
    for prefix in ("", "optimization.")
    for name in (
        "get_constant_schedule",
        "get_constant_schedule_with_warmup",
        "get_linear_schedule_with_warmup",
        "get_cosine_schedule_with_warmup",
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        "get_polynomial_decay_schedule_with_warmup",
        "get_inverse_sqrt_schedule",
    )
)

SLOTS = {
    "encoder": Slot("speechzoo.encoders.Encoder", ("speechzoo.encoders",)),
    "adaptor": Slot("speechzoo.adaptors.Adaptor", ("speechzoo.adaptors",), given=2),
    "llm": Slot("speechzoo.llms.LLM", ("speechzoo.llms",), given=1),
    "prompt": Slot("speechzoo.text.ChatPrompt", ("speechzoo.text", "speechzoo.interop.prompts")),
    "unit_decoder": Slot("speechzoo.units.UnitDecoder", ("speechzoo.units",), given=1),
    "generator": Slot(
        "speechzoo.vocoders.hifigan.HiFiGANGenerator",
        ("speechzoo.vocoders.hifigan",),
        ("speechzoo.quickstart.piper_generator.piper_generator",),
    ),
    "optimizer": Slot(
        "torch.optim.Optimizer", ("torch.optim",), ("transformers.Adafactor", "torchao.optim._AdamW"), given=1
    ),
    "lr_scheduler": Slot(
        "torch.optim.lr_scheduler.LRScheduler",
        ("speechzoo.training", "torch.optim.lr_scheduler"),
        SCHEDULES,
        given=1,  # the number of steps is no second argument of transformers' functions
    ),
    "voice": Slot(names=("speechzoo.quickstart.voice.PiperVoice",)),
    "model": Slot("lightning.LightningModule", ("speechzoo.models",)),
}


def check_parts(parts: Mapping[str, Any], where: object, trust_code: bool = False, prefix: str = "") -> None:
    """Refuse parts that are not of this package's (or torch's) own, and arguments they do not take.

    Args:
        parts: a description's values by name; those whose name is no slot's may hold no class at all.
        where: what messages call the description.
        trust_code: take foreign classes too, and print which.
        prefix: stands before a slot's name in messages.

    Raises:
        ValueError: naming place and class.
    """
    for name, spec in parts.items():
        for place, class_path in _foreign(name, spec, where, prefix):
            _judge(place, class_path, where, trust_code)


def check_model(
    class_path: Any, arguments: Any, where: object, trust_code: bool = False, replaced: Mapping[str, Any] | None = None
) -> None:
    """`check_parts` for a model's class and its hyper-parameters.

    Args:
        replaced: arguments that the caller gives himself; those of the description are not used.

    Raises:
        ValueError: naming place and class, or the argument that the class does not take.
    """
    if not isinstance(class_path, str) or not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: its model class is no name, or its hyper-parameters are no mapping")
    kind = known("model").get(class_path)
    if kind is None:
        _judge("model", class_path, where, trust_code)
    else:
        makers = [
            vars(base)["__init__"] for base in inspect.getmro(kind) if inspect.isfunction(vars(base).get("__init__"))
        ]
        taken = {name for maker in makers for name in inspect.signature(maker).parameters}
        if unknown := sorted(str(name) for name in arguments if name not in taken):
            raise ValueError(f"{where}: {class_path} takes no argument {unknown[0]!r}")
    check_parts({name: value for name, value in arguments.items() if name not in (replaced or {})}, where, trust_code)


@cache
def known(slot: str) -> dict[str, Any]:
    """What a slot takes, by every dotted path it is reached by."""
    rule = SLOTS[slot]
    base = resolve(rule.base) if rule.base else object
    found: dict[str, Any] = {}
    for module in rule.modules:
        for name, kind in vars(import_module(module)).items():
            fits = isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)
            if fits and not name.startswith("_"):
                found |= {f"{module}.{name}": kind, f"{kind.__module__}.{kind.__qualname__}": kind}
    return found


def _foreign(name: str, spec: Any, where: object, prefix: str) -> Iterator[tuple[str, str]]:
    """Place and dotted path of each class in a part's description that is not known."""
    place = prefix + name
    if name not in SLOTS or spec is None:
        yield from _nested(place, spec)
        return
    if isinstance(spec, str):
        spec = {"class_path": spec}
    arguments = (spec.get("init_args") or {}) if isinstance(spec, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(spec.get("class_path"), str):
        raise ValueError(f"{where}: {place} is no part {{class_path: ..., init_args: {{...}}}}")
    class_path = spec["class_path"]
    kind = known(name).get(class_path) or (resolve(class_path) if class_path in SLOTS[name].names else None)
    if kind is None:
        yield place, class_path
    else:
        try:
            inspect.signature(kind).bind_partial(*[None] * SLOTS[name].given, **arguments)
        except TypeError as error:
            raise ValueError(f"{where}: {place} {class_path}: {error}") from error
    attention = arguments.get("attn_implementation")
    if isinstance(attention, str) and "/" in attention:
        yield f"{place}.attn_implementation", attention  # transformers fetches such a kernel from the hub and runs it
    yield from _nested(place, dict(arguments))


def _nested(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Classes named anywhere inside plain data, where no part of ours takes one."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield place, str(value["class_path"])
        for key, item in value.items():
            yield from _nested(f"{place}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _nested(f"{place}.{number}", item)


def _judge(place: str, class_path: str, where: object, trust_code: bool) -> None:
    if not trust_code:
        raise ValueError(
            f"{where}: names {class_path!r} as {place}, which is none of the classes that may come with weights here: "
            "loading it would run its code. If you trust it: --trust-code (in Python trust_code=True)"
        )
    print(f"speechzoo: {where}: importing code it names: {class_path} ({place})", file=sys.stderr)
