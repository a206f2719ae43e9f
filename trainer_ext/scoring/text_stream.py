"""Read any amount of texts, row by row, in constant memory: files, folders, datasets of the Hub, standard input.

A row that cannot be read is a row all the same: it has an error instead of a text, and the rows after it are read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow
from pyarrow.fs import FileSystem

from texts_emodeberta import is_text

from ..data.delimited import Record, UnreadableTable, broken
from ..data.rows import (
    COMPRESSIONS,
    FORMATS,
    cells,
    format_of,
    no_column,
    opened,
    parquet_file,
    read_rows,
    readable,
    text_columns,
    text_lines,
    text_of,
)
from ..errors import InputError, first_line
from ..files import file_state
from .input_files import input_files, not_read

if TYPE_CHECKING:
    from datasets import IterableDataset

READ_CHARACTERS = 2**16  # of a text; no model reads as many tokens, and a shard's texts are in memory at once


class UnreadableFile(InputError):
    """An error for a file that cannot be read to its end; `file` is its position in the source."""

    def __init__(self, message: str, file: int):
        super().__init__(message)
        self.file = file

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.file)


class Row(NamedTuple):
    """One text.

    Attributes:
        text: The text, or `None` if there is an error.
        id: The row's id as text, or `None` without an id column.
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
    """Texts to be read once or more, always in the same order.

    Attributes:
        name: Name of the source, for messages.
        files: Name, bytes and SHA-256 of each file, in order; for a dataset on the Hub, its revision. Empty for
            standard input.
        rows: About how many rows there are, if that is known without reading them.
        text_column, id_column: Columns to read; `text_column` may name several, separated by commas.
        quoting: For csv and tsv; see [`trainer_ext.data.delimited.delimited_rows`].
        text_delimiter: What joins the texts of several columns.
    """

    name: str
    files: list[dict[str, Any]]
    rows: int | None
    text_column: str
    id_column: str | None
    quoting: str = "auto"
    text_delimiter: str = " "
    _paths: list[PurePath] = field(default_factory=list, repr=False)
    _as_described: list[tuple[int, ...]] = field(default_factory=list, repr=False)  # by file, its `_state`
    _filesystem: FileSystem | None = field(default=None, repr=False)  # of an object store
    _dataset: "IterableDataset | None" = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Row]:
        """Yield every row.

        Raises:
            UnreadableFile: if a file cannot be read any further, or lacks a column, or changed since it was described.
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
                yield from (self._row(record, ["text"], self.name, 0) for record in text_lines(file))
        yield from self.rows_from(0)

    def rows_from(self, first: int, group: int = 0) -> Iterator[Row]:
        """Yield every row from a file on. In a parquet file, start at a row group.

        Raises:
            UnreadableFile: as when all rows are read.
        """
        for number in range(first, len(self._paths)):
            try:
                yield from self._file_rows(number, group if number == first else 0)
            except UnreadableTable as error:
                self.check_unchanged(number)  # which is then the reason
                raise UnreadableFile(f"{readable(self._paths[number])}: {error}", number) from error
            except InputError as error:
                raise UnreadableFile(str(error), number) from error
            self.check_unchanged(number)

    def count(self, number: int) -> list[int | None]:
        """Return the number of rows in each row group of a parquet file, or of all rows in another one, which is read.

        A last file that is not parquet is not read and gives `None`, because no rows come after it.

        Raises:
            UnreadableFile: as when all rows are read.
        """
        if format_of(self._paths[number]) != ".parquet":
            if number == len(self._paths) - 1:
                return [None]
            return [sum(1 for _ in takewhile(lambda row: row.file == number, self.rows_from(number)))]
        try:
            with parquet_file(self._paths[number], self._filesystem) as file:
                return [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        except (OSError, pyarrow.ArrowException) as error:
            raise not_read(self._paths[number], error) from error

    def check_unchanged(self, number: int) -> None:
        """Check that a file has not changed since it was described: by size and times, and else by its SHA-256.

        Raises:
            UnreadableFile: if it has changed, so that the rows read so far may be of both versions.
        """
        if number >= len(self._paths):
            return  # standard input, or a revision of a dataset
        path = self._paths[number]
        try:
            if _state(path, self._filesystem) == self._as_described[number]:
                return
            record, _, state = _describe(path, self.files[number]["file"], self._filesystem)
        except (FileNotFoundError, InputError):
            record, state = None, ()
        except (OSError, pyarrow.ArrowException) as error:  # which says nothing of what was read before
            raise not_read(path, error) from error
        if record != self.files[number]:
            raise UnreadableFile(
                f"{readable(path)}: changed while it was read; start again in the same way when nobody writes to it",
                number,
            )
        self._as_described[number] = state

    def describe(self, number: int) -> tuple[dict[str, Any], int | None, tuple[int, ...]]:
        """Read all bytes and the first row of a file, and return its record, about how many rows it has, and its state.

        Raises:
            InputError: if it cannot be read at all, lacks a column, or changes meanwhile.
        """
        path = self._paths[number]
        try:
            described = _describe(path, self.files[number]["file"], self._filesystem)
            next(self._file_rows(number), None)
        except UnreadableTable as error:
            raise UnreadableFile(f"{readable(path)}: {error}", number) from error
        except (OSError, pyarrow.ArrowException) as error:
            raise not_read(path, error) from error
        return described

    def _file_rows(self, number: int, group: int = 0) -> Iterator[Row]:
        path = self._paths[number]
        name, columns = readable(path.name), []
        text_column = "text" if format_of(path) == ".txt" else self.text_column

        def choose(names: list[str]) -> list[str]:
            columns[:] = self._text_columns(names, name, text_column)
            return self._with_id(columns)

        for record in read_rows(path, quoting=self.quoting, check=choose, filesystem=self._filesystem, group=group):
            yield self._row(record, columns, name, number)

    def _dataset_rows(self, dataset: "IterableDataset", name: str) -> Iterator[Row]:
        count, columns = 0, []
        for batch in dataset.with_format("arrow").iter(batch_size=1024):
            columns = columns or self._text_columns(batch.column_names, name, self.text_column)
            for values, problem in cells(batch.select(self._with_id(columns))):
                count += 1
                yield self._row(Record(count, f"row {count}", values, problem), columns, name, 0)

    def _text_columns(self, present: list[str], name: str, text_column: str) -> list[str]:
        if self.id_column and self.id_column not in present:
            raise no_column(name, self.id_column, present)
        return text_columns(name, text_column, present)

    def _with_id(self, columns: list[str]) -> list[str]:
        return list(dict.fromkeys([*columns, *([self.id_column] if self.id_column else [])]))

    def _row(self, record: Record, columns: list[str], name: str, number: int) -> Row:
        values, problem = record.values or {}, record.problem
        (text, column), row_id = text_of(values, columns, self.text_delimiter), values.get(self.id_column)
        known = None if row_id is None else str(row_id).encode(errors="replace").decode()
        if problem is None:
            if not isinstance(text, str):
                problem = f"{column} is {'missing' if text is None else f'a {type(text).__name__}'}; want a text"
            elif wrong := broken(text) or (None if is_text(text) else "empty"):
                problem = f"the text is {wrong}"
        if problem is not None:
            return Row(None, known, f"{name}, {record.place}: {problem}", number)
        cut = len(text) > READ_CHARACTERS
        return Row(text.lstrip()[:READ_CHARACTERS] if cut else text, known, None, number, cut)


def open_source(
    name: str,
    *,
    text_column: str = "text",
    text_delimiter: str = " ",
    id_column: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    quoting: str = "auto",
    cache_dir: str | None = None,
    token: str | None = None,
    each: Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]] = map,
) -> TextSource:
    """Open a source of texts without reading its rows.

    Args:
        name: A file (.csv, .tsv, .json, .jsonl, .parquet, or .txt with one text per line; all but parquet also
            compressed, as .csv.gz), a folder of such files (read in the order of their names), the address of either in
            an object store (s3://bucket/folder, gs://...), a dataset on the Hub, or `-` for standard input, one text
            per line.
        text_column, text_delimiter: Column with the text, or several, separated by commas, and what joins their texts.
        id_column: Column with the rows' ids.
        config_name, split: Configuration and split of a dataset on the Hub.
        quoting: For csv and tsv; see [`trainer_ext.data.delimited.delimited_rows`].
        cache_dir, token: As in `datasets.load_dataset`.
        each: Calls a function with each number, as `map` does; reads every file once.

    Raises:
        InputError: if the source does not exist or cannot be read.
    """
    if name == "-":
        if id_column:
            raise InputError(f"--id_column_name {id_column}: standard input has a text a line and no columns")
        return TextSource("standard input", [], None, text_column, None)
    filesystem, path, paths = input_files(name)
    if not paths:
        if format_of(path) in FORMATS or name[0] in "./~" or name.count("/") > 1:
            raise InputError(f"{readable(name)}: no such file or folder")
        source = _hub_source(name, text_column, id_column, config_name, split, cache_dir, token)
        return replace(source, text_delimiter=text_delimiter)
    names = [path.name] if paths == [path] else [each.relative_to(path) for each in paths]
    source = TextSource(readable(name), [{"file": readable(each)} for each in names], None, text_column, id_column)
    source = replace(source, quoting=quoting, text_delimiter=text_delimiter, _paths=paths, _filesystem=filesystem)
    described = list(each(source.describe, range(len(paths))))
    rows = [count for _, count, _ in described]
    return replace(
        source,
        files=[record for record, _, _ in described],
        rows=None if None in rows else sum(rows),
        _as_described=[state for _, _, state in described],
    )


def _hub_source(
    name: str, text_column: str, id_column: str | None, config: str | None, split: str, cache: str | None, token
) -> TextSource:
    from datasets import load_dataset  # these take seconds, and readers of a cluster need neither
    from huggingface_hub import HfApi

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


def _describe(
    path: PurePath, name: str, filesystem: FileSystem | None
) -> tuple[dict[str, Any], int | None, tuple[int, ...]]:
    """Return a file's record, about how many rows it has, and its state.

    Raises:
        InputError: if it changes meanwhile.
    """
    kind, digest, size, lines = format_of(path), hashlib.sha256(), 0, 0
    state = _state(path, filesystem)
    with opened(path, filesystem) as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    rows = None
    if kind == ".parquet":
        with parquet_file(path, filesystem) as file:
            rows = file.metadata.num_rows
    elif kind != ".json" and path.suffix.lower() not in COMPRESSIONS:
        rows = lines - (kind in (".csv", ".tsv"))
    if _state(path, filesystem) != state or size != state[0]:
        raise InputError(f"{readable(path)}: somebody is writing to it; start when it is whole")
    return {"file": name, "bytes": size, "sha256": digest.hexdigest()}, rows, state


def _state(path: PurePath, filesystem: FileSystem | None) -> tuple[int, ...]:
    """Return the size and times of a file. If they are the same later, it is not read again."""
    if filesystem is None:
        return file_state(Path(path))
    info = filesystem.get_file_info(str(path))
    return info.size, info.mtime_ns
