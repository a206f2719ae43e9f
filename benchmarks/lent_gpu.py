"""Many trainings on a GPU that is lent for minutes, on a machine that can be sent only small files.

    python -m benchmarks.lent_gpu pack outputs/base/transfer-balanced pieces --megabytes 46
    python -m benchmarks.lent_gpu unpack pieces outputs/base/transfer-balanced
    python -m benchmarks.lent_gpu train run_compare.py recipes/compare/base_settings.yaml --data_dir FOLDER --jobs 15

`pack` writes a checkpoint's weights in bf16, compressed without loss, as files of at most so many megabytes; an 8-bit
plane of exponents compresses to a third, the rest does not. `unpack` makes the folder again, in float32. `train` runs a
script whose trainings are forked off one process that has imported everything, so that they start in a second. On an
H200 with 16 cores, 15 trainings of MPNet at a time took 1.5 minutes each, 39 in 6 minutes. For forks,
PYTORCH_NVML_BASED_CUDA_CHECK=1 must be set, and the working folder must not be this one.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.measure import ROOT

WEIGHTS, HEAD = "model.safetensors", "head.json"
CHUNK = 1 << 22  # bytes compressed by themselves, so that all cores unpack


def pack(folder: Path, pieces: Path, megabytes: int) -> None:
    """Write the checkpoint of `folder` to `pieces`."""
    pieces.mkdir(parents=True)
    head, chunks = [], []
    for name, tensor in sorted(load_file(folder / WEIGHTS).items()):
        bits = tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().ravel().view(np.uint16)
        planes = (bits >> 7).astype(np.uint8), (bits & 0x7F | bits >> 15 << 7).astype(np.uint8)  # exponent; the rest
        packed = [
            [zlib.compress(plane.tobytes()[start : start + CHUNK]) for start in range(0, plane.nbytes, CHUNK)]
            for plane in planes
        ]
        head.append({"name": name, "shape": list(tensor.shape), "planes": [list(map(len, part)) for part in packed]})
        chunks += [chunk for part in packed for chunk in part]
    whole = memoryview(b"".join(chunks))
    for number, start in enumerate(range(0, len(whole), megabytes * 10**6)):
        (pieces / f"{number:02}").write_bytes(whole[start : start + megabytes * 10**6])
    (pieces / HEAD).write_text(json.dumps(head))
    for file in folder.iterdir():
        if file.name != WEIGHTS and file.suffix not in (".png", ".tsv"):
            copy = shutil.copytree if file.is_dir() else shutil.copy
            copy(file, pieces / file.name)


def unpack(pieces: Path, folder: Path) -> None:
    """Make the folder that was packed, its weights rounded to bf16."""
    data = memoryview(b"".join(file.read_bytes() for file in sorted(pieces.glob("[0-9][0-9]"))))
    head, chunks, place = json.loads((pieces / HEAD).read_text()), [], 0
    for size in (size for entry in head for plane in entry["planes"] for size in plane):
        chunks.append(data[place : place + size])
        place += size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        whole = pool.map(zlib.decompress, chunks)
    tensors = {}
    for entry in head:
        planes = (b"".join(next(whole) for _ in plane) for plane in entry["planes"])
        exponent, rest = (np.frombuffer(plane, np.uint8).astype(np.uint16) for plane in planes)
        bits = exponent << 7 | rest & 0x7F | rest >> 7 << 15
        tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        tensors[entry["name"]] = tensor.reshape(entry["shape"]).float()
    shutil.copytree(pieces, folder, ignore=shutil.ignore_patterns("[0-9][0-9]", HEAD))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def train(script: str, arguments: list[str]) -> None:
    """Run one of the project's scripts, whose trainings are forked."""
    sys.path.insert(0, str(ROOT / "tests"))
    import forked

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.argv = [script, *arguments]
    with forked.trainings():
        importlib.import_module(script.removesuffix(".py")).main()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lent_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, places in (("pack", ("folder", "pieces")), ("unpack", ("pieces", "folder"))):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
        if name == "pack":
            command.add_argument("--megabytes", type=int, default=46, help="of a file at most (default: 46)")
    command = commands.add_parser("train")
    command.add_argument("script")
    command.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.folder, args.pieces, args.megabytes)
    elif args.command == "unpack":
        unpack(args.pieces, args.folder)
    else:
        train(args.script, args.arguments)


if __name__ == "__main__":
    main()
