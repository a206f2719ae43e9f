"""A folder of scores counts as complete only while every shard is what was scored, whoever damages, writes or dies."""

import csv
import json
import os
import shutil
import time

import forked
import pyarrow.parquet
import pytest
from datasets import Dataset
from support import ESSAYS, ROOT, call

import run_score
from trainer_ext.errors import InputError
from trainer_ext.scoring.text_stream import TextSource, UnreadableFile, open_source

SCRIPT = ROOT / "run_score.py"


@pytest.fixture(scope="module")
def essays() -> list[str]:
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        return [" ".join(row["text"].split()[:6]) for row in csv.DictReader(file, delimiter="\t")]


@pytest.fixture(scope="module")
def whole(finished, essays, tmp_path_factory):
    """The flags of a finished scoring of 50 rows in five shards, and its folder, which is for looking at."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "x.txt").write_text("\n".join(essays[:50]) + "\n")
    flags = ["--model", finished[0], "--input", folder / "x.txt", "--rows_per_shard", 10, "--dtype", "float32"]
    call(run_score.main, *flags, "--output", folder / "out")
    return flags, folder / "out"


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "out")
    return [*whole[0], "--output", tmp_path / "out"], tmp_path / "out"


def content(folder) -> tuple[dict, list[dict]]:
    """What there is of manifest and rows, without the command."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [row for path in sorted(folder.glob("scores-*")) for row in pyarrow.parquet.read_table(path).to_pylist()]
    return {key: value for key, value in manifest.items() if key != "command"}, rows


# ---- Damage -------------------------------------------------------------------------------------------------------
def shard(folder, number):
    return folder / f"scores-{number:06}.parquet"


def record(folder, number):
    return folder / ".shards" / f"{number:06}.json"


