"""All checks together, on a trainer whose model, strategy and data are set up and that has not stepped yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import distributed as dist

from speechzoo.audio import SAMPLE_RATE
from speechzoo.doctor.batches import TrainingData, there_and_back, undisturbed
from speechzoo.doctor.dataset import (
    answers_of,
    check_answers,
    check_clips,
    check_left_out,
    check_padding,
    check_room_for_units,
    check_steps,
)
from speechzoo.doctor.findings import LEVELS, Finding, error, errors, note, settle
from speechzoo.doctor.memory import Memory
from speechzoo.doctor.supervision import check_supervision, check_tokens, check_units
from speechzoo.doctor.weights import (
    check_frames,
    check_gradients,
    check_loss,
    check_new_tokens,
    check_parameters,
    check_precision,
    pretrained_dtype,
)
from speechzoo.models import SpeechLLM
from speechzoo.system.files import write_json
from speechzoo.system.ranks import any_rank, world_size
from speechzoo.types import SpeechBatch


@dataclass
class Examination:
    """Findings of a run, worst last."""

    findings: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return bool(errors(self.findings))

    def __str__(self) -> str:
        count = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        total = ", ".join(f"{number} {level}" for level, number in count.items())
        return "\n".join([*map(str, self.findings), f"doctor: {total}"])

    def write(self, path: str | Path) -> None:
        """As JSON: `{"failed": ..., "findings": [{"level", "name", "text", "advice"}, ...]}`."""
        data = {"failed": self.failed, "findings": [asdict(finding) for finding in self.findings]}
        write_json(path, data)


def examine(trainer: Trainer, model: SpeechLLM, rows: int = 4, ignore: tuple[str, ...] | list[str] = ()) -> Examination:
    """Examine what is about to be trained. All processes call it together and get the same findings.

    Costs one forward and backward pass over a few conversations. Weights, gradients, random numbers and the order of
    the data are afterwards as before.

    Args:
        rows: conversations to look at and to pass through the model.
        ignore: names of checks whose findings are not to count.

    Raises:
        ValueError: if `ignore` names no check.
    """
    found = [*check_parameters(model), *check_new_tokens(model.llm), *_settings(trainer, model)]
    data = TrainingData.of(trainer)
    if data is None:
        found.append(note("data", "the training loader is not SpeechDataModule's: no batch was looked at"))
    else:
        found += _whole_data(trainer, model, data)
        numbers = data.telling(rows)
        answers = [answers_of(data.dataset, number) for number in numbers]
        batch = None
        try:
            batch = data.batch(numbers)
        except (ValueError, OSError) as fault:
            found.append(error("data", f"a batch cannot be made: {fault}", "mend or leave out the record"))
        # Together or not at all: a file may be missing on one machine alone, and to look at gradients is collective.
        missing = any_rank(batch is None, trainer.strategy.root_device)
        if batch is not None and not missing:
            found += look_at(trainer, model, batch, answers)
    found = sorted(_together(found), key=lambda finding: LEVELS.index(finding.level))
    return Examination(settle(found, ignore))


def look_at(
    trainer: Trainer, model: SpeechLLM, batch: SpeechBatch, answers: list[list[str]] | None = None
) -> list[Finding]:
    """The checks of one batch: what it teaches, and one pass forward and back.

    Args:
        answers: texts of each row's assistant turns, see `check_supervision`.
    """
    vocabulary = _vocabulary(model)
    found = check_supervision(batch, model.prompt, answers) + check_tokens(batch, model.prompt, vocabulary)
    found += check_units(batch, model.num_units)
    if any(finding.name in ("vocabulary", "unit_range") for finding in errors(found)):
        return found  # a pass would fail on a GPU with a message about an index, and leave it unusable
    gave: list[list[int]] = []
    hook = model.adaptor.register_forward_hook(lambda part, inputs, output: gave.append(output[1].tolist()))
    try:
        with undisturbed(model):
            try:
                out = there_and_back(trainer, model, batch)
            except ValueError as fault:
                return [*found, error("forward", str(fault), "the model refuses its own data")]
            promised = None if batch.audio_lens is None else model.audio_positions(batch.audio_lens).tolist()
            clips = promised is not None or batch.feature_lens is not None
            found += check_frames(batch, out, gave[0] if gave and clips else [] if gave else None, promised)
            found += check_loss(out) + check_gradients(model)
    finally:
        hook.remove()
    return found


def _settings(trainer: Trainer, model: SpeechLLM) -> list[Finding]:
    spec: Any = model.specs["llm"]
    name = spec.get("init_args", {}).get("model") if isinstance(spec, dict) else None
    half = str(trainer.precision).startswith("16")
    precision = check_precision(str(trainer.precision), pretrained_dtype(name) if half else None)
    return [*precision, *Memory.of(trainer, model).check()]


def _whole_data(trainer: Trainer, model: SpeechLLM, data: TrainingData) -> list[Finding]:
    dataset, config = data.dataset, getattr(getattr(model.llm, "lm", None), "config", None)
    found = check_padding(data.sampler, dataset.lengths)
    found += check_left_out(dataset, getattr(config, "max_position_embeddings", None))
    found += check_answers(dataset)
    samples = dataset.records.all_samples()
    if len(samples):
        limit = getattr(getattr(trainer, "datamodule", None), "max_seconds", 0.0)
        found += check_clips(limit, float(samples.max()) / SAMPLE_RATE)
    if model.num_units is not None:
        found += check_room_for_units(dataset, getattr(model, "unit_decoder", None))
        if not dataset.examples.spoken.any():
            found.append(note("units", "no answer of data.train has units: the unit decoder learns nothing"))
    return found + check_steps(len(data.sampler), trainer.strategy.root_device)


def _vocabulary(model: SpeechLLM) -> int | None:
    lm = getattr(model.llm, "lm", None)
    return None if lm is None else int(lm.get_input_embeddings().weight.shape[0])


def _together(found: list[Finding]) -> list[Finding]:
    """The findings of all processes."""
    if world_size() == 1:
        return found
    gathered: list[list[Finding]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, found)
    seen = gathered[0]
    for rank, others in enumerate(gathered[1:], start=1):
        seen += [Finding(f.level, f.name, f"rank {rank}: {f.text}", f.advice) for f in errors(others) if f not in seen]
    return seen
