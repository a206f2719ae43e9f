"""Read any amount of texts, row by row, in constant memory: files, folders, datasets of the Hub, standard input.

A row that cannot be read is a row all the same: it has an error in place of a text, and those after it are read on.
"""

import bz2
import csv
import gzip
import hashlib
import json
import logging
import lzma
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from datasets import IterableDataset, load_dataset
from huggingface_hub import HfApi

from ..data.tables import no_column
from ..errors import InputError, first_line

logger = logging.getLogger(__name__)
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
COMPRESSIONS = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
LONGEST_RECORD = 2**20  # characters of a row of csv, so that a quote that is never closed does not swallow a file
_READ_AHEAD = 1024
_UNREADABLE = (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)


class UnreadableFile(InputError):
    """A file, number `file` of the source's, that cannot be read to its end."""

    def __init__(self, message: str, file: int):
        super().__init__(message)
        self.file = file


class Row(NamedTuple):
    """One text.

    Attributes:
        text: `None` where there is an error.
        id: As text; `None` without an id column.
        error: Where the row stands and what is wrong with it, without the text.
        file: Position of its file among the source's.
    """

    text: str | None
    id: str | None
    error: str | None
    file: int = 0


@dataclass
class TextSource:
    """Texts to be read once or more, always in the same order.

    Attributes:
        name: For messages.
        files: Of each file that the rows come from, in order: name, bytes and SHA-256; of the Hub, a dataset's
            revision. None for standard input.
        rows: How many there are about, if it can be told without reading them as rows.
        text_column, id_column: Of what has columns.
    """

    name: str
    files: list[dict[str, Any]]
    rows: int | None
    text_column: str
    id_column: str | None
    _paths: list[Path] = field(default_factory=list, repr=False)
    _dataset: IterableDataset | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Row]:
        """Every row.

        Raises:
            UnreadableFile: if a file cannot be read any further, or lacks a column.
        """
        if self._dataset is not None:
            try:
                yield from self._dataset_rows(self._dataset, self.name)
            except InputError:
                raise
            except Exception as error:  # of the network and of datasets, many kinds
                raise InputError(f"{self.name}: cannot be read any further ({first_line(error)})") from error
        elif not self._paths:
            with open(0, "rb", closefd=False) as file:
                yield from self._line_rows(file, self.name, 0)
        for number, path in enumerate(self._paths):
            count = 0
            try:
                for row in self._file_rows(path, number):
                    yield row
                    count += 1
            except InputError as error:
                raise UnreadableFile(str(error), number) from error
            except _UNREADABLE as error:
                message = f"{path}: cannot be read beyond row {count} ({first_line(error)})"
                raise UnreadableFile(message, number) from error

    def check(self) -> None:
        """Read the first row of each file.

        Raises:
            UnreadableFile: if there is a file that cannot be read at all, or lacks a column.
        """
        for number, path in enumerate(self._paths):
            try:
                next(self._file_rows(path, number), None)
            except InputError:
                raise
            except _UNREADABLE as error:
                raise UnreadableFile(f"{path}: cannot be read ({first_line(error)})", number) from error

    def _file_rows(self, path: Path, number: int) -> Iterator[Row]:
        kind = _format(path)
        if kind == ".parquet":
            yield from self._parquet_rows(path, number)
            return
        with COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb") as file:
            if kind == ".txt":
                yield from self._line_rows(file, path.name, number)
            elif kind == ".json":
                values = ((row, value, None) for row, value in enumerate(_json_list(file.read(), path), 1))
                yield from self._objects(values, path.name, number, "row")
            elif kind == ".jsonl":
                yield from self._objects(_json_lines(file), path.name, number, "line")
            else:
                yield from self._csv_rows(file, "," if kind == ".csv" else "\t", path.name, number)

    def _line_rows(self, file: Iterable[bytes], name: str, number: int) -> Iterator[Row]:
        for line, text in enumerate(_decoded(file), 1):
            yield self._row(text.rstrip("\r\n"), None, f"{name}, line {line}", number)

    def _csv_rows(self, file: Iterable[bytes], delimiter: str, name: str, number: int) -> Iterator[Row]:
        header: list[str] | None = None
        for line, fields, problem in _csv_records(file, delimiter):
            where = f"{name}, line {line}"
            if header is None:
                if problem:
                    raise InputError(f"{where}: {problem}; want a header")
                header = fields
                self._check_columns(header, name)
                wanted = [header.index(column) for column in self._columns]
            elif problem:
                yield Row(None, None, f"{where}: {problem}", number)
            elif len(fields) != len(header):
                yield Row(None, None, f"{where}: {len(fields)} fields; the header has {len(header)}", number)
            else:
                text, *row_id = (fields[position] for position in wanted)
                yield self._row(text, *(row_id or [None]), where, number)

    def _parquet_rows(self, path: Path, number: int) -> Iterator[Row]:
        count = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            self._check_columns(file.schema_arrow.names, path.name)
            for batch in file.iter_batches(_READ_AHEAD, columns=list(dict.fromkeys(self._columns))):
                yield from self._cells(batch, path.name, count, number)
                count += len(batch)

    def _dataset_rows(self, dataset: IterableDataset, name: str) -> Iterator[Row]:
        count = 0
        for batch in dataset.with_format("arrow").iter(batch_size=_READ_AHEAD):
            if not count:
                self._check_columns(batch.column_names, name)
            yield from self._cells(batch, name, count, 0)
            count += len(batch)

    def _cells(self, batch: Any, name: str, before: int, number: int) -> Iterator[Row]:
        texts = _values(batch[self.text_column])
        ids = _values(batch[self.id_column]) if self.id_column else [None] * len(texts)
        for count, (text, row_id) in enumerate(zip(texts, ids, strict=True), before + 1):
            yield self._row(text, row_id, f"{name}, row {count}", number)

    def _objects(
        self, objects: Iterable[tuple[int, object, str | None]], name: str, number: int, unit: str
    ) -> Iterator[Row]:
        first = True
        for position, value, problem in objects:
            where = f"{name}, {unit} {position}"
            if isinstance(value, dict):
                if first:
                    self._check_columns(list(value), name)
                    first = False
                yield self._row(value.get(self.text_column), value.get(self.id_column), where, number)
            else:
                problem = problem or f"a {type(value).__name__}; want an object with named fields"
                yield Row(None, None, f"{where}: {problem}", number)

    @property
    def _columns(self) -> list[str]:
        return [self.text_column, *([self.id_column] if self.id_column else [])]

    def _check_columns(self, present: list[str], name: str) -> None:
        for column in self._columns:
            if column not in present:
                raise no_column(name, column, present)

    def _row(self, text: object, row_id: object, where: str, number: int) -> Row:
        known = None if row_id is None else str(row_id).encode(errors="replace").decode()
        problem = None
        if not isinstance(text, str):
            problem = f"{self.text_column} is {'missing' if text is None else f'a {type(text).__name__}'}; want a text"
        elif not text.strip():
            problem = "the text is empty"
        elif not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                problem = "the text is not UTF-8"
        return Row(text if problem is None else None, known, problem and f"{where}: {problem}", number)


