"""What `speechzoo doctor` works out for the papers' sizes, beside torch's own accounting of the same step.

`python benchmarks/memory.py`: forward and backward at full size on fake tensors, on the CPU, counted by torch's
`MemTracker`, of whose numbers the planned ones should be within 10 %. States alone are arithmetic in both.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from speechzoo.commands.doctor import WithoutTrainer, setting_of
from speechzoo.commands.training import run
from speechzoo.doctor.fakes import Ledger, fake_batch, fill_with_fakes, without_weights
from speechzoo.doctor.plan import Machine, plan, work_of
from speechzoo.names.recipes import recipe
from speechzoo.training.exact_loss import step_loss

CASES = {
    "LLaMA-Omni stage 1, LoRA": ("llama_omni/stage1", "llama_omni_stage1_lora", 420, 52),
    "LLaMA-Omni stage 2": ("llama_omni/stage2", "llama_omni_stage2_one", 420, 52),
    "LLaSM pretrain": ("llasm/pretrain", "llasm_pretrain_one", 512, 256),
    "LLaSM finetune, LoRA": ("llasm/finetune", "llasm_finetune_lora", 2048, 1024),
}


class Tracker(MemTracker):
    """Without hooks, which it cannot put on frozen weights, and each module's peak, which takes minutes."""

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> Any:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules, self.memory_tracking = self.memory_tracking, {}
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules


def tracked(model: Any, half: torch.dtype | None, work: Any) -> int:
    """Peak bytes of weights, gradients and activations of a step, as torch counts them."""
    mode = fill_with_fakes(model)
    batch = fake_batch(model, work, mode)
    given = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tracker = Tracker()
    tracker.track_external(model, *given)
    # The ledger inside only turns masks into indices, which fake tensors need.
    with tracker, Ledger([], set()), torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        out = model(batch)
        loss = step_loss(out.sums, model.num_targets(batch), model.loss_weights, 1, 1)
        del out
    with tracker, Ledger([], set()):
        loss.backward()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def main() -> int:
    """Print a row for each case; returns 1 if one is more than 10 % off."""
    worst = 0.0
    print("| case | planned, without the optimizer | torch's MemTracker | ratio | seconds |\n|---|---:|---:|---:|---:|")
    for name, (stage, overlay, positions, answer) in CASES.items():
        files = [f"--config={recipe(f'{stage}.yaml')}", f"--config={recipe(f'cluster/{overlay}.yaml')}"]
        if "stage2" in stage:  # with the LLM running, which is the larger case
            files.append("--data.init_args.state_cache=null")
        cli = run(["fit", *files], WithoutTrainer)
        setting = setting_of({**cli.config_init["fit"]["trainer"], "accumulate_grad_batches": 1})
        (found,) = plan(cli.model, setting, cli.datamodule, [Machine("here", 1, 0)], positions, answer)
        start = time.perf_counter()
        hollow = without_weights(cli.model)
        work = work_of(hollow, cli.datamodule, positions, answer)
        theirs = tracked(copy.deepcopy(hollow), setting.half, work)
        ours = found.peak - found.memory.moments
        worst = max(worst, abs(ours / theirs - 1))
        took = time.perf_counter() - start
        cells = f"{ours / 1e9:.2f} GB | {theirs / 1e9:.2f} GB | {ours / theirs:.3f} | {took:.0f}"
        print(f"| {name} | {cells} |", flush=True)
    return int(worst > 0.1)


if __name__ == "__main__":
    sys.exit(main())
