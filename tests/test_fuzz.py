"""Whatever is in a file: one line or the right rows, never a traceback, and never more than 2 GB.

For recipes see also `test_no_recipe_gives_a_traceback`; for rows of csv that are lost or made up, `test_rows.py`.
"""

import csv
import gzip
import io
import json
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline_emodeberta import EmotionPipeline
from trainer_ext.data.load import load_corpus, read_texts
from trainer_ext.data.tables import read_file
from trainer_ext.errors import InputError
from trainer_ext.files import write_json
from trainer_ext.runs.trial import (
    PROBABILITIES,
    RECORD,
    read_trial,
    trial_name,
    write_probabilities,
    write_record,
)
from trainer_ext.runs.trial_archive import TrialArchive, write_archive
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import Scores, load_pipeline, read_classifier_config
from trainer_ext.scoring.text_stream import READ_CHARACTERS, open_source
from trainer_ext.training.warm_start import warm_start

FUZZED = {"deadline": None, "suppress_health_check": list(HealthCheck)}
MOST = 2 << 30


def memory(name: str) -> int:
    """Of this process, in bytes."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.fixture(autouse=True)
def little_memory():
    """What goes far beyond fails; what only goes beyond is seen by its peak."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + 2 * MOST, before[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
    start = memory("VmRSS")
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)
    assert memory("VmHWM") - start < MOST


def read(function, *arguments, **options):
    """What it returns, or `None` for an error, which is one line."""
    try:
        return function(*arguments, **options)
    except InputError as error:
        if "\n" in str(error):
            raise
        return None


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file's content, cut, or with some bytes of it changed, lost, doubled or put in."""
    place = draw(st.integers(0, len(content)))
    length = draw(st.integers(1, 40))
    head, part, tail = content[:place], content[place : place + length], content[place + length :]
    kind = draw(st.sampled_from(["cut", "turned", "lost", "doubled", "put in", "other"]))
    return {
        "cut": head,
        "turned": head + bytes(byte ^ draw(st.integers(1, 255)) for byte in part[:1]) + part[1:] + tail,
        "lost": head + tail,
        "doubled": head + part + part + tail,
        "put in": head + draw(st.binary(min_size=1, max_size=8)) + part + tail,
        "other": head + draw(st.binary(max_size=40)) + tail,
    }[kind]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([2**31, 10**9, "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)

# ---- Rows ---------------------------------------------------------------------------------------------------------
PIECES = st.sampled_from([
    *(b"text", b"label", b",", b";", b"\t", b"|", b'"', b'""', b"\n", b"\r\n", b"\r", b"a", b"b c", b"\xff", b"\0"),
    *(b'{"text": "a", "label": "x"}\n', b'{"text": ', b"[", b"]", b"{", b"}", b"null", b"NaN", b"1e999", b"9" * 5000),
    *(b'"\\ud83d"', b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"[" * 3000, b'{"a":' * 3000, b" ", b"1.0"),
    "é\u2028😀".encode(),
])  # fmt: skip
CONTENT = st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=60)
ENDINGS = st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".csv.gz", ".jsonl.xz", ".txt.bz2"])


@settings(max_examples=250, **FUZZED)
@given(CONTENT, ENDINGS, st.booleans(), st.sampled_from(["text", "a,text", "", "a"]))
@example(b"\0", ".txt", False, "text")
@example(b'{"a":' * 15_000, ".txt", False, "text")
def test_any_bytes_are_rows_or_a_line_and_two_readers_agree(tmp_path, content, ending, packed, column):
    path = tmp_path / f"x{ending}"
    column = "text" if ".txt" in ending else column  # which is all there is, whatever the flag
    path.write_bytes(gzip.compress(content) if packed and ending.endswith(".gz") else content)
    table = read(read_file, path)
    scored = read(lambda: list(open_source(str(path), text_column=column)))
    strict = read(read_texts, path, column)
    read(load_corpus, files={"train": str(path)}, text_column=column)
    if table is not None and scored is not None:
        assert len(table.rows) == len(scored)
    if strict is not None and scored is not None:
        cut = [text.lstrip()[:READ_CHARACTERS] if len(text) > READ_CHARACTERS else text for text in strict]
        assert [row.text for row in scored] == cut
    if scored and all(row.error is None for row in scored):
        assert strict is not None


GOOD = [{"text": f"row {i}, “quoted”", "label": "xy"[i % 2], "id": i} for i in range(30)]


def as_csv() -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(GOOD[0]))
    writer.writeheader()
    writer.writerows(GOOD)
    return file.getvalue().encode()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), file, row_group_size=8, compression="none")
    return file.getvalue()


FILES = {
    "x.csv": as_csv(),
    "x.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in GOOD).encode(),
    "x.json": json.dumps(GOOD).encode(),
    "x.parquet": as_parquet(),
    "x.csv.gz": gzip.compress(as_csv()),
}


