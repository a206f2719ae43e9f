"""A folder of scores: shards of consecutive rows, written one by one, and a manifest of the whole.

The number of a row alone decides which shard it belongs to. So any number of processes and machines can write into one
folder, or into several that are merged later. Any of them may be killed and resume.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..errors import InputError
from ..escape import probability_column
from ..files import check_free, claim, digest, file_digest, read_object, release, write_json
from .text_stream import Row, TextSource

FORMATS = ("parquet", "csv", "jsonl")
MANIFEST = "manifest.json"
_RECORDS = ".shards"  # a shard whose record is there is finished
_LOCKS = ".locks"  # a folder for each share of the shards, which the process that writes it claims


@dataclass
class Scores:
    """The predictions of a model on some rows.

    Attributes:
        probabilities: `(rows, labels)` in float32, NaN for rows with an error.
        several: Whether a row may have several labels, those with a probability above one half.
        truncated: `(rows,)`, whether the text was longer than the model reads.
        disagreement: `(rows,)`, the share of an ensemble's members that predict another label; `None` for one model.
    """

    probabilities: np.ndarray
    several: bool
    truncated: np.ndarray
    disagreement: np.ndarray | None

    def labels(self, names: list[str]) -> list[Any]:
        """Return the label of each row (or the list of its labels), and `None` for a row with an error."""
        if self.several:
            return [
                None if np.isnan(row).any() else [name for name, value in zip(names, row, strict=True) if value > 0.5]
                for row in self.probabilities
            ]
        best = np.nan_to_num(self.probabilities, nan=-1.0).argmax(axis=1)
        errors = np.isnan(self.probabilities).any(axis=1)
        return [None if error else names[label] for label, error in zip(best.tolist(), errors.tolist(), strict=True)]


class ScoreFolder:
    """A folder to write scores into.

    Args:
        folder: The folder; may be absent.
        source: The texts to score.
        model: Name and version of the model.
        labels: Label names, in the order of the model's label ids.
        settings: Other settings that decide the scores, including `rows_per_shard` and `format` (one of `FORMATS`).
        about: Further entries for the manifest.

    Raises:
        InputError: if the folder contains something else, or shards from other rows, another model or other settings.
    """

    def __init__(self, folder: Path, source: TextSource, model: dict, labels: list[str], settings: dict, about: dict):
        self.folder, self.source, self.labels = folder, source, labels
        self.rows_per_shard, self.format = settings["rows_per_shard"], settings["format"]
        self._about = {"model": model, "labels": labels, "settings": settings, "input": source.files} | about
        self._claimed = False
        self._check()
        try:
            (folder / _RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error

    def _check(self) -> None:
        """Check that existing shards are from this model, this input and these settings."""
        before = self.manifest()
        if before is None:
            if self.folder.exists() and not self.folder.is_dir():
                raise InputError(f"{self.folder}: is a file; want a folder for the scores")
            used = any(each.is_file() and not each.name.startswith(".") for each in self.folder.rglob("*"))
            if used and self.manifest() is None:  # not by a process that started at the same time
                raise InputError(f"{self.folder}: is in use (not empty, and no scores of this script); give another")
            if not used:
                return
            before = self.manifest()
        if not before["input"]:
            raise InputError(
                f"{self.folder}: holds scores of standard input, which cannot be gone on with; give another folder"
            )
        now = self._about
        changed = [f"model ({before['model']['name']})"] * (before["model"]["version"] != now["model"]["version"])
        changed += [
            f"--{key} ({value})" for key, value in before["settings"].items() if now["settings"].get(key) != value
        ]
        for record in map(self._record, self.finished()):
            if not changed and not self._is_ours(record):
                read = before["input"][: record["files"]]
                names = [str(was.get("file", was.get("dataset"))) for was in read if was not in self.source.files]
                changed.append(f"input ({names[0] if names else self.source.name})")
        if changed:
            raise InputError(
                f"{self.folder}: holds scores with another {', '.join(changed)}; give the same to go on, or another "
                "folder"
            )

    def _fingerprint(self, files: int) -> str:
        """Return a hash of everything that decides a shard, if the shard reads rows of the first `files` files."""
        return digest(
            [self._about["model"]["version"], self.labels, self._about["settings"], self.source.files[:files]]
        )

    def _is_ours(self, record: dict) -> bool:
        """Return whether a shard is from the same settings; one that is not full must be the last, after all files."""
        whole = record["rows"] == self.rows_per_shard or record["files"] == max(1, len(self.source.files))
        return whole and record["fingerprint"] == self._fingerprint(record["files"])

    def _claim(self) -> None:
        """Write a manifest if there is none. If several processes start at once, only the first one writes it."""
        if self._claimed:
            return
        partial = self.folder / f".{MANIFEST}.{uuid4().hex}"
        try:
            write_json(partial, self._about | {"complete": False})
            os.link(partial, self.folder / MANIFEST)
        except FileExistsError:
            self._check()
        finally:
            partial.unlink(missing_ok=True)
        self._claimed = True

    def forget(self, file: int) -> None:
        """Remove the records of shards with rows of this file or later ones.

        The file cannot be read to its end. Once it is repaired, the rows that were read from it may be different.
        """
        for number in self.finished():
            if self._record(number)["files"] > file:
                (self.folder / _RECORDS / f"{number:06}.json").unlink(missing_ok=True)

    def finished(self) -> list[int]:
        """Return the numbers of the finished shards, sorted."""
        return sorted(int(path.stem) for path in (self.folder / _RECORDS).glob("*.json"))

    def shards(self, share: int, shares: int) -> Iterator[tuple[int, list[Row]]]:
        """Yield the number and rows of every shard of the source.

        Rows are only kept for shards of this share (shard number modulo `shares` is `share`) that are not finished.
        Other shards
        have no rows.

        Raises:
            InputError: if another process is writing some of these shards.
        """
        share_folder = self._claim_share(share, shares)
        finished, number, rows, count = set(self.finished()), 0, [], 0
        try:
            for row in self.source:
                if number % shares == share and number not in finished:
                    rows.append(row)
                count += 1
                if count == self.rows_per_shard:
                    yield number, rows
                    number, rows, count = number + 1, [], 0
            if count:
                yield number, rows
        finally:
            release(share_folder)

    def _claim_share(self, share: int, shares: int) -> Path:
        """Claim this process's share of the shards, and return the claimed folder, to release later.

        Raises:
            InputError: if another process is writing a share that has shards in common, even if it is divided
                differently.
        """
        mine = self.folder / _LOCKS / f"share-{share}-of-{shares}"
        claim(mine, self.folder)
        for other in (self.folder / _LOCKS).glob("share-*-of-*"):
            of_other, others = map(int, other.name.removeprefix("share-").split("-of-"))
            if (share - of_other) % math.gcd(shares, others) == 0:
                check_free(other, self.folder)
        return mine

    def write(self, number: int, rows: list[Row], scores: Scores) -> None:
        """Write a shard and its record.

        Raises:
            OSError: if it cannot be written, for example on a full disk. Earlier shards are kept.
        """
        labels = scores.labels(self.labels)
        first = number * self.rows_per_shard
        columns: dict[str, pa.Array] = {"row": pa.array(range(first, first + len(rows)), pa.int64())}
        if self.source.id_column:
            columns["id"] = pa.array([row.id for row in rows], pa.string())
        listed = scores.several and self.format != "csv"
        columns["label"] = (
            pa.array(labels, pa.list_(pa.string()))
            if listed
            else pa.array([",".join(label) if isinstance(label, list) else label for label in labels], pa.string())
        )
        missing = np.isnan(scores.probabilities).any(axis=1)
        for name, values in zip(self.labels, scores.probabilities.T, strict=True):
            columns[probability_column(name)] = pa.array(values, pa.float32(), mask=missing)
        if scores.disagreement is not None:
            columns["disagreement"] = pa.array(scores.disagreement, pa.float32(), mask=missing)
        columns["truncated"] = pa.array(scores.truncated, pa.bool_(), mask=missing)
        columns["error"] = pa.array([row.error for row in rows], pa.string())

        self._claim()
        path = self.folder / f"scores-{number:06}.{self.format}"
        partial = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            _write_table(pa.table(columns), partial, self.format)
            checksum = file_digest(partial)
            partial.replace(path)
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
            "sha256": checksum,
            "files": files,
            "fingerprint": self._fingerprint(files),
        }
        write_json(self.folder / _RECORDS / f"{number:06}.json", record)
        for left in self.folder.glob(f".{path.name}.*"):  # by a process that was killed
            left.unlink(missing_ok=True)

    def close(self, shards: int) -> dict | None:
        """Write and return the final manifest if all shards are finished, else return `None`, since others are still
        working.

        Args:
            shards: Number of shards.
        """
        if self.finished() != list(range(shards)):
            return None
        records = [self._record(number) for number in range(shards)]
        if strange := [record["file"] for record in records if not self._is_ours(record)]:
            raise InputError(f"{self.folder}: {strange[0]} is of another model, input or settings than the rest")
        first_error = next((record["first_error"] for record in records if record["first_error"]), None)
        total = {key: sum(record[key] for record in records) for key in ("rows", "errors", "truncated")}
        counts = {name: sum(record["label_counts"][name] for record in records) for name in self.labels}
        shown = ("file", "first_row", "rows", "errors", "sha256")
        manifest = self._about | {
            "complete": True,
            **total,
            "first_error": first_error,
            "label_counts": counts,
            "shards": [{key: record[key] for key in shown} for record in records],
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    @staticmethod
    def begun(folder: Path) -> dict:
        """Return the manifest of the scores in a folder, or an empty dict if there is none."""
        return read_object(folder / MANIFEST)

    def manifest(self) -> dict | None:
        """Return the manifest in the folder, or `None` if there is none."""
        path = self.folder / MANIFEST
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _record(self, number: int) -> dict:
        return json.loads((self.folder / _RECORDS / f"{number:06}.json").read_text(encoding="utf-8"))


def _write_table(table: pa.Table, path: Path, kind: str) -> None:
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        with open(path, "w", encoding="utf-8") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