def open_source(
    name: str,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    token: str | None = None,
) -> TextSource:
    """Look at what is to be read, without reading its rows.

    Args:
        name: A file (.csv, .tsv, .json, .jsonl, .parquet, or .txt with a text a line; all but parquet also compressed,
            as .csv.gz), a folder of such files (read in the order of their names), a dataset on the Hub, or `-` for
            standard input, a text a line.
        text_column, id_column: Columns with the text and with what identifies a row.
        config_name, split: Of a dataset on the Hub.
        cache_dir, token: As in `datasets.load_dataset`.

    Raises:
        InputError: if there is no such thing.
    """
    if name == "-":
        if id_column:
            raise InputError(f"--id_column_name {id_column}: standard input has a text a line and no columns")
        return TextSource("standard input", [], None, text_column, None)
    path = Path(name)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
        paths = [each for each in found if _format(each) in FORMATS]
        if not paths:
            raise InputError(f"{path}: no file to read in there; want {', '.join(FORMATS)}")
        if others := [each.relative_to(path) for each in found if _format(each) not in FORMATS]:
            logger.warning(f"{path}: left out {len(others)} files of other types, as {others[0]}")
    elif path.is_file():
        if _format(path) not in FORMATS:
            raise InputError(f"{path}: unknown file type {path.suffix!r}; want {', '.join(FORMATS)}")
        paths = [path]
    elif _format(path) in FORMATS or name[0] in "./~" or name.count("/") > 1:
        raise InputError(f"{path}: no such file or folder")
    else:
        return _hub_source(name, text_column, id_column, config_name, split, cache_dir, token)
    described, rows = [], 0
    for each in paths:
        try:
            record, lines = _describe(each, each.relative_to(path) if path.is_dir() else each.name)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{each}: cannot be read ({first_line(error)})") from error
        described.append(record)
        rows = None if rows is None or lines is None else rows + lines
    source = TextSource(name, described, rows, text_column, id_column, paths)
    source.check()
    return source