@settings(max_examples=200, **FUZZED)
@given(st.sampled_from(sorted(FILES)).flatmap(lambda name: st.tuples(st.just(name), damaged(FILES[name]))))
def test_a_damaged_file_gives_its_rows_or_a_line(tmp_path, file):
    name, content = file
    path = tmp_path / name
    path.write_bytes(content)
    table, scored = read(read_file, path), read(lambda: list(open_source(str(path), id_column="id")))
    if table is not None and scored is not None:
        assert len(table.rows) == len(scored)
    if name == "x.jsonl" and scored is not None:
        lines = re.split(rb"\r\n|\n|\r", content)
        assert len(scored) == sum(bool(line.decode(errors="replace").strip()) for line in lines)
    if name == "x.parquet" and scored is not None:
        assert len(scored) == pyarrow.parquet.read_metadata(path).num_rows


LINES = st.one_of(
    st.dictionaries(st.sampled_from(["text", "id", "x"]), JSON, max_size=3).map(json.dumps),
    JSON.map(json.dumps),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8),
)


@settings(max_examples=200, **FUZZED)
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_each_line_of_json_is_a_row(tmp_path, lines, end):
    """After a first one that makes clear that there is an object per line."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(end.join(['{"text": "first"}', *lines]).encode())
    rows = list(open_source(str(path)))
    assert len(rows) == 1 + sum(bool(line.strip()) for line in lines)
    assert rows[0].text == "first"


COLUMNS = st.sampled_from([
    pyarrow.int64(), pyarrow.float16(), pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.bool_(),
    pyarrow.timestamp("ns"), pyarrow.timestamp("s", "Europe/Berlin"), pyarrow.date32(), pyarrow.time64("us"),
    pyarrow.duration("ns"), pyarrow.decimal128(38, 3), pyarrow.list_(pyarrow.int8()), pyarrow.null(),
    pyarrow.struct([("a", pyarrow.string())]), pyarrow.map_(pyarrow.string(), pyarrow.int8()),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
])  # fmt: skip
BITS = {bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)}


@st.composite
def tables(draw) -> pyarrow.Table:
    """Columns of any type, whose numbers, times and dates are beyond all range, too."""
    rows = draw(st.integers(0, 20))
    columns = {}
    for name in draw(st.lists(st.sampled_from(["text", "label", "id", "x", ""]), min_size=1, max_size=4)):
        kind = draw(COLUMNS)
        if pyarrow.types.is_primitive(kind) and kind.bit_width > 1:
            numbers = draw(st.lists(st.integers(*BITS[kind.bit_width]), min_size=rows, max_size=rows))
            column = pyarrow.array(numbers, f"int{kind.bit_width}").view(kind)
        else:
            texts = draw(st.lists(st.none() | st.text(max_size=4), min_size=rows, max_size=rows))
            values = {"binary": [text and text.encode() for text in texts], "string": texts, "large_string": texts}
            column = pyarrow.array(values.get(str(kind), [None] * rows), kind)
        columns[(name, len(columns))] = column
    return pyarrow.table(list(columns.values()), [name for name, _ in columns])


@settings(max_examples=120, **FUZZED)
@given(tables(), st.integers(1, 9))
def test_a_parquet_file_has_as_many_rows_as_it_says(tmp_path, table, group):
    path = tmp_path / "x.parquet"
    try:
        pyarrow.parquet.write_table(table, path, row_group_size=group)
    except (pyarrow.ArrowException, OverflowError):
        return
    read(load_corpus, files={"train": str(path)})
    strict, scored = read(read_file, path), read(lambda: list(open_source(str(path))))
    if strict is not None:
        assert len(strict.rows) == len(table)
    if scored is not None:
        assert len(scored) == len(table)
    assert scored is not None or "text" not in table.column_names or len(set(table.column_names)) < table.num_columns


# ---- Trials -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a finished trial, and its archive."""
    identity = {"settings": {"seed": 1, "learning_rate": 1e-3}, "data": "d", "computation": 1}
    folder = tmp_path_factory.mktemp("trials") / trial_name(identity)
    folder.mkdir()
    values = np.random.default_rng(0).dirichlet([1, 1, 1], 12).astype(np.float32)
    write_probabilities(
        folder / PROBABILITIES, {"test": [f"n{i}" for i in range(12)]}, {"test": values}, ["a", "b", "ü"]
    )
    about = {"trial": {"overrides": {}, "fold": [2, 0], "seed": 1, "variant": "mean"}, "seconds": 2.5, "resumed": False}
    about |= {
        "machine": "m",
        "libraries": {"torch": "2"},
        "gflop": 1.0,
        "last_loss": 0.5,
        "rows": {"train": 9, "test": 12},
    }
    write_record(folder, about | identity)
    write_archive(folder.parent / "predictions.parquet", [(folder, "mean")])
    return folder, folder.parent / "predictions.parquet"


