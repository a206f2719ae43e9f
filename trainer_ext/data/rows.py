"""Read rows of csv, tsv, JSON, JSON lines, parquet and text files one by one, in bounded memory."""

import bz2
import difflib
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, BinaryIO, TextIO

import pyarrow
import pyarrow.parquet
from pyarrow.fs import FileSystem

from ..errors import InputError
from .delimited import LONGEST_ROW, Record, UnreadableTable, check_names, decoded, delimited_rows, lines_of, too_long

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
COMPRESSIONS = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_SPACE = re.compile(r"[ \t\n\r]*")


def format_of(path: PurePath) -> str:
    """Return a file's suffix in lower case, ignoring that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS else (suffixes or [""])[-1]


def readable(name: object) -> str:
    """Return a file's name, with bytes that are not UTF-8 as escapes."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def opened(path: PurePath, filesystem: FileSystem | None = None) -> BinaryIO:
    """Open a file for reading bytes, of an object store if its `filesystem` is given."""
    if filesystem is None:
        return open(path, "rb")
    return io.BufferedReader(filesystem.open_input_file(str(path)), 2**20)


def read_rows(
    path: PurePath,
    *,
    quoting: str = "auto",
    header: bool = True,
    check: Callable[[list[str]], list[str] | None] = lambda names: None,
    filesystem: FileSystem | None = None,
    group: int = 0,
) -> Iterator[Record]:
    """Yield every row of a file as a [`Record`].

    Encodings, line ends, separators and quotes are as in [`delimited_rows`]. Both .json and .jsonl may hold a list of
    objects or one object per line.

    Args:
        path: A file in one of `FORMATS`. All but parquet may be compressed with one of `COMPRESSIONS`.
        quoting, header: For csv and tsv, see [`delimited_rows`].
        check: Called once with the column names, before the first row. It may raise. Of parquet, only the columns that
            it returns are read, if it returns any.
        filesystem: Of an object store, or `None` for this machine's files.
        group: Of parquet, the row group to start at.

    Raises:
        UnreadableTable: if the file cannot be read, or only its first rows can.
    """
    kind, number = format_of(path), 0
    if kind not in FORMATS:
        sheet = "; save the sheet as .csv" if kind in _SHEETS else ""
        raise UnreadableTable(f"unknown file type {readable(path.suffix)!r}; want {', '.join(FORMATS)}{sheet}")
    try:
        if kind == ".parquet":
            records = _parquet(path, check, filesystem, group)
        else:
            records = _text_rows(path, kind, quoting, header, check, filesystem)
        for record in records:
            number = record.number
            yield record
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        after = f" beyond row {number}" if number else ""
        raise UnreadableTable(f"cannot be read{after} ({str(error) or type(error).__name__})") from error


def text_lines(file: BinaryIO) -> Iterator[Record]:
    """Yield a [`Record`] with the value `text` for each line."""
    for number, line in enumerate(lines_of(decoded(file)), 1):
        values = None if line is None else {"text": line.rstrip("\r\n")}
        yield Record(number, f"line {number}", values, too_long() if line is None else None)


def no_column(name: str, column: str, present: list[str]) -> InputError:
    """Return the error for a table that lacks a column."""
    close = difflib.get_close_matches(column, present[:1000], n=1)
    shown = ", ".join(each if len(each) <= 40 else f"{each[:40]}…" for each in present[:20])
    return InputError(
        f"{name}: no column {column!r}; it has {shown}"
        + (f" and {len(present) - 20} more" if len(present) > 20 else "")
        + (f"; did you mean {close[0]!r}?" if close else "")
    )


def text_columns(source: str, name: str, present: Sequence[str]) -> list[str]:
    """Return the columns that a name stands for: the column of this name, or several with commas between their names.

    If column names contain commas, the longest name that exists counts.

    Args:
        source: Name of the file or corpus, for messages.
        name: The name, or several with commas between them.
        present: The columns that exist.

    Raises:
        InputError: if a column does not exist.
    """
    parts, columns, known = name.split(","), [], set(present)
    while parts:
        for length in range(len(parts), 0, -1):
            column = ",".join(parts[:length])
            if column not in known and column.strip() in known:
                column = column.strip()
            if column in known:
                break
        else:
            raise no_column(source, column, list(present))
        columns.append(column)
        parts = parts[length:]
    return columns


def text_of(values: Mapping[str, Any], columns: Sequence[str], delimiter: str) -> tuple[Any, str]:
    """Return a row's text, and the name of what it is from.

    Of several columns, texts are joined; cells that are missing or empty are left out. If another value than a text is
    in one of them, it comes back with its column, as the value of a single column does.
    """
    if len(columns) == 1:
        return values.get(columns[0]), columns[0]
    found = [(values.get(column), column) for column in columns if values.get(column) is not None]
    if other := next((each for each in found if not isinstance(each[0], str)), None):
        return other
    return delimiter.join(text for text, _ in found if text.strip()), ", ".join(map(str, columns))


def _text_rows(
    path: PurePath, kind: str, quoting: str, header: bool, check: Callable, filesystem: FileSystem | None
) -> Iterator[Record]:
    unpack = COMPRESSIONS.get(path.suffix.lower())
    with opened(path, filesystem) as raw, unpack(raw) if unpack else raw as file:
        if kind == ".txt":
            check(["text"])
            yield from text_lines(file)
        elif kind in (".csv", ".tsv"):
            yield from delimited_rows(file, kind, quoting=quoting, header=header, check=check)
        else:
            with decoded(file) as text:
                yield from _json(text, kind, check)


