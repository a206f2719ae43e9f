"""Find the files of an input: one file, or those in a folder, on this machine or in an object store."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path, PurePath, PurePosixPath
from textwrap import shorten

from pyarrow.fs import FileSelector, FileSystem, FileType

from ..data.rows import FORMATS, format_of, readable
from ..errors import InputError, first_line

logger = logging.getLogger(__name__)
_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "hf", "file")
_PATIENCE = 8  # seconds, for the first answer of an object store


def input_files(name: str) -> tuple[FileSystem | None, PurePath, list[PurePath]]:
    """Return the object store of an input (`None` for this machine), the path in it, and the files to read, in order.

    There are no files if there is nothing of this name. A folder's subfolders are read too, also linked ones. In them,
    names that begin with a dot are hidden. Files of other types are left out with a warning, and so are those that have
    a name, or are in a folder, that begins with an underscore.

    Raises:
        InputError: if the store cannot be reached, a folder cannot be read, or there is no file in one of `FORMATS`.
    """
    filesystem, path, found = _stored(name) if "://" in name else _local(name)
    if found is None:
        return filesystem, path, []
    if found == [path]:
        if format_of(path) not in FORMATS:
            raise InputError(
                f"{readable(path)}: unknown file type {readable(path.suffix)!r}; want {', '.join(FORMATS)}"
            )
        return filesystem, path, found
    files, others, set_aside = [], [], []
    for each in found:
        underscored = any(part.startswith("_") for part in each.relative_to(path).parts)
        if format_of(each) in FORMATS:
            (set_aside if underscored else files).append(each)
        elif not underscored:
            others.append(each)
    for left_out, why in ((others, "of other types"), (set_aside, "with an underscore before their name or folder")):
        if left_out:
            example = readable(left_out[0].relative_to(path))
            logger.warning(f"{readable(path)}: left out {len(left_out)} files {why}, as {example}")
    if not files:
        raise InputError(f"{readable(path)}: no file to read in there; want {', '.join(FORMATS)}")
    return filesystem, path, files


def not_read(name: object, error: Exception) -> InputError:
    """Return the error for a file, folder or address that cannot be read."""
    return InputError(f"{readable(name)}: cannot be read ({shorten(first_line(error), 300)})")


def _local(name: str) -> tuple[None, Path, list[Path] | None]:
    """Return a path of this machine and the files there in order, `None` if there is nothing.

    Raises:
        InputError: if a folder cannot be read.
    """
    path = Path(name)
    if not path.is_dir():
        return None, path, [path] if path.is_file() else None
    try:
        return None, path, sorted(_inside(path))
    except OSError as error:
        raise not_read(error.filename or path, error) from error


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders that are not hidden, and links to files that do not exist.

    Linked folders come last. Those that were read before, or that go in a circle, are left out with a warning.
    """
    folders: list[tuple[Path, tuple[Path, ...]]] = [(folder, ())]  # each with the real folders around it
    links, read = [], set()
    while folders or links:
        here, around = folders.pop() if folders else links.pop(0)
        real = here.resolve()
        if real in read or any(each.is_relative_to(real) for each in around):
            logger.warning(f"{readable(here)}: left out, since it links back to what is read already")
            continue
        read.add(real)
        try:
            found = sorted(here.iterdir())
        except PermissionError:
            if any(part.startswith("_") for part in here.relative_to(folder).parts):
                continue  # its files would be set aside
            raise
        for each in found:
            if each.name.startswith(".") or (each.name == "lost+found" and each.is_dir()):
                continue
            if each.is_dir():
                (links if each.is_symlink() else folders).append((each, (*around, real)))
            elif each.is_file() or not each.exists():  # and not a pipe, which would wait for a writer
                yield each


def _stored(address: str) -> tuple[FileSystem, PurePosixPath, list[PurePosixPath]]:
    """Return the object store of an address, the path in it, and the files there in order.

    Raises:
        InputError: if it cannot be reached, or there is nothing.
    """
    if address.partition("://")[0] not in _STORES:
        raise InputError(f"{address}: no address of a store; want s3://, gs://, abfs://, hdfs:// or hf://, or a file")
    answer: Future[tuple[FileSystem, str, FileType]] = Future()

    def ask() -> None:
        try:
            filesystem, place = FileSystem.from_uri(address)
            answer.set_result((filesystem, place, filesystem.get_file_info(place).type))
        except Exception as error:  # many kinds, of many stores
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # without a network, some stores try for many minutes
    try:
        filesystem, place, kind = answer.result(_PATIENCE)
        inside = filesystem.get_file_info(FileSelector(place, recursive=True)) if kind == FileType.Directory else []
    except TimeoutError as error:
        raise InputError(f"{address}: no answer in {_PATIENCE} seconds; want a network, and keys") from error
    except Exception as error:
        raise not_read(address, error) from error
    if kind == FileType.NotFound:
        raise InputError(f"{address}: no such file or folder")
    path = PurePosixPath(place)
    if kind == FileType.File:
        return filesystem, path, [path]
    found = sorted(PurePosixPath(each.path) for each in inside if each.type == FileType.File)
    hidden = [any(part.startswith(".") for part in each.relative_to(path).parts) for each in found]
    return filesystem, path, [each for each, is_hidden in zip(found, hidden, strict=True) if not is_hidden]
