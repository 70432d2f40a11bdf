"""The common speech LLM: encoder -> adaptor -> LLM, trained, saved and asked in one way."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechzoo.adaptors import Adaptor
from speechzoo.audio import SAMPLE_RATE
from speechzoo.encoders import Encoder
from speechzoo.generation.respond import Answering
from speechzoo.generation.sampling import Decoding
from speechzoo.llms import LLM
from speechzoo.llms.splice import spliced_width
from speechzoo.models import checkpoint
from speechzoo.models.hub import Hub
from speechzoo.models.learning import Learning
from speechzoo.names.spec import at_least, to_factory, to_spec
from speechzoo.names.trust import check_parts
from speechzoo.system.ranks import any_rank, is_sharded
from speechzoo.text import ChatPrompt
from speechzoo.training.compiled import compile_layers
from speechzoo.training.freeze import freeze, is_frozen
from speechzoo.training.fsdp2 import FSDP2Strategy
from speechzoo.training.hollow import build_once
from speechzoo.training.schedule import schedule_factory
from speechzoo.types import HostSide, SpeechBatch, SpeechOutput, present


class SpeechLLM(Answering, Learning, Hub, ABC):
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
        compile: parts (`encoder`, `llm`, `unit_decoder`) whose repeated layers `torch.compile` makes faster in
            training, see `speechzoo.training.compiled`. It takes minutes at the start, and pays on a GPU.

    Attributes:
        objectives: the losses of this architecture, see `Learning`.
    """

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
        compile: list[str] | None = None,
        **extra_parts: Any,
    ) -> None:
        super().__init__()
        self.specs = {"encoder": encoder, "adaptor": adaptor, "llm": llm, "prompt": prompt, **extra_parts}
        self.specs = {name: to_spec(part) for name, part in self.specs.items()}
        self.freeze_patterns = [freeze] if isinstance(freeze, str) else list(freeze or [])
        self.loss_weights = self.weights_of_losses(loss_weights or {})
        self.optimizer_factory = to_factory(to_spec(optimizer or torch.optim.AdamW))
        self.scheduler_factory = schedule_factory(lr_scheduler)
        self.lr_scale = dict(lr_scale or {})
        for pattern, factor in self.lr_scale.items():
            at_least(0, "model.lr_scale", **{repr(pattern): factor})
        self.init_from = [init_from] if isinstance(init_from, str) else list(init_from or [])
        self.generation = Decoding.defaults(generation)
        self.compiled_parts = list(compile or [])
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
                "compile": self.compiled_parts,
            }
        )
        self.prompt: ChatPrompt = to_factory(self.specs["prompt"])()
        self.strict_loading = False  # checkpoints hold what was trained; `checkpoint.check_trained` is the strict part
        self._stages: list[dict[str, Any]] = []
        self._identity: dict[str, Any] | None = None

    # -- building ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build, load earlier stages, freeze. Called by Lightning once the strategy exists; again it does nothing."""
        if hasattr(self, "llm"):
            return
        strategy: Any = getattr(self._trainer, "strategy", None)
        if isinstance(strategy, FSDP2Strategy):
            self._identity = build_once(self, self._prepared_identity)
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
            compile_layers(self, self.compiled_parts)
            # Lightning has no hook between building a model and moving it to its device, where it may not fit.
            for callback in getattr(self._trainer, "callbacks", ()):
                if hasattr(callback, "on_model_built"):
                    callback.on_model_built(self._trainer, self)

    def _prepared_identity(self) -> dict[str, Any]:
        self._prepare()
        return self.identity

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
        """Training mode for parts that learn; frozen parts stay in eval mode, but for layers that are recomputed."""
        super().train(mode)
        for part in filter(is_frozen, self.children()):
            part.eval()
            for layer in part.modules() if mode and getattr(part, "recomputes", False) else ():
                layer.training = bool(getattr(layer, "gradient_checkpointing", False))  # what is inside stays as it is
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

    def host_side(self, batch: SpeechBatch) -> HostSide:
        """What the forward pass needs to know of a batch in the host's memory; `batch` is still there.

        Raises:
            ValueError: if there are not as many placeholders as clips.
        """
        if batch.answer_states is not None:
            return HostSide(int(present(batch.positions, "positions").max()))
        if batch.features is not None:
            lens = self.adaptor.out_lens(present(batch.feature_lens, "feature_lens"))
        else:
            lens = batch.turns.new_zeros(0) if batch.clips is None else self.audio_positions(batch.clips[1])
        return HostSide(spliced_width(batch.input_ids, batch.attention_mask, lens))

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """LLM positions of all clips, `[N, A, H]`, `[N]`; cached encoder states are used where the batch has them.

        A batch without a clip sends silence through all that learns, and gives none of it back: `[0, A, H]`, whose sum
        still ties the adaptor to the loss. All processes so run the same parts.
        """
        device = batch.input_ids.device
        sound = batch.clips if batch.features is None else None
        heard = sound is not None
        runs = heard or (batch.features is None and not self.encoder_is_frozen)
        if is_sharded(self.encoder):
            runs = any_rank(heard, device)
        if runs:
            silence = torch.zeros(1, SAMPLE_RATE, device=device), torch.full((1,), SAMPLE_RATE, device=device)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
                states, lens = self.encoder(*(sound or silence))
        elif batch.features is not None:
            states, lens = batch.features, present(batch.feature_lens, "feature_lens")
        else:
            states, lens = torch.zeros(1, 64, self.encoder.out_dim, device=device), torch.full((1,), 64, device=device)
        speech, lens = self.adaptor(states.to(next(self.adaptor.parameters()).dtype), lens)
        return (speech, lens) if heard or batch.features is not None else (speech[:0], lens[:0])

    def forward(self, batch: SpeechBatch, logits: bool = False) -> SpeechOutput:
        """Losses over the supervised tokens, and the states.

        Args:
            batch: see `SpeechBatch`.
            logits: also return the logits of all positions `[B, S, V]` (large).
        """
        speech, lens = self.encode(batch)
        known = {}
        if batch.host is not None:
            known = {"width": batch.host.width, "targets": self.num_targets(batch)["lm"]}
        out = self.llm(
            batch.input_ids, batch.attention_mask, batch.turns, speech, lens, self._wants("lm"), logits=logits, **known
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

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch has overloads
        """The trained weights only: frozen ones are named by the config, not copied into each checkpoint."""
        return checkpoint.trained_only(self, super().state_dict(*args, **kwargs), kwargs.get("prefix", ""))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, of what `state_dict` gives: frozen weights may be missing, trained ones only if not `strict`."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = sorted({*found.missing_keys}.intersection(checkpoint.trained_names(self)))
        if strict and (missing or found.unexpected_keys):
            raise RuntimeError(f"{type(self).__name__}: missing {missing[:3]}, left over {found.unexpected_keys[:3]}")
        return found

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
        if self._trainer is not None and self._trainer.training:
            checkpoint.check_continued(self.hparams, saved, self._trainer.ckpt_path)
