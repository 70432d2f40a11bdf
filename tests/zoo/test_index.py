"""The zoo's own index: every model is whole, described, and part of what is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

import speechzoo
from speechzoo.names.published import entry, index, is_name, published
from speechzoo.parts.registry import PARTS
from speechzoo.quickstart.scale import PUBLISHED
from speechzoo.zoo.card import check_card

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

CACHE = os.environ.get("SPEECHZOO_CACHE")  # of the person who runs the tests
REPOSITORY = Path(__file__).parents[2]
OURS = [name for name, about in index().items() if "files" in about]


def test_there_are_models_of_ours_and_the_released_ones():
    assert len(OURS) >= 4 and set(PUBLISHED.values()) <= set(OURS)
    released = {name: about for name, about in index().items() if name not in OURS}
    assert {about["source"] for about in released.values()} == {
        "hf:ICTNLP/Llama-3.1-8B-Omni",
        "hf:LinkSoul/LLaSM-Cllama2",
    }
    assert all("not run here" in about["status"] and about["licence"] for about in released.values())


@pytest.mark.parametrize("name", OURS)
def test_a_model_is_whole_and_says_what_it_is(name: str):
    folder, about = published(name), entry(name)
    assert set(about["files"]) == {file.name for file in folder.iterdir()}
    check_card(folder / "README.md")
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["license"] == about["licence"] and header["base_model"]
    for part, digest in about["parts"].items():
        assert PARTS[part].sha256 == digest
    assert about["results"]
    for words in (result["command"].split() for result in about["results"]):
        assert words[0] == "speechzoo" or (words[0] == "python" and (REPOSITORY / words[1]).is_file())
    assert about["training"]
    assert about.get("vocoder") is None or about["vocoder"] in OURS
    for name in {"config.yaml", "config.json"} & set(about["files"]):
        held = yaml.safe_load((folder / name).read_text())
        assert not [
            text for text in texts(held) if text.startswith(("/", "~"))
        ]  # parts by name, nothing of one machine


def texts(value) -> list[str]:
    """All texts in nested data."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for item in inside for text in texts(item)]


def test_all_of_them_together_are_small():
    assert sum(file.stat().st_size for name in OURS for file in published(name).iterdir()) < 40e6


def test_what_is_installed_holds_the_index_and_every_model():
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    held = {name.removeprefix("checkpoints/") for name in wheel["force-include"] if name.startswith("checkpoints/")}
    assert held == {"index.yaml", *OURS}
    recipes = [file for file in (REPOSITORY / "recipes").rglob("*") if file.is_file()]  # installed as they are
    assert sum(file.stat().st_size for file in recipes) < 400_000
    kept = (REPOSITORY / ".gitignore").read_text()
    assert all(f"!checkpoints/{name}/" in kept for name in OURS)


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_name(OURS[0])
    (tmp_path / OURS[0]).mkdir()
    assert not is_name(OURS[0]) and not is_name("no/such") and not is_name("")


@pytest.mark.real
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", [name for name in OURS if "vocoder" not in name])
def test_a_model_opens_on_every_kind_of_cpu(name: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LLM is held in bfloat16 or float32 as the CPU likes; either is what the model was trained on."""
    if CACHE:
        monkeypatch.setenv("SPEECHZOO_CACHE", CACHE)
    else:
        monkeypatch.delenv("SPEECHZOO_CACHE")
    monkeypatch.setattr("speechzoo.names.resolvers.fast_bfloat16", lambda: fast)
    weight = speechzoo.load(name).llm.lm.get_input_embeddings().weight
    assert weight.dtype == (torch.bfloat16 if fast else torch.float32)
