"""Scores over two processes: sums over ranks, never means of means, also where a rank has no data."""

from __future__ import annotations

import math
import multiprocessing
import socket

import torch.distributed as dist
from together import run_together

from speechzoo.metrics import ExactMatch, RougeL, WordErrorRate


def _rank(rank: int, port: int, out) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    words, rouge, nothing = WordErrorRate(normalise=None), RougeL(normalise=None), ExactMatch()
    if rank == 0:  # rank 1 has no data at all
        words.update(["one", "a b c"], ["two", "a b c"])
        rouge.update(["one", "a b c"], ["two", "a b c"])
    out.put((rank, words.compute().item(), rouge.compute().item(), nothing.compute().item()))
    dist.barrier()
    dist.destroy_process_group()


def test_a_rank_without_data_changes_nothing():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = multiprocessing.get_context("forkserver").SimpleQueue()
    run_together(_rank, (port, out))
    for _ in range(2):
        _, wer, rouge, nothing = out.get()
        assert (wer, rouge) == (0.25, 0.5)
        assert math.isnan(nothing)
