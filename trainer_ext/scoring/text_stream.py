"""Read any number of texts row by row, in constant memory, from files, folders, Hub datasets or standard input.

An unreadable row is still returned: it has an error instead of a text, and reading continues with the next row.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from datasets import IterableDataset, load_dataset
from huggingface_hub import HfApi

from ..data.delimited import Record, UnreadableTable, broken
from ..data.rows import COMPRESSIONS, FORMATS, cells, format_of, read_rows, readable, text_lines
from ..data.tables import no_column
from ..errors import InputError, first_line

logger = logging.getLogger(__name__)
READ_CHARACTERS = 2**16  # of a text; no model reads as many tokens, and a shard's texts are in memory at once


class UnreadableFile(InputError):
    """An error for a file that cannot be read to its end; `file` is its position in the source."""

    def __init__(self, message: str, file: int):
        super().__init__(message)
        self.file = file


class Row(NamedTuple):
    """One text.

    Attributes:
        text: The text, or `None` if there is an error.
        id: The id as text, or `None` without an id column.
        error: Where the row is and what is wrong with it, without the text.
        file: Position of the row's file in the source.
        cut: Whether the text was longer than `READ_CHARACTERS`.
    """

    text: str | None
    id: str | None
    error: str | None
    file: int = 0
    cut: bool = False


@dataclass
class TextSource:
    """Texts that can be read several times, always in the same order.

    Attributes:
        name: Name for messages.
        files: Name, size in bytes and SHA-256 of each file, in order. For a Hub dataset, its revision. Empty for
            standard
            input.
        rows: About how many rows there are, if that is known without reading them.
        text_column, id_column: Names of the columns, for formats with columns.
        quoting: For csv and tsv, see [`trainer_ext.data.delimited.delimited_rows`].
    """

    name: str
    files: list[dict[str, Any]]
    rows: int | None
    text_column: str
    id_column: str | None
    quoting: str = "auto"
    _paths: list[Path] = field(default_factory=list, repr=False)
    _dataset: IterableDataset | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Row]:
        """Yield every row.

        Raises:
            UnreadableFile: if a file lacks a column, or cannot be read to its end.
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
                yield from (self._row(record, "text", self.name, 0) for record in text_lines(file))
        for number, path in enumerate(self._paths):
            try:
                yield from self._file_rows(path, number)
            except UnreadableTable as error:
                raise UnreadableFile(f"{readable(path)}: {error}", number) from error
            except InputError as error:
                raise UnreadableFile(str(error), number) from error

    def check(self) -> None:
        """Check that the first row of each file can be read.

        Raises:
            UnreadableFile: if a file cannot be read at all, or lacks a column.
        """
        for number, path in enumerate(self._paths):
            try:
                next(self._file_rows(path, number), None)
            except UnreadableTable as error:
                raise UnreadableFile(f"{readable(path)}: {error}", number) from error

    def _file_rows(self, path: Path, number: int) -> Iterator[Row]:
        name = readable(path.name)
        if format_of(path) == ".txt":
            records, column = read_rows(path), "text"
        else:
            check, columns = lambda names: self._check_columns(names, name), list(dict.fromkeys(self._columns))
            records, column = read_rows(path, quoting=self.quoting, columns=columns, check=check), self.text_column
        for record in records:
            yield self._row(record, column, name, number)

    def _dataset_rows(self, dataset: IterableDataset, name: str) -> Iterator[Row]:
        count = 0
        for batch in dataset.withformat_of("arrow").iter(batch_size=1024):
            if not count:
                self._check_columns(batch.column_names, name)
            for values, problem in cells(batch.select(list(dict.fromkeys(self._columns)))):
                count += 1
                yield self._row(Record(count, f"row {count}", values, problem), self.text_column, name, 0)

    @property
    def _columns(self) -> list[str]:
        return [self.text_column, *([self.id_column] if self.id_column else [])]

    def _check_columns(self, present: list[str], name: str) -> None:
        for column in self._columns:
            if column not in present:
                raise no_column(name, column, present)

    def _row(self, record: Record, column: str, name: str, number: int) -> Row:
        values, problem = record.values or {}, record.problem
        text, row_id = values.get(column), values.get(self.id_column)
        known = None if row_id is None else str(row_id).encode(errors="replace").decode()
        if problem is None:
            if not isinstance(text, str):
                problem = f"{column} is {'missing' if text is None else f'a {type(text).__name__}'}; want a text"
            elif not text.strip():
                problem = "the text is empty"
            elif wrong := broken(text):
                problem = f"the text is {wrong}"
        if problem is not None:
            return Row(None, known, f"{name}, {record.place}: {problem}", number)
        cut = len(text) > READ_CHARACTERS
        return Row(text.lstrip()[:READ_CHARACTERS] if cut else text, known, None, number, cut)


def open_source(
    name: str,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    quoting: str = "auto",
    cache_dir: str | None = None,
    token: str | None = None,
) -> TextSource:
    """Return the source of texts that `name` describes, without reading its rows.

    Args:
        name: One of the following: a file (.csv, .tsv, .json, .jsonl, .parquet, or .txt with one text per line; all but
            parquet may be compressed, as .csv.gz); a folder of such files, read in the order of their names; a dataset
            on
            the Hub; `-` for standard input with one text per line.
        text_column, id_column: Columns with the text and the row id.
        config_name, split: Configuration and split of a Hub dataset.
        quoting: For csv and tsv, see [`trainer_ext.data.delimited.delimited_rows`].
        cache_dir, token: As in `datasets.load_dataset`.

    Raises:
        InputError: if the input does not exist or cannot be read.
    """
    if name == "-":
        if id_column:
            raise InputError(f"--id_column_name {id_column}: standard input has a text a line and no columns")
        return TextSource("standard input", [], None, text_column, None)
    path = Path(name)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
        paths = [each for each in found if format_of(each) in FORMATS]
        if not paths:
            raise InputError(f"{readable(path)}: no file to read in there; want {', '.join(FORMATS)}")
        if others := [each.relative_to(path) for each in found if format_of(each) not in FORMATS]:
            logger.warning(f"{readable(path)}: left out {len(others)} files of other types, as {readable(others[0])}")
    elif path.is_file():
        if format_of(path) not in FORMATS:
            raise InputError(
                f"{readable(path)}: unknown file type {readable(path.suffix)!r}; want {', '.join(FORMATS)}"
            )
        paths = [path]
    elif format_of(path) in FORMATS or name[0] in "./~" or name.count("/") > 1:
        raise InputError(f"{readable(path)}: no such file or folder")
    else:
        return _hub_source(name, text_column, id_column, config_name, split, cache_dir, token)
    described, rows = [], 0
    for each in paths:
        try:
            record, lines = _describe(each, each.relative_to(path) if path.is_dir() else each.name)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{readable(each)}: cannot be read ({first_line(error)})") from error
        described.append(record)
        rows = None if rows is None or lines is None else rows + lines
    source = TextSource(readable(name), described, rows, text_column, id_column, quoting, paths)
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
    return TextSource(name, files, rows, text_column, id_column, _dataset=dataset)


def _describe(path: Path, name: Path | str) -> tuple[dict[str, Any], int | None]:
    """Return a file's name, size and hash, and about how many rows it has (`None` if unknown)."""
    kind, digest, lines = format_of(path), hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            lines += block.count(b"\n")
    record = {"file": readable(name), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    if kind == ".parquet":
        return record, pyarrow.parquet.read_metadata(path).num_rows
    if kind == ".json" or path.suffix.lower() in COMPRESSIONS:
        return record, None
    return record, lines - (kind in (".csv", ".tsv"))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
