"""Measure the memory of a training step at base size with 8 texts of 512 tokens.

Weights, gradients and optimizer state do not count.

Each side runs in a process of its own: `python -m benchmarks.bench_memory SIDE DEVICE`. On CPU, the figure is the
process's highest resident size during the step minus that before it (Linux). On CUDA, it is the allocator's.
"""

import json
import sys

import torch

from benchmarks.bench_encoder import models
from benchmarks.measure import Results, machine, measures_memory, memory_of_sides, peak_bytes


def one_side(side: str, device: torch.device) -> dict:
    """Return the peak bytes of one step, after a small step that makes gradients and optimizer state."""
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
    return {"bytes": peak_bytes(lambda: step(8, 512), device)}


def measure(results: Results, device: torch.device) -> None:
    """Return our memory as a share of the library's."""

    if not measures_memory(device):
        print("\nmemory: only measured on Linux and CUDA")
        return
    settings = {"batch": "8 x 512", "machine": machine(device)}
    row = results.part("memory", settings, lambda: memory_of_sides("benchmarks.bench_memory", device))
    print(f"\nmemory of a training step, 8 x 512: ours is {row['share']:.0%} of the library's", flush=True)


if __name__ == "__main__":
    print(json.dumps(one_side(sys.argv[1], torch.device(sys.argv[2]))))