def same(found, wanted) -> None:
    """A believed trial is the one that was left; of its record, keys that nobody knows may come along."""
    (record, values), (wanted_record, wanted_values) = found, wanted
    known = wanted_record.keys() - {"sha256"}
    assert {key: record.get(key) for key in known} == {key: wanted_record[key] for key in known}
    assert (values.ids, values.label_names) == (wanted_values.ids, wanted_values.label_names)
    assert all(np.array_equal(values.values[split], wanted_values.values[split]) for split in wanted_values.values)


@settings(max_examples=250, **FUZZED)
@given(st.data())
def test_a_damaged_trial_is_not_believed(trial, tmp_path, data):
    folder = tmp_path / trial[0].name
    for name in (RECORD, PROBABILITIES):
        shutil.copy(trial[0] / name, folder / name) if folder.exists() else shutil.copytree(trial[0], folder)
    name = data.draw(st.sampled_from([RECORD, PROBABILITIES]))
    if name == RECORD and data.draw(st.booleans()):
        record = json.loads((folder / RECORD).read_text())
        place = data.draw(st.sampled_from([record, record["trial"], record["settings"], record["rows"]]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
        (folder / RECORD).write_text(json.dumps(record))
    else:
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    found = read(read_trial, folder)
    if found is not None:
        same(found, read_trial(trial[0]))


@settings(max_examples=150, **FUZZED)
@given(st.data())
def test_a_damaged_archive_gives_back_what_was_put_in_or_a_line(trial, tmp_path, data):
    path = tmp_path / "predictions.parquet"
    path.write_bytes(data.draw(damaged(trial[1].read_bytes())))
    archive = read(TrialArchive, path)
    folder = tmp_path / "again" / trial[0].name
    shutil.rmtree(folder, ignore_errors=True)
    if archive is not None and folder.name in archive:
        read(archive.restore, folder)
    found = read(read_trial, folder)
    if found is not None:
        same(found, read_trial(trial[0]))


# ---- Folders of scores --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "texts.txt"
    path.write_text("".join(f"text {i}\n" for i in range(7)))
    return path


def score_all(texts, folder) -> dict:
    """As run_score.py does, by a model that says one third each."""
    made = {"rows_per_shard": 2, "format": "jsonl"}
    scores = ScoreFolder(folder, open_source(str(texts)), {"name": "m", "version": "1"}, ["a", "b", "c"], made, {})
    shards = 0
    for number, rows in scores.shards(0, 1):
        shards += 1
        if rows:
            thirds = np.full((len(rows), 3), 1 / 3, np.float32)
            scores.write(number, rows, Scores(thirds, False, np.zeros(len(rows), bool), None))
    return scores.close(shards)


@settings(max_examples=100, **FUZZED)
@given(st.data())
def test_a_damaged_folder_of_scores_is_made_whole_or_refused(texts, tmp_path, data):
    folder = tmp_path / "scores"
    shutil.rmtree(folder, ignore_errors=True)
    wanted = score_all(texts, folder)
    held = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size}
    path = data.draw(st.sampled_from(list(held)))
    if path.suffix == ".json" and data.draw(st.booleans()):
        content = json.loads(held[path])
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON)
        write_json(path, json.loads(json.dumps(content)))
    else:
        path.write_bytes(data.draw(damaged(held[path])))
    found = read(score_all, texts, folder)
    if found is not None:
        assert found == wanted
        assert {each: each.read_bytes() for each in held if each.suffix == ".jsonl"} == {
            each: content for each, content in held.items() if each.suffix == ".jsonl"
        }


# ---- config.json --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model(v3_folder, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    made = warm_start(str(v3_folder), id2label={0: "anger", 1: "fear", 2: "joy"})
    EmotionPipeline(model=made, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def classify(folder: Path) -> list[dict]:
    config, _ = read_classifier_config(str(folder), None, None)
    return load_pipeline(str(folder), config, "float32", "cpu")("a day at the river")


@settings(max_examples=60, **FUZZED)
@given(st.data())
def test_a_model_with_another_configuration_classifies_or_is_refused(model, data):
    path = model / "config.json"
    held = path.read_bytes()
    try:
        if data.draw(st.integers(0, 3)):
            content = json.loads(held)
            for name in data.draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=2)):
                content[name] = data.draw(JSON | st.integers(0, 2**40))
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(data.draw(damaged(held)))
        said = read(classify, model)
        assert said is None or 0 <= said[0]["score"] <= 1 or np.isnan(said[0]["score"])
    finally:
        path.write_bytes(held)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vocab_size", 20_000_000, "weights lack deberta.embeddings.word_embeddings.weight"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0; want 1 or more"),
        ("num_hidden_layers", 100_000, "num_hidden_layers is 100000; want at most 1,000"),
        ("max_position_embeddings", 300_000_000, "max_position_embeddings is 300000000; want at most 1,048,576"),
    ],
)
def test_a_configuration_is_refused_before_it_takes_memory(model, tmp_path, name, value, says):
    """Each would take 2 to 4 GB, which its file does not have: enough for `little_memory` to see."""
    for path in model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(InputError, match=says):
        classify(tmp_path)
