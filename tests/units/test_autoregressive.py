"""LLaMA-Omni 2's decoder: its loss against a calculation step by step, its fusion, and where it stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_read_write import written_out
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, Qwen2Config, Qwen2ForCausalLM

from speechzoo.types import IGNORE
from speechzoo.units import ARUnitDecoder, UnitDecoder

K, H, V = 11, 8, 20
SMALL = {"num_units": K, "read": 2, "write": 3, "dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def make(weights: int = 0, **changes) -> ARUnitDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights)
        decoder = ARUnitDecoder(H, V, **{**SMALL, "ffn_dim": 24, "temperature": 0.0, "max_units": 15, **changes}).eval()
        with torch.no_grad():  # initial logits are nearly flat: spread them, so that what is likeliest changes often
            for parameter in decoder.parameters():
                if parameter.dim() > 1:
                    parameter *= 8 if parameter.std() < 0.05 else 3
    return decoder


@pytest.fixture(scope="module")
def decoder() -> ARUnitDecoder:
    return make()


LENS, UNITS = torch.tensor([5, 2, 7]), [[1, 2, 3, 2, 2, 10, 0, 4], [7], [4, 5, 6, 7]]


def batch(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    units = torch.full((3, 8), IGNORE)
    for row, values in enumerate(UNITS):
        units[row, : len(values)] = torch.tensor(values)
    return {
        "states": torch.randn(3, 7, H, generator=generator),
        "lens": LENS,
        "units": units,
        "unit_lens": torch.tensor([len(row) for row in UNITS]),
        "ids": torch.randint(0, V, (3, 7), generator=generator),
    }


def row_of(given: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row without any padding."""
    size, number = int(given["lens"][row]), int(given["unit_lens"][row])
    cut = {"states": size, "ids": size, "units": number}
    return {
        name: value[row : row + 1, : cut[name]] if name in cut else value[row : row + 1]
        for name, value in given.items()
    }


