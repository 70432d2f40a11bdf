"""Who is asked by `speechzoo evaluate`: how a question reaches a model, by what it is known, where its answers lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tiny_vocoders import GENERATOR, NET

from speechzoo.cli.evaluate import parser
from speechzoo.suites.command import systems
from speechzoo.suites.questions import Question
from speechzoo.suites.store import safe
from speechzoo.suites.systems import Local, Reply, fingerprint
from speechzoo.system.files import write_atomically
from speechzoo.vocoders import LatentVocoder


def test_a_model_of_ours_is_asked_a_conversation_as_it_was_trained(opened, wavs):
    local = Local("m", "run", generate={"max_new_tokens": 2})
    question = Question("a", sound=str(wavs[0]), around=("", "Translate."), system="Be brief.")
    system, user = local.messages(question, "", written=False)
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["audio", "text"]
    ((asked, reply),) = local.answer([question], "", written=False)
    assert asked is question and isinstance(reply, Reply), reply


def test_a_long_id_has_a_file(tmp_path):
    """File names have 255 bytes at most, and what is half written a longer one."""
    for letter in "问\U00020000":
        names = [safe(letter * 90 + end) for end in ("", "a")]
        assert names[0] != names[1]
        write_atomically(tmp_path / f"{names[0]}.flac", b"sound")
    assert safe("q-1_ä.b") == "q-1_ä.b"


def test_a_fingerprint_is_of_the_content(run_folder: Path):
    before = fingerprint(str(run_folder))
    assert fingerprint(f"cascade:{run_folder}") == f"cascade:{before}"
    (run_folder / "model.safetensors").touch()
    assert fingerprint(str(run_folder)) == before
    (run_folder / "model.safetensors").write_bytes(b"x")
    assert fingerprint(str(run_folder)) != before
    assert fingerprint("llasm-tiny") != fingerprint("llama-omni-tiny")


def test_a_vocoder_goes_to_the_model_whose_units_it_knows(opened, run_folder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        LatentVocoder(NET, GENERATOR, sample_rate=4000).save(tmp_path / "fits")
        LatentVocoder(replace(NET, num_units=5), GENERATOR, sample_rate=4000).save(tmp_path / "other")
    assert Local("m", str(run_folder), str(tmp_path / "fits")).talker.sound["vocoder"].sample_rate == 4000
    assert Local("m", str(run_folder), str(tmp_path / "other")).talker.sound["vocoder"].sample_rate == 8000
    identities = [Local("m", str(run_folder), str(tmp_path / name)).identity() for name in ("fits", "other")]
    assert identities[0] != identities[1]


def test_a_folder_named_after_a_setting_is_no_name(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    given = ["m", str(folder), f"mine={folder}", "--suite", "x"]
    told = [(system.name, system.source) for system in systems(parser().parse_args(["a=b", *given]))]
    assert told == [("a", "b"), ("m", "m"), ("lr=0.1", str(folder)), ("mine", str(folder))]
