"""Measure this project against `transformers`, both sides in one run, and write a JSON, a page and plots.

    python -m benchmarks                       # about 10 minutes on a laptop
    python -m benchmarks --full                # the figures of the page: an hour or more
    python -m benchmarks --parts encoder memory --device cuda

Every part checks that both sides compute the same before it times them, and is written as soon as it is done: a run
that was stopped goes on where it was. Delete the JSON to measure anew.
"""

import argparse
import os
from pathlib import Path

import torch

from benchmarks import bench_encoder, bench_inference, bench_memory, bench_training
from benchmarks.measure import ROOT, Results, machine, machine_slug

PARTS = ["encoder", "memory", "inference", "training"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all")
    parser.add_argument("--full", action="store_true", help="more rounds, more texts, three seeds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("EMODEBERTA_DATA"),
        help="folder with wassa2022/ and goemotions/ (default: EMODEBERTA_DATA); else the project's own essays",
    )
    parser.add_argument("--output", type=Path, help="JSON; default outputs/bench/bench-<machine>.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    output = args.output or ROOT / "outputs" / "bench" / f"bench-{machine_slug(device)}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    results = Results(output)
    shown = machine(device)
    print(f"{shown['name']}, {shown['cores']} cores; writing {output}", flush=True)
    if "memory" in args.parts:
        bench_memory.measure(results, device)
    if "inference" in args.parts:
        bench_inference.measure(results, args.data_dir, 300 if args.full else 60, 3 if args.full else 1, device)
    if "encoder" in args.parts:
        bench_encoder.measure(results, 1024, 5 if args.full else 1, ["float32", "bfloat16"], device)
    if "training" in args.parts:
        bench_training.measure(
            results,
            args.data_dir,
            epochs=1,
            seeds=[1, 2, 3] if args.full else [1],
            limit=None if args.full else 96,
            use_cpu=device.type == "cpu",
        )


if __name__ == "__main__":
    main()
