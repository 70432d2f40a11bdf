"""Steps that are not finite: skipped without a trace, or refused, by all processes together."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from tiny_module import TinyModule, make_batch
from together import run_together
from torch.utils.data import DataLoader

from speechzoo.callbacks import NonFiniteGuard


class Fragile(TinyModule):
    """Learns with Adam and weight decay; batches whose first row is named in `bad` have a NaN loss."""

    def __init__(self, bad: set[str], fused: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.bad, self.fused = bad, fused

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(batch, index) * (float("nan") if batch.ids[0] in self.bad else 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learning = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=0.1, weight_decay=0.1, fused=self.fused)


def loader(firsts: list[int]) -> DataLoader:
    return DataLoader([make_batch(first) for first in firsts], batch_size=None)


def after(
    make_trainer, firsts: list[int], bad: set[str], fused: bool = False, **options: Any
) -> tuple[Fragile, dict, NonFiniteGuard]:
    module, guard = Fragile(bad, fused), NonFiniteGuard("skip")
    trainer = make_trainer(callbacks=[guard], **options)
    with pytest.warns() if bad else nullcontext():
        trainer.fit(module, loader(firsts))
    return module, trainer.optimizers[0].state_dict()["state"], guard


@pytest.mark.parametrize(("clip", "fused"), [(None, False), (1.0, False), (None, True), (1.0, True)])
@pytest.mark.parametrize("firsts", [[0, 2, 4], [2, 0, 4], [0, 4, 2]])
def test_a_skipped_step_leaves_weights_and_adam_as_they_were(make_trainer, clip, fused, firsts) -> None:
    module, state, guard = after(make_trainer, firsts, {"q2"}, fused, gradient_clip_val=clip)
    expected, expected_state, _ = after(make_trainer, [0, 4], set(), fused, gradient_clip_val=clip)
    assert guard.skipped == 1 and guard.state_dict() == {"skipped": 1}
    assert all(a.equal(b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
    for index, entry in expected_state.items():
        assert entry["step"] == 2 and all(torch.equal(value, state[index][key]) for key, value in entry.items())


def test_one_bad_micro_batch_spoils_its_window_only(make_trainer) -> None:
    module, _, guard = after(make_trainer, [0, 2, 4, 6], {"q2"}, accumulate_grad_batches=2)
    expected, _, _ = after(make_trainer, [4, 6], set(), accumulate_grad_batches=2)
    assert guard.skipped == 1
    assert all(a.equal(b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(("fused", "firsts"), [(False, [0, 2]), (False, [0, 2, 4]), (True, [0, 2]), (True, [0, 2, 4])])
def test_raising_keeps_the_last_good_weights_and_names_the_rows(make_trainer, fused, firsts) -> None:
    """With a fused optimizer a step later, or at the end."""
    module = Fragile({"q2"}, fused)
    with pytest.raises(RuntimeError, match=r"loss on rank 0, step 1 \(rank 0 had q2, q3\)"):
        make_trainer(callbacks=[NonFiniteGuard()]).fit(module, loader(firsts))
    expected, _, _ = after(make_trainer, [0], set(), fused)
    assert all(a.equal(b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


def test_skipping_ends_where_it_goes_on_and_on(make_trainer) -> None:
    guard = NonFiniteGuard("skip", most_in_a_row=3)
    module = Fragile({"q2", "q4", "q6", "q10", "q12"})
    with pytest.raises(RuntimeError, match="3 steps in a row"), pytest.warns(UserWarning, match="step skipped"):
        make_trainer(callbacks=[guard]).fit(module, loader([0, 2, 4, 6, 8]))
    assert guard.skipped == 2
    with pytest.raises(ValueError, match="raise or skip"):
        NonFiniteGuard("ignore")  # type: ignore[arg-type]


def _process(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    results: dict[str, Any] = {}
    for policy in ("skip", "raise"):
        module, guard = Fragile({"q102"}), NonFiniteGuard(policy)  # type: ignore[arg-type]
        trainer = Trainer(
            accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False, barebones=True,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60)),
            plugins=[LightningEnvironment()], callbacks=[guard], use_distributed_sampler=False,
        )  # fmt: skip
        try:
            trainer.fit(module, loader([first + 100 * rank for first in (0, 2, 4)]))
            results[policy] = [p.detach().clone() for p in module.parameters()], guard.skipped
        except RuntimeError as error:
            results[policy] = str(error), trainer.global_step
    torch.save(results, out / f"{rank}.pt")


def test_all_processes_agree(tmp_path: Path) -> None:
    """The loss of one process alone is NaN in the second step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_together(_process, (port, tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [result["skip"][1] for result in ranks] == [1, 1]
    assert all(a.equal(b) and a.isfinite().all() for a, b in zip(ranks[0]["skip"][0], ranks[1]["skip"][0], strict=True))
    for result in ranks:
        assert result["raise"][0].startswith("not finite: loss on rank 1, step 1") and result["raise"][1] == 1
    assert "rank 1 had q102" in ranks[1]["raise"][0] and "had" not in ranks[0]["raise"][0]