# ---- JSON ---------------------------------------------------------------------------------------------------------
def _json(text: TextIO, kind: str, check: Callable) -> Iterator[Record]:
    """Yield the rows of a JSON list or of JSON lines, as the beginning of the file suggests."""
    before, head = 0, text.readline(4096)
    while head and not head.strip():
        before, head = before + head.endswith(("\r", "\n")), text.readline(4096)
    listed = re.match(r"\s*\[" + ("" if kind == ".json" else r"\s*(\{|$)"), head)
    values = _json_list(text, head) if listed else _json_lines(text, head, before, kind)
    first = True
    for number, value, problem in values:
        if problem is None and not isinstance(value, dict):
            problem = f"a {type(value).__name__}; want an object with named fields"
        if problem is None and first:
            first = False
            check(list(value))
        yield Record(number, f"row {number}", None if problem else value, problem)


def _json_lines(text: TextIO, head: str, before: int, kind: str) -> Iterator[tuple[int, object, str | None]]:
    objects = 0
    for number, line in enumerate(lines_of(text, head), before + 1):
        value = problem = None
        if line is None:
            problem = too_long()
        elif not line.strip():
            continue
        else:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = _not_json(error)
        if kind == ".json" and not objects and not isinstance(value, dict):
            found = f"row {number}: {problem}" if problem else f"holds a {type(value).__name__}"
            raise UnreadableTable(f"{found}; want a list of objects, or one object per line")
        objects += 1
        yield number, value, problem


def _json_list(text: TextIO, buffer: str) -> Iterator[tuple[int, object, str | None]]:
    decoder, position, number, ended = json.JSONDecoder(), buffer.index("[") + 1, 1, False
    while True:
        position = _SPACE.match(buffer, position).end()
        if number == 1 and buffer.startswith("]", position):
            position += 1
            break
        try:
            value, end = decoder.raw_decode(buffer, position)
            problem, end = None, _SPACE.match(buffer, end).end()
            if end < len(buffer) and buffer[end] not in ",]":
                raise UnreadableTable(f"row {number}: not JSON (a comma or ] is missing after it)")
        except RecursionError as error:
            raise UnreadableTable(f"row {number}: {_not_json(error)}") from error
        except ValueError as error:
            if isinstance(error, UnreadableTable):
                raise
            problem, end = _not_json(error), len(buffer)
        if end == len(buffer):
            if ended:
                raise UnreadableTable(f"row {number}: {problem or 'not JSON (the list does not end)'}")
            if len(buffer) - position > LONGEST_ROW:
                raise UnreadableTable(f"row {number}: {too_long()}")
            more = text.read(max(2**16, len(buffer) - position))
            buffer, position, ended = buffer[position:] + more, 0, not more
            continue
        yield number, value, None
        number, position = number + 1, end + 1
        if buffer[end] == "]":
            break
    rest = buffer[position:]
    while rest:
        if rest.strip():
            raise UnreadableTable("not JSON (there is more after the list)")
        rest = text.read(2**16)


def _not_json(error: Exception) -> str:
    return f"not JSON ({getattr(error, 'msg', 'a number or nesting beyond all bounds')})"


# ---- Parquet ------------------------------------------------------------------------------------------------------
@contextmanager
def parquet_file(path: PurePath, filesystem: FileSystem | None = None) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Open a parquet file within a `with` block, of an object store if its `filesystem` is given."""
    # As bytes, since the name may not be UTF-8.
    source = pyarrow.OSFile(os.fsencode(path)) if filesystem is None else filesystem.open_input_file(str(path))
    with source, pyarrow.parquet.ParquetFile(source) as file:
        yield file


def _parquet(path: PurePath, check: Callable, filesystem: FileSystem | None, first: int) -> Iterator[Record]:
    number = 0
    try:
        with parquet_file(path, filesystem) as file:
            names = file.schema_arrow.names
            check_names(names)
            columns = check(names)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            size = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
            rows = max(1, min(1024, 2**26 // max(size, 1)))
            number = sum(group.num_rows for group in groups[:first])
            for group in range(first, len(groups)):  # pyarrow keeps what it reads in one go (arrow#39808)
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    for values, problem in cells(batch):
                        number += 1
                        yield Record(number, f"row {number}", None if problem else values, problem)
    except pyarrow.ArrowException as error:
        what = f"cannot be read beyond row {number}" if number else "not a parquet file"
        raise UnreadableTable(f"{what} ({str(error).splitlines()[0]})") from error


def cells(batch: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield the values of each row of an Arrow table or batch, and what is wrong with it (`None` if nothing is)."""
    columns, wrong = {}, {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError, ArithmeticError):
            columns[name] = [_cell(value, name, wrong, index) for index, value in enumerate(column)]
    for index in range(batch.num_rows):
        values = {name: column[index] for name, column in columns.items()}
        long = next(
            (name for name, value in values.items() if isinstance(value, str) and len(value) > LONGEST_ROW), None
        )
        yield values, wrong.get(index) or (f"{long}: {too_long()}" if long is not None else None)


def _cell(value: Any, name: str, wrong: dict[int, str], index: int) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        wrong[index] = f"{name} is not UTF-8 (byte 0x{error.object[error.start]:02x})"
    except (ValueError, OverflowError, ArithmeticError) as error:
        wrong[index] = f"{name} cannot be read ({str(error).splitlines()[0]})"
    return None
