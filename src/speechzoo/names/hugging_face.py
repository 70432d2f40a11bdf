"""Models by Hugging Face name: whether they are to be had, found out in seconds and said in one line."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
PATIENCE = 10.0  # seconds for the hub's answer; transformers tries for more than a minute


@cache
def hub_options(name: str) -> dict[str, Any]:
    """Options for `from_pretrained(name)`: none, or `local_files_only` where the hub is silent and the cache has it.

    Args:
        name: a folder, or a name at the hub.

    Raises:
        FileNotFoundError: if it is neither a folder nor cached nor to be had from the hub.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(name).is_dir():
        return {}
    try:
        cached = any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)
        if constants.HF_HUB_OFFLINE and cached:
            return {}
        reason = "HF_HUB_OFFLINE is set"
        if not constants.HF_HUB_OFFLINE:
            HfApi().model_info(name, timeout=PATIENCE)
            return {}
    except HFValidationError as error:
        raise FileNotFoundError(f"{name}: no such folder, and no name of a model at {constants.ENDPOINT}") from error
    except HfHubHTTPError as error:
        if cached:
            return {"local_files_only": True}
        said = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{name}: no such folder, and {constants.ENDPOINT} does not give it ({said}): mend the name, or log in by "
            "`hf auth login` if its owner has to let you in"
        ) from error
    except Exception as error:  # the libraries below have errors of their own for a network that is not there
        if cached:
            return {"local_files_only": True}
        reason = f"{constants.ENDPOINT} cannot be reached: {str(error).strip().splitlines()[0]}"
    raise FileNotFoundError(
        f"{name}: no such folder, not in the cache {constants.HF_HUB_CACHE}, and {reason}; give a local folder, or "
        f"fetch it where there is a network (hf download {name}) and set HF_HOME to that cache"
    )
