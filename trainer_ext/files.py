"""Files that appear whole or not at all, locks, and hashes."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tqdm.auto import tqdm

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


def shown(argument: str) -> str:
    """An argument, or the name of a model or corpus, without the absolute path of this machine that it may hold."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute():
        value = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else f".../{path.name}"
    return flag + equals + value