def swap(one, other):
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_a_byte_turned(path):
    """Of equal size and with its times set back."""
    state, changed = path.stat(), bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "a shard missing": lambda out: shard(out, 1).unlink(),
    "a shard cut": lambda out: cut(shard(out, 1)),
    "a shard empty": lambda out: shard(out, 4).write_bytes(b""),
    "a byte turned": lambda out: with_a_byte_turned(shard(out, 2)),
    "two shards swapped": lambda out: swap(shard(out, 0), shard(out, 3)),
    "two records swapped": lambda out: swap(record(out, 0), record(out, 3)),
    "shards and records swapped": lambda out: (
        swap(shard(out, 0), shard(out, 3)),
        swap(record(out, 0), record(out, 3)),
    ),
    "a record missing": lambda out: record(out, 4).unlink(),
    "a record cut": lambda out: cut(record(out, 1)),
    "a record changed": lambda out: changed(record(out, 1), errors=7, label_counts={"joy": 3}),
    "a record a list": lambda out: record(out, 1).write_text("[]"),
    "a strange file among the records": lambda out: (out / ".shards" / "notes.json").write_text("{"),
    "no record": lambda out: shutil.rmtree(out / ".shards"),
    "manifest cut": lambda out: cut(out / "manifest.json"),
    "manifest missing": lambda out: (out / "manifest.json").unlink(),
    "manifest of others": lambda out: (out / "manifest.json").write_text('{"settings": [1], "model": "x"}'),
    "all shards missing": lambda out: [shard(out, number).unlink() for number in range(5)],
    "a shard too many": lambda out: shutil.copy(shard(out, 1), shard(out, 7)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_scored_again_and_that_is_said(kind, whole, copied, caplog):
    flags, out = copied
    before = {number: shard(out, number).stat().st_mtime_ns for number in range(5)}
    DAMAGE[kind](out)
    assert "50 rows, 50 with a label" in call(run_score.main, *flags)
    assert content(out) == content(whole[1])
    silent = ("a record missing", "no record", "manifest", "a strange file")  # nothing there is wrong
    assert bool(caplog.messages) != kind.startswith(silent)
    again = [number for number in before if shard(out, number).stat().st_mtime_ns != before[number]]
    kept = 0 if kind in ("no record", "all shards missing") else 3
    assert len(again) <= 5 - kept
    caplog.clear()
    call(run_score.main, *flags)
    assert not caplog.messages


def test_a_damaged_shard_of_another_part_leaves_nothing_complete(copied, whole):
    flags, out = copied
    cut(shard(out, 0))
    with pytest.raises(
        InputError, match=r"scores-000000.parquet: is missing or was changed since it was scored; start"
    ):
        call(run_score.main, *flags, "--part", "2/2")
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    assert "does not have all parts yet" in call(run_score.main, *flags, "--part", "2/2")
    call(run_score.main, *flags, "--part", "1/2")
    assert content(out) == content(whole[1])


def test_while_a_damaged_shard_is_scored_again_the_folder_is_not_complete(copied, monkeypatch):
    flags, out = copied
    cut(shard(out, 4))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_score, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        call(run_score.main, *flags)
    assert not json.loads((out / "manifest.json").read_text())["complete"]


def test_records_of_before_have_no_check_sum_of_their_own(copied, whole, caplog):
    flags, out = copied
    for number in range(5):
        told = json.loads(record(out, number).read_text())
        del told["digest"]
        record(out, number).write_text(json.dumps(told))
    call(run_score.main, *flags)
    assert not caplog.messages
    assert content(out) == content(whole[1])


# ---- An input that changes ----------------------------------------------------------------------------------------
def overwritten(path):
    state = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(path):
    other = path.with_suffix(".new")
    other.write_text("entirely\nother rows\n")
    other.replace(path)


CHANGES = {
    "grows": lambda path: path.write_text(path.read_text() + "one more\n"),
    "shrinks": lambda path: os.truncate(path, path.stat().st_size // 2),
    "is overwritten": overwritten,
    "is replaced": replaced,
    "is removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("kind", CHANGES)
def test_an_input_that_changes_while_it_is_read_is_noticed(kind, at, finished, essays, tmp_path, monkeypatch):
    """Before the shard is left: what a kill comes after holds rows of one input, too."""
    path, real, calls = tmp_path / "x.txt", run_score.score, []
    path.write_text("\n".join(essays[:50]) + "\n")
    flags = ["--model", finished[0], "--input", path, "--rows_per_shard", 10, "--output", tmp_path / "out"]

    def score(*arguments):
        calls.append(True)
        if len(calls) == at:
            CHANGES[kind](path)
        return real(*arguments)

    monkeypatch.setattr(run_score, "score", score)
    with pytest.raises(InputError, match=r"x.txt: changed while it was read; start again .*; 0 shards before it stay"):
        call(run_score.main, *flags)
    assert len(calls) == at
    if not path.exists():
        path.write_text("another\n")
    rows = path.read_text().splitlines()
    assert f"{len(rows)} rows" in call(run_score.main, *flags)
    assert [row["row"] for row in content(tmp_path / "out")[1]] == list(range(len(rows)))
    call(run_score.main, *flags[:-1], tmp_path / "straight")
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_an_input_whose_times_alone_change_is_the_same(tmp_path):
    (tmp_path / "x.csv").write_text("text\n" + "a row\n" * 100)
    rows = iter(source := open_source(str(tmp_path / "x.csv")))
    next(rows)
    os.utime(tmp_path / "x.csv")
    (tmp_path / "x.csv").chmod(0o600)
    assert len(list(rows)) == 99
    source.check_unchanged(0)


def test_the_file_of_a_folder_that_changed_is_named(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("one\ntwo\n")
    source = open_source(str(tmp_path))
    rows = iter(source)
    while next(rows).file != 1:
        pass
    (tmp_path / "b.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(UnreadableFile, match=r"b.txt: changed while it was read") as error:
        list(rows)
    assert error.value.file == 1


def test_a_file_that_somebody_is_writing_to_is_refused(tmp_path):
    """While it is hashed it is appended to all the time."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"a row of some length\n" * 3_000_000)
    code = "import sys\nfile = open(sys.argv[1], 'a')\nwhile True:\n    print('more', file=file, flush=True)"
    (tmp_path / "write.py").write_text(code)
    writer = forked.Forked(tmp_path / "write.py", path, cwd=tmp_path)
    try:
        size = path.stat().st_size
        while path.stat().st_size == size:
            time.sleep(0.01)
        with pytest.raises(InputError, match=r"x.txt: somebody is writing to it; start when it is whole"):
            open_source(str(path))
    finally:
        writer.kill()


# ---- Two at once, and kills ---------------------------------------------------------------------------------------
KILLED = """
import os, pathlib, runpy, signal, sys
script, at, *sys.argv[1:] = sys.argv[1:]
sys.argv[0], left = script, [int(at)]

def deadly(function):
    def call(*arguments, **options):
        for moment in ("before", "after"):
            left[0] -= "out" in str(arguments[0])
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options) if moment == "before" else result
        return result
    return call

os.link = deadly(os.link)
for name in ("replace", "unlink", "mkdir", "write_text"):
    setattr(pathlib.Path, name, deadly(getattr(pathlib.Path, name)))
runpy.run_path(script, run_name="__main__")
"""


def test_killed_at_every_step_the_same_command_ends_with_the_same_folder(whole, tmp_path):
    """Each start is killed at a step later than the one before, on what that one left."""
    (tmp_path / "killed.py").write_text(KILLED)
    shutil.copytree(whole[1].parent, tmp_path / "given", ignore=shutil.ignore_patterns("out"))
    flags = [*whole[0][:3], tmp_path / "given" / "x.txt", *whole[0][4:]]
    points = 0
    for at in range(1, 200, 3):
        started = forked.Forked(tmp_path / "killed.py", SCRIPT, at, *flags, "--output", "out", cwd=tmp_path)
        if started.wait() == 0:
            break
        assert "Traceback" not in started.stderr, started.stderr
        points += 1
        if (tmp_path / "out" / "manifest.json").exists():
            assert not content(tmp_path / "out")[0]["complete"]
    assert points > 5
    assert content(tmp_path / "out") == content(whole[1])
    assert not list((tmp_path / "out").glob(".scores*"))


def test_of_two_at_once_one_is_refused_and_the_folder_is_right(whole, tmp_path):
    """Real processes, started together, with other settings for the second in half of the cases."""
    for more in ([], ["--format", "csv"]):
        output = ["--output", f"out{len(more)}"]
        both = [forked.Forked(SCRIPT, *whole[0], *output, *flags, cwd=tmp_path) for flags in ([], more)]
        codes = [process.wait() for process in both]
        folder = tmp_path / output[1]
        for code, process in zip(codes, both, strict=True):
            assert code in (0, 2)
            assert "Traceback" not in process.stderr
            if code:
                said = process.stderr.splitlines()[-1]
                assert "another process is writing to this folder" in said or "with another --format" in said
        assert 0 in codes
        (kind,) = {path.suffix for path in folder.glob("scores-*")}
        call(run_score.main, *whole[0], "--format", kind[1:], "--output", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["complete"], manifest["rows"], len(manifest["shards"])) == (True, 50, 5)


# ---- A dataset of the Hub -----------------------------------------------------------------------------------------
def test_rows_of_a_hub_dataset_are_read_like_those_of_a_file():
    rows = {"text": ["one", None, "", "four"], "more": ["x", "y", None, ""], "id": [1, 2, 3, 4]}
    dataset = Dataset.from_dict(rows).to_iterable_dataset()
    source = TextSource("owner/corpus", [{"dataset": "owner/corpus"}], None, "text", "id", _dataset=dataset)
    assert [(row.text, row.id) for row in source] == [("one", "1"), (None, "2"), (None, "3"), ("four", "4")]
    source = TextSource("owner/corpus", [{}], None, "text,more", None, text_delimiter="/", _dataset=dataset)
    assert [row.text for row in source] == ["one/x", "y", None, "four"]
