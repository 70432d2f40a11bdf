"""A shipped sweep file, run by W&B's own agent against a stand-in of its server: what reaches `fit`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import serving

ROOT = Path(__file__).parents[2]

# The agent waits so long between what it asks; a second is its pace here.
AGENT = """import sys
from wandb import wandb_agent
wandb_agent.Agent.POLL_INTERVAL = 1
wandb_agent.agent(sys.argv[1], count=1)
"""


def stand_in(sweep: Mapping[str, Any], values: Mapping[str, Any], asked: list[str]) -> type[BaseHTTPRequestHandler]:
    """The four calls that an agent makes: who am I, the sweep, a new agent, and the heartbeat that brings a trial."""
    run = {"type": "run", "run_id": "trial1", "program": sweep["program"]}
    run["args"] = {name: {"value": value} for name, value in values.items()}
    commands = [[run]]
    told = {"id": "1", "name": "sweep1", "config": yaml.safe_dump(dict(sweep)), "runs": {"edges": []}}

    class WandbServer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"]
            name = query.split()[1].partition("(")[0]
            asked.append(name)
            found = commands.pop() if name == "Heartbeat" and commands else []
            replies: dict[str, Any] = {
                "Viewer": {"viewer": {"id": "1", "entity": "us", "username": "me", "teams": {"edges": []}}},
                "SweepWithRuns": {"project": {"sweep": told}},
                "CreateAgent": {"createAgent": {"agent": {"id": "agent"}}},
                "Heartbeat": {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(found)}},
            }
            content = json.dumps({"data": replies[name]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return WandbServer


@pytest.mark.slow
def test_a_trial_of_wandbs_agent_is_what_the_sweep_says(tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "recipes" / "sweeps" / "adaptor_lr_k.yaml").read_text())
    sweep["command"] = [*sweep["command"], "--print_config"]  # parsed, not trained
    own = {name: parameter["values"][1] for name, parameter in sweep["parameters"].items()}
    assert own == {
        "model.init_args.adaptor": "ConcatMLP",
        "model.init_args.adaptor.init_args.stack": 4,
        "model.init_args.optimizer.init_args.lr": 2e-05,
    }
    further = {
        "data.init_args.pin_memory": False,
        "model.init_args.adaptor.init_args.norm": True,
        "model.init_args.freeze": ["^encoder\\.", "^llm\\."],
        "model.init_args.llm": {"init_args": {"loss_chunk": None, "gradient_checkpointing": False}},
        "trainer.gradient_clip_val": None,
    }
    asked: list[str] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # W&B starts `python`
    # W&B sorts by name, so that a class comes before its settings.
    with serving(stand_in(sweep, dict(sorted({**own, **further}.items())), asked)) as server:
        environment |= {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
        environment |= {"WANDB_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path / "config")}
        environment |= {"PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-c", AGENT, "us/project/sweep1"]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert list(dict.fromkeys(asked)) == ["Viewer", "SweepWithRuns", "CreateAgent", "Heartbeat"]

    config = yaml.safe_load(ran.stdout)
    init = config["model"]["init_args"]
    assert init["adaptor"]["class_path"].endswith("ConcatMLP")
    assert init["adaptor"]["init_args"] | {"stack": 4, "norm": True, "hidden_dim": 2048} == init["adaptor"]["init_args"]
    assert init["optimizer"]["init_args"]["lr"] == 2e-05
    assert init["freeze"] == further["model.init_args.freeze"]
    assert (init["llm"]["init_args"]["loss_chunk"], init["llm"]["init_args"]["gradient_checkpointing"]) == (None, False)
    assert init["llm"]["class_path"].endswith("HFCausalLM")  # the rest of a nested value stays
    assert config["data"]["init_args"]["pin_memory"] is False
    assert config["trainer"]["gradient_clip_val"] is None and config["trainer"]["max_steps"] == 2000
    assert config["trainer"]["default_root_dir"] == "checkpoints/sweeps/sweep1/trial1"
