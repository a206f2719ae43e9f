"""`run_score.py --engine ray` against `run_score.py`: overhead, a killed node, and the driver's memory.

    python -m benchmarks.bench_cluster         # about twenty minutes on two free cores
    python -m benchmarks.bench_cluster --rows 100000 --rounds 1

Writes into results/bench/<machine>.json. The rows are generated and the model is tiny, so that reading, moving and
writing rows weigh the most. A tenth of the rows are then scored with a model of MiniLM's size. Both sides run two
processes with one thread each, in turns. Seconds are those of whole runs, from the command to its end. Processor
seconds are those of all processes of a side, Ray's own among them. On a machine that does other work, they say more
than wall-clock time.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet
import torch
from ray.cluster_utils import Cluster

from benchmarks.bench_mlm import make_rows, resident
from benchmarks.bench_scoring import make_model
from benchmarks.measure import ROOT, SIZES, Results, machine, machine_slug

SHARDS = 100
PROCESSES = 2
# Workers of a cluster give way to all else on the machine, if it is not told otherwise.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def flags(folder: Path, rows: int, output: str) -> list[str]:
    """Return the flags of both sides."""
    model = ["--model", str(folder / "model"), "--input", str(folder / f"{rows}.parquet")]
    return [*model, "--output", str(folder / output), "--dtype", "float32", "--rows_per_shard", str(rows // SHARDS)]


def watched(command: list[str], folder: Path, output: str) -> dict:
    """Run a side to its end, and return its seconds and the mean megabytes of its first process while it scores."""
    shutil.rmtree(folder / output, ignore_errors=True)
    times: dict[tuple, float] = {}
    sizes: list[tuple[float, int]] = []
    start = time.time()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
        while process.poll() is None:
            sizes.append((time.time(), resident(process.pid) or 0))
            tree = psutil.Process(process.pid)
            for each in (tree, *tree.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = each.cpu_times()
                    times[each.pid, each.create_time()] = spent.user + spent.system
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    written = sorted(path.stat().st_mtime for path in (folder / output / ".shards").glob("*.json"))
    assert len(written) == SHARDS
    during = [size for at, size in sizes if written[0] <= at <= written[-1]]
    return {
        "seconds": round(time.time() - start, 1),
        "seconds_from_first_to_last_shard": round(written[-1] - written[0], 1),
        "processor_seconds": round(sum(times.values()), 1),
        "megabytes": round(sum(during) / max(len(during), 1) / 1e6, 1),
    }


def plain(folder: Path, rows: int) -> dict:
    """Score with processes, into the folder `plain`."""
    run = ["-m", "torch.distributed.run", "--nproc_per_node", str(PROCESSES), str(ROOT / "run_score.py")]
    return watched([sys.executable, *run, *flags(folder, rows, "plain")], folder, "plain")


def with_ray(folder: Path, rows: int) -> dict:
    """Score with Ray, into the folder `ray`."""
    command = [sys.executable, str(ROOT / "run_score.py"), *flags(folder, rows, "ray"), "--engine", "ray"]
    return watched(command, folder, "ray")


def overhead(folder: Path, rows: int, rounds: int) -> dict:
    """Return what both sides take for the same rows in each round, and how much more Ray takes, in the median."""
    found: dict[str, list[dict]] = {"processes": [], "ray": []}
    for _ in range(rounds):
        found["processes"].append(plain(folder, rows))
        found["ray"].append(with_ray(folder, rows))
        assert same(folder / "plain", folder / "ray")
        print({side: spent[-1] for side, spent in found.items()}, flush=True)
    more = {
        key: round(statistics.median(b[key] / a[key] - 1 for a, b in zip(*found.values(), strict=True)), 3)
        for key in found["ray"][0]
        if "seconds" in key
    }
    return found | {"ray_takes_more": more}


def same(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same shards, by their checksums."""
    contents = [json.loads((folder / "manifest.json").read_text()) for folder in (one, other)]
    return contents[0]["shards"] == contents[1]["shards"] and all(content["complete"] for content in contents)


def killed(folder: Path, rows: int) -> dict:
    """Kill one of two nodes in the middle, and return what is left."""
    plain(folder, rows)
    node = {"num_cpus": 1, "object_store_memory": 200_000_000}
    os.environ |= ENVIRONMENT
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    second = cluster.add_node(**node)
    command = [sys.executable, str(ROOT / "run_score.py"), *flags(folder, rows, "killed"), "--engine", "ray"]
    try:
        with open(folder / "log", "wb") as log:
            environment = os.environ | {"RAY_ADDRESS": cluster.address}
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
            records = folder / "killed" / ".shards"
            while len(list(records.glob("*.json"))) < SHARDS // 2:
                if process.poll() is not None:
                    raise RuntimeError((folder / "log").read_text()[-2000:])
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)
            at = len(list(records.glob("*.json")))
            process.wait()
    finally:
        cluster.shutdown()
    said = (folder / "log").read_text()
    if process.returncode:
        raise RuntimeError(said[-2000:])
    assert same(folder / "plain", folder / "killed")
    shards = sorted((folder / "killed").glob("scores-*.parquet"))
    numbers = [number for path in shards for number in pyarrow.parquet.read_table(path)["row"].to_pylist()]
    assert numbers == list(range(rows))
    return {
        "rows_once_each": len(numbers),
        "shards_of": SHARDS,
        "shards_when_the_node_was_killed": at,
        "equal_to_processes": True,
        "said": next(line for line in said.splitlines() if "died" in line),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="default: 1,000,000; a tenth of them when a node is killed and at MiniLM's size",
    )
    parser.add_argument("--rounds", type=int, default=3, help="whole runs of each side (default: 3)")
    args = parser.parse_args()
    few, many = args.rows // 10, args.rows
    device = torch.device("cpu")
    results = Results(ROOT / "results" / "bench" / f"{machine_slug(device)}.json")
    settings = {"rows": many, "shards": SHARDS, "processes": PROCESSES, "machine": machine(device)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        for count in (few, many):
            make_rows(folder / f"{count}.parquet", count)
        wanted = settings | {"rounds": args.rounds}
        part = results.part("cluster, overhead", wanted, lambda: overhead(folder, many, args.rounds))
        print(f"{many:,} rows, Ray takes more: {part['ray_takes_more']}", flush=True)
        print(results.part("cluster, killed node", settings, lambda: killed(folder, few)), flush=True)

        def memory() -> dict:
            of_few = with_ray(folder, few)["megabytes"]
            of_many = statistics.median(run["megabytes"] for run in part["ray"])
            return {"megabytes": {str(few): of_few, str(many): of_many}, "ratio": round(of_many / of_few, 3)}

        print(results.part("cluster, driver", settings, memory), flush=True)

        def of_minilm() -> dict:
            make_model(folder, SIZES["MiniLM"])
            return overhead(folder, few, args.rounds)

        part = results.part("cluster, overhead at MiniLM's size", wanted | {"rows": few}, of_minilm)
        print(f"{few:,} rows at MiniLM's size, Ray takes more: {part['ray_takes_more']}", flush=True)


if __name__ == "__main__":
    main()
