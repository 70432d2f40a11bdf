"""A part keeps its meaning on its way between Python, YAML and checkpoints."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser, Namespace

from speechzoo.adaptors import Adaptor, ConcatMLP, Linear
from speechzoo.names.spec import resolve, to_factory, to_spec
from speechzoo.units import CTCUnitDecoder

CONCAT = "speechzoo.adaptors.layers.ConcatMLP"


def test_a_class_and_a_partial_become_plain_data():
    assert to_spec(Linear) == {"class_path": "speechzoo.adaptors.layers.Linear", "init_args": {}}
    part = functools.partial(ConcatMLP, stack=3, hidden_dim=8)
    assert to_spec(part) == {"class_path": CONCAT, "init_args": {"stack": 3, "hidden_dim": 8}}


def test_the_way_there_and_back_builds_the_same_part():
    part = functools.partial(ConcatMLP, stack=3, hidden_dim=8)
    again = to_factory(to_spec(part))
    assert to_spec(again) == to_spec(part)
    made = again(4, 6)
    assert type(made) is ConcatMLP and made.stack == 3 and made.linear1.weight.shape == (8, 12)


def test_a_spec_is_its_own_spec_and_other_values_pass():
    spec = {"class_path": CONCAT, "init_args": {"stack": 3}}
    assert to_spec(spec) == spec
    assert to_spec(Namespace(class_path=CONCAT, init_args=Namespace(stack=3))) == spec
    assert [to_spec(value) for value in (None, 1, "a", 0.5)] == [None, 1, "a", 0.5]
    assert to_spec((1, {"a": (2,)})) == [1, {"a": [2]}]


def test_factories_of_the_command_line_become_the_same_spec():
    parser = ArgumentParser()
    parser.add_argument("--adaptor", type=Callable[[int, int], Adaptor])
    given = parser.parse_args([f"--adaptor={CONCAT}", "--adaptor.stack=3", "--adaptor.hidden_dim=8"])
    factory = parser.instantiate_classes(given).adaptor
    assert to_spec(factory) == {"class_path": CONCAT, "init_args": {"stack": 3, "hidden_dim": 8, "norm": False}}
    assert to_factory(to_spec(factory))(4, 6).linear1.weight.shape == (8, 12)


def test_a_spec_survives_a_checkpoint_read_as_plain_data(tmp_path):
    spec = to_spec(functools.partial(CTCUnitDecoder, num_units=7, rope_scaling={"rope_type": "default"}))
    torch.save(spec, tmp_path / "spec.pt")
    assert torch.load(tmp_path / "spec.pt", weights_only=True) == spec


def test_factories_pass_and_names_resolve():
    assert to_factory(Linear) is Linear
    assert to_factory("speechzoo.adaptors.Linear") is Linear
    assert to_factory({"class_path": "speechzoo.adaptors.Linear"})(5, 2).linear.weight.shape == (2, 5)
    assert to_factory({"class_path": "speechzoo.adaptors.Linear", "init_args": None})(5, 2).stack == 1


def test_values_without_an_importable_name_are_refused():
    with pytest.raises(TypeError, match="no importable name"):
        to_spec(lambda: None)
    with pytest.raises(TypeError, match="no importable name"):
        to_spec(Linear(2, 2))  # a built part instead of its factory
    with pytest.raises(TypeError, match="by name"):
        to_spec(functools.partial(Linear, 2, 2))


@pytest.mark.parametrize("path", ["speechzoo.adaptors.Nothing", "speechzoo.nowhere.Linear", "Linear"])
def test_a_path_that_names_nothing_is_refused(path):
    with pytest.raises(ValueError, match=f"'{path}'"):
        resolve(path)


@pytest.mark.parametrize("spec", [{"class": CONCAT}, {"class_path": CONCAT, "stack": 3}, 5, None])
def test_what_is_no_spec_is_refused(spec):
    with pytest.raises(ValueError, match="a part is {class_path"):
        to_factory(spec)


def test_mappings_of_any_kind_become_dicts():
    assert type(to_spec(OrderedDict(a=1))) is dict
