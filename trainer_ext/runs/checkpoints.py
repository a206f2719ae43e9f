"""Find, check, average and identify the checkpoints of a run."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..errors import InputError
from ..files import CHECKPOINTS, RESULTS, SETTINGS, begun_settings, digest, file_digest

# The setting with the number of processes. A checkpoint has a random state for each.
PROCESSES = "number of processes"
# Flags that came after the first published trainings. At their defaults they are left out of a run's settings, so that
# older trainings keep their names. Every new flag that changes what is learnt belongs here.
_LATER = {
    "pretrained_share": 0.0, "head_learning_rate": None, "layerwise_lr_decay": 1.0, "quoting": "auto",
    "text_column_delimiter": " ", "trust_remote_code": False, "early_stopping_patience": None,
    "train_on_validation": False,
}  # fmt: skip


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first. Checkpoints that a kill cut short are skipped."""
    return [path for path in _named_checkpoints(folder) if is_complete(path)]


def _named_checkpoints(folder: Path) -> list[Path]:
    found = (path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def is_complete(checkpoint: Path) -> bool:
    """Return whether training can resume from a checkpoint.

    It needs weights, optimizer, scheduler and the random state of every process. `Trainer` writes its state last, but
    each process writes its own random state at any time. Files that were cut short are detected: the state is then not
    JSON, the weights lack a whole header, and files of `torch.save` are zip files without their directory at the end.
    """
    return _has_weights(checkpoint) and all(zipfile.is_zipfile(checkpoint / name) for name in _torch_files(checkpoint))


def _torch_files(checkpoint: Path) -> list[str]:
    is_sharded = (checkpoint / "pytorch_model_fsdp.bin").exists()
    processes = begun_settings(checkpoint.parent).get(PROCESSES)
    if processes is None:  # the checkpoint is from another program
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
    """Return the checkpoints that `--save_only_model` wrote, oldest first. Training cannot resume from them."""
    return [
        path
        for path in _named_checkpoints(folder)
        if _has_weights(path) and not any((path / name).exists() for name in _torch_files(path))
    ]


def remove_incomplete_checkpoints(folder: Path) -> list[str]:
    """Remove checkpoints that a kill left incomplete, so that no later step uses them, and return their names."""
    whole = {*checkpoints(folder), *checkpoints_of_weights(folder)}
    broken = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if path not in whole]
    for path in broken:
        shutil.rmtree(path)
    return sorted(path.name for path in broken)


def average_weights(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of several checkpoints' parameters by name, summed in float64."""
    total: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        for name, tensor in load_file(path / "model.safetensors").items():
            dtypes[name] = tensor.dtype
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).to(dtypes[name]) for name, tensor in total.items()}


@torch.no_grad()
def mix_weights(module: torch.nn.Module, others: dict[str, torch.Tensor], share: float) -> None:
    """Set each weight of a module to `(1 - share) * weight + share * other`, in place, where `others` has its name."""
    for name, weight in module.named_parameters():
        if name in others:
            weight.lerp_(others[name].to(weight), share)


def without_later_flags(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings without the flags that came later, where these are at their defaults."""
    return {name: value for name, value in settings.items() if name not in _LATER or value != _LATER[name]}


def checkpoint_digest(name: str) -> str:
    """Return a string that identifies a checkpoint.

    For a finished run's folder, it is a hash of the run's settings, so that a stage trained again elsewhere counts as
    the same. For any other folder, it is a hash of weights and configuration. For a name on the Hub, it is the name.

    Raises:
        InputError: if the folder has no configuration, for example because its run is not finished.
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
            return digest(sorted(without_later_flags(settings).items()))
    files = sorted(file for file in (*folder.glob("*.safetensors"), folder / "config.json") if file.is_file())
    return digest([[file.name, file_digest(file)] for file in files])
