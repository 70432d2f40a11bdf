"""The common speech LLM: encoder -> adaptor -> LLM, trained, saved and asked in one way."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechzoo.adaptors import Adaptor
from speechzoo.audio import SAMPLE_RATE
from speechzoo.encoders import Encoder
from speechzoo.generation.respond import Answering
from speechzoo.generation.sampling import Decoding
from speechzoo.llms import LLM
from speechzoo.models import checkpoint
from speechzoo.models.objectives import Objective, supervised_tokens
from speechzoo.names.spec import at_least, to_factory, to_spec
from speechzoo.names.trust import check_parts
from speechzoo.system.ranks import any_rank, is_sharded
from speechzoo.text import ChatPrompt
from speechzoo.training.exact_loss import global_counts, step_loss
from speechzoo.training.freeze import freeze, is_frozen, parameter_groups
from speechzoo.training.fsdp2 import FSDP2Strategy
from speechzoo.training.hollow import build_once
from speechzoo.training.loss_metric import LossMean
from speechzoo.types import SpeechBatch, SpeechOutput, SpeechReply


class SpeechLLM(Answering, LightningModule, ABC):
    """Base of all architectures.

    ```
    audio [N, T] -> encoder [N, F, D] -> adaptor [N, A, H] -> spliced into text [B, S, H] -> LLM -> answer
    ```
    Parts are given as factories (a class, a partial, or `{class_path, init_args}`) and built in `configure_model`
    with real widths, so no dimension is written twice and weights load after the strategy exists.

    Args:
        encoder: makes the speech encoder.
        adaptor: makes the adaptor from (encoder width, LLM width).
        llm: makes the language model from the ids of new tokens.
        prompt: makes the chat prompt (tokenizer, template, system and user sentence).
        freeze: patterns over parameter names (`re.search`), such as `^encoder\\.`; each has to match something.
        loss_weights: factor of each loss by name (see `objectives`), 1 where it is not given; 0 turns a loss off in
            training.
        optimizer: makes the optimizer from parameter groups.
        lr_scheduler: makes the schedule from (optimizer, number of optimizer steps); None keeps the rate.
        lr_scale: learning-rate factors by pattern over parameter names.
        init_from: checkpoints (or run folders) of earlier stages whose trained weights are loaded, in order.
        generation: how answers are generated where nothing else is asked for: `{max_new_tokens: 256, do_sample: false,
            temperature: ..., ...}`, see `Decoding`.

    Attributes:
        objectives: the losses of this architecture by name, each with what counts its targets. One with a loss of its
            own adds it here, and its sum in `add_losses`; normalisation, logs and weights follow from that.
    """

    objectives: ClassVar[Mapping[str, Objective]] = {"lm": supervised_tokens}

    def __init__(
        self,
        encoder: Callable[[], Encoder],
        adaptor: Callable[[int, int], Adaptor],
        llm: Callable[[list[int]], LLM],
        prompt: Callable[[], ChatPrompt],
        freeze: list[str] | None = None,
        loss_weights: dict[str, float] | None = None,
        optimizer: Callable[[Any], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        lr_scale: dict[str, float] | None = None,
        init_from: list[str] | None = None,
        generation: dict[str, Any] | None = None,
        **extra_parts: Any,
    ) -> None:
        super().__init__()
        self.specs = {"encoder": encoder, "adaptor": adaptor, "llm": llm, "prompt": prompt, **extra_parts}
        self.specs = {name: to_spec(part) for name, part in self.specs.items()}
        self.freeze_patterns = list(freeze or [])
        self.loss_weights = {**dict.fromkeys(self.objectives, 1.0), **(loss_weights or {})}
        if unknown := sorted(set(self.loss_weights) - set(self.objectives)):
            raise ValueError(
                f"model.loss_weights: {type(self).__name__} has no loss {unknown[0]!r}, it has "
                + " and ".join(self.objectives)
            )
        self.optimizer_factory = to_factory(to_spec(optimizer or torch.optim.AdamW))
        self.scheduler_factory = None if lr_scheduler is None else to_factory(to_spec(lr_scheduler))
        self.lr_scale = dict(lr_scale or {})
        at_least(0, "model.loss_weights", **self.loss_weights)
        for pattern, factor in self.lr_scale.items():
            at_least(0, "model.lr_scale", **{repr(pattern): factor})
        self.init_from = [init_from] if isinstance(init_from, str) else list(init_from or [])
        self.generation = Decoding.defaults(generation)
        self.save_hyperparameters(
            {
                **self.specs,
                "freeze": self.freeze_patterns,
                "loss_weights": self.loss_weights,
                "optimizer": to_spec(optimizer),
                "lr_scheduler": to_spec(lr_scheduler),
                "lr_scale": self.lr_scale,
                "init_from": self.init_from,
                "generation": self.generation,
            }
        )
        self.prompt: ChatPrompt = to_factory(self.specs["prompt"])()
        self.strict_loading = False  # checkpoints hold what was trained; `checkpoint.check_trained` is the strict part
        self.val_losses = nn.ModuleDict()
        self._stages: list[dict[str, Any]] = []
        self._identity: dict[str, Any] | None = None

    # -- building ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build, load earlier stages, freeze. Called by Lightning once the strategy exists; again it does nothing."""
        if hasattr(self, "llm"):
            return
        strategy = getattr(self._trainer, "strategy", None)
        if isinstance(strategy, FSDP2Strategy):
            self._identity = build_once(self, lambda: self._prepare() or self.identity)
            strategy.shard(self)
        else:
            try:
                self._prepare()
            except torch.OutOfMemoryError as error:  # Lightning builds where the model is to live
                raise ValueError(
                    f"the weights of {type(self).__name__} alone do not fit into {strategy.root_device}: "
                    "trainer.strategy: fsdp2, or a smaller dtype where they are frozen"
                ) from error
            if self._trainer is not None and (self._trainer.training or self._trainer.ckpt_path):
                # Now, as a callback may let go of the frozen weights later; one process reads them all, not each.
                self._identity = strategy.broadcast(self.identity if self._trainer.is_global_zero else None)
        self.train(self.training)
        if self._trainer is not None and self._trainer.training:
            # Lightning has no hook between building a model and moving it to its device, where it may not fit.
            for callback in self._trainer.callbacks:
                if hasattr(callback, "on_model_built"):
                    callback.on_model_built(self._trainer, self)

    def _prepare(self) -> None:
        self.build()
        self._stages = checkpoint.load_stages(self, self.init_from)
        freeze(self, self.freeze_patterns)
        if self._trainer is not None and self._trainer.training:
            checkpoint.check_frozen(self, self.init_from)

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of the frozen weights by part, and of the earlier stages' trained weights (see `checkpoint`)."""
        if self._identity is None:
            self._identity = checkpoint.identity(self, self._stages)
        return self._identity

    def build(self) -> None:
        """Make the parts, as modules of this one. A model with more parts extends it.

        Under `fsdp2` rank 0 alone builds; the other processes are sent the modules it made.
        """
        self.encoder: Encoder = to_factory(self.specs["encoder"])()
        self.llm: LLM = to_factory(self.specs["llm"])(self.prompt.new_tokens)
        self.adaptor: Adaptor = to_factory(self.specs["adaptor"])(self.encoder.out_dim, self.llm.dim)

    def train(self, mode: bool = True) -> SpeechLLM:
        """Training mode for parts that learn (or whose layers are recomputed); frozen parts stay in eval mode."""
        super().train(mode)
        for part in self.children():
            if is_frozen(part) and not getattr(part, "recomputes", False):
                part.eval()
        return self

    @property
    def num_units(self) -> int | None:
        """Size of the unit vocabulary; None for models that speak no units."""
        return None

    @property
    def encoder_is_frozen(self) -> bool:
        return is_frozen(self.encoder)

    def audio_positions(self, audio_lens: Tensor) -> Tensor:
        """LLM positions that clips of so many samples take. `[N] -> [N]`."""
        return self.adaptor.out_lens(self.encoder.out_lens(audio_lens))

    # -- the way of the data ----------------------------------------------------------------------------------------

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """LLM positions of all clips, `[N, A, H]`, `[N]`; cached encoder states are used where the batch has them.

        A batch without a clip sends silence through all that learns, and gives none of it back: `[0, A, H]`, whose sum
        still ties the adaptor to the loss. All processes so run the same parts.
        """
        device = batch.input_ids.device
        heard = batch.features is None and batch.audio is not None and len(batch.audio) > 0
        runs = heard or (batch.features is None and not self.encoder_is_frozen)
        if is_sharded(self.encoder):
            runs = any_rank(heard, device)
        if runs:
            silence = torch.zeros(1, SAMPLE_RATE, device=device), torch.tensor([SAMPLE_RATE], device=device)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
                states, lens = self.encoder(*((batch.audio, batch.audio_lens) if heard else silence))
        elif batch.features is not None:
            states, lens = batch.features, batch.feature_lens
        else:
            states, lens = torch.zeros(1, 64, self.encoder.out_dim, device=device), torch.tensor([64], device=device)
        speech, lens = self.adaptor(states.to(next(self.adaptor.parameters()).dtype), lens)
        return (speech, lens) if heard or batch.features is not None else (speech[:0], lens[:0])

    def forward(self, batch: SpeechBatch, logits: bool = False) -> SpeechOutput:
        """Losses over the supervised tokens, and the states.

        Args:
            batch: see `SpeechBatch`.
            logits: also return the logits of all positions `[B, S, V]` (large).
        """
        speech, lens = self.encode(batch)
        out = self.llm(
            batch.input_ids, batch.attention_mask, batch.turns, speech, lens, self._wants("lm"), logits=logits
        )
        result = SpeechOutput({}, {}, out.hidden, out.mask, out.turns, out.labels, out.logits)
        if out.loss_sum is not None:
            # Without a clip in the batch the adaptor would miss from the graph, which DDP takes for an error.
            result.sums["lm"] = out.loss_sum if len(speech) else out.loss_sum + speech.sum()
        return self._with_losses(batch, result)

    def _with_losses(self, batch: SpeechBatch, result: SpeechOutput) -> SpeechOutput:
        self.add_losses(batch, result)
        counts = self.num_targets(batch)
        result.losses = {name: total / max(1, counts[name]) for name, total in result.sums.items()}
        return result

    def add_losses(self, batch: SpeechBatch, result: SpeechOutput) -> None:
        """Further losses of a model, summed over their targets, added to `result.sums` under a name of `objectives`."""

    def num_targets(self, batch: SpeechBatch) -> dict[str, int]:
        """Targets by loss name: the denominators of the token-exact loss.

        Counted once, best before the batch goes to a GPU, where each count would wait for the device.
        """
        if batch.counts is None:
            batch.counts = {name: count(batch) for name, count in self.objectives.items()}
        return batch.counts

    def _wants(self, loss: str) -> bool:
        """A loss with weight 0 costs nothing in training; validation reports all."""
        return not self.training or self.loss_weights[loss] != 0

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        out = self(batch)
        accumulate = self.trainer.accumulate_grad_batches
        if batch.window is None and accumulate > 1:
            raise ValueError(
                "gradient accumulation needs the targets of the whole window: use SpeechDataModule, or wrap your "
                "loader with speechzoo.data.with_windows(loader, model.num_targets, ...)"
            )
        local = self.num_targets(batch)
        counts = global_counts(batch.window or local, self.device)
        loss = step_loss(out.sums, counts, self.loss_weights, self.trainer.world_size, accumulate)
        for name, value in out.losses.items():
            if local[name]:
                self.log(f"train/{name}_loss", value.detach(), prog_bar=True, batch_size=len(batch))
        for name, number in out.counters.items():  # of all processes, each of which has the same names
            self.log(
                f"train/{name}", float(number), batch_size=len(batch), reduce_fx="sum", on_epoch=True, sync_dist=True
            )
        self.log(
            "train/loss", sum(self.loss_weights[n] * v.detach() for n, v in out.losses.items()), batch_size=len(batch)
        )
        return loss

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> SpeechReply:
        return self.respond(batch)

    def _evaluate(self, batch: SpeechBatch, stage: str, loader: int) -> None:
        """Log `val/loss`, or `val/<name>/loss` where there are several sets: means over targets, not means of means."""
        names = getattr(getattr(self.trainer, "datamodule", None), f"{stage}_names", [])
        prefix = f"{stage}/{names[loader]}" if len(names) > 1 else stage
        counts = self.num_targets(batch)
        out = self(batch)
        values = {f"{prefix}/{name}_loss": {name: 1.0} for name in out.sums}
        values[f"{prefix}/loss"] = {name: self.loss_weights[name] for name in out.sums}
        for name, weights in values.items():
            key = name.replace("/", "_").replace(".", "_")
            if key not in self.val_losses:
                self.val_losses[key] = LossMean(weights, self.device)
            self.val_losses[key].update(out.sums, counts)
            self.log(
                name,
                self.val_losses[key],
                batch_size=len(batch),
                add_dataloader_idx=False,
                metric_attribute=f"val_losses.{key}",
            )

    def any_optimizer(self) -> Optimizer:
        """An optimizer of the configured kind and settings over one number, to be asked what it is like."""
        return self.optimizer_factory([nn.Parameter(torch.zeros(1))])

    def configure_optimizers(self) -> Any:
        optimizer = self.any_optimizer()
        groups = parameter_groups(self, self.lr_scale, optimizer.defaults["lr"])
        optimizer = self.optimizer_factory(groups)
        if self.scheduler_factory is None:
            return optimizer
        schedule = self.scheduler_factory(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip, also with a fused optimizer under bf16.

        Lightning's mixed-precision plugin refuses fused optimizers because they undo a loss scaling themselves; bf16
        has none, so its base class may clip.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
            Precision.clip_gradients(
                plugin, optimizer, gradient_clip_val, GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            )
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained weights only: frozen ones are named by the config, not copied into each checkpoint."""
        return checkpoint.trained_only(self, super().state_dict(*args, **kwargs), kwargs.get("prefix", ""))

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        saved["trained"] = checkpoint.trained_names(self)
        saved["identity"] = self.identity
        saved["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust_code: bool = False, **kwargs: Any) -> Any:
        """As Lightning's, for plain data and parts of ours alone; `speechzoo.interop.hub.load_run` is the usual way.

        Raises:
            ValueError: if the checkpoint names a foreign class as a part, and `trust_code` is not given.
        """
        named = checkpoint.read(checkpoint_path).get("hyper_parameters", {})
        check_parts({key: part for key, part in named.items() if key not in kwargs}, checkpoint_path, trust_code)
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights_only": True, **kwargs})

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        checkpoint.check_trained(self, saved)
        checkpoint.check_identity(self, saved)
