"""Atomic writes of files, locks, and hashes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout, lock_descriptor
from tqdm.auto import tqdm

from .errors import InputError
from .escape import without_keys

LOCK = ".lock"  # in an output folder; hidden files are not published
_PATIENCE = 1.0  # seconds, since another process may hold the lock only to check whether the folder is free
_claimed: dict[Path, FileLock] = {}  # folders that this process has claimed
CHECKPOINTS = "checkpoints"
RESULTS = "all_results.json"  # written last: a folder that has it is finished
SETTINGS = "run.json"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: first a temporary file in the same folder, then a rename.

    Lone surrogates, such as those of a path that is not UTF-8, are written as escapes. In JSON, these are the same
    characters when read again.
    """
    partial = path.with_name(
        f".{path.name}.{uuid4().hex}"
    )  # unique, since processes on several machines may write this file
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON values to a file atomically, as [`write_text`]."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict:
    """Return the JSON object in a file, or an empty dict if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_no_input(flag: str, output: Path, inputs: Iterable[str | None]) -> None:
    """Check that the file of a flag is not one of the input files, which stay as they are.

    Raises:
        InputError: if it is.
    """
    if any(path and output.resolve() == Path(path).resolve() for path in inputs):
        raise InputError(f"{flag} {output}: is one of the files to read, which stay as they are; give another")


def begun_settings(checkpoints: Path) -> dict:
    """Return the settings saved next to a run's checkpoints, or an empty dict if there are none."""
    return read_object(checkpoints / SETTINGS)


@contextmanager
def lock(path: Path, name: str, why: str = "being run by a process of an earlier start") -> Iterator[int]:
    """Hold an exclusive lock within a `with` block; if another process holds it, print a message and wait.

    The lock ends with the last process that holds it, even if that process is killed.

    Args:
        path: The lock file.
        name: What is locked, for the message.
        why: Why one has to wait, for the message.

    Yields:
        The file descriptor, which [`handed_on`] passes to a child process.
    """
    with open(path, "w") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            tqdm.write(f"{name}: {why}; waiting for it")
            lock_descriptor(file.fileno())
        yield file.fileno()


def handed_on(held: int) -> dict[str, Any]:
    """Return arguments for `subprocess.Popen`, so that a child process also holds a [`lock`].

    Windows cannot do this. There, only the [`claim`] on its own output folder protects a child process.
    """
    return {} if os.name == "nt" else {"pass_fds": [held]}


def claim(folder: Path, name: object = None) -> None:
    """Create an output folder and reserve it for this process until [`release`] or the end of the process.

    A second claim in the same process changes nothing. Forked processes do not inherit the claim.

    Args:
        name: Name of the folder in messages; by default its path.

    Raises:
        InputError: if another process has claimed the folder, or it is not writable.
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
    """Release this process's claim on a folder, if there is one."""
    if held := _claimed.pop(folder.resolve(), None):
        held.release()


def check_free(folder: Path, name: object = None) -> None:
    """Check that no other process has claimed the folder, without creating anything.

    Raises:
        InputError: if another process has claimed it.
    """
    if folder.resolve() not in _claimed and (folder / LOCK).is_file():
        claim(folder, name)
        release(folder)


def open_to_readers(path: Path) -> None:
    """Give a file, or all files of a folder, the permissions of the umask; safetensors makes its files private."""
    folder = path if path.is_dir() else path.parent
    probe = folder / f".{uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for each in path.rglob("*") if path.is_dir() else [path]:
        if each.is_file():
            each.chmod(mode)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> tuple[int, ...]:
    """Return values that differ after a file was changed, without reading it.

    A program can set a file's own times back, but not `st_ctime`, the time of the last change to file or times.
    """
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def digest(values: object) -> str:
    """Return a short hash of JSON values, to detect changes."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def shown(argument: str) -> str:
    """Return an argument (or the name of a model or corpus) without absolute paths of this machine and keys."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
    return without_keys(flag + equals + value)


def free_folder(folder: Path) -> Path:
    """Return the folder, or the first of `<folder>-2`, `<folder>-3`, … that does not exist."""
    number = 1
    while (free := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return free
