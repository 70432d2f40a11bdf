"""Freezing and learning-rate groups by parameter name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechzoo.training.freeze import freeze, is_frozen, parameter_groups


def parts() -> nn.ModuleDict:
    return nn.ModuleDict({"encoder": nn.Linear(2, 2), "llm": nn.Linear(2, 2), "llm_head": nn.Linear(2, 2, bias=False)})


def test_patterns_freeze_what_they_match():
    model = parts()
    assert freeze(model, ["^encoder\\.", "weight$"]) == [
        *["encoder.weight", "encoder.bias"],
        *["encoder.weight", "llm.weight", "llm_head.weight"],
    ]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["llm.bias"]
    assert is_frozen(model["encoder"]) and not is_frozen(model["llm"]) and is_frozen(nn.Identity())


def test_nothing_is_frozen_by_no_pattern():
    model = parts()
    assert freeze(model, []) == [] and all(p.requires_grad for p in model.parameters())


def test_a_misspelt_pattern_is_refused_with_the_parts_there_are():
    with pytest.raises(ValueError, match=r"'\^lm' matches no parameter \(parts: encoder, llm, llm_head\)"):
        freeze(parts(), ["^lm"])


def test_what_is_no_regular_expression_is_named():
    for setting, work in (("freeze", lambda: freeze(parts(), ["*encoder"])),
                          ("lr_scale", lambda: parameter_groups(parts(), {"*encoder": 2.0}, lr=1.0))):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{setting} pattern '\*encoder' is no regular expression \(nothing to"):
            work()


def test_groups_scale_the_rate_and_hold_each_parameter_once():
    model = parts()
    freeze(model, ["^encoder"])
    groups = parameter_groups(model, {"^llm\\.": 0.1, "^llm": 2.0}, lr=0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [([names[id(p)] for p in g["params"]], pytest.approx(g["lr"])) for g in groups] == [
        (["llm.weight", "llm.bias"], 0.001),  # the first pattern that matches
        (["llm_head.weight"], 0.02),
        (["encoder.weight", "encoder.bias"], 0.01),  # frozen ones keep their number in the optimizer's state
    ]
    assert [g["lr"] for g in torch.optim.AdamW(groups).param_groups] == [g["lr"] for g in groups]


def test_no_empty_group_is_left():
    assert len(parameter_groups(parts(), {"": 0.5}, lr=1.0)) == 1
    assert len(parameter_groups(parts(), {}, lr=1.0)) == 1


def test_a_scale_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="lr_scale pattern '\\^adaptor' matches no parameter"):
        parameter_groups(parts(), {"^adaptor": 2.0}, lr=1.0)
