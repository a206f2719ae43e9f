"""The folder of a run: whether it may be used, where to resume, files that appear whole or not at all, and what the
run was."""

import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainingArguments

from .errors import InputError
from .precision import Choice

CHECKPOINTS = "checkpoints"
RESULTS = "all_results.json"  # written last: a folder that has it is finished
_SETTINGS = "run.json"
_STAGING = ".incomplete"
# What a run leaves in its folder; an overwritten run's files go, so that none of them passes for the new one's.
_OUTPUTS = (
    "README.md", "*_emodeberta.py", RESULTS, "config.json", "confusion_matrix.*", "fusion.*", "learning_curve.*",
    "left_out.json", "reliability.*",
    "*.safetensors", "model.safetensors.index.json", "predictions*.tsv", "run.json", "training_args.json", "*token*",
    "vocab.txt", "spm.model",
)  # fmt: skip
_RESUMABLE = ("model.safetensors", "scheduler.pt", "trainer_state.json")


def write_text(path: Path, text: str) -> None:
    """Write beside the target, then rename."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")  # processes of several machines may write the same
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """As [`write_text`]."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict:
    """Return the JSON object in a file, or an empty one if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_usable(folder: Path, settings: dict, overwrite: bool) -> None:
    """Look at the output folder; changes nothing.

    Args:
        folder: May be absent.
        settings: What decides the run's result, as JSON values; an unfinished run goes on only with the same.
        overwrite: The user's word that what is there may go.

    Raises:
        InputError: if it holds something else than a run (with `overwrite` too), a finished run, or an unfinished one
            with other settings.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; want a folder for --output_dir")
    if not folder.exists():
        return
    started = folder / CHECKPOINTS / _SETTINGS
    ours = started.exists() or (folder / RESULTS).exists()
    # A run that was killed at its very start leaves an empty folder, or this file half-written.
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(f".{_SETTINGS}."))
    if not ours and any(files):
        raise InputError(f"{folder}: is in use (not empty, and no run of this script); give another --output_dir")
    if overwrite:
        return
    if (folder / RESULTS).exists():
        raise InputError(f"{folder}: holds a finished run; give another --output_dir, or --overwrite_output_dir")
    if started.exists():
        before = json.loads(started.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"{folder}: holds an unfinished run with another {', '.join(sorted(changed))}; give the same to go on, "
                "another --output_dir, or --overwrite_output_dir"
            )


def start(folder: Path, settings: dict, overwrite: bool) -> None:
    """Make the folder and note the settings; with `overwrite`, remove an earlier run's checkpoints and results."""
    if overwrite:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        for pattern in _OUTPUTS:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / _STAGING, ignore_errors=True)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_json(folder / CHECKPOINTS / _SETTINGS, settings)


def begun_settings(checkpoints: Path) -> dict:
    """Return the settings that [`start`] noted beside a run's checkpoints, or none if there are none to read."""
    return read_object(checkpoints / _SETTINGS)


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


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write results into; on success its files move into `folder`, `all_results.json` last."""
    staging = folder / _STAGING
    staging.mkdir(parents=True)
    yield staging
    for path in sorted(staging.iterdir(), key=lambda path: path.name == RESULTS):
        path.replace(folder / path.name)
    staging.rmdir()


@contextmanager
def lock(path: Path, name: str, why: str = "being run by a process of an earlier start") -> Iterator[int]:
    """An exclusive lock that a child process holds on to if it is given the descriptor; waits for whoever has it, and
    says so of `name`."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{name}: {why}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(values: object) -> str:
    """Short hash of JSON values, to tell whether data changed."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


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
    started = folder / CHECKPOINTS / _SETTINGS
    if started.exists() and (folder / RESULTS).exists():
        settings = json.loads(started.read_text(encoding="utf-8"))
        if settings:  # an ensemble's folder has none
            return digest(sorted(settings.items()))
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return digest([[file.name, file_digest(file)] for file in files])


# ---- What a run was ----------------------------------------------------------------------------------------------


def provenance(args: TrainingArguments, chosen: Choice) -> dict:
    """Return what it takes to repeat the run, including how its precision was chosen; no secrets."""
    return {
        "command": command_line(),
        "seed": args.seed,
        "precision": precision(args),
        "precision_choice": chosen.record(),
        "hardware": hardware(args),
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
    }


def command_line() -> str:
    """What was typed, tokens blotted out and absolute paths made relative or, outside the working directory, cut to
    their last part: it goes into cards."""
    program = Path(sys.argv[0]).name
    start = ["python", program] if program.endswith(".py") else [program]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and module.origin == sys.argv[0] and "." in module.name:  # of a package, by `python -m`
        start = ["python", "-m", module.name]
    return shlex.join([*start, *map(shown, without_secrets(sys.argv[1:]))])


def shown(argument: str) -> str:
    """An argument, or the name of a model or corpus, without the absolute path of this machine that it may hold."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
    return flag + equals + value


def training_arguments(args: TrainingArguments) -> dict:
    """Those that differ from their defaults and say how it was trained, as JSON values."""
    defaults = {field.name: field.default for field in fields(args)}
    return {
        name: value
        for name, value in args.to_dict().items()
        if name in defaults
        and value != defaults[name]
        and not name.startswith(("hub_", "push_", "log", "report_"))
        and name not in ("output_dir", "run_name", "resume_from_checkpoint", "disable_tqdm")
    }


def without_secrets(argv: list[str]) -> list[str]:
    """The command line with tokens blotted out."""
    shown = list(argv)
    for index, argument in enumerate(shown):
        flag = argument.partition("=")[0].replace("-", "_")
        if flag in ("__token", "__hub_token"):
            if "=" in argument:
                shown[index] = argument.partition("=")[0] + "=***"
            elif index + 1 < len(shown):
                shown[index + 1] = "***"
    return shown


def hardware(args: TrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {args.world_size} process(es)"


def precision(args: TrainingArguments) -> str:
    """Of training: float32, bf16 or fp16."""
    return "float32" if args.mixed_precision == "no" else args.mixed_precision
