"""Checkpoints of a run: which are complete, their average, and what tells one from another."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..errors import InputError
from ..files import CHECKPOINTS, RESULTS, SETTINGS, digest, file_digest

_RESUMABLE = ("model.safetensors", "scheduler.pt", "trainer_state.json")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. One that a kill cut short is passed over."""
    found = (path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return [path for path in sorted(found, key=lambda path: int(path.name.split("-")[1])) if is_complete(path)]


def is_complete(checkpoint: Path) -> bool:
    """`Trainer` writes the state last; a cut-off state is no JSON, cut-off weights have no whole header."""
    try:
        sharded = (checkpoint / "pytorch_model_fsdp.bin").exists()
        optimizer = "optimizer.bin" if sharded else "optimizer.pt"
        if not all((checkpoint / name).stat().st_size for name in (*_RESUMABLE, optimizer)):
            return False
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "model.safetensors", framework="pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


def remove_incomplete_checkpoints(folder: Path) -> list[str]:
    """Remove what a kill left half-written, so that no later step takes it for a checkpoint; returns the names."""
    complete = set(checkpoints(folder))
    broken = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if path not in complete]
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
