"""Files that appear whole or not at all, locks, and hashes."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout, lock_descriptor
from tqdm.auto import tqdm

from .errors import InputError

LOCK = ".lock"  # of an output folder; hidden files are not published
_PATIENCE = 1.0  # seconds; another process may just be looking whether a folder is free
_claimed: dict[Path, FileLock] = {}  # the folders that are this process's
CHECKPOINTS = "checkpoints"
RESULTS = "all_results.json"  # written last: a folder that has it is finished
SETTINGS = "run.json"


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


def begun_settings(checkpoints: Path) -> dict:
    """Return the settings that [`start`] noted beside a run's checkpoints, or none if there are none to read."""
    return read_object(checkpoints / SETTINGS)


@contextmanager
def lock(path: Path, name: str, why: str = "being run by a process of an earlier start") -> Iterator[int]:
    """Hold an exclusive lock, which [`handed_on`] passes to a child process. Waits for whoever has it, and says so of
    `name`. The lock goes when the last process that holds it ends, killed or not."""
    with open(path, "w") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            tqdm.write(f"{name}: {why}; waiting for it")
            lock_descriptor(file.fileno())
        yield file.fileno()


def handed_on(held: int) -> dict[str, Any]:
    """Return the arguments of `subprocess.Popen` by which a child holds a [`lock`], too. Windows has no such thing:
    there, a child is only protected by the [`claim`] on its own output folder."""
    return {} if os.name == "nt" else {"pass_fds": [held]}


def claim(folder: Path, name: object = None) -> None:
    """Make an output folder, and make it this process's until [`release`], or until the process ends or is killed.

    Claiming it again in the same process changes nothing. Processes that are forked do not inherit the claim.

    Args:
        name: What to call the folder in messages.

    Raises:
        InputError: if another process has the folder, or it cannot be written to.
    """
    path = folder.resolve()
    if path in _claimed:
        return
    held = FileLock(path / LOCK, thread_local=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise InputError(
            f"{name or folder}: another process is writing to this folder; wait until it ends, or give another folder"
        ) from error
    except OSError as error:
        raise InputError(f"{name or folder}: cannot be written to ({error.strerror}); give another folder") from error
    _claimed[path] = held


def release(folder: Path) -> None:
    """Let other processes have a folder that this one claimed."""
    if held := _claimed.pop(folder.resolve(), None):
        held.release()


def check_free(folder: Path, name: object = None) -> None:
    """Raise InputError if another process has claimed the folder. Makes nothing."""
    if folder.resolve() not in _claimed and (folder / LOCK).is_file():
        claim(folder, name)
        release(folder)


def open_to_readers(folder: Path) -> None:
    """Give the files of a folder the mode of any new file: some libraries write theirs for their owner alone."""
    probe = folder / f".{uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> tuple[int, ...]:
    """Return what tells, without reading a file, that it is as it was. Whoever changes one can set its times back, but
    not the time of that (`st_ctime`)."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def digest(values: object) -> str:
    """Short hash of JSON values, to tell whether data changed."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def shown(argument: str) -> str:
    """An argument, or the name of a model or corpus, without the absolute path of this machine that it may hold."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
    return flag + equals + value
