"""Model cards as the Hugging Face hub reads them: a YAML header with results in model-index form, then the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

TAGS = ("speech", "speech-llm")
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
        results: what was measured.
        licence, task: their identifiers on the hub.
        recipe: how it was trained, as a command or path in `recipes/`.
        cost: of the training.
        answers: a file of the run that goes with the model, for `speechzoo compare`.
        text: further sections, in Markdown.
        datasets: names of the training data.
    """

    about: str
    recipe: str
    cost: str
    text: str = ""
    results: Sequence[Result] = ()
    licence: str = "apache-2.0"
    task: str = "question-answering"
    answers: Path | None = None
    datasets: Sequence[str] = ()


def card(name: str, architecture: str, facts: Facts, base_models: Sequence[str]) -> str:
    """A model card.

    Args:
        base_models: hub names of the models it stands on.
    """
    from huggingface_hub import EvalResult, ModelCardData

    made: Any = ModelCardData  # comes without types
    header = made(
        license=facts.licence,
        language="en",
        library_name="speechzoo",
        base_model=list(base_models) or None,
        datasets=list(facts.datasets) or None,
        metrics=sorted({result.metric for result in facts.results}) or None,
        tags=[*TAGS, architecture.lower()],
        model_name=name,
        eval_results=[
            cast(Any, EvalResult)(
                task_type=facts.task,
                dataset_type=next(iter(facts.datasets), "custom"),
                dataset_name=result.data,
                metric_type=result.metric,
                metric_value=result.value,
                metric_name=result.metric,
            )
            for result in facts.results
        ]
        or None,
    )
    rows = [f"| {r.metric} | {r.text} | {r.data} | `{r.command}` |" for r in facts.results]
    table = ["| measure | value, 95 % interval | on | measured by |", "|---|---|---|---|", *rows]
    sections = {
        "Use": USE["LatentVocoder" if architecture == "LatentVocoder" else ""].format(name=name),
        "Results": "\n".join(table) if rows else "Not measured.",
        "Training": f"`{facts.recipe}`\n\n{facts.cost}",
    }
    body = "\n\n".join([*(f"## {title}\n\n{text}" for title, text in sections.items()), facts.text]).strip()
    about = f"{facts.about} Architecture: `{architecture}`."
    return f"---\n{header.to_yaml()}\n---\n\n# {name}\n\n{about}\n\n{body}\n"


def check_card(path: Path) -> None:
    """Refuse a card that the hub would not understand.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    from huggingface_hub import ModelCard

    try:
        header = cast(Any, ModelCard)(path.read_text(encoding="utf-8")).data.to_dict()
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: its header is not YAML ({str(error).splitlines()[0]})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the hub would not read its header ({error})") from error
    for key in ("license", "library_name"):
        if key not in header:
            raise ValueError(f"{path}: its header, between two lines of ---, names no {key}")
