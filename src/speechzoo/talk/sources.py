"""Models to talk to: by run folder, checkpoint, saved form, hub name, or as a cascade; and what makes their sound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechzoo.generation import stream
from speechzoo.generation.events import Voice
from speechzoo.interop.hub import load
from speechzoo.llms import HFCausalLM
from speechzoo.models import Cascade, SpeechLLM
from speechzoo.names.published import is_name
from speechzoo.names.resolvers import register_resolvers
from speechzoo.names.spec import to_factory
from speechzoo.names.trust import check_parts
from speechzoo.system.cpu import fast_bfloat16, host_bytes
from speechzoo.text import ChatPrompt, Message
from speechzoo.training.published import is_published
from speechzoo.types import StreamEvents
from speechzoo.vocoders import VOCODER_FOLDERS, Vocoder, open_vocoder

CASCADE = "cascade:"
KEYS = ("recognizer", "language", "llm", "prompt", "voice")


@dataclass
class Talker:
    """A model that answers, and what makes the sound of its answers.

    Attributes:
        name: what users see.
        sound: options of `model.stream`: `vocoder`, or a cascade's `voice`; empty for one that only writes.
    """

    name: str
    model: SpeechLLM | Cascade
    sound: dict[str, Any] = field(default_factory=dict)

    @property
    def sounds(self) -> bool:
        """Whether its answers can be heard."""
        return bool(self.sound)

    def stream(self, messages: Sequence[Message], chunk_units: int | None = None, **generate: Any) -> StreamEvents:
        """Answer a conversation in events.

        Args:
            chunk_units: units the vocoder waits for; nothing to a voice.
            generate: see `Decoding`.

        Raises:
            ValueError, FileNotFoundError: see `speechzoo.generation.stream`.
        """
        options = {**self.sound, **generate}
        if chunk_units is not None and "vocoder" in self.sound:
            options["chunk_units"] = chunk_units
        return stream(self.model, messages, **options)

    def missing_sound(self) -> str:
        """Why there is no sound and what to give, in one line."""
        units = getattr(self.model, "num_units", None)
        if units:
            wanted = f"give --vocoder, {VOCODER_FOLDERS}{self._beside()}"
            return f"{self.name} speaks {units} units, which need a vocoder: {wanted}"
        kind = type(self.model).__name__
        if isinstance(self.model, Cascade):
            return f"{self.name} is a {kind} without a voice: name one as `voice` in its description"
        return f"{self.name} is a {kind}, which writes and does not speak: ask a LLaMAOmni or a cascade with a voice"

    def _beside(self) -> str:
        found = Path(self.name).expanduser().parent / "vocoder"
        return f"; there is {found}" if (found / "config.json").is_file() else ""


def open_talker(
    source: str,
    vocoder: str | Path | None = None,
    device: str | torch.device | None = None,
    trust_code: bool = False,
) -> Talker:
    """A model by its description, in eval mode.

    Args:
        source: whatever `speechzoo.load` reads; `cascade:RUN`, Whisper before the LLM of a model of ours; or a YAML or
            JSON file that describes a cascade (see `open_cascade`).
        vocoder: folder of a vocoder; default: that of a published model, or inside a saved form, if there is one.
        device: default: the first GPU if there is one, else the CPU.
        trust_code: also take classes that are not speechzoo's own; they are printed.

    Raises:
        FileNotFoundError, ValueError: one line each, if something is not there, or does not fit.
    """
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device {str(device)!r}: there are cpu, cuda, cuda:1 and so on") from error
    talker = Talker(source, *_open(source, trust_code))
    if isinstance(talker.model, Cascade):
        if vocoder is not None:
            raise ValueError(f"{source}: a cascade makes sound by its voice, it has no units for --vocoder")
    else:
        inside = Path(getattr(talker.model, "saved_in", None) or source).expanduser() / "vocoder"
        folder = vocoder or getattr(talker.model, "vocoder_folder", None) or (inside if inside.is_dir() else None)
        if folder is not None:
            talker.sound["vocoder"] = fitting(open_vocoder(folder), talker.model, folder).to(device)
    if device.type == "cpu" and isinstance(talker.model.llm, HFCausalLM):
        _hasten(talker.model.llm)
    talker.model.to(device).eval()
    return talker


def _hasten(llm: HFCausalLM) -> None:
    """Merge LoRA, and leave bfloat16 where this CPU is slow at it, if there is room for the copy that this makes."""
    weights = list(llm.lm.parameters())
    narrow = any(weight.dtype == torch.bfloat16 for weight in weights)
    dtype = torch.bfloat16 if narrow and fast_bfloat16() else torch.float32
    done = all(weight.dtype == dtype for weight in weights) and not hasattr(llm.lm, "peft_config")
    if not done and 4 * sum(weight.numel() for weight in weights) < host_bytes() / 2:
        llm.merge(dtype)


def fitting(vocoder: Vocoder, model: Any, folder: str | Path) -> Vocoder:
    """The vocoder, if it is for the model's units.

    Raises:
        ValueError: if it is not.
    """
    units = getattr(model, "num_units", None)
    if units is None:
        raise ValueError(f"{folder}: this {type(model).__name__} speaks no units, so a vocoder has nothing to do")
    if vocoder.num_units != units:
        raise ValueError(
            f"{folder}: knows {vocoder.num_units} units, the model speaks {units}: take the vocoder of its units"
        )
    return vocoder


def open_cascade(settings: dict[str, Any], where: str, trust_code: bool = False) -> tuple[Cascade, dict[str, Any]]:
    """A cascade and its sound.

    Args:
        settings: `recognizer` (Whisper's name, file or folder), `language` (of the speech, default en), `llm` (a run or
            saved form whose LLM and prompt are taken; a folder or hub name of a Hugging Face model; or
            `{class_path, init_args}`), `prompt` (arguments of `ChatPrompt`, where the LLM is none of ours), `voice`
            (`piper-joe`, the quickstart's, or `{class_path, init_args}`).
        where: what messages call it.
        trust_code: also take an `llm` or a `voice` of classes that are not speechzoo's own.

    Raises:
        ValueError: if a key is unknown or missing, or names a foreign class: a description may lie in a folder that
            was downloaded, so it is trusted no more than what comes with weights.
    """
    if unknown := sorted(set(settings) - set(KEYS)):
        raise ValueError(f"{where}: a cascade has no {unknown[0]!r}; there are {', '.join(KEYS)}")
    if missing := [key for key in ("recognizer", "llm") if not settings.get(key)]:
        raise ValueError(f"{where}: names no {missing[0]}")
    language = "en" if settings.get("language") is None else settings["language"]
    if not isinstance(language, str):
        raise ValueError(
            f"{where}: language is a code such as 'en', not {language!r}; YAML reads no as false: quote it"
        )
    llm, prompt, generation = settings["llm"], settings.get("prompt"), None
    named = {key: settings[key] for key in ("llm", "voice") if isinstance(settings.get(key), dict)}
    check_parts(named, where, trust_code)
    if isinstance(llm, str) and _is_ours(llm):
        if prompt is not None:
            raise ValueError(f"{where}: `prompt` is that of {llm}; leave it out")
        owner = load(llm, trust_code)
        llm, chat, generation = owner.llm, owner.prompt, getattr(owner, "generation", None)
    else:
        tokenizer = llm if isinstance(llm, str) else (llm.get("init_args") or {}).get("model")
        chat = ChatPrompt(**{"tokenizer": tokenizer, **(prompt or {})})
        if isinstance(llm, str):
            llm = {"class_path": "speechzoo.llms.HFCausalLM", "init_args": {"model": llm}}
        llm = to_factory(llm)(chat.new_tokens)
    cascade = Cascade(settings["recognizer"], llm, chat, language, generation)
    return cascade, {"voice": _voice(settings["voice"])} if settings.get("voice") else {}


def _open(source: str, trust_code: bool) -> tuple[SpeechLLM | Cascade, dict[str, Any]]:
    if source.startswith(CASCADE):
        run = source[len(CASCADE) :]
        owner = load(run, trust_code)
        whisper = getattr(owner, "specs", {}).get("encoder", {}).get("init_args", {}).get("model")
        if not whisper:
            raise ValueError(f"{source}: the encoder of {run} is no Whisper; describe the cascade in a YAML file")
        return Cascade(str(whisper), owner.llm, owner.prompt, generation=owner.generation), {}
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        return open_cascade(_read(path), source, trust_code)
    return load(source, trust_code), {}


def _read(path: Path) -> dict[str, Any]:
    """A description with `${part:NAME}` (the quickstart's small parts) and environment variables filled in."""
    register_resolvers()
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}, not the description of a cascade")
    return found


def _is_ours(source: str) -> bool:
    """A run folder, a checkpoint of ours, a saved or a published form, as opposed to a model of transformers."""
    from speechzoo.interop.saved import is_saved

    path = Path(source).expanduser()
    return (
        is_name(source)
        or path.suffix == ".ckpt"
        or (path / "last.ckpt").exists()
        or (path.is_dir() and (is_saved(path) or is_published(path)))
    )


def _voice(spec: Any) -> PerThread:
    if not isinstance(spec, str):
        return PerThread(to_factory(spec))
    if spec != "piper-joe":
        raise ValueError(f"voice {spec!r}: there is piper-joe; name others as {{class_path, init_args}}")

    def make() -> Any:
        from speechzoo.quickstart.voice import PiperVoice

        return PiperVoice.joe()

    return PerThread(make)


class PerThread:
    """A voice for several threads: each has one of its own, as the lexicon's database connection demands.

    Args:
        make: makes the voice.
    """

    def __init__(self, make: Callable[[], Voice]) -> None:
        self.make, self.held = make, threading.local()
        self.sample_rate: int = self._own().sample_rate

    def speak(self, text: str) -> Any:
        """Samples `[T]` in [-1, 1]."""
        return self._own().speak(text)

    def _own(self) -> Voice:
        if not hasattr(self.held, "voice"):
            self.held.voice = self.make()
        voice: Voice = self.held.voice
        return voice
