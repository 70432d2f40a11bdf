"""A tiny speech module with the interface of the real ones, and batches for it, so that callbacks run in seconds."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch.nn import functional as F
from torch.utils.data import DataLoader

from speechzoo.types import AUDIO, SpeechBatch, SpeechOutput, SpeechReply

FRAMES = 3  # positions that one clip takes
VOCAB = 12


class Letters:
    """Stands for a `ChatPrompt`: token 1 is "a", 2 is "b", ..."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + i) for i in ids if i > 0)


class TinyModule(LightningModule):
    """Predicts each token from itself; clips become `FRAMES` empty positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCAB, 8)
        self.head = torch.nn.Linear(8, VOCAB)
        self.embed.weight.requires_grad_(False)
        self.prompt = Letters()
        self.asked: list[SpeechBatch] = []

    def forward(self, batch: SpeechBatch) -> SpeechOutput:
        hidden = self.embed(batch.input_ids.clamp(min=0))
        logits = self.head(hidden)
        loss = F.cross_entropy(logits.transpose(1, 2), batch.labels, ignore_index=-100)
        clips = ((batch.input_ids == AUDIO) & batch.attention_mask).sum(dim=1)
        lens = batch.attention_mask.sum(dim=1) + clips * (FRAMES - 1)
        mask = torch.arange(int(lens.max()), device=lens.device) < lens[:, None]
        return SpeechOutput({"lm": loss}, {"lm": loss}, hidden, mask, batch.turns, batch.labels)

    def training_step(self, batch: SpeechBatch, index: int) -> torch.Tensor:
        loss = self(batch).losses["lm"]
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: SpeechBatch, index: int) -> None:
        self.log("val/loss", self(batch).losses["lm"], batch_size=len(batch))

    def respond(self, batch: SpeechBatch, max_new_tokens: int) -> SpeechReply:
        assert not self.training and not torch.is_grad_enabled()
        self.asked.append(batch)
        text = [f"answer to {name}" for name in batch.ids]
        return SpeechReply(text, units=[torch.tensor([4, 0])] * len(text), audio=[torch.zeros(800)] * len(text),
                           sample_rate=8000)  # fmt: skip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def make_batch(first: int, rows: int = 2) -> SpeechBatch:
    """Rows of prompt [1, AUDIO, 2] and answer [3, 4], right padded by one; row k's sound holds k."""
    ids = torch.tensor([[1, AUDIO, 2, 3, 4, 0]] * rows)
    turns = torch.tensor([[0, 0, 0, 1, 1, 0]] * rows)
    return SpeechBatch(
        input_ids=ids,
        attention_mask=torch.tensor([[True] * 5 + [False]] * rows),
        turns=turns,
        audio=torch.arange(first, first + rows)[:, None].float().expand(-1, 1600) / 100,
        audio_lens=torch.full((rows,), 1600),
        units=torch.zeros(rows, 3, dtype=torch.long),
        unit_lens=torch.full((rows,), 3),
        unit_turns=torch.tensor([[r, 1] for r in range(rows)]),
        ids=[f"q{first + r}" for r in range(rows)],
    )


def loader(batches: int, first: int = 0) -> DataLoader:
    return DataLoader([make_batch(first + 2 * i) for i in range(batches)], batch_size=None)
