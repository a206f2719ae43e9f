"""run_score.py: it writes what the pipeline says, whatever is wrong with rows, killed often, or on a cluster."""

import csv
import gzip
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file
from support import ESSAYS, ROOT, call
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

import run_score
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.errors import InputError
from trainer_ext.precision import Choice
from trainer_ext.runs.provenance import as_command, command_line
from trainer_ext.scoring import scorer
from trainer_ext.scoring.cluster import _opened, _read, plan
from trainer_ext.scoring.score_folder import FORMATS, ScoreFolder
from trainer_ext.scoring.text_stream import open_source

SCRIPT = ROOT / "run_score.py"


@pytest.fixture(scope="module")
def essays() -> list[str]:
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file, delimiter="\t")]


def write_texts(path, texts) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("key", "text"), *((f"k{i}", text) for i, text in enumerate(texts))])


def shards(folder) -> pyarrow.Table:
    return pyarrow.concat_tables(pyarrow.parquet.read_table(path) for path in sorted(folder.glob("scores-*.parquet")))


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# ---- What comes out -----------------------------------------------------------------------------------------------


def test_shards_hold_what_the_pipeline_says(finished, essays, tmp_path):
    model, texts = finished[0], [*essays[:40], "", *essays[40:60], " ", essays[60] * 9]
    write_texts(tmp_path / "x.csv", texts)
    flags = ("--model", model, "--input", tmp_path / "x.csv", "--id_column_name", "key", "--rows_per_shard", 25)
    flags += ("--dtype", "float32")
    said = call(run_score.main, *flags, "--output", tmp_path / "out")
    table = shards(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(63))
    assert table["id"].to_pylist() == [f"k{i}" for i in range(63)]
    errors = {i: error for i, error in enumerate(table["error"].to_pylist()) if error}
    assert errors == {40: "x.csv, row 42: the text is empty", 61: "x.csv, row 63: the text is empty"}

    network = EmoDebertaForSequenceClassification.from_pretrained(model).eval()
    classify = EmotionPipeline(model=network, tokenizer=AutoTokenizer.from_pretrained(model), device="cpu")
    wanted = classify(texts, top_k=None)
    labels = list(network.config.id2label.values())
    assert table.column_names == [
        *("row", "id", "label"), *(f"probability_{name}" for name in labels), "truncated", "error",
    ]  # fmt: skip
    for i, (row, want) in enumerate(zip(table.to_pylist(), wanted, strict=True)):
        if i in errors:
            assert {row[name] for name in table.column_names[2:-1]} == {None}
            continue
        assert row["label"] == want[0]["label"]
        scores = {entry["label"]: entry["score"] for entry in want}
        assert [row[f"probability_{name}"] for name in labels] == pytest.approx([scores[n] for n in labels], abs=1e-6)
    lengths = [len(ids) for ids in classify.tokenizer([text or "x" for text in texts])["input_ids"]]
    cut = [i not in errors and length > classify.tokenizer.model_max_length for i, length in enumerate(lengths)]
    assert [bool(value) for value in table["truncated"].to_pylist()] == cut
    assert sum(cut) > 1

    about = manifest(tmp_path / "out")
    assert about["complete"]
    assert (about["rows"], about["errors"], about["truncated"]) == (63, 2, sum(cut))
    assert about["label_counts"] == {name: table["label"].to_pylist().count(name) for name in labels}
    assert [shard["rows"] for shard in about["shards"]] == [25, 25, 13]
    for shard in about["shards"]:
        assert shard["sha256"] == hashlib.sha256((tmp_path / "out" / shard["file"]).read_bytes()).hexdigest()
    assert "63 rows, 61 with a label" in said
    assert "2 rows have an error instead of a label; the first: x.csv, row 42: the text is empty" in said
    assert not any(text[:30] in json.dumps(about) + said for text in texts if text.strip())

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("scores-*")}
    call(run_score.main, *flags, "--output", tmp_path / "out")  # nothing is left to do
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("scores-*")}


