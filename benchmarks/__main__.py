"""Measure this project against `transformers`, both sides in one run.

    python -m benchmarks                       # about 10 minutes on a laptop
    python -m benchmarks --full                # the figures of the page: an hour or more
    python -m benchmarks --parts encoder memory --device cuda
    python -m benchmarks --parts gpu           # 6 minutes on a GPU: with two packages of fused attention, too

Writes results/bench/<machine>.json (<machine>-quick.json without --full). `make docs` then fills
docs/performance.md from it.
Every part checks that both sides compute the same before it times them. Parts already measured are kept in
outputs/bench/ until the run is done: one that was stopped goes on where it was.
The part `gpu` writes to the GPU's file, each figure as soon as it is there.
"""

import argparse
import json
import os

import torch

from benchmarks.measure import ROOT, Results, machine, machine_slug
from trainer_ext.files import write_json

PARTS = [
    "encoder",
    "memory",
    "inference",
    "training",
    "child_tuning",
    "mlm",
    "streaming",
    "scaling",
    "scoring",
    "space",
    "gpu",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1], help="what to measure; all but gpu")
    parser.add_argument("--full", action="store_true", help="more rounds, more texts, three seeds")
    parser.add_argument("--device", help="cpu or cuda; default: cuda for --parts gpu, else cpu")
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("EMODEBERTA_DATA"),
        help="folder with wassa2022/ and goemotions/ (default: EMODEBERTA_DATA); else the project's own essays",
    )
    args = parser.parse_args()
    device = torch.device(args.device or ("cuda" if "gpu" in args.parts else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --parts gpu --device cpu runs the same code at tiny sizes")
    if "gpu" in args.parts:
        compare_on_gpu(device)
        args.parts.remove("gpu")
    if args.parts:
        measure(args, device)


def compare_on_gpu(device: torch.device) -> None:
    """Write to results/bench/<GPU>.json; on a CPU to outputs/bench/gpu-tiny.json, made anew."""
    from benchmarks import bench_gpu

    on_gpu = device.type == "cuda"
    path = ROOT / (f"results/bench/{machine_slug(device)}.json" if on_gpu else "outputs/bench/gpu-tiny.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not on_gpu:
        path.unlink(missing_ok=True)
        print("on a CPU, tiny models: every part runs, and no time means anything", flush=True)
    bench_gpu.measure(Results(path), device)
    print(f"\nwrote {path.relative_to(ROOT)}")


def measure(args: argparse.Namespace, device: torch.device) -> None:
    """Write results/bench/<machine>.json: all parts that need one device and no other package."""
    # Imported here, because the comparison on a GPU needs little of what these need.
    from benchmarks import (
        bench_encoder,
        bench_mlm,
        bench_scaling,
        bench_scoring,
        bench_training,
    )

    name = f"{machine_slug(device)}{'' if args.full else '-quick'}.json"
    unfinished = ROOT / "outputs" / "bench" / name
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    results = Results(unfinished)
    shown = machine(device)
    print(f"{shown['name']}, {shown['cores']} cores", flush=True)
    if "memory" in args.parts:
        bench_encoder.measure_memory(results, device)
    if "inference" in args.parts:
        bench_encoder.measure_inference(results, args.data_dir, 300 if args.full else 40, 3 if args.full else 1, device)
    if "encoder" in args.parts:
        bench_encoder.measure(results, 1024, 5 if args.full else 1, ["float32", "bfloat16"], device)
    if "child_tuning" in args.parts:
        bench_training.measure_child_tuning(results, 9 if args.full else 3, device)
    if "mlm" in args.parts:
        bench_mlm.measure(results, 5 if args.full else 1, device)
    if "streaming" in args.parts:
        bench_mlm.measure_streaming(results, 2_000_000 if args.full else 50_000, device)
    if "scaling" in args.parts:
        bench_scaling.measure(results, device)
    if "scoring" in args.parts:
        bench_scoring.measure(results, args.data_dir, args.full, device)
    if "space" in args.parts:
        from benchmarks import bench_space  # wants the extra `demo`

        bench_space.measure(results, 32 if args.full else 8, 20 if args.full else 5, device)
    if "training" in args.parts:
        bench_training.measure(
            results,
            args.data_dir,
            epochs=1,
            seeds=[1, 2, 3] if args.full else [1],
            limit=None if args.full else 96,
            use_cpu=device.type == "cpu",
        )
    target = ROOT / "results" / "bench" / name
    target.parent.mkdir(exist_ok=True)
    earlier = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    write_json(target, earlier | results.content)
    unfinished.unlink()
    print(f"\nwrote {target.relative_to(ROOT)}; `make docs` fills the pages in docs/ from it")


if __name__ == "__main__":
    main()
