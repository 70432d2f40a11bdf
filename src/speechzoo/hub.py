"""A trained model from its run folder, or from a folder of the saved form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speechzoo.models.base import SpeechLLM
from speechzoo.models.checkpoint import check_trained, find
from speechzoo.spec import resolve


def load(path: str | Path, **changes: Any) -> SpeechLLM:
    """A model from a folder of speechzoo's saved form, its hub name, a run folder or a `.ckpt` file.

    Args:
        changes: constructor arguments to replace; for a saved form also `dtype` (`float32`, `bfloat16`, `float16`).

    Raises:
        FileNotFoundError, ValueError: see `load_run` and `speechzoo.interop.saved.load_saved`.
    """
    from speechzoo.interop.layout import find_source
    from speechzoo.interop.saved import is_saved, load_saved

    local = Path(path).expanduser()
    if local.is_file() or (local.is_dir() and not is_saved(local)):
        return load_run(local, **changes)
    return load_saved(find_source(path), **changes)


def load_run(path: str | Path, **changes: Any) -> SpeechLLM:
    """The model of a run folder or checkpoint, built and in eval mode on the CPU.

    Base weights come from where the run's configuration says, earlier stages from its `init_from`, the rest from the
    checkpoint itself.

    Args:
        path: a run folder (its `last.ckpt`) or a `.ckpt` file written by speechzoo.
        changes: constructor arguments to replace, e.g. `init_from` where folders were moved.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint does not say which model it holds, or does not fit it.
    """
    file = find(path)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    class_path = saved.get("model_class")
    if class_path is None:
        raise ValueError(f"{file}: not a speechzoo checkpoint (it names no model class)")
    model = resolve(class_path)(**{**saved["hyper_parameters"], **changes})
    model.configure_model()
    check_trained(model, saved)
    model.load_state_dict(saved["state_dict"], strict=False)
    return model.eval()


def save_pretrained(model: SpeechLLM, path: str | Path, **options: Any) -> Path:
    """Write a model so that `load` gives it back: `speechzoo.interop.pretrained.save_pretrained`, which has the options
    `merge_lora`, `licence` and `push_to_hub`."""
    from speechzoo.interop import pretrained

    return pretrained.save_pretrained(model, path, **options)