def test_an_ensembles_disagreement_is_kept(fused, essays, tmp_path):
    model = fused[0] / "all"
    (tmp_path / "x.txt").write_text("\n".join(essays[:30]))
    call(run_score.main, "--model", model, tmp_path / "x.txt", "--output", tmp_path / "out", "--dtype", "float32")
    table = shards(tmp_path / "out")
    network = EmoDebertaEnsembleForSequenceClassification.from_pretrained(model).eval()
    classify = EmotionPipeline(model=network, tokenizer=AutoTokenizer.from_pretrained(model), device="cpu")
    wanted = classify(essays[:30], return_members=True)
    assert table["label"].to_pylist() == [want["label"] for want in wanted]
    disagreement = table["disagreement"].to_pylist()
    assert disagreement == pytest.approx([want["disagreement"] for want in wanted])
    assert max(disagreement) > 0


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_small_jobs_may_have_text_files(form, finished, essays, tmp_path):
    write_texts(tmp_path / "x.csv", [essays[0], "", essays[1]])
    flags = ("--model", finished[0], "--input", tmp_path / "x.csv", "--id_column_name", "key")
    call(run_score.main, *flags, "--output", tmp_path / "parquet")
    call(run_score.main, *flags, "--output", tmp_path / form, "--format", form)
    wanted = shards(tmp_path / "parquet").to_pylist()
    with open(tmp_path / form / f"scores-000000.{form}", newline="", encoding="utf-8") as file:
        found = [json.loads(line) for line in file] if form == "jsonl" else list(csv.DictReader(file))
    for row, want in zip(found, wanted, strict=True):
        assert row["label"] == (want["label"] or ("" if form == "csv" else None))
        assert row["error"] == (want["error"] or ("" if form == "csv" else None))
        if want["label"]:
            name = f"probability_{want['label']}"
            assert float(row[name]) == pytest.approx(want[name])


def test_a_model_with_several_labels_a_text_and_one_of_the_library(tokenizer, essays, tmp_path):
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=4, problem_type="multi_label_classification", max_position_embeddings=64, initializer_range=1.0,
    )  # fmt: skip
    network = DebertaV2ForSequenceClassification(config)
    network.classifier.bias.data -= 3
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "x.txt").write_text("".join(f"{text}\n" for text in [*essays[:20], ""]))
    said = call(run_score.main, "--model", tmp_path / "model", tmp_path / "x.txt", "--output", tmp_path / "out")
    labelled = 0
    for row in shards(tmp_path / "out").to_pylist():
        if row["error"]:
            assert row["label"] is None
        else:
            assert row["label"] == [f"LABEL_{i}" for i in range(4) if row[f"probability_LABEL_{i}"] > 0.5]
            labelled += bool(row["label"])
    assert 0 < labelled < 20
    assert f"21 rows, {labelled} with a label:" in said
    assert f"{20 - labelled} rows have no label, because none is probable enough for the model" in said


