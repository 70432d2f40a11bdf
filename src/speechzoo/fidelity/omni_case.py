"""LLaMA-Omni's golden case: front end, prompts, merges, logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speechzoo.fidelity.checks import EMBEDS, LOGITS, LOSS, Checks, Golden
from speechzoo.interop.prompts import LlamaOmniPrompt
from speechzoo.llms.splice import Spliced
from speechzoo.text import CLIP
from speechzoo.types import AUDIO, IGNORE, SpeechBatch, present


class OmniCase:
    """A model, the values held for it, and the encoder states everything after the front end starts from."""

    def __init__(self, model: Any, golden: Golden, checks: Checks) -> None:  # a LLaMAOmni, whose parts are known
        self.golden, self.checks, self.meta = golden, checks, golden.meta
        self.model = model
        self.waves = len(golden.names("mel."))
        mels = torch.stack([golden[f"mel.{i}"].T for i in range(self.waves)])
        with torch.no_grad():
            self.states, self.lens = self.model.encoder.encode_mel(mels, torch.full((self.waves,), mels.shape[-1]))

    def frames(self, mel_lens: Tensor) -> Tensor:
        """Encoder frames that clips of so many mel frames have. `[N] -> [N]`."""
        return (mel_lens + 1) // 2

    def batch(self) -> SpeechBatch:
        """The held training batch, its clips in order."""
        g = self.golden
        units, labels = g["batch.tgt_units"], g["batch.labels"]
        rows = torch.arange(len(units))
        clips = len(g["batch.speech_lengths"])
        return SpeechBatch(
            g["batch.input_ids"],
            g["batch.attention_mask"].bool(),
            (labels != IGNORE).long(),
            features=self.states[:clips],
            feature_lens=self.frames(g["batch.speech_lengths"]),
            units=units,
            unit_lens=(units != IGNORE).sum(1),
            unit_turns=torch.stack([rows, torch.ones_like(rows)], dim=1),
        )

    def question(self, ids: Tensor, waves: list[int], mel_lens: Tensor) -> SpeechBatch:
        """A batch of questions; the pad id stands for nothing."""
        ids = ids if ids.dim() == 2 else ids[None]
        return SpeechBatch(
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            torch.zeros_like(ids),
            features=self.states[waves],
            feature_lens=self.frames(mel_lens),
        )

    # -- front end and prompts --------------------------------------------------------------------------------------

    @torch.no_grad()
    def front_end(self) -> None:
        """Mel, encoder, projector."""
        g, model = self.golden, self.model
        for i in range(self.waves):
            with self.checks.step(f"mel.{i}"):
                self.checks.mel(f"mel.{i}", g[f"wave.{i}"][None], model.encoder.n_mels, g[f"mel.{i}"])
        with self.checks.step("encoder_out"):
            self.checks.close("encoder_out", self.states, g["encoder_out"], EMBEDS)
            speech, _ = model.adaptor(self.states, self.lens)
            self.checks.close("projector_out", speech, g["projector_out"], EMBEDS)

    def prompts(self) -> None:
        """Ids of every prompt and of the training conversations, with each tokenizer."""
        g, checks = self.golden, self.checks
        for folder, end in (("tokenizer", ""), ("tokenizer_nobos", "_nobos")):
            if not (g.folder / folder).is_dir():
                continue
            with checks.step(f"prompt{end}"):
                prompt = LlamaOmniPrompt(str(g.folder / folder))
                for name, text in self.meta["prompts"].items():
                    ids = prompt.text_ids(text.replace("<speech>", CLIP))
                    checks.equal(f"prompt{end}.{name}.input_ids", ids, g[f"prompt{end}.{name}.input_ids"])
                question = [{"role": "user", "content": [{"type": "audio"}]}]
                if "std" in self.meta["prompts"]:
                    ids = prompt.encode(question, answer=False).ids
                    checks.equal(f"prompt{end}.std from messages", ids, g[f"prompt{end}.std.input_ids"])
                for i, answer in enumerate(self.meta["config"]["answers"]):
                    both = prompt.encode([*question, {"role": "assistant", "content": answer}])
                    labels = [t if turn else IGNORE for t, turn in zip(both.ids, both.turns, strict=True)]
                    checks.equal(f"train{end}.{i}.input_ids", both.ids, g[f"train{end}.{i}.input_ids"])
                    checks.equal(f"train{end}.{i}.labels", labels, g[f"train{end}.{i}.labels"])

    # -- merges -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def merges(self) -> None:
        """Text and speech together, in every held case."""
        for name in self.meta.get("merge", {}):
            with self.checks.step(f"merge.{name}"):
                self._merge(name)

    def _merge(self, name: str) -> None:
        width = self.meta["merge"][name]["shape"][1]
        g = self.golden
        if name.startswith("train"):
            ids, mask = g["batch.input_ids"], g["batch.attention_mask"].bool()
            turns = (g["batch.labels"] != IGNORE).long()
            waves = list(range(len(ids)))
            lens = self._lens_of(name, ids, mask, waves, width)
            row = self._splice(ids, mask, turns, waves, lens, "left" if name.endswith("left") else "right")
        elif name == "two_speech":
            ids = g["prompt.two.input_ids"][None]
            waves, lens = self._split(ids[0], g[f"merge.{name}.inputs_embeds_sum"][0])
            row = self._splice(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids), waves, lens)
        elif name == "text_then_speech":
            # The released merge lets a row without a clip use one up: the clip of row 1 is the second.
            text, std = g["prompt.text.input_ids"], g["prompt.std.input_ids"]
            ids = torch.nn.utils.rnn.pad_sequence([text, std], batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([[len(text)], [len(std)]])
            row = self._splice(ids, mask, torch.zeros_like(ids), [1], self._full([1]))
        elif name == "no_mask":
            ids = g["prompt.std.input_ids"][None]
            row = self._splice(ids, torch.ones_like(ids).bool(), torch.zeros_like(ids), [0], self._full([0]))
        else:
            self.checks.fail(f"merge.{name}", "an unknown merge case")
            return
        self._compare(name, row, width)

    def _compare(self, name: str, row: Spliced, width: int) -> None:
        """The released code cuts at its maximum length; ours never does, so the cut is made here."""
        g, checks, key = self.golden, self.checks, f"merge.{name}"
        note = "cut here to the released maximum" if row.embeds.shape[1] > width else ""
        embeds, mask = row.embeds[:, :width], row.mask[:, :width]
        labels = torch.where((row.turns > 0) & (row.ids != AUDIO), row.ids, IGNORE)[:, :width]
        if f"{key}.inputs_embeds" in g:
            checks.close(f"{key}.inputs_embeds", embeds, g[f"{key}.inputs_embeds"], EMBEDS, note=note)
        if f"{key}.inputs_embeds_sum" in g:
            sums = g[f"{key}.inputs_embeds_sum"]
            allowed = EMBEDS * embeds.shape[-1] ** 0.5  # held are sums over the width, to save space
            checks.close(f"{key}.inputs_embeds_sum", embeds.sum(-1), sums, allowed, note=note)
        if f"{key}.attention_mask" in g:
            checks.equal(f"{key}.attention_mask", mask.long(), g[f"{key}.attention_mask"])
        if f"{key}.labels" in g:
            checks.equal(f"{key}.labels", labels, g[f"{key}.labels"])

    def _full(self, waves: list[int]) -> Tensor:
        return self.model.adaptor.out_lens(self.lens[waves])

    def _splice(
        self, ids: Tensor, mask: Tensor, turns: Tensor, waves: list[int], lens: Tensor, side: str = "right"
    ) -> Spliced:
        speech, _ = self.model.adaptor(self.states[waves], self.lens[waves])
        return self.model.llm.splice(ids, mask, turns, speech, lens, side)

    def _lens_of(self, name: str, ids: Tensor, mask: Tensor, waves: list[int], width: int) -> Tensor:
        """Positions each clip takes, from the held mask; the whole clip where the row was cut."""
        held = self.golden[f"merge.{name}.attention_mask"].sum(1)
        text = (mask & (ids != AUDIO)).sum(1)
        full = self._full(waves)
        cut = (held == width) & (text + full > width)
        return torch.where(cut, full, held - text)

    def _split(self, ids: Tensor, held: Tensor) -> tuple[list[int], Tensor]:
        """Which clips, and how long, a held row with two of them shows: the text between them tells."""
        first, second = torch.nonzero(ids == AUDIO).flatten().tolist()
        middle = self.model.llm.embed(ids[first + 1 : second]).sum(-1)
        total = len(held) - len(ids) + 2
        gaps = [float((held[first + a : first + a + len(middle)] - middle).abs().max()) for a in range(total + 1)]
        a = min(range(total + 1), key=gaps.__getitem__)
        speech, _ = self.model.adaptor(self.states, self.lens)
        starts = speech[:, 0].sum(-1)
        after = first + a + len(middle)
        waves = [int((starts - held[at]).abs().argmin()) for at in (first, after)]
        return waves, torch.tensor([a, total - a])

    # -- logits -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self) -> None:
        """States, logits and loss of the training batch, from the held projector output."""
        g, checks = self.golden, self.checks
        with checks.step("eval.logits"):
            batch = self.batch()
            lens = self.model.adaptor.out_lens(present(batch.feature_lens, "feature_lens"))
            speech = g["projector_out"][: len(lens)]
            out = self.model.llm(batch.input_ids, batch.attention_mask, batch.turns, speech, lens, logits=True)
            loss = out.loss_sum / self.model.num_targets(batch)["lm"]
            checks.close("eval.last_hidden", out.hidden, g["eval.last_hidden"], LOGITS, where=out.mask)
            checks.close("eval.logits", out.logits, g["eval.logits"], LOGITS, where=out.mask)
            checks.close("eval.lm_loss", loss, g["eval.lm_loss"], rtol=LOSS)
