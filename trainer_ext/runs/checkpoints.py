"""Checkpoints of a run: which are complete, their average, and what tells one from another."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..errors import InputError
from ..files import CHECKPOINTS, RESULTS, SETTINGS, begun_settings, digest, file_digest

# The setting that says how many processes train: each has a random state in a checkpoint.
PROCESSES = "number of processes"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first. One that a kill cut short is passed over."""
    return [path for path in _named_checkpoints(folder) if is_complete(path)]


def _named_checkpoints(folder: Path) -> list[Path]:
    found = (path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def is_complete(checkpoint: Path) -> bool:
    """Whether training can resume from a checkpoint: weights, optimizer, schedule, every process's random state.

    `Trainer` writes the state last, yet each process writes its own random state. A state that was cut off is not JSON,
    weights that were cut off have no whole header, and what `torch.save` wrote is a zip file, whose directory is last.
    """
    return _has_weights(checkpoint) and all(zipfile.is_zipfile(checkpoint / name) for name in _torch_files(checkpoint))


def _torch_files(checkpoint: Path) -> list[str]:
    is_sharded = (checkpoint / "pytorch_model_fsdp.bin").exists()
    processes = begun_settings(checkpoint.parent).get(PROCESSES)
    if processes is None:  # a checkpoint of another program
        random_states = [path.name for path in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    elif processes == 1:
        random_states = ["rng_state.pth"]
    else:
        random_states = [f"rng_state_{rank}.pth" for rank in range(processes)]
    return ["optimizer.bin" if is_sharded else "optimizer.pt", "scheduler.pt", *random_states]


def _has_weights(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "model.safetensors", framework="pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


def checkpoints_of_weights(folder: Path) -> list[Path]:
    """Return the whole checkpoints that `--save_only_model` left, oldest first. No training resumes from them."""
    return [
        path
        for path in _named_checkpoints(folder)
        if _has_weights(path) and not any((path / name).exists() for name in _torch_files(path))
    ]


def remove_incomplete_checkpoints(folder: Path) -> list[str]:
    """Remove what a kill left half-written, so that no later step takes it for a checkpoint; return the names."""
    whole = {*checkpoints(folder), *checkpoints_of_weights(folder)}
    broken = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if path not in whole]
    for path in broken:
        shutil.rmtree(path)
    return sorted(path.name for path in broken)


def average_weights(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Mean of several checkpoints' parameters, summed in float64."""
    total: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        for name, tensor in load_file(path / "model.safetensors").items():
            dtypes[name] = tensor.dtype
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).to(dtypes[name]) for name, tensor in total.items()}


@torch.no_grad()
def mix_weights(module: torch.nn.Module, others: dict[str, torch.Tensor], share: float) -> None:
    """Mix tensors into a module's weights of the same names: `(1 - share) * weight + share * other`, in place."""
    for name, weight in module.named_parameters():
        if name in others:
            weight.lerp_(others[name].to(weight), share)


def checkpoint_digest(name: str) -> str:
    """What tells one checkpoint from another.

    Of a folder that a run left, the settings of the run: a stage that is trained again, elsewhere, is the same stage,
    though its weights are others. Of any other folder, weights and configuration. A name on the Hub stands for
    itself.

    Raises:
        InputError: for a folder without a configuration, as a stage leaves that is not finished.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    if not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json there; want the folder of a finished run")
    started = folder / CHECKPOINTS / SETTINGS
    if started.exists() and (folder / RESULTS).exists():
        settings = json.loads(started.read_text(encoding="utf-8"))
        if settings:  # an ensemble's folder has none
            return digest(sorted(settings.items()))
    files = sorted(file for file in (*folder.glob("*.safetensors"), folder / "config.json") if file.is_file())
    return digest([[file.name, file_digest(file)] for file in files])