def _hub_source(
    name: str, text_column: str, id_column: str | None, config: str | None, split: str, cache: str | None, token
) -> TextSource:
    try:
        revision = HfApi(token=token).dataset_info(name).sha
        dataset = load_dataset(
            name, config, split=split, streaming=True, revision=revision, cache_dir=cache, token=token
        )
    except Exception as error:  # datasets and huggingface_hub raise many kinds; all mean that it cannot be had
        raise InputError(f"{name}: no such file, and not to be had from the Hub ({first_line(error)})") from error
    splits = (dataset.info.splits or {}) if dataset.info else {}
    rows = splits[split].num_examples if split in splits else None
    files = [{"dataset": name, "config": config, "split": split, "revision": revision}]
    return TextSource(name, files, rows, text_column, id_column, [], dataset)


def _describe(path: Path, name: Path | str) -> tuple[dict[str, Any], int | None]:
    """A file's record, and about how many rows it has."""
    kind, digest, lines = _format(path), hashlib.sha256(), 0
    with open(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path}: is UTF-16; save it with encoding UTF-8")
        file.seek(0)
        while block := file.read(2**20):
            digest.update(block)
            lines += block.count(b"\n")
    record = {"file": str(name), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    if kind == ".parquet":
        return record, pyarrow.parquet.read_metadata(path).num_rows
    if kind == ".json" or path.suffix.lower() in COMPRESSIONS:
        return record, None
    return record, lines - (kind in (".csv", ".tsv"))


def _format(path: Path) -> str:
    """The suffix, that of a compression left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS else (suffixes or [""])[-1]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines of UTF-8, a byte order mark left out; bytes that are none become lone surrogates, by which a row shows."""
    for number, line in enumerate(lines):
        yield line.decode("utf-8-sig" if number == 0 else "utf-8", errors="surrogateescape")


class _Again:
    """Lines that can be put back."""

    def __init__(self, lines: Iterable[str]):
        self.lines, self.ahead, self.count = iter(lines), deque(), 0
        self.start_record()

    def start_record(self) -> None:
        self.taken: list[str] = []
        self.characters = 0

    def __iter__(self) -> "_Again":
        return self

    def __next__(self) -> str:
        if self.characters > LONGEST_RECORD:
            raise csv.Error(f"a row of more than {LONGEST_RECORD:,} characters")
        line = self.ahead.popleft() if self.ahead else next(self.lines)
        self.taken.append(line)
        self.characters += len(line)
        self.count += 1
        return line

    def put_back_all_but_one(self) -> None:
        self.ahead.extendleft(reversed(self.taken[1:]))
        self.count -= len(self.taken) - 1


def _csv_records(file: Iterable[bytes], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Line number, fields and what is wrong of each record that is not blank. After a wrong one the next line is the
    next record, however far its quotes seemed to reach."""
    lines = _Again(_decoded(file))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_record()
        start = lines.count + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.put_back_all_but_one()
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield start, [], f"{error}; a quote inside quotes is doubled"
            continue
        if fields:
            yield start, fields, None


def _values(column: Any) -> list:
    """Of an Arrow column; text that is not UTF-8 with lone surrogates, as [`_decoded`] gives it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast(pyarrow.binary()).to_pylist()
        return [None if cell is None else cell.decode(errors="surrogateescape") for cell in cells]


def _json_lines(file: Iterable[bytes]) -> Iterator[tuple[int, object, str | None]]:
    """Line number, value and what is wrong of each line that is not blank."""
    for number, line in enumerate(_decoded(file), 1):
        if line.strip():
            try:
                yield number, json.loads(line), None
            except (ValueError, RecursionError) as error:
                yield number, None, f"not JSON ({getattr(error, 'msg', 'a number or nesting beyond all bounds')})"


def _json_list(content: bytes, path: Path) -> list:
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({first_line(error)})") from error
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds a {type(rows).__name__}; want a list of objects (or .jsonl: one a line)")
    return rows
