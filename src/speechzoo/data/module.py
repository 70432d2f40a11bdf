"""The LightningDataModule: from paths in a config to batches for the model that is being trained."""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Sampler

from speechzoo.audio import MAX_SECONDS
from speechzoo.data.collate import Side, collate
from speechzoo.data.dataset import ConversationDataset
from speechzoo.data.filling import features, fill, fingerprint, lacking
from speechzoo.data.manifest import ManifestError, Problem, Records, check_for_model, scan, settle
from speechzoo.data.paths import named, together
from speechzoo.data.sampler import SPREAD, EvalSampler, TokenBudgetSampler
from speechzoo.data.sources import resolve
from speechzoo.data.states import StateCache, TeacherCache
from speechzoo.data.window import SpeechLoader, WindowLoader, with_windows
from speechzoo.names.spec import at_least
from speechzoo.parts.registry import cache_folder
from speechzoo.system.ranks import same_everywhere

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class SpeechDataModule(LightningDataModule):
    """Conversations from manifests and shards, fitted to whatever model the Trainer runs.

    A manifest is a JSONL file (see `speechzoo.data.manifest`), a Parquet or tar shard, a pattern of any of them
    (`shards/*.tar`), a folder of shards, or `hf:NAME[:SPLIT]` (see `speechzoo.data.sources`); lists may mix them.

    Manifests are read and checked before any weight is loaded. What depends on the model (template, positions of a
    clip, number of units) is taken from it when its loaders are asked for: `model.prompt`, `model.audio_positions`,
    `model.num_units`, `model.encoder`, `model.encoder_is_frozen`, `model.reads` (see `Learning`).

    Args:
        train: manifest or manifests to learn from, taken together.
        val, test: manifests to evaluate on, each on its own; a mapping gives them names, else the file names do.
        predict: manifest or manifests to answer, taken together, in order.
        batch_size: most conversations of a batch.
        max_tokens: most LLM positions of a batch, rows times longest; None for no limit.
        bucket_by: what is similar in a training batch: all its "positions" (least padding), or those of its "audio"
            alone.
        bucket_spread: longest over shortest of a training batch. Narrow buckets waste little on padding; where there
            are few records they also put records that are alike in one batch, and learning suffers.
        num_workers: processes that read sound.
        seed: of the order of the training data.
        padding_side: of training and evaluation batches; prediction pads on the left.
        on_bad: "raise" refuses manifests with bad records, "skip" leaves those out and lists them in the run folder.
        feature_cache: folder for the states of a frozen encoder, computed once; shared by all processes.
        state_cache: folder for the LLM states that a unit decoder learns from, where all before it is frozen: computed
            once, then encoder and LLM run no more. Validation then reports no LM loss, which cannot change.
        teacher_cache: folder for the states of a frozen LLM that reads transcripts, for models that learn to hear from
            them: computed once, then the LLM only listens. Losses stay the same.
        max_seconds: longest clip, in seconds.
        pin_memory: keep batches in page-locked memory (with GPUs).
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | dict[str, str] | None = None,
        test: str | list[str] | dict[str, str] | None = None,
        predict: str | list[str] | None = None,
        batch_size: int = 8,
        max_tokens: int | None = None,
        bucket_by: Literal["positions", "audio"] = "positions",
        bucket_spread: float = SPREAD,
        num_workers: int = 0,
        seed: int = 0,
        padding_side: Literal["left", "right"] = "right",
        on_bad: Literal["raise", "skip"] = "raise",
        feature_cache: str | None = None,
        state_cache: str | None = None,
        teacher_cache: str | None = None,
        max_seconds: float = MAX_SECONDS,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if bucket_by not in ("positions", "audio"):
            raise ValueError(f"data.bucket_by is positions or audio, not {bucket_by!r}")
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"data.on_bad is raise or skip, not {on_bad!r}")
        at_least(1, "data", batch_size=batch_size, max_tokens=max_tokens)
        at_least(0, "data", num_workers=num_workers, seed=seed)
        if not bucket_spread >= 1:  # infinity puts all into one bucket
            raise ValueError(f"data.bucket_spread has to be at least 1, not {bucket_spread}")
        if bucket_by == "audio" and max_tokens is not None:
            raise ValueError("data.max_tokens counts all positions: it goes with data.bucket_by=positions")
        self.bucket_by, self.bucket_spread = bucket_by, bucket_spread
        self.paths = {
            "train": together("train", train),
            "val": named("val", val),
            "test": named("test", test),
            "predict": together("predict", predict),
        }
        self.batch_size, self.max_tokens, self.num_workers, self.seed = batch_size, max_tokens, num_workers, seed
        self.padding_side, self.on_bad, self.feature_cache = padding_side, on_bad, feature_cache
        self.max_seconds, self.pin_memory = max_seconds, pin_memory
        self.state_cache, self.teacher_cache = state_cache, teacher_cache
        self._fingerprints: dict[str, str] = {}  # of the model's frozen parts, by the option that needs it
        self.records: dict[str, dict[str, Records]] = {}
        self._order: dict[str, int] = {}  # of the training data now, and of the run that is continued
        self._order_before: dict[str, int] = {}

    @property
    def val_names(self) -> list[str]:
        """Names of the validation loaders, in their order."""
        return list(self.paths["val"])

    @property
    def test_names(self) -> list[str]:
        """Names of the test loaders, in their order."""
        return list(self.paths["test"])

    def prepare_data(self) -> None:
        """Decode all sound once per machine; the other processes then find the results."""
        trainer = self._trainer()
        if trainer.world_size > 1:
            with suppress(FileNotFoundError):  # `setup` raises it, on all ranks
                for split in SPLITS[trainer.state.fn.value]:
                    for files in self.paths[split].values():
                        scan(files, split != "predict", self.max_seconds, _memory())

    def setup(self, stage: str) -> None:
        """Read and check the manifests that the stage needs.

        Raises:
            FileNotFoundError: if a manifest is not there.
            ManifestError: with every bad record of all of them, unless `on_bad` is "skip".
        """
        self._fingerprints.clear()  # it may be another model than the last time
        found: dict[tuple[str, str], tuple[Records, list[Problem]]] = {}
        for split in SPLITS[stage]:
            if split in self.records:
                continue
            if not self.paths[split] and not (stage == "fit" and split == "val"):
                raise ValueError(f"data.{split} is not set: give it the path of a manifest")
            for name, files in self._files(split).items():
                records, problems = scan(files, split != "predict", self.max_seconds, _memory())
                num_units = getattr(self._trainer().lightning_module, "num_units", None)
                found[split, name] = records, problems + check_for_model(records, num_units, None)
            self.records.setdefault(split, {})
        problems = [problem for _, some in found.values() for problem in some]
        if problems and self.on_bad == "raise":
            self.records.clear()
            raise ManifestError(problems)
        for (split, name), (records, some) in found.items():
            self.records[split][name] = settle(records, some, self.on_bad, self._report(split, name, "manifest"))

    def train_dataloader(self) -> WindowLoader:
        """Endless length-bucketed batches with `batch.window`, continued exactly after a resume."""
        dataset = self._dataset("train", "train")
        model: Any = self._trainer().lightning_module
        wanted = getattr(model, "loss_weights", {}).get(getattr(model, "unit_loss", None), 1.0) != 0
        if dataset.num_units is not None and wanted and not dataset.examples.spoken.any():
            rank_zero_warn("the model speaks units, but no answer of data.train has any: nothing is learned for them")
        lengths = dataset.lengths if self.bucket_by == "positions" else dataset.audio_lengths
        sampler = TokenBudgetSampler(
            lengths, self.batch_size, self.max_tokens, self.seed, *self._rank(), self._batches_done, self.bucket_spread
        )
        self._order = sampler.order
        self._compare_orders()
        loader = self._loader(dataset, sampler, self.padding_side)
        count = self._trainer().lightning_module.num_targets
        return with_windows(loader, count, lambda: self._trainer().accumulate_grad_batches, self._progress)

    def val_dataloader(self) -> list[SpeechLoader]:
        """One loader per validation manifest; rows with an empty id are fillers (see `EvalSampler`)."""
        return [self._eval_loader("val", name, self.padding_side) for name in self.val_names]

    def test_dataloader(self) -> list[SpeechLoader]:
        """One loader per test manifest; rows with an empty id are fillers (see `EvalSampler`)."""
        return [self._eval_loader("test", name, self.padding_side) for name in self.test_names]

    def predict_dataloader(self) -> SpeechLoader:
        """Questions in their order, padded on the left; rows with an empty id are fillers (see `EvalSampler`)."""
        return self._eval_loader("predict", "predict", "left")

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._order_before = state_dict["order"]
        self._compare_orders()

    def _compare_orders(self) -> None:
        """Called when either is known last: strategies differ in whether they restore before or after the loaders."""
        before, now = self._order_before, self._order
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before and before.get(key) != now[key]]
        if changed:
            rank_zero_warn(f"the training data cannot go on in the order of the checkpoint: {', '.join(changed)}")

    def _eval_loader(self, split: str, name: str, side: Side) -> SpeechLoader:
        dataset = self._dataset(split, name)
        in_order = split == "predict"
        sampler = EvalSampler(dataset.lengths, self.batch_size, self.max_tokens, *self._rank(), keep_order=in_order)
        return SpeechLoader(self._loader(dataset, sampler, side))

    def _loader(self, dataset: ConversationDataset, sampler: Sampler[list[int]], side: Side) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=partial(collate, pad_id=self._trainer().lightning_module.prompt.pad_id, padding_side=side),
            pin_memory=self.pin_memory,
            worker_init_fn=_outlive_sigterm,
            # Of its own: else each new iterator draws from the global one, and a resumed run would draw once more.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _dataset(self, split: str, name: str) -> ConversationDataset:
        model: Any = self._trainer().lightning_module
        records = self.records[split][name]
        dataset = ConversationDataset(
            records,
            model.prompt,
            model.audio_positions,
            num_units=model.num_units,
            answer=split != "predict",
            on_bad=self.on_bad,
            report=self._report(split, name, "model"),
            written=split != "predict" and getattr(model, "reads", False),
        )
        if not same_everywhere(dataset.digest):
            raise ValueError(
                f"data.{split}: the processes do not read the same records, so some come twice and others never: "
                "give every machine the same files (on_bad=skip leaves out what one process alone cannot read)"
            )
        trainer = self._trainer()
        states: StateCache | None = None
        missing: list[int] = []
        if self.state_cache is not None and split != "predict":
            source = "cached encoder states" if self.feature_cache is not None else "sound"
            whom = "with a unit decoder"
            states = StateCache(self.state_cache, self._known("state_cache", "states_fingerprint", whom, source))
            missing = lacking(trainer, states, dataset.examples)
        # Sound is still wanted where the model may be asked to answer: callbacks do so with validation questions.
        dataset.speech = states is None or split != "train" or bool(missing)
        if self.feature_cache is not None and dataset.speech:
            dataset.features = features(trainer, self.feature_cache, dataset)
        if states is not None:
            fill(trainer, states, dataset.examples, missing, dataset.__getitem__, model.frozen_states)
            dataset.states, dataset.speech = states, split != "train"
        if self.teacher_cache is not None and split != "predict":
            whom = "that learn from what their LLM makes of transcripts"
            known = self._known("teacher_cache", "teacher_fingerprint", whom, "transcripts")
            teacher = TeacherCache(self.teacher_cache, known)
            missing = lacking(trainer, teacher, dataset.examples)
            fill(trainer, teacher, dataset.examples, missing, dataset.as_text, model.teacher_states)
            dataset.teacher = teacher
        return dataset

    def _known(self, option: str, method: str, whom: str, source: str) -> str:
        """What a cache knows the model by; it is asked once, as it takes reading all weights of the frozen parts."""
        if option not in self._fingerprints:
            self._fingerprints[option] = fingerprint(self._trainer(), option, method, whom, source)
        return self._fingerprints[option]

    def _files(self, split: str) -> dict[str, list[str]]:
        for files in self.paths[split].values():
            try:
                resolve(files)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"data.{split}: {error}") from error
        return self.paths[split]

    def _report(self, split: str, name: str, step: str) -> Path:
        label = split if name == split else f"{split}_{name}"
        return Path(self._trainer().default_root_dir) / f"bad_records_{label}_{step}.jsonl"

    def _trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("loaders are made for the model of a Trainer: pass this to trainer.fit(datamodule=...)")
        return self.trainer

    def _rank(self) -> tuple[int, int]:
        """Place among the processes that see different data, and their number."""
        kwargs = self._trainer().distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return kwargs["rank"], kwargs["num_replicas"]

    def _batches_done(self) -> int:
        progress = self._trainer().fit_loop.epoch_loop.batch_progress
        # `overfit_batches` means the same batches each epoch.
        return int(progress.current.ready if self._trainer().overfit_batches else progress.total.processed)

    def _progress(self) -> tuple[int, int]:
        trainer = self._trainer()
        return trainer.fit_loop.epoch_loop.batch_progress.current.ready, int(trainer.num_training_batches)


def _outlive_sigterm(worker: int) -> None:
    """A preempted job gets SIGTERM in all its processes. Workers that die of it would end the run before it could save;
    they leave when the process that they work for does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _memory() -> Path:
    """Where checked sound files are remembered."""
    return cache_folder() / "audio_checks.json"
