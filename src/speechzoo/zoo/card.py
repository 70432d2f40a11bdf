"""Model cards as the Hugging Face hub reads them: a YAML header with results in model-index form, then the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

USE = {
    "": """```bash
speechzoo ask {name} question.wav                        # put a question to it
speechzoo fit --config RECIPE --model.init_args.init_from=[{name}]   # train on from it
```
```python
import speechzoo
model = speechzoo.load("{name}")
```""",
    "LatentVocoder": """```bash
speechzoo ask MODEL question.wav --vocoder {name} --out answer.wav
```
`kmeans.safetensors` holds the centroids of its units, for `speechzoo.units.KMeansUnits.load`.""",
}


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        metric: its name, as `wer`.
        value, low, high: with its 95 % interval where there is one; rates are fractions.
        data: what it was measured on.
        command: that measured it.
    """

    metric: str
    value: float
    data: str
    command: str
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data, without what is not known."""
        return {key: value for key, value in vars(self).items() if value is not None}

    @property
    def text(self) -> str:
        """Value and interval in words."""
        form = ".2f" if "MOS" in self.metric else ".1%"
        between = f" [{self.low:{form}}, {self.high:{form}}]" if self.low is not None and self.high is not None else ""
        return f"{self.value:{form}}{between}"


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        about: one sentence.
        recipe: how it was trained, as a command or path in `recipes/`.
        cost: of the training.
        records: files of the run that go with the model: its answers and summary, for `speechzoo compare`.
        text: further sections, in Markdown.
        parts: parts besides those that the configuration names.
        base_models: hub names of the models it stands on.
        datasets: names of the training data.
    """

    about: str
    recipe: str
    cost: str
    text: str = ""
    results: Sequence[Result] = ()
    licence: str = "apache-2.0"
    parts: Sequence[str] = ()
    records: Sequence[Path] = ()
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    tags: Sequence[str] = field(default=("speech", "speech-llm"))


def card(name: str, architecture: str, facts: Facts) -> str:
    """A model card."""
    header: dict[str, Any] = {
        "license": facts.licence,
        "language": "en",
        "library_name": "speechzoo",
        "base_model": list(facts.base_models),
        "datasets": list(facts.datasets),
        "metrics": sorted({result.metric for result in facts.results}),
        "tags": [*facts.tags, architecture.lower()],
        "model-index": [{"name": name, "results": [_index(result) for result in facts.results]}],
    }
    header = {key: value for key, value in header.items() if value not in ([], None)}
    if not facts.results:
        header.pop("model-index")
    rows = [f"| {r.metric} | {r.text} | {r.data} | `{r.command}` |" for r in facts.results]
    table = ["| measure | value, 95 % interval | on | measured by |", "|---|---|---|---|", *rows]
    sections = {
        "Use": USE["LatentVocoder" if architecture == "LatentVocoder" else ""].format(name=name),
        "Results": "\n".join(table) if rows else "Not measured.",
        "Training": f"`{facts.recipe}`\n\n{facts.cost}",
    }
    body = "\n\n".join([*(f"## {title}\n\n{text}" for title, text in sections.items()), facts.text]).strip()
    head = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n# {name}\n\n{facts.about} Architecture: `{architecture}`.\n\n{body}\n"


def check_card(path: Path) -> None:
    """Refuse a card that the hub would not understand.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    text = path.read_text(encoding="utf-8")
    parts = text.split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise ValueError(f"{path}: no YAML header between two lines of ---")
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: its header is not YAML ({str(error).splitlines()[0]})") from error
    missing = [key for key in ("license", "library_name") if not isinstance(header, dict) or key not in header]
    if missing:
        raise ValueError(f"{path}: its header names no {missing[0]}")
    from huggingface_hub import ModelCardData

    try:
        data: Any = ModelCardData  # comes without types
        data(**{key.replace("-", "_"): value for key, value in header.items() if key != "model-index"})
        for model in header.get("model-index", []):
            for result in model["results"]:
                float(result["metrics"][0]["value"])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: the hub would not read its header ({error})") from error


def _index(result: Result) -> dict[str, Any]:
    return {
        "task": {"type": "automatic-speech-recognition" if "copy" in result.data else "question-answering"},
        "dataset": {"name": result.data, "type": "speechzoo-quickstart"},
        "metrics": [{"type": result.metric, "value": round(result.value, 4), "name": result.metric}],
    }
