"""Streamed units are the offline units, for any decoder, any chunking and any company in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.generation.cache import GrowingLayer
from speechzoo.units import CTCUnitDecoder, collapse

K, H = 11, 8
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def make(seed: int = 0, upsample: int = 3, layers: int = 2, kv_heads: int = 2, rope=None) -> CTCUnitDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = CTCUnitDecoder(
            H,
            num_units=K,
            upsample=upsample,
            dim=16,
            num_layers=layers,
            num_heads=4,
            num_kv_heads=kv_heads,
            ffn_dim=24,
            rope_theta=100.0,
            rope_scaling=rope,
        ).eval()
        with torch.no_grad():  # initial logits are nearly flat: spread them, so that best paths change often
            for parameter in decoder.parameters():
                parameter *= 4
    return decoder


@st.composite
def decoders(draw) -> CTCUnitDecoder:
    return make(
        draw(st.integers(0, 10_000)),
        draw(st.sampled_from([1, 2, 3, 25])),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([None, LLAMA3_ROPE])),
    )


def plain(decoder: CTCUnitDecoder, states: torch.Tensor) -> torch.Tensor:
    """Units of one row `[M, H]` the long way: logits of everything, best path, collapse."""
    if not len(states):
        return torch.empty(0, dtype=torch.long)
    lens = torch.tensor([len(states)])
    with torch.no_grad():
        return collapse(decoder.logits(states[None], lens, decoder.up_lens(lens))[0].argmax(-1), decoder.blank)


@settings(max_examples=60, deadline=None)
@given(decoder=decoders(), data=st.data())
def test_streamed_units_are_the_offline_units(decoder, data):
    """Rows of different length, chunks of any size, ended rows dropped or carried along."""
    lens = data.draw(st.lists(st.integers(0, 14), min_size=1, max_size=4))
    width = max(lens)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    states = torch.randn(len(lens), width, H, generator=generator)
    wanted = [plain(decoder, row[:n]) for row, n in zip(states, lens, strict=True)]

    offline = decoder.decode(states, torch.tensor(lens))
    assert [u.tolist() for u in offline] == [u.tolist() for u in wanted]

    stream, rows = decoder.stream(len(lens)), list(range(len(lens)))
    got: list[list[int]] = [[] for _ in lens]
    at = 0
    while at < width:
        size = data.draw(st.integers(1, width - at))
        given_lens = torch.tensor([min(size, max(0, lens[row] - at)) for row in rows])
        for row, units in zip(rows, stream.push(states[rows, at : at + size], given_lens), strict=True):
            got[row] += units.tolist()
        at += size
        if data.draw(st.booleans()):
            alive = [i for i, row in enumerate(rows) if lens[row] > at]
            if alive:
                stream.keep(alive)
                rows = [rows[i] for i in alive]
    assert got == [u.tolist() for u in wanted]


def test_a_paper_sized_upsampling_over_a_long_answer_agrees_token_by_token():
    """5000 positions one token at a time: no best path flips, and the answers are not trivial."""
    decoder = make(upsample=25)
    states = torch.randn(1, 200, H, generator=torch.Generator().manual_seed(1))
    offline = decoder.decode(states, torch.tensor([200]))[0]
    stream = decoder.stream(1)
    streamed = torch.cat([stream.push(states[:, i : i + 1])[0] for i in range(200)])
    assert streamed.equal(offline) and streamed.equal(plain(decoder, states[0]))
    assert len(offline) > 100 and len(offline.unique()) == K


def test_each_state_is_projected_once():
    """The first layer's queries, keys and values run on states, not on their 25 copies, and never on the past."""
    decoder = make(upsample=25, layers=2)
    seen = {"first": 0, "second": 0, "input": 0}

    def counter(name):
        return lambda module, args, out: seen.update({name: seen[name] + out.shape[1]})

    decoder.input_proj.register_forward_hook(counter("input"))
    decoder.transformer.layers[0].self_attn.k_proj.register_forward_hook(counter("first"))
    decoder.transformer.layers[1].self_attn.k_proj.register_forward_hook(counter("second"))
    stream = decoder.stream(1)
    for _ in range(4):
        stream.push(torch.randn(1, 1, H))
    assert seen == {"input": 4, "first": 4, "second": 100}
    decoder.decode(torch.randn(1, 4, H), torch.tensor([4]))
    assert seen == {"input": 8, "first": 8, "second": 200}


def test_repeats_merge_across_pushes_and_a_blank_parts_them():
    """A decoder without layers of its own: its best symbol is the state's index."""
    decoder = make(upsample=2, layers=1)
    with torch.no_grad():
        for layer in decoder.transformer.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        decoder.input_proj.weight.copy_(torch.eye(16, H))
        decoder.input_proj.bias.zero_()
        decoder.output_proj.weight.zero_()
        decoder.output_proj.weight[:7, :7] = torch.eye(7)
        decoder.output_proj.weight[K, 7] = 1.0  # state 7 is the blank
        decoder.output_proj.bias.zero_()
    states = torch.eye(H)[[3, 3, 7, 3, 5, 5, 7, 7, 5]][None]
    stream = decoder.stream(1)
    got = [stream.push(states[:, i : i + 1])[0].tolist() for i in range(9)]
    assert got == [[3], [], [], [3], [5], [], [], [], [5]]


def test_faults_are_refused():
    decoder = make()
    stream = decoder.stream(2)
    stream.push(torch.randn(2, 2, H), torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="a row that ended got more states"):
        stream.push(torch.randn(2, 1, H), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="states of 3 rows, but this stream holds 2"):
        stream.push(torch.randn(3, 1, H))
    assert [u.tolist() for u in stream.push(torch.randn(2, 0, H))] == [[], []]


def test_appending_to_a_cache_copies_it_a_logarithmic_number_of_times():
    cache = GrowingLayer()
    buffers, kept = set(), []
    for step in range(300):
        keys, values = cache.update(torch.full((1, 2, 1, 4), float(step)), torch.full((1, 2, 1, 4), -float(step)))
        kept.append(keys)  # so that no address is given twice
        buffers.add(keys.data_ptr())
    assert len(buffers) <= 9
    assert keys[0, 0, :, 0].tolist() == [float(i) for i in range(300)] and values.equal(-keys)
    assert cache.get_seq_length() == 300
    cache.reset()
    assert cache.get_seq_length() == 0
