"""What the benchmarks share: clock, machine and its peak, shapes of the models, texts, and the file of results."""

import csv
import ctypes
import gc
import json
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trainer_ext.files import write_json

ROOT = Path(__file__).resolve().parents[1]
DEBERTA = {  # the options of DeBERTa-v3
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_position_embeddings": 512,
}
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one call takes, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    sides: dict[str, Callable[[], object]], rounds: int, device: torch.device, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each side in each round. Sides take turns, so that a slower minute slows all of them."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + warm_ups):
        for side, run in sides.items():
            spent = seconds(run, device)
            if number >= warm_ups:
                times[side].append(spent)
    return times


def ratio(peer: list[float], ours: list[float]) -> dict:
    """Return the peer's time over ours, by round. Above 1, ours is faster."""
    ratios = [a / b for a, b in zip(peer, ours, strict=True)]
    return {"ratio": round(statistics.median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}


def measures_memory(device: torch.device) -> bool:
    """Return whether the peak memory of a part of the run can be measured. On a CPU, only Linux reports it."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return how far memory rises during `run()`: that of CUDA's allocator, else the process's resident size."""

    def resident(key: str) -> int:
        """Return the process's bytes: `VmRSS` now, `VmHWM` at most since the last reset."""
        return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))

    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return resident("VmHWM") - before


def memory_of_sides(module: str, device: torch.device) -> dict:
    """Return the gigabytes of `python -m MODULE SIDE DEVICE` for the library and for ours, and ours as a share."""
    found = {}
    for side in ("library", "ours"):
        command = [sys.executable, "-m", module, side, str(device)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])["bytes"]
    return {
        "gigabytes": {side: round(count / 1e9, 2) for side, count in found.items()},
        "share": round(found["ours"] / found["library"], 3),
    }


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a matrix product, over shapes that a transformer's layers have."""
    best = 0.0
    for rows, inner, columns in ((1024, 768, 768), (1024, 3072, 768), (2048, 768, 3072), (2048, 2048, 2048)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        spent = min(seconds(lambda a=a, b=b: a @ b, device) for _ in range(15))
        best = max(best, 2 * rows * inner * columns / spent / 1e9)
    return best


def encoder_gflop(lengths: list[int], size: dict) -> float:
    """Return the operations of the matrix products that a forward pass over texts of these lengths cannot avoid.

    These are projections, feed-forward, scores, context, and both position scores (one product for each pair of
    tokens).
    """
    width, inner, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    dense = sum(lengths) * (4 * width * width + 2 * width * inner)
    pairs = sum(length * length for length in lengths) * 4 * width
    return 2 * layers * (dense + pairs) / 1e9


def machine(device: torch.device) -> dict:
    """Return what ran: processor, cores, threads and torch."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1).strip() if found else name
    features = [key for key in ("avx2", "avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(key)]
    return {
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": features,
        "torch": torch.__version__,
    }


def machine_slug(device: torch.device) -> str:
    """Return the machine's name as part of a file name."""
    described = machine(device)
    words = re.sub(r"[^a-z0-9]+", "-", described["name"].lower()).strip("-")
    return words if device.type == "cuda" else f"{words}-{described['cores']}-cores"


def mixed_texts(data_dir: str | None, count: int) -> tuple[list[str], str]:
    """Return texts, one third essays and two thirds comments, shuffled, and what they are.

    From WASSA 2022 and GoEmotions where `data_dir` has them, else the project's own essays and sentences of them.
    """
    folder = Path(data_dir) if data_dir else None
    if folder and (folder / "wassa2022").is_dir() and (folder / "goemotions").is_dir():
        with open(folder / "wassa2022" / "messages_train_ready_for_WS.tsv", newline="", encoding="utf-8") as file:
            essays = [row["essay"] for row in csv.DictReader(file, delimiter="\t")]
        lines = (folder / "goemotions" / "original" / "train.tsv").read_text(encoding="utf-8").splitlines()
        comments = [line.split("\t")[0] for line in lines]
        source = "WASSA 2022 essays and GoEmotions comments"
    else:
        with open(ROOT / "examples" / "essays.tsv", newline="", encoding="utf-8") as file:
            essays = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
        comments = [part for essay in essays for part in re.split(r"(?<=[.!?]) ", essay) if len(part) > 20]
        source = "the project's essays and sentences of them"
    draw = random.Random(0)
    texts = draw.sample(essays, count // 3) + draw.sample(comments, count - count // 3)
    draw.shuffle(texts)
    return texts, source


class Results:
    """One JSON file; each part is written when it is there, and a part that is there is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        self.content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def part(self, name: str, settings: dict, measure: Callable[[], dict]) -> dict:
        """Call `measure()` and keep the result, unless the file has this part with the same settings."""
        settings = json.loads(json.dumps(settings))
        if self.content.get(name, {}).get("settings") != settings:
            script = Path(sys.argv[0]).stem
            module = "benchmarks" if script == "__main__" else f"benchmarks.{script}"
            command = f"python -m {module} {shlex.join(sys.argv[1:])}".rstrip()
            self.content[name] = {"settings": settings, "command": command, **measure()}
            write_json(self.path, self.content)
        return self.content[name]
