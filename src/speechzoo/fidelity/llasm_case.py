"""LLaSM's golden case: tower, prompts, merges, logits, losses, gradients, greedy answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from speechzoo.fidelity.checks import EMBEDS, LOGITS, LOSS, Checks, Golden, set_learning
from speechzoo.interop.llasm import released_name
from speechzoo.interop.prompts import LlasmPrompt, from_item
from speechzoo.types import AUDIO, IGNORE, SpeechBatch, SpeechOutput


class LlasmCase:
    """A model and the values held for it. Official ids have one `<au_patch>` a frame, ours one AUDIO a clip."""

    def __init__(self, model: Any, golden: Golden, checks: Checks) -> None:  # a LLaSM, whose parts are known here
        self.golden, self.checks, self.meta = golden, checks, golden.meta
        self.model = model
        ids = golden.meta["token_ids"]
        self.patch, self.new = ids["<au_patch>"], [ids["<au_start>"], ids["<au_end>"]]
        self.slots: int = self.model.encoder.num_queries
        self.clips = list(golden.meta["wav_source"])
        self.samples = golden.meta["samples"]
        with torch.no_grad():
            self.states = {name: self._encode(golden[f"mel.{name}"]) for name in self.clips}
            self.features = {name: self.model.encoder.queries(states)[0] for name, states in self.states.items()}

    def _encode(self, mel: Tensor) -> Tensor:
        return self.model.encoder.encode_mel(mel, torch.full((1,), mel.shape[-1]))[0]

    def expand(self, ids: list[int]) -> list[int]:
        """Our ids as the release has them."""
        return [i for t in ids for i in ([self.patch] * self.slots if t == AUDIO else [t])]

    def collapse(self, ids: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Official rows with each run of placeholders as one AUDIO: ids, turns, mask, padded on the right."""
        rows = []
        for i in range(len(ids)):
            keep = torch.ones_like(ids[i], dtype=torch.bool) if mask is None else mask[i].bool()
            row, turn = ids[i][keep], (labels[i][keep] != IGNORE).long()
            # Runs are told apart by what stands between them; `slots` placeholders in a row are one clip.
            run, first = 0, torch.ones_like(row, dtype=torch.bool)
            for at, token in enumerate(row.tolist()):
                run = run + 1 if token == self.patch else 0
                first[at] = run % self.slots == 1 or run == 0 or self.slots == 1
            rows.append((torch.where(row == self.patch, AUDIO, row)[first], turn[first]))
        pad = torch.nn.utils.rnn.pad_sequence
        real = pad([torch.ones_like(row) for row, _ in rows], batch_first=True).bool()
        return pad([row for row, _ in rows], batch_first=True), pad([t for _, t in rows], batch_first=True), real

    def batch(self, ids: Tensor, turns: Tensor, mask: Tensor, audios: list[str]) -> SpeechBatch:
        """A batch with cached decoder states; without clips where there are none."""
        features = torch.cat([self.features[name] for name in audios]) if audios else None
        lens = torch.full((len(audios),), self.slots) if audios else None
        return SpeechBatch(ids, mask, turns, features=features, feature_lens=lens)

    def sample(self, name: str) -> SpeechBatch:
        """A held sample."""
        ids = self.golden[f"{name}.input_ids"]
        labels = self.golden[f"{name}.labels"] if f"{name}.labels" in self.golden else torch.full_like(ids, IGNORE)
        return self.batch(*self.collapse(ids, labels), self.samples[name]["audios"])

    # -- front end and prompts --------------------------------------------------------------------------------------

    @torch.no_grad()
    def front_end(self) -> None:
        """Mel, Whisper's encoder and decoder, adaptor."""
        g, checks, model = self.golden, self.checks, self.model
        for name in self.clips:
            with checks.step(f"tower {name}"):
                checks.mel(f"mel.{name}", g[f"wav.{name}"][None], model.encoder.n_mels, g[f"mel.{name}"])
                checks.close(f"tower.encoder_out.{name}", self.states[name], g[f"tower.encoder_out.{name}"], EMBEDS)
                checks.close(f"tower.decoder_out.{name}", self.features[name], g[f"tower.decoder_out.{name}"], EMBEDS)
                speech, _ = model.adaptor(self.features[name], torch.tensor([self.slots]))
                checks.close(f"adaptor_out.{name}", speech, g[f"adaptor_out.{name}"], EMBEDS)
        with checks.step("init"):
            tables = {"embed": model.llm.lm.get_input_embeddings(), "lm_head": model.llm.lm.get_output_embeddings()}
            for kind, layer in tables.items():
                key = f"init.mean_{kind}_row"
                if key in g:  # where rows for new tokens begin
                    first = min(self.patch, *self.new)
                    checks.close(key, layer.weight[:first].mean(0), g[key], EMBEDS)

    def prompts(self) -> None:
        """Ids and labels of every sample, as the released inference tokenises and as the slow tokenizer does."""
        g, checks, base = self.golden, self.checks, self.model.prompt
        kinds: tuple[tuple[Literal["fast", "slow"], str], ...] = (("fast", ""), ("slow", "_slow_tokenizer"))
        for kind, end in kinds:
            prompt = LlasmPrompt(base.name, base.template, doubled_system=base.doubled_system, pieces=kind)
            for name, sample in self.samples.items():
                key = f"{name}.input_ids{end}"
                if "item" not in sample or key not in g:
                    continue
                with checks.step(key):
                    answered = bool(sample["item"]["conversations"][-1]["value"])
                    encoded = prompt.encode(from_item(sample["item"]), answer=answered)
                    ids = self.expand(encoded.ids)
                    checks.equal(key, [ids], g[key])
                    if kind == "fast" and f"{name}.labels" in g:
                        # A clip is never supervised, so expanding the turns as text keeps them in step.
                        wide = [t for i, t in zip(encoded.ids, encoded.turns, strict=True) for t in self._wide(i, t)]
                        labels = [i if t else IGNORE for i, t in zip(ids, wide, strict=True)]
                        checks.equal(f"{name}.labels", [labels], g[f"{name}.labels"])

    def _wide(self, token: int, turn: int) -> list[int]:
        return [turn] * (self.slots if token == AUDIO else 1)

    # -- merges, logits, losses -------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self) -> None:
        """Merged embeddings, logits, loss and greedy ids of every sample; both ways where it has several clips."""
        for name, sample in self.samples.items():
            if "item" not in sample:
                continue
            several = len(sample["audios"]) > 1
            for key, last_only in ((name, several), (f"{name}.fixed", False)):
                if f"{key}.logits" in self.golden:
                    with self.checks.step(key):
                        self._sample(name, key, last_only)

    def _sample(self, name: str, key: str, last_only: bool) -> None:
        g, checks, model = self.golden, self.checks, self.model
        note = "last_clip_only" if last_only else ""
        batch = self.sample(name)
        with self.merging(last_only):
            speech, lens = model.encode(batch)
            out = model(batch, logits=True)
        row = model.llm.splice(batch.input_ids, batch.attention_mask, batch.turns, speech, lens)
        if f"{key}.inputs_embeds" in g:
            checks.close(f"{key}.inputs_embeds", row.embeds, g[f"{key}.inputs_embeds"], EMBEDS, note=note)
        checks.close(f"{key}.logits", out.logits, g[f"{key}.logits"], LOGITS, note=note)
        if f"{key}.loss" in g:
            checks.close(f"{key}.loss", out.losses["lm"], g[f"{key}.loss"].squeeze(), rtol=LOSS, note=note)
        if f"{key}.greedy_ids" in g:
            held = g[f"{key}.greedy_ids"]
            ids = model.answer_ids(batch, speech, lens, max_new_tokens=self.meta["max_new_tokens"])[0]
            checks.equal(f"{key}.greedy_ids", ids[None], held, note=note)

    @torch.no_grad()
    def batches(self) -> None:
        """Padded batches of several samples, on whichever side; both ways where a row has several clips."""
        for name, sample in self.samples.items():
            if "rows" not in sample:
                continue
            several = any(len(clips) > 1 for clips in sample["audios"])
            with self.checks.step(f"{name}.input_ids"):
                mask = self.golden[f"{name}.attention_mask"].bool()
                ids = [i for row in sample["rows"] for i in self._row(row)]
                self.checks.equal(f"{name}.input_ids", ids, self.golden[f"{name}.input_ids"][mask], note="real tokens")
            for key, last_only in ((name, several), (f"{name}.fixed", False)):
                if f"{key}.logits" in self.golden:
                    with self.checks.step(key):
                        self._batch(name, key, last_only)

    def _batch(self, name: str, key: str, last_only: bool) -> None:
        g, checks, model = self.golden, self.checks, self.model
        mask, labels = g[f"{name}.attention_mask"].bool(), g[f"{name}.labels"]
        clips = [clip for row in self.samples[name]["audios"] for clip in row]
        batch = self.batch(*self.collapse(g[f"{name}.input_ids"], labels, mask), clips)
        note = "last_clip_only" if last_only else ""
        with self.merging(last_only):
            out = model(batch, logits=True)
            row = model.llm.splice(batch.input_ids, batch.attention_mask, batch.turns, *model.encode(batch))
        if key == name:
            checks.equal(f"{key}.attention_mask", out.mask.sum(1), mask.sum(1), note="real positions a row")
            checks.equal(f"{key}.labels", out.labels[out.mask], labels[mask])
        # Ours are padded on the right: real positions are compared, row after row.
        if f"{key}.inputs_embeds" in g:
            checks.close(f"{key}.inputs_embeds", row.embeds[row.mask], g[f"{key}.inputs_embeds"][mask], EMBEDS)
        checks.close(f"{key}.logits", out.logits[out.mask], g[f"{key}.logits"][mask], LOGITS, note=note)
        checks.close(f"{key}.loss", out.losses["lm"], g[f"{key}.loss"].squeeze(), rtol=LOSS, note=note)

    def _row(self, name: str) -> list[int]:
        item = self.samples[name]["item"]
        answered = bool(item["conversations"][-1]["value"])
        return self.expand(self.model.prompt.encode(from_item(item), answer=answered).ids)

    @contextlib.contextmanager
    def merging(self, last_only: bool) -> Iterator[None]:
        """The release's merge, which loses all clips of a row but the last, or the right one."""
        self.model.specs["last_clip_only"] = self.patch if last_only else None
        try:
            yield
        finally:
            self.model.specs["last_clip_only"] = None

    # -- gradients --------------------------------------------------------------------------------------------------

    def gradients(self) -> None:
        """Stage 1 (adaptor and two embedding rows) and stage 2 (adaptor and LLM)."""
        for stage, parts in (("stage1", ("adaptor.", "llm.new_embeddings")), ("stage2", ("adaptor.", "llm."))):
            held = self.samples.get(stage, self.meta.get(stage))
            if held:
                with self.checks.step(stage):
                    self._stage(stage, held, parts)
        set_learning(self.model, ())

    def _stage(self, stage: str, held: dict[str, Any], parts: tuple[str, ...]) -> None:
        model, checks, g = self.model, self.checks, self.golden
        set_learning(model, parts)
        with self.merging(len(self.samples[held["sample"]]["audios"]) > 1):
            out: SpeechOutput = model(self.sample(held["sample"]))
        checks.close(f"{stage}.loss", out.losses["lm"], torch.tensor(held["loss"]), rtol=LOSS)
        out.losses["lm"].backward()
        grads = self.released_gradients()
        for key in g.names(f"{stage}.grad."):
            checks.gradient(key, grads.get(key.removeprefix(f"{stage}.grad.")), g[key])
        if "grad_norm" in held:
            total = sum(float(grad.double().norm()) ** 2 for grad in grads.values()) ** 0.5
            checks.norms(f"{stage}.grad norm in all", {"all": total}, {"all": held["grad_norm"]})
        if "n_params_with_grad" in held:
            checks.equal(f"{stage} parameters with gradient", len(grads), held["n_params_with_grad"])
        if "trainable_with_grad" in held:
            same = sorted(grads) == sorted(held["trainable_with_grad"])
            checks.equal(f"{stage} parameters with gradient", same, True)
        if "embed_rows_with_nonzero_grad" in held:
            rows = grads["model.embed_tokens.weight"].abs().sum(1).nonzero().flatten().tolist()
            checks.equal(f"{stage} embedding rows with gradient", rows, held["embed_rows_with_nonzero_grad"])

    def released_gradients(self) -> dict[str, Tensor]:
        """Our gradients by released name: the rows of new tokens go back into the table."""
        model = self.model
        own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        rows = own.pop("llm.new_embeddings", None)
        grads = {released_name(name): grad for name, grad in own.items()}
        if rows is not None:
            name = "model.embed_tokens.weight"
            table = grads.get(name, torch.zeros_like(model.llm.lm.get_input_embeddings().weight))
            grads[name] = table.index_add(0, torch.tensor(model.llm.new_tokens), rows.to(table.dtype))
        return grads
