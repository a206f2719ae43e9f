"""A folder of scores: shards of consecutive rows, each finished or not there, and a manifest of the whole.

Which shard a row belongs to follows from its number alone, so that any number of processes and machines can write into
one folder, or into several that are merged, and resume after any of them was killed.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..errors import InputError
from ..files import check_free, claim, digest, file_digest, file_state, read_object, release, write_json
from ..recipe_file import Schema, check_recipe
from .text_stream import Row, TextSource

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
FORMATS = ("parquet", "csv", "jsonl")
_RECORDS = ".shards"  # a shard whose record is there is finished
_LOCKS = ".locks"  # a folder for each share of the shards, which the process that writes it claims


class ShardScores(Protocol):
    """What a shard's rows were given: [`trainer_ext.scoring.scorer.Scores`], whose file imports torch."""

    truncated: np.ndarray

    def labels(self, names: list[str]) -> list[str | list[str] | None]: ...

    def table(self, rows: list[Row], names: list[str], first: int, ids: bool, kind: str) -> pa.Table: ...


class _Model(Schema, extra="ignore"):
    name: str
    version: str


class _Manifest(Schema, extra="ignore"):
    """The keys of a manifest that are read."""

    model: _Model
    settings: dict[str, Any]
    input: list[dict[str, Any]]
    complete: bool


class _Shard(Schema, extra="ignore"):
    """The keys of a shard's record. `digest` is a checksum of the others.

    Records of earlier versions lack it, and `labelled`, the number of rows with a label or several.
    """

    file: str
    first_row: int
    rows: int
    errors: int
    first_error: str | None
    truncated: int
    label_counts: dict[str, int]
    labelled: int = 0
    sha256: str
    files: int
    fingerprint: str