@torch.no_grad()
def plain_logits(decoder: ARUnitDecoder, one: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of each unit and the end of one row, the sequence written out and read anew for each. `[U + 1, K + 1]`."""
    states, ids, units = one["states"][0], one["ids"][0], one["units"][0]
    rep, emb = decoder.input_proj(states), decoder.speech_lm.embed_tokens(ids)
    gate = torch.sigmoid(decoder.gate(torch.cat([rep, emb], dim=-1)))
    text = rep * gate + emb * (1 - gate)
    values = {f"t{i}": row for i, row in enumerate(text)} | {"|": decoder.unit_embed.weight[K]}
    values |= {f"u{i}": decoder.unit_embed.weight[unit] for i, unit in enumerate(units)}
    names = written_out(len(ids), len(units), decoder.schedule.read, decoder.schedule.write)
    asked = [place for place, name in enumerate(names) if name == "." or name.startswith("u")]
    out = []
    for place in asked:
        held = torch.stack([values[name] for name in names[:place]])
        out.append(decoder.output_proj(decoder.speech_lm(inputs_embeds=held[None]).last_hidden_state[0, -1]))
    return torch.stack(out)


@torch.no_grad()
def test_loss_is_that_of_the_sequence_written_out(decoder: ARUnitDecoder) -> None:
    given = batch()
    out = decoder(**given)
    total = torch.zeros(())
    for row, units in enumerate(UNITS):
        logits = plain_logits(decoder, row_of(given, row))
        assert out.lens[row] == len(units) + 1
        torch.testing.assert_close(out.logits[row, : len(units) + 1], logits, atol=1e-4, rtol=1e-4)
        total += F.cross_entropy(logits, torch.tensor([*units, K]), reduction="sum")
    torch.testing.assert_close(out.loss_sum, total, atol=0, rtol=1e-5)
    assert not out.infeasible.any()


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_or_on_padding(decoder: ARUnitDecoder) -> None:
    given = batch()
    alone = sum(decoder(**row_of(given, row)).loss_sum for row in range(3))
    torch.testing.assert_close(decoder(**given).loss_sum, alone, atol=0, rtol=1e-5)
    wider = {
        **given,
        "states": F.pad(given["states"], (0, 0, 0, 4), value=9.0),
        "ids": F.pad(given["ids"], (0, 4), value=3),
    }
    wider["units"] = F.pad(given["units"], (0, 5), value=IGNORE)
    torch.testing.assert_close(decoder(**wider).loss_sum, alone, atol=0, rtol=1e-5)


@torch.no_grad()
def test_rows_with_units_that_there_are_not_are_told_and_left_out(decoder: ARUnitDecoder) -> None:
    given = batch()
    good = decoder(**row_of(given, 1)).loss_sum
    given["units"][0, 3], given["units"][2, 0] = K, -7
    out = decoder(**given)
    assert out.infeasible.tolist() == [True, False, True]
    torch.testing.assert_close(out.loss_sum, good, atol=0, rtol=1e-5)


@torch.no_grad()
def test_written_units_are_the_likeliest_of_the_teacher_forced_logits(decoder: ARUnitDecoder) -> None:
    """With a cache, a unit at a time, what one pass over the finished sequence says of each of them."""
    given = batch()
    written = decoder.decode(given["states"], given["lens"], ids=given["ids"])
    assert len({len(row) for row in written}) > 1 and len(torch.cat(written).unique()) > 3
    for row, units in enumerate(written):
        one = {**row_of(given, row), "units": units[None], "unit_lens": torch.tensor([len(units)])}
        best = decoder(**one).logits[0].argmax(dim=-1).tolist()
        streamed = decoder.schedule.streamed(given["lens"][row : row + 1])
        assert best[: len(units)] == units.tolist()
        assert best[len(units)] == decoder.end or len(units) == int(streamed) + decoder.max_units


@torch.no_grad()
def test_what_never_ends_is_bounded_and_what_ends_at_once_says_nothing() -> None:
    given = batch()
    for bias, lens in ((-1e4, [6 + 4, 0 + 4, 9 + 4]), (1e4, [0, 0, 0])):
        decoder = make(max_units=4)
        end = bias * F.one_hot(torch.tensor(K), K + 1)
        decoder.output_proj.register_forward_hook(lambda _, args, out, end=end: out + end)
        units = decoder.decode(given["states"], given["lens"], ids=given["ids"])
        assert [len(row) for row in units] == lens
        assert all(int(row.max()) < K for row in units if len(row))


@torch.no_grad()
def test_answers_without_tokens_have_no_units(decoder: ARUnitDecoder) -> None:
    given = batch()
    alone = decoder.decode(given["states"][:1], given["lens"][:1], ids=given["ids"][:1])
    units = decoder.decode(given["states"], torch.tensor([5, 0, 0]), ids=given["ids"])
    assert units[0].equal(alone[0]) and [len(row) for row in units[1:]] == [0, 0]
    assert decoder.decode(given["states"][:0], given["lens"][:0], ids=given["ids"][:0]) == []
    assert [len(r) for r in decoder.decode(given["states"], torch.zeros(3).long(), ids=given["ids"])] == [0, 0, 0]


@torch.no_grad()
def test_units_are_drawn_from_the_softmax_and_repeat_with_their_seed() -> None:
    given = batch()
    drawn, again, other = (
        make(temperature=1.0, seed=seed).decode(given["states"], given["lens"], ids=given["ids"]) for seed in (5, 5, 6)
    )
    assert [u.tolist() for u in drawn] == [u.tolist() for u in again] != [u.tolist() for u in other]
    decoder = make(temperature=1.0, max_units=1)
    one = row_of(given, 1)
    share = decoder(**{**one, "units": None, "unit_lens": None}).logits[0, 0].softmax(-1)
    torch.manual_seed(0)
    first = [decoder.decode(one["states"], one["lens"], ids=one["ids"])[0].tolist() for _ in range(400)]
    counted = torch.tensor([sum(row == [unit] for row in first) for unit in range(K)]) / 400
    assert float((counted - share[:K]).abs().max()) < 0.08


def test_every_weight_learns_also_without_units(decoder: ARUnitDecoder) -> None:
    given = batch()
    for targets in ({}, {"units": None, "unit_lens": None}):
        decoder.zero_grad()
        out = decoder(**{**given, **targets})
        (out.logits.sum() * 0 if targets else out.loss_sum).backward()
        silent = [n for n, p in decoder.named_parameters() if p.grad is None or not (targets or p.grad.any())]
        assert silent == []


def test_text_alone_is_read_by_its_embeddings() -> None:
    """Stage I(b): neither states nor gate are asked, and they get no gradient."""
    decoder, given = make(fuse=False), batch()
    decoder(**given).loss_sum.backward()
    asked = {name.split(".")[0] for name, p in decoder.named_parameters() if p.grad is not None}
    assert asked == {"speech_lm", "unit_embed", "output_proj"}
    again = decoder(**{**given, "states": torch.full_like(given["states"], torch.nan)})
    assert again.loss_sum.isfinite()


def test_a_pretrained_lm_is_read_and_its_table_grows(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    lm = Qwen2ForCausalLM(Qwen2Config(vocab_size=V - 4, num_key_value_heads=1, **sizes))
    lm.save_pretrained(tmp_path)
    decoder = ARUnitDecoder(H, V, num_units=K, model=str(tmp_path))
    table = decoder.speech_lm.get_input_embeddings().weight
    assert table.shape == (V, 16) and table[: V - 4].equal(lm.get_input_embeddings().weight)
    assert decoder.speech_lm.layers[0].mlp.up_proj.weight.equal(lm.model.layers[0].mlp.up_proj.weight)
    assert decoder(**batch()).loss_sum.isfinite()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {"sliding_window": 4}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba", {"state_size": 4}),
        ("openai-gpt", {"n_head": 2}),
        ("bart", {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "encoder_layers": 1}),
    ],
)
def test_an_lm_that_cannot_write_rows_side_by_side_is_refused(kind: str, more: dict, tmp_path: Path) -> None:
    """Gaps between what a row reads would fill its window or its states: other units than alone."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=V, **sizes, **more)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ARUnitDecoder\.model: .* take another LM"):
        ARUnitDecoder(H, V, num_units=K, model=str(tmp_path))


def test_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="it needs vocab_size"):
        ARUnitDecoder(H)
    with pytest.raises(ValueError, match="dim 15 has to be a multiple of num_heads 4"):
        make(dim=15)
    with pytest.raises(ValueError, match="write"):
        make(write=0)
    with pytest.raises(TypeError, match="Deaf reads_ids, so its forward has to take `ids`"):

        class Deaf(UnitDecoder):
            reads_ids = True

            def forward(self, states, lens, units=None, unit_lens=None):
                raise NotImplementedError

            decode = stream = forward