@pytest.mark.parametrize("pads", ["no", "in the tokenizer", "in the model"])
def test_a_model_without_a_token_for_padding_gives_each_texts_own_scores(pads, essays, tmp_path):
    """As GPT-2 and Llama, which classify by the last token of a text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    inner.train_from_iterator(essays, trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>", "<pad>"]))
    padding = {"pad_token": "<pad>"} if pads == "in the tokenizer" else {"padding_side": "left"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", **padding)
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "n_positions": 66, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
    padded = {"pad_token_id": 1 if pads == "in the model" else None, "eos_token_id": 0, "bos_token_id": 0}
    network = GPT2ForSequenceClassification(GPT2Config(**shape, **padded, initializer_range=0.5)).eval()
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "x.txt").write_text("\n".join(text[: 1 + 3 * row] for row, text in enumerate(essays[:20])))
    flags = ("--model", tmp_path / "model", tmp_path / "x.txt", "--output", tmp_path / "out", "--dtype", "float32")
    call(run_score.main, *flags)
    for text, row in zip(essays, shards(tmp_path / "out").to_pylist(), strict=False):
        ids = tokenizer([text[: 1 + 3 * row["row"]]], truncation=True, max_length=64, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted = network(ids).logits[0].softmax(dim=-1).tolist()
        assert [row[f"probability_LABEL_{i}"] for i in range(3)] == pytest.approx(wanted, abs=1e-5)

    if pads == "no":
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path / "model")
        with pytest.raises(InputError, match="its tokenizer has no token to pad with, nor one for the end of a text"):
            call(run_score.main, *flags[:-3], tmp_path / "other")


def test_it_is_a_filter(finished, essays, tmp_path):
    """A line in, a line out, before the next comes; an empty line for an empty one; it ends when its reader does."""
    command = [sys.executable, SCRIPT, "--model", finished[0], "-"]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(list(map(str, command)), **options)
    labels = set(EmoDebertaForSequenceClassification.from_pretrained(finished[0]).config.label2id)
    for text in essays[:2]:
        process.stdin.write(text + "\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() in labels
    out, err = process.communicate("\n" + "\n".join(essays[2:50]) + "\n")
    lines = out.split("\n")
    assert (lines[0], lines[-1]) == ("", "")
    assert len(lines) == 50
    assert set(lines[1:-1]) <= labels
    first, *others = err.splitlines()
    assert re.match(r"precision: (bf16|float32) \(a matrix product takes", first)
    assert others == ["standard input, line 3: the text is empty", "1 rows have an error instead of a label"]

    many = tmp_path / "many.txt"
    many.write_text("\n".join(essays * 20))
    done = subprocess.run(f"{' '.join(map(str, command[:-1]))} {many} | head -1", shell=True, capture_output=True)
    assert done.stdout.decode().strip() in labels
    assert re.fullmatch(r"precision: .*\n", done.stderr.decode())  # and no complaint of a broken pipe


# ---- Kill and resume ----------------------------------------------------------------------------------------------


def test_a_label_with_a_line_break_takes_one_line(finished, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {number: f"a\n{name}" for number, name in config["id2label"].items()}
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "texts.txt").write_text("one\ntwo\nthree\n")
    lines = call(run_score.main, "--model", folder, "--input", tmp_path / "texts.txt").splitlines()
    assert len(lines) == 3
    assert {line.partition(" ")[0] for line in lines} == {"a"}


@pytest.fixture(scope="module")
def many(essays, tmp_path_factory):
    """5,000 rows of mixed lengths, one in a hundred of them bad."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    lines = []
    for i in range(5000):
        words = draw.choice(essays).split()
        text = " ".join(words[: draw.choice([3, 10, 40])])
        row = {"text": draw.choice(["", None, 5]) if i % 100 == 7 else text, "key": i}
        lines.append('{"text": broken' if i % 1000 == 7 else json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_killed_three_times_every_row_comes_out_once(finished, many, tmp_path):
    """On two connected processes; to the byte what one process writes that nobody kills."""
    flags = ("--model", finished[0], "--input", many, "--id_column_name", "key", "--rows_per_shard", 250)
    forked.run(SCRIPT, *flags, "--output", "straight", cwd=tmp_path)
    draw, seen = random.Random(1), 0
    for _ in range(3):
        process = forked.Forked(SCRIPT, *flags, "--output", "killed", cwd=tmp_path, ranks=2)
        wanted = seen + draw.randint(1, 4)
        while len(list((tmp_path / "killed").glob(".shards/*"))) < wanted:
            assert process.poll() is None, process.stderr[-3000:]
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        seen = len(list((tmp_path / "killed").glob(".shards/*.json")))
        assert not manifest(tmp_path / "killed")["complete"]
    assert seen < 20
    done = forked.run(SCRIPT, *flags, "--output", "killed", cwd=tmp_path, ranks=2)
    assert "2 processes share the shards" in done.stderr
    assert "5,000 rows, 4,950 with a label" in done.stdout
    straight, killed = (manifest(tmp_path / name) for name in ("straight", "killed"))
    assert straight.pop("command") != killed.pop("command")
    assert straight == killed
    table = shards(tmp_path / "killed")
    assert table["row"].to_pylist() == list(range(5000))
    bad = [i for i, error in enumerate(table["error"].to_pylist()) if error]
    assert bad == list(range(7, 5000, 100))
    keys = [None if i % 1000 == 7 else str(i) for i in range(5000)]
    assert table["id"].to_pylist() == keys
    assert not list((tmp_path / "killed").glob(".scores*"))


def test_parts_make_the_whole(finished, essays, tmp_path):
    write_texts(tmp_path / "x.csv", essays[:50])
    flags = ("--model", finished[0], "--input", tmp_path / "x.csv", "--rows_per_shard", 8)
    call(run_score.main, *flags, "--output", tmp_path / "whole")
    for part in (3, 1):
        said = call(run_score.main, *flags, "--output", tmp_path / "parts", "--part", f"{part}/3")
        assert said.startswith(f"part {part} of 3 is done")
    assert len(list((tmp_path / "parts").glob("scores-*"))) == 5
    assert "50 rows" in call(run_score.main, *flags, "--output", tmp_path / "parts", "--part", "2/3")
    whole, parts = (manifest(tmp_path / name) for name in ("whole", "parts"))
    assert whole["shards"] == parts["shards"]


@pytest.fixture
def unfinished(finished, essays, tmp_path):
    """Half of the shards of two files, and the flags that made them."""
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in" / "a.csv", essays[:30])
    write_texts(tmp_path / "in" / "b.csv", essays[30:60])
    flags = ["--model", finished[0], "--input", tmp_path / "in", "--rows_per_shard", 10, "--output", tmp_path / "out"]
    call(run_score.main, *flags)
    for path in (tmp_path / "out" / ".shards").glob("*.json"):
        if int(path.stem) > 2:
            path.unlink()
    about = manifest(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(about | {"complete": False}))
    return flags


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--rows_per_shard": 20}, "another --rows_per_shard"),
        ({"--format": "csv"}, "another --format"),
        ({"--dtype": "float16"}, "another --dtype"),
        ({"--text_column_name": "key"}, "another --text_column_name"),
        ({"--text_column_name": "key,text"}, "another --text_column_name"),
        ({"--text_column_delimiter": "/"}, "another --text_column_delimiter"),
        ({"--tokens_per_batch": 64}, r"another --tokens_per_batch \(not given\)"),
    ],
)
def test_other_settings_are_refused(unfinished, change, says):
    with pytest.raises(InputError, match=says):
        call(run_score.main, *unfinished, *(part for pair in change.items() for part in pair))


