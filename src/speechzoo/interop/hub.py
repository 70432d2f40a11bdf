"""A trained model from its run folder, or from a folder of the saved form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechzoo.models.base import SpeechLLM
from speechzoo.models.checkpoint import check_identity, check_trained, find, read
from speechzoo.names.published import is_name, published
from speechzoo.names.spec import resolve
from speechzoo.names.trust import check_model
from speechzoo.training.published import is_published


def load(path: str | Path, trust_code: bool = False, hub: dict[str, Any] | None = None, **changes: Any) -> SpeechLLM:
    """A model by its name in the zoo (`speechzoo list`) or on the hub, from a folder of speechzoo's saved or published
    form, from a run folder or a `.ckpt` file.

    Args:
        trust_code: see `load_run`.
        hub: options of `huggingface_hub.snapshot_download`, such as `revision`.
        changes: constructor arguments to replace; for a saved form also `dtype` (`float32`, `bfloat16`, `float16`).

    Raises:
        FileNotFoundError, ValueError: see `load_run` and `speechzoo.interop.saved.load_saved`.
    """
    from speechzoo.interop.layout import find_source
    from speechzoo.interop.saved import is_saved, load_saved

    local = Path(path).expanduser()
    if is_name(path) or (local.is_dir() and is_published(local)):
        return load_run(path, trust_code, **changes)
    if local.is_file() or (local.is_dir() and not is_saved(local)):
        return load_run(local, trust_code, **changes)
    folder = find_source(path, **(hub or {}))
    if is_published(folder):
        return load_run(folder, trust_code, **changes)
    return load_saved(folder, trust_code=trust_code, **changes)


def load_run(path: str | Path, trust_code: bool = False, **changes: Any) -> SpeechLLM:
    """The model of a run folder or checkpoint, built and in eval mode on the CPU.

    Base weights come from where the run's configuration says, earlier stages from its `init_from` (or, if they are not
    there, from beside the run), the rest from the checkpoint itself.

    Args:
        path: a run folder (its `last.ckpt`), a `.ckpt` file written by speechzoo, or a published model.
        trust_code: also take classes that are not speechzoo's or torch's own, which the checkpoint names and Python
            then imports and runs; they are printed.
        changes: constructor arguments to replace, e.g. `init_from` where folders were moved.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if the checkpoint does not say which model it holds, or does not fit it, or names a foreign class.
    """
    file = find(path)
    saved = read(file)
    class_path = saved.get("model_class")
    if class_path is None:
        raise ValueError(f"{file}: not a speechzoo checkpoint (it names no model class)")
    arguments = saved["hyper_parameters"]
    check_model(class_path, arguments, file, trust_code, replaced=changes)
    if "init_from" in arguments:
        arguments = {**arguments, "init_from": [_found(stage, file) for stage in arguments["init_from"]]}
    model: SpeechLLM = resolve(class_path)(**{**arguments, **changes})
    model.configure_model()
    check_trained(model, saved)
    check_identity(model, saved, replaced=changes)
    model.load_state_dict(saved["state_dict"], strict=False)
    if "vocoder" in saved:
        vars(model)["vocoder_folder"] = published(saved["vocoder"])  # for whoever makes its units heard
    return model.eval()


def _found(stage: str, file: Path) -> str:
    """Where an earlier stage is: as it was given, else beside the run of `file`, as if both were moved together.

    Another stage of that name does no harm: `check_identity` refuses it.
    """
    given = Path(stage).expanduser()
    beside = file.absolute().parent.parent.joinpath(*given.parts[-2 if given.suffix == ".ckpt" else -1 :])
    return stage if given.exists() or not beside.exists() else str(beside)


def save_pretrained(model: SpeechLLM, path: str | Path, **options: Any) -> Path:
    """Write a model so that `load` gives it back: `speechzoo.interop.pretrained.save_pretrained`, which has the options
    `merge_lora`, `licence` and `push_to_hub`."""
    from speechzoo.interop import pretrained

    return pretrained.save_pretrained(model, path, **options)
