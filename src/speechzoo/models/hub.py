"""`save_pretrained`, `from_pretrained` and `push_to_hub`, with the names and arguments of huggingface_hub's mixin.

Its own `ModelHubMixin` keeps constructor arguments as JSON; ours are factories of parts, so the same three methods
stand on speechzoo's forms. What they do lives above the models, in `speechzoo.interop`, and is looked up by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from speechzoo.names.spec import resolve

if TYPE_CHECKING:
    from speechzoo.models.base import SpeechLLM

_Model = TypeVar("_Model", bound="Hub")


class Hub:
    """Models that come from the Hugging Face hub and go there."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> Path:
        """Write a self-contained folder, which `from_pretrained` reads.

        Args:
            save_directory: new folder.
            options: see `speechzoo.save_pretrained`: `merge_lora`, `licence`, `push_to_hub` (a hub name).
        """
        write = resolve("speechzoo.interop.pretrained.save_pretrained")
        return cast(Path, write(self, save_directory, **options))

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        trust_code: bool = False,
        **changes: Any,
    ) -> _Model:
        """A model by a name of `speechzoo list`, a hub name (`org/name`), or a folder, in eval mode on the CPU.

        Args:
            revision, token, cache_dir, force_download, local_files_only: as in transformers, for a hub name.
            trust_code: see `speechzoo.load`.
            changes: constructor arguments to replace.

        Raises:
            FileNotFoundError: there is no such model, or it cannot be had (offline, no network); one line.
            ValueError: it is of another class than this one, or see `speechzoo.load`.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "force_download": force_download}
        load = resolve("speechzoo.interop.hub.load")
        wanted = {**hub, "local_files_only": local_files_only}
        model = load(pretrained_model_name_or_path, trust_code, hub=wanted, **changes)
        if not isinstance(model, cls):
            raise ValueError(f"{pretrained_model_name_or_path}: a {type(model).__name__}, not a {cls.__name__}")
        return model

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model's self-contained form; returns the address of the commit.

        Args:
            repo_id: `org/name`, made if it is not there.
            options: `token`, `private`, `revision`, `commit_message`, `create_pr` of huggingface_hub; `merge_lora`,
                `licence` of `save_pretrained`.
        """
        push = resolve("speechzoo.interop.pretrained.push_to_hub")
        return cast(str, push(cast("SpeechLLM", self), repo_id, **options))