def test_scores_go_on_in_the_precision_they_began_with(unfinished, tmp_path, monkeypatch, capsys):
    began = manifest(tmp_path / "out")
    other = "float32" if began["settings"]["dtype"] == "bfloat16" else "bf16"
    monkeypatch.setattr(scorer, "choose", lambda device: Choice(other, "as another machine finds"))
    assert "60 rows" in call(run_score.main, *unfinished)
    assert "(as the scores in the folder)" in capsys.readouterr().err
    ended = manifest(tmp_path / "out")
    assert (ended["settings"], ended["precision"]) == (began["settings"], began["precision"])


def test_another_input_or_model_is_refused(unfinished, fused, essays, tmp_path):
    rows = (tmp_path / "in" / "a.csv").read_bytes()
    for changed in (rows + b"k30,appended\n", rows.replace(b"e", b"a", 1)):
        (tmp_path / "in" / "a.csv").write_bytes(changed)
        with pytest.raises(InputError, match=r"another input \(a.csv\); give the same to go on, or another folder"):
            call(run_score.main, *unfinished)
    (tmp_path / "in" / "a.csv").rename(tmp_path / "in" / "c.csv")
    with pytest.raises(InputError, match=r"another input \(a.csv\)"):
        call(run_score.main, *unfinished)
    (tmp_path / "in" / "c.csv").unlink()
    (tmp_path / "in" / "a.csv").write_bytes(rows)
    with pytest.raises(InputError, match="another model"):
        call(run_score.main, *unfinished, "--model", fused[0] / "first")
    assert "60 rows" in call(run_score.main, *unfinished)


