"""The unit decoder: every target can be aligned, the loss is CTC's, and nothing sees the future."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from speechzoo.types import IGNORE
from speechzoo.units import ARUnitDecoder, CTCUnitDecoder, collapse
from speechzoo.units.ctc import positions_needed
from speechzoo.units.layers import repeat

K = 6


def make(upsample: int = 3, **options) -> CTCUnitDecoder:
    torch.manual_seed(0)
    decoder = CTCUnitDecoder(
        8, num_units=K, upsample=upsample, dim=16, num_layers=2, num_heads=2, ffn_dim=32, **options
    ).eval()
    with torch.no_grad():  # initial logits are nearly flat: spread them, so that best paths change often
        decoder.input_proj.weight *= 8
        decoder.output_proj.weight *= 8
    return decoder


@pytest.fixture(scope="module")
def decoder() -> CTCUnitDecoder:
    return make()


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    return torch.tensor([row + [IGNORE] * (width - len(row)) for row in rows]), torch.tensor([len(r) for r in rows])


unit_rows = st.lists(st.lists(st.integers(0, K - 1), min_size=1, max_size=14), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(rows=unit_rows, data=st.data())
def test_every_target_is_feasible_by_construction(rows, data):
    """Also with repeats and more units than upsampled states; torch's own CTC agrees by a finite loss."""
    decoder = make(upsample=data.draw(st.integers(1, 3)))
    lens = torch.tensor([data.draw(st.integers(1, 3)) for _ in rows])
    units, unit_lens = padded(rows)
    up_lens = decoder.up_lens(lens, units, unit_lens)
    needed = [len(r) + sum(a == b for a, b in zip(r, r[1:], strict=False)) for r in rows]
    assert positions_needed(units, unit_lens).tolist() == needed
    assert up_lens.tolist() == [max(n, decoder.upsample * m) for n, m in zip(needed, lens.tolist(), strict=True)]
    flat = torch.zeros(int(up_lens.max()), len(rows), K + 1).log_softmax(-1)
    losses = F.ctc_loss(flat, units.clamp(min=0), up_lens, unit_lens, blank=K, reduction="none")
    assert losses.isfinite().all()
    with torch.no_grad():
        out = decoder(torch.randn(len(rows), int(lens.max()), 8), lens, units, unit_lens)
    assert not out.infeasible.any() and out.loss_sum.isfinite() and float(out.loss_sum) > 0


def test_the_loss_is_ctc_over_all_targets(decoder):
    torch.manual_seed(1)
    states, lens = torch.randn(2, 4, 8), torch.tensor([4, 2])
    units, unit_lens = padded([[0, 3, 3, 1, 5], [2, 0]])
    out = decoder(states, lens, units, unit_lens)
    assert out.lens.tolist() == [12, 6]
    expected = sum(
        F.ctc_loss(
            out.logits[q, : out.lens[q]].log_softmax(-1)[:, None],
            units[q : q + 1, : unit_lens[q]],
            out.lens[q : q + 1],
            unit_lens[q : q + 1],
            blank=K,
            reduction="sum",
        )
        for q in range(2)
    )
    torch.testing.assert_close(out.loss_sum, expected, atol=0, rtol=1e-5)


def test_gradients_of_a_long_answer_keep_their_digits(decoder):
    """With torch's `ctc_loss` in float32 they would be 1e-3 off at this length."""
    torch.manual_seed(1)
    states, lens, unit_lens = torch.randn(1, 400, 8), torch.tensor([400]), torch.tensor([500])
    units = torch.randint(0, K, (1, 500))
    out = decoder(states, lens, units, unit_lens)
    (found,) = torch.autograd.grad(out.loss_sum, out.logits)
    logits = out.logits.detach().double().requires_grad_()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    exact = F.ctc_loss(log_probs, units, out.lens, unit_lens, blank=K, reduction="sum")
    (expected,) = torch.autograd.grad(exact, logits)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_bad_targets_are_flagged_and_cost_the_others_nothing(decoder):
    """A unit that does not exist, a negative one, and an answer without a state, beside two good rows."""
    torch.manual_seed(1)
    states = torch.randn(5, 3, 8, requires_grad=True)
    lens = torch.tensor([3, 3, 0, 2, 3])
    units, unit_lens = padded([[0, 1, 1], [2, K], [1, 2], [-1, 3], [4, 5]])
    out = decoder(states, lens, units, unit_lens)
    assert out.infeasible.tolist() == [False, True, True, True, False]
    good = torch.tensor([0, 4])
    alone = decoder(states[good], lens[good], units[good], unit_lens[good])
    torch.testing.assert_close(out.loss_sum, alone.loss_sum, atol=0, rtol=1e-5)
    assert float(out.loss_sum.detach()) > 0
    decoder.zero_grad()
    out.loss_sum.backward()
    assert states.grad.isfinite().all() and all(p.grad.isfinite().all() for p in decoder.parameters())
    assert states.grad[good].abs().sum() > 0 and not states.grad[[1, 2, 3]].any()