class ScoreFolder:
    """A folder that scores are written to, shard by shard.

    Args:
        folder: Path of the folder, which may not exist yet.
        source: The texts to score.
        model: Name of the model and its `version`.
        labels: Label names, in the order of the model's label ids.
        settings: The other settings that decide the scores, `rows_per_shard` and `format` (one of `FORMATS`) included.
        about: More entries for the manifest.

    Raises:
        InputError: if the folder has other content, or shards of other rows, another model or other settings.
    """

    def __init__(self, folder: Path, source: TextSource, model: dict, labels: list[str], settings: dict, about: dict):
        self.folder, self.source, self.labels = folder, source, labels
        self.rows_per_shard, self.format = settings["rows_per_shard"], settings["format"]
        self._about = {"model": model, "labels": labels, "settings": settings, "input": source.files} | about
        self._claimed = False
        self._whole: dict[int, tuple[int, ...]] = {}  # by number, the state of the shards that were found whole
        self._check()
        try:
            (folder / _RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error

    def _check(self) -> None:
        """Check that the shards in the folder were made by this model, from this input, with these settings."""
        before = self.manifest()
        if before is None:
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{self.folder}: is a file; want a folder for the scores")
            used = any(each.is_file() and not each.name.startswith(".") for each in self.folder.rglob("*"))
            if not self.finished():
                if used and self.manifest() is None:  # not by a process that started at the same time
                    raise InputError(
                        f"{self.folder}: is in use (not empty, and no scores of this script); give another"
                    )
                if not used:
                    return
            before = self.manifest()
        now, changed = self._about, []
        if before is not None:
            if not before["input"]:
                raise InputError(
                    f"{self.folder}: holds scores of standard input, which cannot be resumed; give another folder"
                )
            changed += [f"model ({before['model']['name']})"] * (before["model"]["version"] != now["model"]["version"])
            names = dict.fromkeys([*before["settings"], *now["settings"]])
            values = {name: [about["settings"].get(name) for about in (before, now)] for name in names}
            changed += [f"--{name} ({was or 'not given'})" for name, (was, given) in values.items() if was != given]
        for record in filter(None, map(self._record, self.finished())):
            if not changed and not self._is_ours(record):
                if before is None:
                    changed.append("model, input or settings (there is no manifest.json to tell which)")
                    continue
                read = before["input"][: record["files"]]
                names = [str(was.get("file", was.get("dataset"))) for was in read if was not in self.source.files]
                changed.append(f"input ({names[0] if names else self.source.name})")
        if changed:
            raise InputError(
                f"{self.folder}: holds scores with another {', '.join(changed)}; give the same to go on, or another "
                "folder"
            )

    def _fingerprint(self, files: int) -> str:
        """Return a hash of all that decides the content of a shard whose rows are from the first `files` files."""
        return digest(
            [self._about["model"]["version"], self.labels, self._about["settings"], self.source.files[:files]]
        )

    def _is_ours(self, record: dict) -> bool:
        """Return whether a record fits this run. A shard that is not full must be the last one of all files."""
        whole = record["rows"] == self.rows_per_shard or record["files"] == max(1, len(self.source.files))
        return whole and record["fingerprint"] == self._fingerprint(record["files"])

    def begin(self) -> None:
        """Write a manifest if there is none. If several processes start at once, one of them does."""
        if self._claimed:
            return
        path, begun = self.folder / MANIFEST, self._about | {"complete": False}
        partial = path.with_name(f".{MANIFEST}.{uuid4().hex}")
        try:
            write_json(partial, begun)
            try:
                os.link(partial, path)
            except OSError:  # there is one, or the file system has no hard links
                if path.exists():
                    self._check()
                    before = self.manifest()
                    if before is None or before["complete"]:  # damaged, or no longer
                        write_json(path, begun)
                else:
                    partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._claimed = True

    def forget(self, file: int) -> None:
        """Remove the shards with rows of this file or later ones. The file cannot be read to its end, and once it is
        repaired its rows may differ."""
        for number in self.finished():
            record = self._record(number)
            if record is None or record["files"] > file:
                self._take_back(number)

    def _take_back(self, number: int) -> None:
        self._record_path(number).unlink(missing_ok=True)  # first: what has no record is not there
        self._shard_path(number).unlink(missing_ok=True)

    def finished(self) -> list[int]:
        """Return the numbers of the shards that have a record, even if they are damaged."""
        names = (path.name for path in (self.folder / _RECORDS).glob("*.json"))
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d{6,}\.json", name, re.ASCII))

    def _is_whole(self, number: int) -> bool:
        """Return whether a finished shard and its record are unchanged."""
        record, path = self._record(number), self._shard_path(number)
        try:
            if record is None or (record["file"], record["first_row"]) != (path.name, number * self.rows_per_shard):
                return False
            state = file_state(path)
            if self._whole.get(number) != state:
                if file_digest(path) != record["sha256"]:
                    return False
                self._whole[number] = state
        except OSError:
            return False
        return True

    def keeps(self, number: int) -> bool:
        """Return whether a shard need not be scored. Remove a damaged one with a warning."""
        if not self._record_path(number).exists():
            return False
        if self._is_whole(number):
            return True
        logger.warning(f"{self._shard_path(number)}: is missing or was changed; scored again")
        self.begin()
        self._take_back(number)
        return False

    def shards(self, share: int, shares: int) -> Iterator[tuple[int, list[Row]]]:
        """Yield the number and rows of every shard. Shards that are finished or of another share come without rows.

        A share has the shards whose number modulo `shares` is `share`.

        Raises:
            InputError: if another process is writing some of these shards.
        """
        with self.claimed(share, shares):
            yield from self.cut(self.source, 0, lambda number: number % shares == share and not self.keeps(number))

    def cut(self, rows: Iterable[Row], first: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Row]]]:
        """Yield the number and rows of each shard. `rows` starts with shard `first`. An unwanted shard has no rows."""
        number, kept, count, keep = first, [], 0, False
        for row in rows:
            if not count:
                keep = wanted(number)
            if keep:
                kept.append(row)
            count += 1
            if count == self.rows_per_shard:
                yield number, kept
                number, kept, count = number + 1, [], 0
        if count:
            yield number, kept

    @contextmanager
    def claimed(self, share: int, shares: int) -> Iterator[None]:
        """Keep other processes from writing these shards within a `with` block, however they share the work.

        Raises:
            InputError: if another process is writing some of these shards.
        """
        mine = self.folder / _LOCKS / f"share-{share}-of-{shares}"
        claim(mine, self.folder)
        try:
            for other in (self.folder / _LOCKS).glob("share-*-of-*"):
                of_other, others = map(int, other.name.removeprefix("share-").split("-of-"))
                if (share - of_other) % math.gcd(shares, others) == 0:
                    check_free(other, self.folder)
            yield
        finally:
            release(mine)

    def write(self, number: int, rows: list[Row], scores: ShardScores) -> None:
        """Write a shard and its record.

        Raises:
            OSError: if the disk is full, for example; earlier files stay.
            UnreadableFile: if the file that its rows are from has changed.
        """
        self.source.check_unchanged(rows[-1].file)
        labels, first = scores.labels(self.labels), number * self.rows_per_shard
        table = scores.table(rows, self.labels, first, bool(self.source.id_column), self.format)
        self.begin()
        path = self._shard_path(number)
        partial = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            write_table(table, partial, self.format)
            checksum = file_digest(partial)
            partial.replace(path)
            state = file_state(path)
        finally:
            partial.unlink(missing_ok=True)
        counts = dict.fromkeys(self.labels, 0)
        for label in labels:
            for name in label if isinstance(label, list) else [label] if label else []:
                counts[name] += 1
        errors = [row.error for row in rows if row.error]
        files = rows[-1].file + 1 if len(rows) == self.rows_per_shard else max(1, len(self.source.files))
        record = {
            "file": path.name,
            "first_row": first,
            "rows": len(rows),
            "errors": len(errors),
            "first_error": errors[0] if errors else None,
            "truncated": int(scores.truncated.sum()),
            "label_counts": counts,
            "labelled": sum(map(bool, labels)),
            "sha256": checksum,
            "files": files,
            "fingerprint": self._fingerprint(files),
        }
        write_json(self._record_path(number), record | {"digest": _digest(record)})
        self._whole[number] = state
        for left in self.folder.glob(f".{path.name}.*"):  # by a process that was killed
            left.unlink(missing_ok=True)

    def close(self, shards: int) -> dict | None:
        """Write and return the manifest if all `shards` shards are finished; else return `None`.

        Raises:
            InputError: if a shard is missing, was changed since it was scored, or is of another run.
        """
        if self.finished() != list(range(shards)):
            return None
        records = [self._record(number) for number in range(shards)]
        if strange := [record["file"] for record in records if record is not None and not self._is_ours(record)]:
            raise InputError(f"{self.folder}: {strange[0]} is of another model, input or settings than the rest")
        if damaged := [number for number in range(shards) if not self._is_whole(number)]:
            self.begin()
            for number in damaged:
                self._take_back(number)
            raise InputError(
                f"{self._shard_path(damaged[0])}: is missing or was changed since it was scored"
                + (f", as were {len(damaged) - 1} more" if len(damaged) > 1 else "")
                + "; start again in the same way (the part it belongs to) to score it again"
            )
        names = {record["file"] for record in records}
        for path in self.folder.glob(f"scores-*.{self.format}"):
            if re.fullmatch(r"scores-\d{6,}", path.stem, re.ASCII) and path.name not in names:
                logger.warning(f"{path}: belongs to no shard of this input; removed")
                path.unlink()
        first_error = next((record["first_error"] for record in records if record["first_error"]), None)
        total = {key: sum(record[key] for record in records) for key in ("rows", "errors", "truncated")}
        counts = {name: sum(record["label_counts"][name] for record in records) for name in self.labels}
        most = [min(record["rows"] - record["errors"], sum(record["label_counts"].values())) for record in records]
        shown = ("file", "first_row", "rows", "errors", "sha256")
        manifest = self._about | {
            "complete": True,
            **total,
            "first_error": first_error,
            "label_counts": counts,
            "labelled": sum(record.get("labelled", at_most) for record, at_most in zip(records, most, strict=True)),
            "shards": [{key: record[key] for key in shown} for record in records],
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    @staticmethod
    def begun(folder: Path) -> dict:
        """Return the manifest of the scores in a folder, empty if there is none to read."""
        content = read_object(folder / MANIFEST)
        try:
            check_recipe(content, _Manifest, folder)
        except InputError:
            return {}
        return content

    def manifest(self) -> dict | None:
        """Return the folder's manifest, or `None` if there is none or it cannot be read."""
        return self.begun(self.folder) or None

    def _record_path(self, number: int) -> Path:
        return self.folder / _RECORDS / f"{number:06}.json"

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"scores-{number:06}.{self.format}"

    def _record(self, number: int) -> dict | None:
        """Return the record of a shard, or `None` if there is none or it is damaged."""
        record = read_object(self._record_path(number))
        try:
            check_recipe(record, _Shard, self._record_path(number))
        except InputError:
            return None
        return record if record.get("digest", _digest(record)) == _digest(record) else None


def _digest(record: dict) -> str:
    """Return the checksum of a shard's record without its fingerprint, which is checked elsewhere."""
    return digest({key: value for key, value in record.items() if key not in ("digest", "fingerprint")})


def write_table(table: pa.Table, path: Path, kind: str) -> None:
    """Write a table to a file in one of `FORMATS`."""
    with open(path, "wb") as file:  # pyarrow opens no path that is not UTF-8
        if kind == "parquet":
            pyarrow.parquet.write_table(table, file, compression="zstd")
        elif kind == "csv":
            pyarrow.csv.write_csv(table, file)
        else:
            for row in table.to_pylist():
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