def test_files_that_come_later_are_scored_where_no_rows_are_lost(unfinished, essays, tmp_path):
    """Behind full shards they go on; a last shard that is not full would have had rows of theirs."""
    write_texts(tmp_path / "in" / "c.csv", essays[:15])
    assert "75 rows" in call(run_score.main, *unfinished)
    assert shards(tmp_path / "out")["row"].to_pylist() == list(range(75))
    write_texts(tmp_path / "in" / "d.csv", essays[:10])
    with pytest.raises(InputError, match="another input"):
        call(run_score.main, *unfinished)


def test_a_shard_of_other_settings_is_not_taken_for_one_of_these(unfinished, tmp_path):
    """As when two machines start with different defaults and write into one folder."""
    path = tmp_path / "out" / ".shards" / "000001.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"fingerprint": "of another"}))
    with pytest.raises(InputError, match="holds scores with another"):
        call(run_score.main, *unfinished)


def test_rows_without_a_number_have_an_error(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(finished[0] / "model.safetensors")
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name][:] = 3e38  # finite; sums of them are not
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    said = call(run_score.main, "--model", tmp_path / "model", tmp_path / "x.txt", "--output", tmp_path / "out")
    assert "2 rows, 0 with a label" in said
    assert all(error.startswith("the model gives no number") for error in shards(tmp_path / "out")["error"].to_pylist())


# ---- What goes wrong ----------------------------------------------------------------------------------------------


def test_an_unreadable_file_in_the_middle_leaves_what_was_done(finished, essays, tmp_path):
    """One line; mended, the run goes on with what it had."""
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "x.csv", essays[:60])
    whole = gzip.compress((tmp_path / "x.csv").read_bytes())
    write_texts(tmp_path / "in" / "a.csv", essays[:30])
    (tmp_path / "in" / "b.csv.gz").write_bytes(whole[: len(whole) // 2])
    write_texts(tmp_path / "in" / "c.csv", essays[:30])
    flags = ("--model", finished[0], "--input", tmp_path / "in", "--rows_per_shard", 10, "--output", tmp_path / "out")
    with pytest.raises(InputError, match=r"b.csv.gz: cannot be read beyond row \d+ .*; 3 shards before it stay valid"):
        call(run_score.main, *flags)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("scores-00000[012]*")}
    assert len(done) == 3
    assert shards(tmp_path / "out")["label"].null_count == 0
    (tmp_path / "in" / "b.csv.gz").write_bytes(whole)
    assert "120 rows" in call(run_score.main, *flags)
    assert done == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("scores-00000[012]*")}