@torch.no_grad()
def test_future_states_change_no_earlier_logits(decoder):
    torch.manual_seed(1)
    states, lens = torch.randn(1, 6, 8), torch.tensor([6])
    units, unit_lens = padded([[1, 2] * 12])  # more units than upsampled states: the ratio is no integer
    for targets in ((), (units, unit_lens)):
        base = decoder(states, lens, *targets)
        ratio = int(base.lens) / 6
        for changed in range(6):
            other = states.clone()
            other[:, changed:] += 1.0
            first = int(torch.tensor(changed * ratio).ceil())
            logits = decoder(other, lens, *targets).logits
            torch.testing.assert_close(logits[:, :first], base.logits[:, :first], atol=1e-5, rtol=0)
            assert not torch.allclose(logits[:, first], base.logits[:, first], atol=1e-3)


@torch.no_grad()
def test_rows_do_not_see_each_other_or_what_stands_past_their_end(decoder):
    torch.manual_seed(1)
    states, lens = torch.randn(3, 5, 8), torch.tensor([5, 3, 1])
    together = decoder(states, lens)
    for row, length in enumerate(lens.tolist()):
        alone = decoder(states[row : row + 1, :length], lens[row : row + 1])
        size = int(alone.lens)
        assert size == int(together.lens[row]) == 3 * length
        torch.testing.assert_close(together.logits[row, :size], alone.logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_states_are_repeated_in_order(decoder):
    """Positions of one state differ by rotary distance only: with attention off they are equal."""
    bare = make()
    for layer in bare.transformer.layers:
        layer.self_attn.o_proj.weight.zero_()
    logits = bare(torch.randn(1, 4, 8), torch.tensor([4])).logits.view(4, 3, K + 1)
    torch.testing.assert_close(logits, logits[:, :1].expand(-1, 3, -1), atol=1e-6, rtol=0)
    assert not torch.allclose(logits[0, 0], logits[1, 0], atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(states=st.integers(1, 12), wanted=st.integers(1, 60))
def test_uneven_upsampling_reaches_every_state_in_order(states, wanted):
    """Where targets need more than `upsample` positions a state, the shares differ by one position at most."""
    bare = make(upsample=1)
    units = torch.arange(wanted)[None] % K
    up = int(bare.up_lens(torch.tensor([states]), units, torch.tensor([wanted])))
    assert up == max(states, wanted)
    captured = {}
    bare.transformer.register_forward_pre_hook(lambda module, args: captured.update(x=repeat(args[0], args[1])))
    x = torch.zeros(1, states, 8)
    x[0, :, 0] = torch.arange(states)
    with torch.no_grad():
        bare(x, torch.tensor([states]), units, torch.tensor([wanted]))
        column = bare.input_proj.weight[:, 0]
        source = ((captured["x"][0] - bare.input_proj.bias) @ column / (column @ column)).round().long()
    counts = torch.bincount(source, minlength=states)
    assert source.equal(source.sort().values) and len(counts) == states
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize(
    ("path", "units"),
    [
        ([K, K], []),
        ([1, 1, 2, 2], [1, 2]),
        ([1, K, 1], [1, 1]),
        ([K, 0, 0, K, K, 0, 3, K], [0, 0, 3]),
        ([], []),
    ],
)
def test_collapse(path, units):
    assert collapse(torch.tensor(path, dtype=torch.long), K).tolist() == units


@torch.no_grad()
def test_decoding_is_the_best_path_and_the_blank_is_last(decoder):
    torch.manual_seed(2)
    states, lens = torch.randn(3, 8, 8), torch.tensor([8, 5, 0])
    decoded = decoder.decode(states, lens)
    assert decoder.blank == K and decoded[2].tolist() == []
    for row in range(2):
        out = decoder(states[row : row + 1, : lens[row]], lens[row : row + 1])
        assert decoded[row].equal(collapse(out.logits[0].argmax(-1), K))
        assert len(decoded[row]) > 1 and int(decoded[row].max()) < K
    assert [row.tolist() for row in decoder.decode(states[:2], torch.zeros(2).long())] == [[], []]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 10))
def test_units_of_a_beginning_are_the_beginning_of_the_units(decoder, seed, size):
    """What makes streaming possible: units that were spoken are never taken back."""
    states = torch.randn(1, size, 8, generator=torch.Generator().manual_seed(seed))
    whole = decoder.decode(states, torch.tensor([size]))[0].tolist()
    for cut in range(1, size):
        part = decoder.decode(states[:, :cut], torch.tensor([cut]))[0].tolist()
        assert part == whole[: len(part)]


def test_an_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="predict or label, not 'late'"):
        make(align="late")


@pytest.mark.parametrize(("kind", "more"), [(CTCUnitDecoder, {}), (ARUnitDecoder, {"vocab_size": 9})])
def test_heads_of_an_odd_width_are_refused(kind, more):
    """Their halves are rotated."""
    with pytest.raises(ValueError, match="dim 6 has to be a multiple of num_heads 2, an even one"):
        kind(4, dim=6, num_heads=2, **more)


def test_layers_that_are_recomputed_give_the_same_gradients():
    """And run twice: once forward, once more on the way back."""
    units, unit_lens = padded([[1, 2, 3], [4, 5]])
    states, lens = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 2])
    found = {}
    for recomputed in (False, True):
        decoder = make(gradient_checkpointing=recomputed).train()
        ran: list[int] = []
        for layer in decoder.transformer.layers:
            layer.input_layernorm.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        out = decoder(states, lens, units, unit_lens)
        out.loss_sum.backward()
        assert len(ran) == (4 if recomputed else 2)
        found[recomputed] = [out.loss_sum.detach(), *(p.grad for p in decoder.parameters())]
    assert all(one.equal(other) for one, other in zip(*found.values(), strict=True))
