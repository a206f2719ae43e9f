"""Files of texts as they are read, and a folder of scores, complete only while every shard is what was scored."""

import bz2
import csv
import errno
import gzip
import json
import logging
import os
import shutil
import socket
import time

import forked
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ESSAYS, ROOT, call

import run_score
from texts_emodeberta import is_text
from trainer_ext.errors import InputError
from trainer_ext.scoring import input_files, scorer
from trainer_ext.scoring.text_stream import TextSource, UnreadableFile, open_source

# ---- Reading ---------------------------------------------------------------------------------------------------------
WANTED = [("The river took the road.", "a"), ("Nobody told us;\n\nnobody.", "b"), ("Käse, “quoted” and so on", "7")]


def read(path, **options):
    return list(open_source(str(path), **options))


def write(path, rows):
    """As somebody's other program would."""
    names = ("text", "number")
    if path.name.endswith((".jsonl", ".json")):
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        lines = json.dumps(objects) if path.suffix == ".json" else "\n".join(map(json.dumps, objects)) + "\n"
        path.write_text(lines)
    elif path.suffix == ".parquet":
        columns = zip(*rows, strict=True)
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, columns), strict=True))), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([names, *rows])


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.json", "x.jsonl", "x.parquet"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    write(tmp_path / name, WANTED)
    source = open_source(str(tmp_path / name), id_column="number")
    assert [(row.text, row.id, row.error) for row in source] == [(*row, None) for row in WANTED]
    assert list(source) == list(source)  # read again
    assert [file["file"] for file in source.files] == [name]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_files_are_read(name, compress, tmp_path):
    write(tmp_path / name, WANTED)
    suffix = {gzip.compress: "gz", bz2.compress: "bz2"}[compress]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(compress((tmp_path / name).read_bytes()))
    assert [row.text for row in read(path)] == [text for text, _ in WANTED]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8))