def test_a_full_disk_is_one_line_and_the_run_goes_on(finished, essays, tmp_path):
    """The system's own refusal to write more, by a limit on the size of files."""
    write_texts(tmp_path / "x.csv", essays[:900])
    flags = ("--model", finished[0], "--input", tmp_path / "x.csv", "--rows_per_shard", 300, "--output", "out")
    code = (
        f"import resource, runpy, sys; sys.argv = {['run_score.py', *map(str, flags)]!r}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    (tmp_path / "limited.py").write_text(code)
    done = forked.run(tmp_path / "limited.py", cwd=tmp_path, check=False)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: out: cannot write a shard \(.*File too large\); 0 are there and stay valid", line)
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*scores*"))
    assert "900 rows" in forked.run(SCRIPT, *flags, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["--model", "empty"], "empty: no config.json there"),
        (["--model", "encoder"], "want a text classifier"),
        (["--model", "cut"], "cut: its weights cannot be loaded"),
        (["--text_column_name", "body"], "x.csv: no column 'body'; it has key, text"),
        (["--input", "no.csv"], "no.csv: no such file"),
        (["--output", "x.csv"], "x.csv: is a file"),
        (["--output", "cut"], "cut: is in use"),
        (["--input", "-", "--id_column_name", "key"], "a text a line and no columns"),
        (["--input", "x.txt", "--id_column_name", "key"], "x.txt: no column 'key'; it has text"),
        (["--input", "cut", "--output", "cut/scores"], "cut/scores: is inside the input cut"),
        (["--model", "headless"], "headless: its weights lack classifier.out_proj.bias"),
    ],
)
def test_errors_are_one_line(finished, v3_folder, flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "x.csv", ["one"])
    (tmp_path / "x.txt").write_text("one\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "encoder").symlink_to(v3_folder)
    (tmp_path / "cut").mkdir()
    for path in finished[0].glob("*.json"):
        (tmp_path / "cut" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "cut" / "model.safetensors").write_bytes((finished[0] / "model.safetensors").read_bytes()[:5000])
    shutil.copytree(finished[0], tmp_path / "headless", ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(finished[0] / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "out_proj" not in k}, tmp_path / "headless" / "model.safetensors")
    with pytest.raises(InputError) as error:
        call(run_score.main, "--model", finished[0], "--input", "x.csv", "--output", "out", *flags)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/scores*"))


@pytest.mark.parametrize("form", FORMATS)
def test_paths_may_have_bytes_that_are_not_utf8(form, finished, tmp_path):
    """Read and written, and the scores are found again."""
    name, out = os.fsdecode(b"caf\xe9.csv"), os.fsdecode(b"\xe9")
    write_texts(tmp_path / name, ["one", "", "two"])
    flags = ("--model", finished[0], "--input", name, "--output", out, "--format", form, "--rows_per_shard", 2)
    first, again = (forked.run(SCRIPT, *flags, cwd=tmp_path) for _ in range(2))
    assert "3 rows, 2 with a label" in first.stdout
    assert first.stdout == again.stdout
    assert "saved to \\udce9/" in first.stdout
    assert "Traceback" not in first.stderr + again.stderr
    about = manifest(tmp_path / out)
    assert f"--input {shlex.quote(name)}" in about["command"]
    assert [file["file"] for file in about["input"]] == ["caf\\udce9.csv"]
    assert about["first_error"] == "caf\\udce9.csv, row 3: the text is empty"
    assert len(about["shards"]) == len(list((tmp_path / out).glob("scores-*"))) == 2


def test_keys_in_an_address_are_never_shown(finished, tmp_path):
    for address, shown in (
        ("hdfs://me:hush@nowhere/x.csv", "hdfs://me:***@nowhere/x.csv"),
        ("s3://me:quite/hush@bucket/x.csv", "s3://me:***@bucket/x.csv"),
    ):
        flags = ("--model", finished[0], "--input", address, "--output", "out")
        done = forked.run(SCRIPT, *flags, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert f"error: {shown}: cannot be read" in done.stderr
        assert not re.search("quite|hush", done.stdout + done.stderr)
        assert not list(tmp_path.rglob("scores*"))
    write_texts(tmp_path / "x.csv", ["one"])
    address = f"file://{tmp_path}/x.csv?sig=hush"
    done = forked.run(SCRIPT, "--model", finished[0], "--input", address, "--output", "out", cwd=tmp_path)
    assert "x.csv?sig=***" in manifest(tmp_path / "out")["command"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"hush" not in written + (done.stdout + done.stderr).encode()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://me:secret@bucket/x", "s3://me:***@bucket/x"),
        ("s3://me:q2/s+e=@bucket/x?region=eu", "s3://me:***@bucket/x?region=eu"),
        ("s3://me:/w2@bucket/x", "s3://me:***@bucket/x"),
        ("s3://me:7/w2@bucket/x", "s3://me:***@bucket/x"),
        ("abfs://:key@account/x", "abfs://:***@account/x"),
        ("abfs://box@account.dfs.core.windows.net/x?sv=1&sig=a%2F&se=2", None),
        ("abfs://box@account.dfs.core.windows.net/x", None),
        ("hdfs://node:8020/me@home/x", None),
    ],
)
def test_records_and_errors_hide_keys_and_nothing_else(address, shown):
    shown = shown or address.replace("a%2F", "***")
    with as_command("run_score.py", {"model": "m", "input": address}):
        assert shlex.split(command_line())[2:] == ["--model=m", f"--input={shown}"]
    assert str(InputError(f"{address}: cannot be read")) == f"{shown}: cannot be read"


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b"])
def test_a_part_is_one_of_several(part, finished, capsys):
    with pytest.raises(SystemExit):
        call(run_score.main, "--model", finished[0], "--input", "x.csv", "--part", part)
    assert "want two numbers, as 3/16" in capsys.readouterr().err


# ---- On a cluster: two nodes, of which one dies ----------------------------------------------------------------------
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
# Other tests run at the same time: workers do not give way to them, and processes may take long to start.
BUSY_MACHINE = {
    "worker_niceness": "0",
    "worker_register_timeout_seconds": "300",
    "health_check_timeout_ms": "60000",
}
WORDS = ["the", "river", "took", "the", "road", "and", "nobody", "told", "us", "why"]


# ---- Which task reads what ----------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=4),
    st.integers(1, 12),
    st.booleans(),
    st.sets(st.integers(0, 8)),
)
def test_runs_have_every_shard_once_wherever_row_groups_end(tmp_path_factory, groups, size, with_lines, kept):
    """Files of parquet with these row groups, and if so a last one with a text per line."""
    folder = tmp_path_factory.mktemp("groups")
    row, schema = iter(range(10**6)), pyarrow.schema([("text", pyarrow.string())])
    for number, counts in enumerate(groups):
        with pyarrow.parquet.ParquetWriter(folder / f"{number}.parquet", schema) as writer:
            for count in counts:
                writer.write_table(pyarrow.table({"text": [f"row {next(row)}" for _ in range(count)]}, schema))
    if with_lines:
        (folder / "last.txt").write_text("".join(f"row {next(row)}\n" for _ in range(7)))
    source = open_source(str(folder))
    scores = ScoreFolder(folder / ".out", source, {}, [], {"rows_per_shard": size, "format": "parquet"}, {})
    wanted = [(number, rows) for number, rows in scores.cut(source, 0, lambda number: number not in kept) if rows]
    runs = plan([source.count(number) for number in range(len(source.files))], size)
    read = [(number, _opened(rows)) for run in runs for number, rows in _read(folder, scores, run, kept)]
    assert read == wanted


