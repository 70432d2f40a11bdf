"""Models go to a hub and come back; a hub that is not there is one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hub_stand_in import running
from test_pretrained import build

PULL = """
import sys, torch
from speechzoo.models import LLaMAOmni, LLaSM
*names, out = sys.argv[1:]
states = [dict(torch.nn.Module.state_dict(LLaMAOmni.from_pretrained(name))) for name in names]
torch.save(states, out)
"""


def asked(tmp_path, code: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """Python with a hub of its own; huggingface_hub reads its settings once, when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **settings}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_model_goes_to_the_hub_and_comes_back(tmp_path, tiny_llm_dir, tiny_whisper_pt):
    model = build(tiny_llm_dir, tiny_whisper_pt, {"r": 2, "lora_alpha": 4})
    model.save_pretrained(tmp_path / "saved")
    push = (
        "import sys; from speechzoo.models import LLaMAOmni\n"
        "model = LLaMAOmni.from_pretrained(sys.argv[1])\n"
        "print(model.push_to_hub('us/tiny', token='t', commit_message='first'))"
    )
    with running() as hub:
        sent = asked(tmp_path, push, str(tmp_path / "saved"), HF_ENDPOINT=hub.address)
        assert sent.stdout.strip().endswith("/us/tiny/commit/0123456789abcdef0123456789abcdef01234567"), sent.stderr
        assert set(hub.repos["us/tiny"]) >= {"config.json", "model.safetensors", "README.md", "llm/config.json"}
        got = asked(tmp_path, PULL, "us/tiny", "hf:us/tiny", str(tmp_path / "got.pt"), HF_ENDPOINT=hub.address)
        assert got.returncode == 0, got.stderr
        for state in torch.load(tmp_path / "got.pt", weights_only=True):
            for key, tensor in torch.nn.Module.state_dict(model).items():
                assert torch.equal(state[key], tensor), key
    # what is in the cache needs no hub
    got = asked(tmp_path, PULL, "us/tiny", str(tmp_path / "off.pt"), HF_HUB_OFFLINE="1")
    assert got.returncode == 0, got.stderr
    other = asked(tmp_path, PULL.replace("LLaMAOmni.", "LLaSM."), "us/tiny", str(tmp_path / "x.pt"), HF_HUB_OFFLINE="1")
    assert "us/tiny: a LLaMAOmni, not a LLaSM" in other.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "no network"],
)
def test_without_a_hub_it_is_one_line(tmp_path, settings):
    command = "import sys; from speechzoo.cli import main; sys.exit(main())"
    found = asked(tmp_path, command, "ask", "us/none", "--text=a", **settings)
    assert found.returncode == 1 and not found.stdout
    assert found.stderr.startswith("speechzoo ask: us/none: no such folder, and not available from the hub (")
    assert found.stderr.count("\n") == 1


def test_an_upload_that_fails_names_folder_and_reason(tmp_path, tiny_llm_dir, tiny_whisper_pt):
    model = build(tiny_llm_dir, tiny_whisper_pt)
    with pytest.raises(ConnectionError, match="not uploaded to us/tiny"):
        model.push_to_hub("us/tiny", token="t")


@pytest.mark.slow
def test_a_repository_that_is_not_there_is_one_line(tmp_path):
    with running() as hub:
        found = asked(tmp_path, PULL, "us/none", "x", HF_ENDPOINT=hub.address)
    assert "us/none: no such folder, and not available from the hub" in found.stderr.splitlines()[-1]
