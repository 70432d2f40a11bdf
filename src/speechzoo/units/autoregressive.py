"""LLaMA-Omni 2's speech decoder: a speech LM that reads fused states and tokens, and writes units in between."""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, Cache, LlamaConfig, LlamaModel, PreTrainedModel

from speechzoo.generation.cache import GrowingLayer, growing_cache
from speechzoo.generation.sampling import Decoding
from speechzoo.names.hugging_face import hub_options
from speechzoo.names.renamed import cache_argument, recompute_layers
from speechzoo.names.shapes import lm_config, unread
from speechzoo.names.spec import at_least
from speechzoo.system.ranks import any_rank, in_pieces
from speechzoo.types import IGNORE, present
from speechzoo.units.base import UnitDecoder, UnitOutput, check_heads
from speechzoo.units.schedule import Schedule
from speechzoo.units.writing import WritingStream


class ARUnitDecoder(UnitDecoder):
    """Autoregressive decoder of LLaMA-Omni 2 (arXiv 2505.02625, section 2.2; official speech_generator.py).

    ```
    states [Q, M, H] -> input_proj -> rep  [Q, M, D] --+
                                                      gate -> rep * g + emb * (1 - g) = what is read
    ids    [Q, M]    -> embedding  -> emb  [Q, M, D] --+
    ```
    A causal LM sees R of these, writes W units, sees R more, and so on (see `Schedule`); after the text and a separator
    it writes what is left, until it writes the end, or `max_units`. The end may be written anywhere and then ends the
    row. Separator and end are of the units' own tables: text can not be written, so no logit of it is computed.

    Args:
        vocab_size: V, the text tokens of the LLM; the model gives it.
        num_units: K; 6561 in the paper.
        read, write: R and W, 3 and 10 in the paper.
        model: name or folder of a causal LM whose weights the speech LM starts from; the paper's is Qwen/Qwen2.5-0.5B.
            Its tokens have to be those of the LLM, and each of its layers has to see all of the text.
        dim, num_layers, num_heads, num_kv_heads, ffn_dim, rope_theta, rms_norm_eps: of a new, Llama-like speech LM,
            where `model` is not given.
        fuse: False leaves the states out: text is read by its embeddings alone, as in stage I(b) of the paper. Freeze
            `input_proj` and `gate` then.
        max_units: most units after the separator; 1024 in the released code.
        temperature: units are drawn at it; 0 takes the likeliest. 1 in the paper, as "greedy search causes the model to
            fall into repetition".
        seed: of the draws, for every answer; default: from torch's global generator.
        gradient_checkpointing: recompute layers in the backward pass: less memory, about a third more time.

    Raises:
        ValueError: if a number is out of range, there is no vocabulary, or `model` is of another kind.
    """

    objective: ClassVar[str] = "unit"
    reads_ids: ClassVar[bool] = True
    align = "predict"

    def __init__(
        self,
        in_dim: int,
        vocab_size: int | None = None,
        num_units: int = 6561,
        read: int = 3,
        write: int = 10,
        model: str | None = None,
        dim: int = 896,
        num_layers: int = 24,
        num_heads: int = 14,
        num_kv_heads: int | None = None,
        ffn_dim: int = 4864,
        rope_theta: float = 1_000_000.0,
        rms_norm_eps: float = 1e-6,
        fuse: bool = True,
        max_units: int = 1024,
        temperature: float = 1.0,
        seed: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "ffn_dim": ffn_dim}
        at_least(1, "ARUnitDecoder", num_units=num_units, num_kv_heads=num_kv_heads, max_units=max_units, **sizes)
        if vocab_size is None:
            raise ValueError("ARUnitDecoder reads tokens: it needs vocab_size, which the LLM's vocab_size gives")
        if model is None:
            check_heads("ARUnitDecoder", dim, num_heads, num_kv_heads)
        self.num_units, self.schedule, self.fuse, self.max_units = num_units, Schedule(read, write), fuse, max_units
        self.decoding = Decoding(temperature=temperature, seed=seed)
        if model is None:
            config = LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=dim,
                intermediate_size=ffn_dim,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                num_key_value_heads=num_kv_heads or num_heads,
                rms_norm_eps=rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
                max_position_embeddings=131_072,
                bos_token_id=None,
                eos_token_id=None,
            )
            speech_lm: PreTrainedModel = LlamaModel(config)
        else:
            speech_lm = _pretrained(model)
            _check_kind(model, speech_lm)
            known, dim = cast(Any, speech_lm).get_input_embeddings().weight.shape
            if vocab_size > known:  # tables of one tokenizer are filled up to different sizes
                speech_lm.resize_token_embeddings(vocab_size, mean_resizing=False)
        self.input_proj = nn.Sequential(nn.Linear(in_dim, 2 * in_dim), nn.ReLU(), nn.Linear(2 * in_dim, dim))
        self.gate = nn.Linear(2 * dim, dim)
        self.speech_lm = speech_lm
        self._cache_argument = cache_argument(speech_lm)
        if gradient_checkpointing:
            recompute_layers(speech_lm)
        self.unit_embed = nn.Embedding(num_units + 1, dim)  # and the separator
        nn.init.normal_(self.unit_embed.weight, std=0.02)  # as the speech LM's own table
        self.output_proj = nn.Linear(dim, num_units + 1, bias=False)  # and the end

    @property
    def end(self) -> int:
        """Index of the end among the logits: the last one."""
        return self.num_units

    @property
    def separator(self) -> Tensor:
        """What is read after the text. Shape: `[1, D]`."""
        index = torch.full((1,), self.num_units, device=self.unit_embed.weight.device)
        embedded: Tensor = self.unit_embed(index)
        return embedded

    def unspoken(self, lens: Tensor, units: Tensor, unit_lens: Tensor) -> Tensor:
        """Those whose units run out before the text is read, and those that go on for too long after it."""
        late = unit_lens - self.schedule.streamed(lens)
        return (late < 0) | (late > self.max_units)

    @property
    def unspoken_reason(self) -> tuple[str, str]:
        """See `UnitDecoder.unspoken_reason`."""
        read, write = self.schedule.read, self.schedule.write
        told = f"have fewer units than {write} for {read} tokens, or more than {self.max_units} after the text"
        return told, "lower unit_decoder.write, so that all of the text is read, or raise unit_decoder.max_units"

    def fused(self, states: Tensor, ids: Tensor) -> Tensor:
        """What is read of an answer. Shape: `[..., H], [...] -> [..., D]`."""
        emb = self.speech_lm.get_input_embeddings()(ids)
        if not self.fuse:
            return emb
        rep = self.input_proj(states.to(self.gate.weight.dtype))
        share = torch.sigmoid(self.gate(torch.cat([rep, emb], dim=-1)))
        return rep * share + emb * (1 - share)

    def forward(
        self,
        states: Tensor,
        lens: Tensor,
        units: Tensor | None = None,
        unit_lens: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> UnitOutput:
        """Teacher-forced logits of each unit and the end, and their cross entropy, summed; what is read has no loss.

        A row with a unit outside 0 ... K - 1 is flagged in `infeasible` and left out of the sum. Without units the
        logits are those of the first one. Lengths and units may lie on the host while states and ids are on a GPU:
        nothing then waits for it.

        Shape: states `[Q, M, H]`, lens `[Q]`, units `[Q, U]` (padded with -100), unit_lens `[Q]`, ids `[Q, M]`; logits
        `[Q, U + 1, K + 1]`, of which a row's first `unit_lens + 1` mean something.
        """
        loss = units is not None
        if units is None or unit_lens is None:
            units, unit_lens = lens.new_zeros(len(lens), 0), torch.zeros_like(lens)
        real = torch.arange(units.shape[1], device=units.device) < unit_lens[:, None]
        wrong = ((units < 0) | (units >= self.num_units)) & real
        known = torch.where(real & ~wrong, units, 0)
        places = self.schedule.places(lens, units.shape[1] + 1)
        size = int(places.gather(1, unit_lens[:, None]).max())  # up to where the longest row's end would stand
        source = self.schedule.sources(lens, size, states.shape[1])
        asked = (places - 1).clamp(0, size - 1)

        device = states.device
        known, source, asked = (part.to(device, non_blocking=True) for part in (known, source, asked))
        text = self.fused(states, present(ids, "ids"))
        separator = self.separator[None].expand(len(text), -1, -1)
        parts = torch.cat([text, separator, self.unit_embed(known)], dim=1)
        source = source.clamp(max=parts.shape[1] - 1)  # past a row's end, where it means nothing
        # Rows are padded on the right, where no real place looks.
        hidden = self.speech_lm(inputs_embeds=_rows(parts, source), use_cache=False).last_hidden_state
        logits = self.output_proj(_rows(hidden, asked))
        if not loss:
            return UnitOutput(logits, unit_lens + 1)
        infeasible = wrong.any(dim=1)
        targets = F.pad(torch.where(real & ~infeasible[:, None], units, IGNORE), (0, 1), value=IGNORE)
        end = torch.where(infeasible, IGNORE, self.end)
        targets = targets.scatter(1, unit_lens[:, None], end[:, None]).to(device, non_blocking=True)
        loss_sum = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return UnitOutput(logits, unit_lens + 1, loss_sum, infeasible)

    @torch.no_grad()
    def decode(self, states: Tensor, lens: Tensor, ids: Tensor | None = None) -> list[Tensor]:
        """Units of whole answers, as the stream writes them. Shape: `[Q, M, H], [Q], [Q, M] -> Q times [U]`."""
        longest = int(lens.max()) if len(lens) else 0
        ended = torch.ones(len(lens), dtype=torch.bool)
        ids = present(ids, "ids")[:, :longest]
        units = self.stream(len(lens)).push(states[:, :longest], lens, ids=ids, ended=ended)
        while in_pieces(self) and any_rank(False, states.device):  # other processes still write, and need this one
            self.speech_lm(inputs_embeds=self.separator[None])
        return units

    def stream(self, rows: int) -> WritingStream:
        """See `UnitDecoder.stream`."""
        return WritingStream(self, rows)

    def read(self, embeds: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache) -> Tensor:
        """States of new positions behind those held in the cache.

        Shape: `[b, n, D]`, `[b, held + n]` or None, `[b, n] -> [b, n, D]`.
        """
        if in_pieces(self):
            any_rank(True, embeds.device)
        known = {"attention_mask": mask, "position_ids": position_ids, self._cache_argument: cache}
        read: Tensor = self.speech_lm(inputs_embeds=embeds, use_cache=True, **known).last_hidden_state
        return read


def _pretrained(model: str) -> PreTrainedModel:
    """A pretrained LM without its head; inside `names.shapes.without_reading` with random numbers."""
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    if unread():
        empty: PreTrainedModel = AutoModel.from_config(lm_config(model), **options)
        return empty
    read: PreTrainedModel = AutoModel.from_pretrained(model, **options, **hub_options(model))
    return read


def _check_kind(model: str, lm: PreTrainedModel) -> None:
    """Refuse an LM that would write a row of a batch otherwise than alone, or not at all: `Desk` leaves gaps between
    what a row reads, which windows count and states take in.

    Raises:
        ValueError: if it is so.
    """
    kinds = {type(layer) for layer in growing_cache(lm.config).layers}
    arguments = signature(lm.forward).parameters
    if kinds != {GrowingLayer} or cache_argument(lm) not in arguments or "decoder_input_ids" in arguments:
        raise ValueError(
            f"ARUnitDecoder.model: {model} is a {type(lm).__name__}, which has an encoder, no cache, or layers that do "
            "not see the whole text (windows, states): take another LM"
        )


def _rows(values: Tensor, at: Tensor) -> Tensor:
    """Some positions of each row. Shape: `[Q, S, D], [Q, n] -> [Q, n, D]`."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[-1]))