# ---- Two nodes ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes on this machine, and its second one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BUSY_MACHINE.items():
            patch.setenv(f"RAY_{name}", value)
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        second = cluster.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, second
        cluster.shutdown()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of 4,000 rows in three formats, one in a hundred of them bad."""
    folder = tmp_path_factory.mktemp("texts")
    texts = [" ".join(WORDS[(row + place) % 10] for place in range(1 + row % 9)) for row in range(4000)]
    texts[7::100] = [""] * 40
    lines = ["{broken" if row == 107 else json.dumps({"text": texts[row], "key": row}) for row in range(1000)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    columns = {"text": texts[1000:2500], "key": list(range(1000, 2500))}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "b.parquet", row_group_size=333)
    rows = [f"{text},{row}" + ",too,many" * (row == 2507) for row, text in enumerate(texts[2500:], 2500)]
    (folder / "c.csv").write_text("\n".join(["text,key", *rows]) + "\n")
    return folder


def content(folder):
    """The manifest without the command, and all rows."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("scores-*"))]
    return {key: value for key, value in manifest.items() if key != "command"}, pyarrow.concat_tables(shards)


def records(folder):
    return list((folder / ".shards").glob("*.json"))


@pytest.mark.long
def test_a_killed_driver_and_a_dead_node_lose_no_row(two_nodes, finished, texts, tmp_path, capfd):
    cluster, second = two_nodes
    flags = ["--model", finished[0], "--input", texts, "--id_column_name", "key", "--rows_per_shard", 40]
    flags += ["--dtype", "float32"]
    out, threads = tmp_path / "out", torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have
    try:
        call(run_score.main, *flags, "--output", tmp_path / "straight")
    finally:
        torch.set_num_threads(threads)

    driver = forked.Forked(SCRIPT, *flags, "--output", out, "--engine", "ray", cwd=tmp_path)
    while len(records(out)) < 5:
        assert driver.poll() is None, driver.stderr[-3000:]
        time.sleep(0.05)
    driver.kill()
    before = {path: path.stat().st_mtime_ns for path in out.glob("scores-*")}
    assert len(before) < 60

    def kill_the_second_node():
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        while len(records(out)) < 75 or not any("MapWorker" in child.name() for child in raylet.children()):
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill_the_second_node, daemon=True)
    killer.start()
    capfd.readouterr()
    said = call(run_score.main, *flags, "--output", out, "--engine", "ray")
    killer.join()
    assert "4,000 rows, 3,960 with a label" in said
    assert "1 nodes of the cluster died; the others did their work" in capfd.readouterr().err
    assert content(out) == content(tmp_path / "straight")  # to the byte, by the checksums
    assert content(out)[1]["row"].to_pylist() == list(range(4000))
    assert before == {path: path.stat().st_mtime_ns for path in before}  # not scored again

    (texts / "c.csv").write_text((texts / "c.csv").read_text() + "one more,4000\n")
    with pytest.raises(InputError, match=r"another input \(c.csv\); give the same to go on"):
        call(run_score.main, *flags, "--output", out, "--engine", "ray")


