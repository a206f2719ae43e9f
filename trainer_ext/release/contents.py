"""Extract the texts from every kind of file that may be published: lines, metadata and texts inside pictures."""

import io
import json
import mmap
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open
from sentencepiece import SentencePieceProcessor

PICKLE = "a pickle or other weights that run code when read; want safetensors"
NO_KIND = "neither text nor of a kind that belongs into a model's repository"
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_TEXT_ENDINGS = {".md", ".txt", ".py", ".yaml", ".yml", ".toml", ".cff", ".jinja", ".html", ".css"}
_TEXT_NAMES = {"LICENSE", "LICENCE", "NOTICE", "AUTHORS", "Dockerfile"}
# A vocabulary may contain any entry, so each entry is checked on its own.
_VOCABULARY = re.compile(r"(tokenizer|vocab|added_tokens|merges)[^/]*\.(json|txt)")
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP"}
_MEMOS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "PROTO", "GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "PERSID"}


class WrongKind(ValueError):
    """An error for a file that must not be published; the message is the reason."""


@dataclass
class Passage:
    """Some text of a file.

    Attributes:
        text: One or more lines.
        where: Where in the file it is, or empty for lines that a text editor shows.
        vocabulary: Whether each line is a separate entry of a vocabulary, which may look like a short path.
    """

    text: str
    where: str = ""
    vocabulary: bool = False


def passages(path: Path) -> list[Passage]:
    """Return the texts of a file.

    Raises:
        WrongKind: if files of this kind are not published, or the content does not fit the suffix.
    """
    ending = path.suffix.lower()
    if ending in _PICKLE_ENDINGS or zipfile.is_zipfile(path) or _is_pickle(path):
        raise WrongKind(PICKLE)
    if ending == "" and path.name in _TEXT_NAMES:
        return _text(path)
    if ending not in _READERS:
        raise WrongKind(NO_KIND)
    try:
        return _READERS[ending](path)
    except WrongKind:
        raise
    except Exception as error:  # errors of Pillow, sentencepiece, safetensors or JSON
        raise WrongKind(f"not what its ending says, {ending}") from error


def plain_text(path: Path) -> str | None:
    """Return the text of a file, or `None` if it is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _is_pickle(path: Path) -> bool:
    """Return whether `pickle.load` would read the file, in any protocol, even with other bytes at its end.

    A line of text can happen to be a valid pickle, such as `N.`. It does not count, as it calls and stores nothing.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        if re.match(rb"\x80[\x02-\x05]|PK\x03\x04|\x93NUMPY", start):
            return True
        if start.startswith(b"\x89PNG") or not start:
            return False
        file.seek(0)
        seen: set[str] = set()
        try:
            for operation, _, _ in pickletools.genops(file):
                seen.add(operation.name)
        except (ValueError, UnicodeDecodeError, OverflowError, MemoryError, EOFError):
            return False
    return bool(seen & _MEMOS)


def _text(path: Path) -> list[Passage]:
    text = plain_text(path)
    if text is None:
        raise WrongKind(NO_KIND)
    return [Passage(text, vocabulary=_is_vocabulary(path))]


def _is_vocabulary(path: Path) -> bool:
    return _VOCABULARY.fullmatch(path.name) is not None and path.name != "tokenizer_config.json"


def _json(path: Path) -> list[Passage]:
    [raw] = _text(path)
    content = json.loads(raw.text, object_pairs_hook=_object)
    if not raw.vocabulary:
        return [raw]
    model = content.pop("model", {}) if "model" in content and path.name.startswith("tokenizer") else content
    rest = {} if model is content else content | {key: value for key, value in model.items() if key not in _ENTRIES}
    entries = model if model is content else [model.get(key, ()) for key in _ENTRIES]
    return [
        Passage("\n".join(_strings(rest)), "a value"),
        Passage("\n".join(_strings(entries)), "its vocabulary", vocabulary=True),
    ]


def _object(pairs: list[tuple[str, Any]]) -> dict:
    """Return the pairs as a dict; a duplicate name, which `dict` would drop, is an error."""
    if len(dict(pairs)) < len(pairs):
        raise WrongKind("has a name twice in one object, so that readers see different values")
    return dict(pairs)


_ENTRIES = ("vocab", "merges")  # keys in a tokenizer's model


def _strings(content: Any) -> Iterator[str]:
    """Yield every string in a JSON value, keys included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _strings(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _strings(value)


def _safetensors(path: Path) -> list[Passage]:
    with safe_open(path, framework="np"):  # checks that there is nothing besides header and tensors
        pass
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", {})
    return [Passage("\n".join(_strings(metadata)), "its metadata"), Passage("\n".join(header), "its tensors' names")]


def _image(path: Path) -> list[Passage]:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        if image.format != _FORMATS[path.suffix.lower()]:
            raise WrongKind(f"not what its ending says but {image.format}")
        image.load()
        carried = [*image.info.items(), *getattr(image, "text", {}).items(), *image.getexif().items()]
        carried += [item for directory in (0x8769, 0x8825) for item in image.getexif().get_ifd(directory).items()]
    if _end_of_image(data, image.format) != len(data):
        raise WrongKind("a picture with something else after it; save it anew")
    told = (part.decode("latin-1") if isinstance(part, bytes) else str(part) for item in carried for part in item)
    return [Passage("\n".join([*told, _printable(path, 8)]), "inside")]


def _end_of_image(data: bytes, kind: str) -> int:
    """Return the number of bytes up to the end of the picture, or -1 if its end is missing."""
    if kind == "PNG":
        place = 8
        while data[place + 4 : place + 8] != b"IEND" and place < len(data):
            place += 12 + int.from_bytes(data[place : place + 4], "big")
        return place + 12
    if kind == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little")
    last = b"\xff\xd9" if kind == "JPEG" else b";"
    return len(data) if data.endswith(last) else -1


def _model(path: Path) -> list[Passage]:
    SentencePieceProcessor(model_file=str(path))
    return [Passage(_printable(path, 6), "inside", vocabulary=True)]


def _onnx(path: Path) -> list[Passage]:
    with open(path, "rb") as file:
        if file.read(1) != b"\x08":  # the first field of a model's message
            raise WrongKind("not what its ending says, .onnx")
    return [Passage(_printable(path, 10), "inside")]


def _weights(path: Path) -> list[Passage]:
    return [Passage(_printable(path, 16), "inside", vocabulary=True)]


def _printable(path: Path, shortest: int) -> str:
    """Return the printable texts between other bytes, one per line, in one or two bytes per letter.

    Each text is also returned without its first one to four characters, which may be a length or a name that happens to
    be
    letters.
    """
    if not path.stat().st_size:
        return ""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        plain = [found.group().decode() for found in re.finditer(rb"[\x20-\x7e]{%d,}" % shortest, data)]
        wide = re.finditer(rb"(?:[\x20-\x7e]\x00){%d,}" % shortest, data)
        every = [*plain, *(found.group().decode("utf-16-le") for found in wide)]
    return "\n".join(text[start:] for text in every for start in range(5))


_READERS: dict[str, Callable[[Path], list[Passage]]] = {
    **dict.fromkeys(_TEXT_ENDINGS, _text),
    **dict.fromkeys(_FORMATS, _image),
    ".json": _json,
    ".safetensors": _safetensors,
    ".model": _model,
    ".onnx": _onnx,
    ".data": _weights,  # weights of an ONNX model
}