def test_any_text_comes_through_csv_and_json(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.csv", "x.jsonl"):
        write(folder / name, [(text, str(i)) for i, text in enumerate(texts)])
        rows = read(folder / name)
        assert [row.text for row in rows] == [text if is_text(text) else None for text in texts]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, caplog):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "1.jsonl", WANTED[1:])
    write(tmp_path / "a.csv", WANTED[:1])
    (tmp_path / "z.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "notes.md").write_text("no texts")
    (tmp_path / ".hidden.csv").write_text("text\nx\n")
    with caplog.at_level(logging.WARNING):
        source = open_source(str(tmp_path))
    assert "left out 1 files of other types, as notes.md" in caplog.text
    assert [file["file"] for file in source.files] == ["a.csv", "b/1.jsonl", "z.txt"]
    rows = list(source)
    assert [row.text for row in rows] == [*(text for text, _ in WANTED), "one", "two"]
    assert [row.file for row in rows] == [0, 1, 1, 2, 2]


def test_no_file_of_a_folder_is_left_out_without_a_word(tmp_path, caplog):
    """But hidden ones, and what Spark leaves behind beside its data."""
    inside, linked = tmp_path / "in", tmp_path / "linked"
    for folder in (inside / "_old" / "more", inside / ".git", linked):
        folder.mkdir(parents=True)
    write(inside / "a.csv", WANTED[:1])
    write(linked / "b.jsonl", WANTED[1:])
    for path in (inside / "_a.csv", inside / "_old" / "more" / "c.jsonl", inside / ".git" / "d.csv"):
        write(path, WANTED)
    (inside / "_SUCCESS").touch()
    (inside / "more").symlink_to(linked)
    again = [inside / "above", inside / "itself", inside / "same", inside / "more" / "above"]
    for link, target in zip(again, (tmp_path, inside, linked, tmp_path), strict=True):
        link.symlink_to(target)
    (inside / "lost+found").mkdir(mode=0)
    os.mkfifo(inside / "pipe.csv")
    with caplog.at_level(logging.WARNING):
        source = open_source(str(inside))
    assert [file["file"] for file in source.files] == ["a.csv", "more/b.jsonl"]
    assert [row.text for row in source] == [text for text, _ in WANTED]
    *circles, said = caplog.messages
    assert circles == [f"{link}: left out, since it links back to what is read already" for link in again]
    assert said.endswith("in: left out 2 files with an underscore before their name or folder, as _a.csv")

    (inside / "gone.csv").symlink_to("nowhere.csv")
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read \(.*No such file"):
        open_source(str(inside))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "in" / "closed").mkdir(parents=True)
    write(tmp_path / "in" / "a.csv", WANTED)
    for name in ("_aside", "lost+found"):
        (tmp_path / "disk" / name).mkdir(parents=True)
    write(tmp_path / "disk" / "a.csv", WANTED)
    modes = {".": 0o755, "in": 0o755, "in/closed": 0, "disk": 0o755, "disk/_aside": 0, "disk/lost+found": 0}
    for path, mode in ((tmp_path / name, mode) for name, mode in modes.items()):
        path.chmod(mode)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read every folder
    try:
        with pytest.raises(InputError, match=r"^in/closed: cannot be read \(.*Permission denied"):
            open_source("in")
        assert [file["file"] for file in open_source("disk").files] == ["a.csv"]
    finally:
        os.seteuid(user)


BROKEN = {
    "x.csv": (
        b'text,id\nfirst,1\n"never closed,2\nthird,3\nfour,4,5\n\n,6\nb\xffd,7\n'
        b'"a ""good"" one",8\n"bad"quote,9\nlast,10\n',
        ["first", None, "third", None, None, None, 'a "good" one', None, "last"],
        [
            *("row 3: ',' expected after", "row 5: 3 fields; want 2", "row 7: the text is empty"),
            *("row 8: the text is not UTF-8", "row 10: "),
        ],
    ),
    "x.jsonl": (
        b'{"text": "first"}\n{"text": \n\n[1]\n{"text": 5}\n{"txt": "x"}\n{"text": "\\ud800"}\n{"text": "b\xffd"}\n'
        b'{"text": null}\n' + b"[" * 100_000 + b'\n{"text": "last"}',
        ["first", *[None] * 8, "last"],
        [
            *("row 2: not JSON", "row 4: a list; want an object", "row 5: text is a int; want a text"),
            *("row 6: text is missing", "row 7: the text is not UTF-8", "row 8: the text is not UTF-8"),
            *("row 9: text is missing", "row 10: not JSON"),
        ],
    ),
    "x.txt": (
        b"first\n\n \t\nb\xffd\nnull\x00inside\n\xe2\x80\x8b\n\x00\x1b\nlast",
        ["first", None, None, None, "null\x00inside", None, None, "last"],
        [
            *("line 2: the text is empty", "line 3: the text is empty", "line 4: the text is not UTF-8"),
            *("line 6: the text is empty", "line 7: the text is empty"),  # nothing in them can be seen
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_row_is_a_row_and_those_after_it_are_read(name, tmp_path):
    content, texts, errors = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    rows = read(tmp_path / name)
    assert [row.text for row in rows] == texts
    said = [row.error for row in rows if row.error]
    assert len(said) == len(errors)
    for found, wanted in zip(said, errors, strict=True):
        assert found.startswith(f"{name}, {wanted}")


def test_a_quote_that_is_never_closed_costs_no_other_row(tmp_path):
    lines = ["text", *(f"row {i}" for i in range(2000))]
    lines[7] = '"row 6'
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    assert [row.text for row in read(tmp_path / "x.csv")] == lines[1:]
    rows = read(tmp_path / "x.csv", quoting="minimal")
    assert [row.text for row in rows] == [None if i == 6 else f"row {i}" for i in range(2000)]
    assert rows[6].error == "x.csv, row 8: a quote is opened and not closed; a quote inside quotes is doubled"


def test_bad_values_of_a_parquet_file_are_rows(tmp_path):
    table = pyarrow.table({"text": pyarrow.array(["a", None, "", "b"]), "id": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    rows = read(tmp_path / "x.parquet", id_column="id")
    assert [(row.text, row.id) for row in rows] == [("a", "1"), (None, "2"), (None, "3"), ("b", "4")]
    cells = pyarrow.array([b"a", b"b\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), tmp_path / "part[1]::z.parquet")
    assert [row.text for row in read(tmp_path / "part[1]::z.parquet")] == ["a", None, "c"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1.5]}), tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet")[0].error == "y.parquet, row 1: text is a float; want a text"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"body,id\na,1\n", "x.csv: no column 'text'; it has body, id"),
        ("x.jsonl", b'{"texts": "a"}\n', "did you mean 'texts'?"),
        ("x.json", b'"a"', "holds a str; want a list"),
        ("x.json", b"[1, 2", "x.json: row 2: not JSON"),
        ("x.parquet", b"no parquet", "x.parquet: cannot be read"),
        ("x.csv.gz", gzip.compress(b"text\n" + b"abc defg\n" * 9000)[:-20], "cannot be read beyond row"),
        ("x.docx", b"PK", "unknown file type '.docx'"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no.csv", "./folder", "a/b/c"])
def test_what_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(name)
    with pytest.raises(InputError, match="owner/corpus: no such file, and not to be had from the Hub"):
        open_source("owner/corpus")
    with pytest.raises(InputError, match="no file to read in there"):
        open_source(str(tmp_path))


def test_an_address_that_gives_no_answer_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(input_files, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        names = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ACCESS_KEY_ID": "a"}
        for name, value in (names | {"AWS_SECRET_ACCESS_KEY": "b"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=r"s3://bucket/a: no answer in 0\.5 seconds; want a network, and keys"):
            open_source("s3://bucket/a")
    with pytest.raises(InputError, match=r"http://host/a\.csv: no address of a store; want s3://, gs://"):
        open_source("http://host/a.csv")


# ---- The folder of scores --------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_has_scores_too(number, whole, tmp_path, monkeypatch):
    """As exFAT and the mounts of buckets."""

    def refuse(*paths):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    flags = [*whole[0], "--output", tmp_path / "out"]
    for damage in (lambda: None, shard(tmp_path / "out", 1).unlink, (tmp_path / "out" / "manifest.json").unlink):
        damage()
        assert "50 rows, 50 with a label" in call(run_score.main, *flags)
        assert content(tmp_path / "out") == content(whole[1])
        assert not list((tmp_path / "out").glob(".manifest*"))
    with pytest.raises(InputError, match="holds scores with another --format"):
        call(run_score.main, *flags, "--format", "csv")


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

    monkeypatch.setattr(scorer, "score", stopped)
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
    path, real, calls = tmp_path / "x.txt", scorer.score, []
    path.write_text("\n".join(essays[:50]) + "\n")
    flags = ["--model", finished[0], "--input", path, "--rows_per_shard", 10, "--output", tmp_path / "out"]

    def score(*arguments):
        calls.append(True)
        if len(calls) == at:
            CHANGES[kind](path)
        return real(*arguments)

    monkeypatch.setattr(scorer, "score", score)
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
