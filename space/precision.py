"""Choose between float32 and bf16 by timing both on this machine.

The processor's name or feature flags do not tell which is faster. With AVX-512's bf16 instructions alone, bf16 matrix
products are several times as fast as float32 on some processors and half as fast on others. So both are timed once, for
about a tenth of a second, and the times are cached for the machine.

This file imports nothing of the project. `space/precision.py` is a copy of it, because a Space has no checkout.
"""

import contextlib
import functools
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import torch
from filelock import lock_descriptor

# A feed-forward layer of a base-size encoder on 512 tokens: (tokens, width) x (width, inner width).
TOKENS, WIDTH, INNER_WIDTH = 512, 768, 3072
# A GPU needs more rows, so that the matrix product takes longer than the launch of the kernel.
ACCELERATOR_TOKENS = 8192
SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """The milliseconds of one matrix product in each precision; `bf16_ms` is `None` on a device without bf16."""

    float32_ms: float
    bf16_ms: float | None

    @property
    def bf16_is_faster(self) -> bool:
        return self.bf16_ms is not None and self.bf16_ms < self.float32_ms

    def __str__(self) -> str:
        if self.bf16_ms is None:
            return f"a matrix product takes {self.float32_ms:.2f} ms in float32, and this device has no bf16"
        return f"a matrix product takes {self.bf16_ms:.2f} ms in bf16 and {self.float32_ms:.2f} ms in float32"


@dataclass(frozen=True)
class Choice:
    """The precision that was chosen, and why.

    Attributes:
        name: `float32`, `bf16` or `fp16`.
        reason: A few words, for the log.
        timing: The measurement, or `None` if the choice was not made by timing.
    """

    name: str
    reason: str
    timing: Timing | None = None

    @property
    def dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name, torch.float32)

    def __str__(self) -> str:
        return f"precision: {self.name} ({self.reason})"

    def record(self) -> dict:
        """Return the choice as JSON values, for the record of a run."""
        return {"name": self.name, "reason": self.reason, "timing": self.timing and asdict(self.timing)}


def choose(device: torch.device) -> Choice:
    """Return the faster of float32 and bf16 on `device`, with both times."""
    timing = timed(device)
    return Choice("bf16" if timing.bf16_is_faster else "float32", str(timing), timing)


@functools.cache
def timed(device: torch.device) -> Timing:
    """Return the times of both precisions on `device`, measured once per machine and kept in the user's cache folder.

    Processes that start together share one measurement, so that the ranks of a run agree.
    """
    path = cache_folder() / "precision.json"
    key = machine(device)
    with _locked(path):
        known = _read(path)
        try:
            return Timing(float(known[key]["float32_ms"]), known[key]["bf16_ms"] and float(known[key]["bf16_ms"]))
        except (KeyError, TypeError, ValueError):
            timing = measure(device)
        with contextlib.suppress(OSError):  # without a writable cache folder, each process measures anew
            partial = path.with_name(f".{path.name}.{uuid4().hex}")
            partial.write_text(json.dumps(known | {key: asdict(timing)}, indent=2) + "\n", encoding="utf-8")
            partial.replace(path)
    return timing


def measure(device: torch.device, seconds: float = SECONDS) -> Timing:
    """Return the shortest time of a matrix product in each precision, measured in turns for about `seconds`.

    Each precision is timed at least three times. The shortest time counts, since other load on the machine can only add
    to
    it.
    """
    tokens = TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
    operands: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
    best: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            pair = (
                torch.ones(tokens, WIDTH, device=device, dtype=dtype),
                torch.ones(INNER_WIDTH, WIDTH, device=device, dtype=dtype),
            )
            try:
                _product_seconds(*pair)  # the first product also loads kernels
            except (RuntimeError, TypeError):  # a device without bf16
                if dtype == torch.float32:
                    raise
                continue
            operands[dtype] = pair
        start, turns = time.perf_counter(), 0
        while turns < 3 or time.perf_counter() - start < seconds:
            for dtype, pair in operands.items():
                best[dtype] = min(best.get(dtype, float("inf")), _product_seconds(*pair))
            turns += 1
    in_bf16 = best.get(torch.bfloat16)
    return Timing(round(1e3 * best[torch.float32], 4), None if in_bf16 is None else round(1e3 * in_bf16, 4))


def _product_seconds(tokens: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    product = torch.nn.functional.linear(tokens, weight)
    if product.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def machine(device: torch.device) -> str:
    """Return the machine that a measurement is valid for: host, processor or accelerator, and torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = _processor()
    else:
        name = device.type
    return f"{platform.node()}, {name}, torch {torch.__version__}"


def _processor() -> str:
    """Return the processor's name, family, model and features; clouds call several generations just "AMD EPYC"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = [
        re.search(rf"^{field}\s*:\s*(.+)$", lines, re.MULTILINE) for field in ("model name", "cpu family", "model")
    ]
    names = [field[1].strip() for field in found if field] or [platform.machine()]
    features = [key for key in ("avx2", "avx512_bf16", "amx_bf16", "bf16") if torch.cpu.get_capabilities().get(key)]
    return " ".join([*names, *features])


def cache_folder() -> Path:
    """Return the project's folder in the user's cache folder (`XDG_CACHE_HOME` if it is absolute, else `~/.cache`)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "emodeberta"


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock next to `path`; if the folder is not writable, run without a lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - closed below, in either case
    except OSError:
        yield
        return
    with file:
        lock_descriptor(file.fileno())
        yield
