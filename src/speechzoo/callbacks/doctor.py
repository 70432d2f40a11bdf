"""The doctor's examination before the first step of a run."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from speechzoo.doctor import Examination, errors, examine
from speechzoo.models import SpeechLLM


class Examined(Exception):
    """Ends a fit that was asked for the examination alone."""

    def __init__(self, examination: Examination) -> None:
        super().__init__("examined")
        self.examination = examination


class Doctor(Callback):
    """Looks at model, data and settings before the first step, and stops a run that would be worthless.

    Part of every `speechzoo fit` (`--doctor.enabled false` leaves it out); see `speechzoo.doctor` for the checks. It
    costs one pass forward and back over a few conversations and leaves weights, random numbers and data order as they
    were. Prints warnings and errors; with `verbose` also what is supervised and what is in order.

    Args:
        enabled: whether to examine at all.
        rows: conversations to look at.
        ignore: names of checks whose errors do not stop the run.
        json: file for all findings; None writes none.
        verbose: print all findings.
        only: end the fit with `Examined` after the examination.
    """

    def __init__(
        self,
        enabled: bool = True,
        rows: int = 4,
        ignore: list[str] | None = None,
        json: str | None = None,
        verbose: bool = False,
        only: bool = False,
    ) -> None:
        if rows < 1:
            raise ValueError(f"doctor.rows is at least 1, got {rows}")
        self.enabled, self.rows, self.ignore, self.json = enabled or only, rows, list(ignore or []), json
        self.verbose, self.only = verbose or only, only

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Examine.

        Raises:
            ValueError: with all errors found, on every process.
        """
        if not self.enabled or not isinstance(pl_module, SpeechLLM):
            if self.only:
                raise ValueError(f"the doctor knows speech LLMs, not a {type(pl_module).__name__}")
            return
        examination = examine(trainer, pl_module, self.rows, self.ignore)
        if trainer.is_global_zero:
            if self.json is not None:
                examination.write(self.json)
            if self.verbose:
                print(examination, flush=True)
            else:
                for finding in examination.findings:
                    if finding.level in ("warning", "error"):
                        print(f"doctor: {finding}", flush=True)
        if self.only:
            raise Examined(examination)
        if found := errors(examination.findings):
            lines = "\n".join(f"  {finding}" for finding in found)
            raise ValueError(
                f"the doctor found what would make this run worthless (doctor.ignore passes a check, --doctor.enabled "
                f"false all of them):\n{lines}"
            )