def test_what_the_cluster_cannot_do_is_said_in_a_line(two_nodes, finished, texts, tmp_path):
    flags = ["--model", finished[0], "--output", tmp_path / "out", "--engine", "ray"]
    with pytest.raises(InputError, match="0 GPUs, and a worker wants 1 GPUs; give fewer --num_gpus_per_worker"):
        call(run_score.main, *flags, texts, "--num_gpus_per_worker", 1)
    assert not (tmp_path / "out").exists()


BROKEN = {
    "empty.csv": b"",
    "column.csv": b"body\nhello\n",
    "not.parquet": b"hello",
    "several/1.csv.gz": gzip.compress(b"text\n" + b"a row\n" * 999)[:30],
    "several/2.txt": b"a row\n",
}


def test_both_engines_refuse_an_input_in_the_same_words(two_nodes, finished, tmp_path):
    (tmp_path / "several").mkdir()
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    flags = ["--model", finished[0], "--dtype", "float32", "--output", tmp_path / "out", "--input"]
    for name in ("empty.csv", "column.csv", "not.parquet", "several", "none.csv"):
        said = []
        for engine in ("processes", "ray"):
            with pytest.raises(InputError) as error:
                call(run_score.main, *flags, tmp_path / name, "--engine", engine)
            said.append(str(error.value))
        assert said[0] == said[1]
        assert Path(name).name in said[0] or "1.csv.gz" in said[0]
        assert not list(tmp_path.glob("out/scores*"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--engine", "ray", "--part", "1/2", "--output", "out"], "shares the work itself; start one process"),
        (["--engine", "ray"], "give --input and --output FOLDER"),
        (["--num_gpus_per_worker", 1], "--num_gpus_per_worker: is of --engine ray"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, says, finished, texts):
    with pytest.raises(InputError, match=says):
        call(run_score.main, "--model", finished[0], texts, *flags)


def test_a_missing_extra_is_named(finished, texts, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "trainer_ext.scoring.cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = ["--engine", "ray", "--output", tmp_path / "out"]
    with pytest.raises(InputError, match=r"ray is not installed; pip install 'emodeberta\[ray\]'"):
        call(run_score.main, "--model", finished[0], texts, *flags)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_at_once_with_a_line(name, status):
    """Also before torch is imported, which the tasks that read never do."""
    code = (
        "import os, signal, sys, time\n"
        "import run_score\n"
        "from trainer_ext.scoring.cluster import _ended_by_signals\n"
        "assert 'torch' not in sys.modules\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        f"with _ended_by_signals():\n    os.kill(os.getpid(), signal.{name})\n"
        "    while True:\n        try:\n            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n            pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.strip()) == (status, "stopped; start it again in the same way")
