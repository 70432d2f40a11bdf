"""The published form of a model: what was trained, as safetensors, beside a configuration that names the parts.

```
NAME/config.yaml        model: {class_path, init_args}; bases: hashes of the frozen parts; vocoder: a name
     model.safetensors  every weight that any stage trained, in half precision
     README.md          the model card
```
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from speechzoo.names.resolvers import register_resolvers
from speechzoo.system.digests import read_tensors
from speechzoo.training.identity import digest

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
FROZEN = ("encoder", "llm")


def is_published(path: Path) -> bool:
    """Whether a folder holds a model in this form."""
    if not ((path / CONFIG).is_file() and (path / WEIGHTS).is_file()):
        return False
    held = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    return isinstance(held, dict) and "bases" in held  # the run folder of a vocoder has both files too


def read_published(folder: Path) -> dict[str, Any]:
    """What a checkpoint would hold, Lightning's own entries too; the parts that the configuration names are fetched.

    Raises:
        ValueError: a file cannot be read, or is not what was written; it is named.
    """
    register_resolvers()
    file = folder / CONFIG
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        model = config["model"]
        named = {"model_class": model["class_path"], "hyper_parameters": model["init_args"], "values": config["bases"]}
    except (OmegaConfBaseException, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: not the configuration of a published model ({str(error).splitlines()[0]})"
        ) from error
    state = read_tensors(folder / WEIGHTS)
    voice = {"vocoder": config["vocoder"]} if config.get("vocoder") else {}
    # what Lightning asks of every checkpoint
    empty = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": lightning.__version__}
    return {**empty, **named, **voice, "state_dict": state, "trained": sorted(state)}


def base_values(model: nn.Module, parts: Iterable[str] = FROZEN) -> dict[str, str]:
    """SHA-256 of the frozen floats of each part, rounded to bfloat16: the same for a part that is held wider."""
    held: dict[str, list[tuple[str, Tensor]]] = {part: [] for part in parts}
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        if part in held and not parameter.requires_grad:
            held[part].append((rest, parameter.detach().bfloat16()))
    return {part: digest(tensors) for part, tensors in held.items() if tensors}


def check_bases(model: nn.Module, wanted: dict[str, str], replaced: Iterable[str] = ()) -> None:
    """Refuse other frozen weights than those a model was trained on.

    Args:
        replaced: parts that are meant to be others.

    Raises:
        ValueError: naming the part.
    """
    for part, found in base_values(model, wanted).items():
        if found != wanted[part] and part not in set(replaced):
            raise ValueError(
                f"{type(model).__name__}: it was trained on another {part} (frozen weights {wanted[part][:12]}, "
                f"here {found[:12]}): take the part that its configuration names"
            )
