"""Memory of a training step at base size, 8 texts of 512 tokens, beyond weights, gradients and optimizer state.

Each side runs in a process of its own, `python -m benchmarks.bench_memory SIDE DEVICE`: on CPU the figure is the
process's highest resident size during the step less that before it (Linux), on CUDA the allocator's.
"""

import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.bench_encoder import SIDES, models
from benchmarks.measure import ROOT, Results, machine


def _resident(key: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` the highest since it was last reset."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def one_side(side: str, device: torch.device) -> dict:
    """Peak bytes of one step, after a small one that makes gradients and optimizer state."""
    pair = models(device, torch.float32)
    model = pair.pop(side).train()
    pair.clear()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step(rows: int, length: int) -> None:
        ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
        model(ids, torch.ones_like(ids)).pooler_output.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(1, 8)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(8, 512)
        return {"bytes": torch.cuda.max_memory_allocated() - before}
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(8, 512)
    return {"bytes": _resident("VmHWM") - before}


def measure(results: Results, device: torch.device) -> None:
    """Ours as a share of the library's."""

    def run() -> dict:
        found = {}
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.bench_memory", side, str(device)]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])["bytes"]
        return {
            "gigabytes": {side: round(count / 1e9, 2) for side, count in found.items()},
            "share": round(found["ours"] / found["library"], 3),
        }

    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        print("\nmemory: only measured on Linux and CUDA")
        return
    row = results.part("memory", {"batch": "8 x 512", "machine": machine(device)}, run)
    print(f"\nmemory of a training step, 8 x 512: ours is {row['share']:.0%} of the library's", flush=True)


if __name__ == "__main__":
    print(json.dumps(one_side(sys.argv[1], torch.device(sys.argv[2]))))
