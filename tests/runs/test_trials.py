"""Finished trials whose files are damaged or changed: they are made again, which is said, and the table is right."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from support import call
from test_run_compare import figures

import run_compare
from trainer_ext.errors import InputError
from trainer_ext.runs.trial_record import PROBABILITIES, RECORD, read_probabilities, read_trial, write_probabilities
from trainer_ext.runs.trials import Trials


def other_values(path):
    """Whole, and with the same rows, but not what was left there."""
    saved = read_probabilities(path)
    write_probabilities(path, saved.ids, {k: v[:, ::-1].copy() for k, v in saved.values.items()}, saved.label_names)


def rows_swapped(path):
    saved = read_probabilities(path)
    ids = {split: row_ids[::-1] for split, row_ids in saved.ids.items()}
    write_probabilities(path, ids, saved.values, saved.label_names)


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGE = {
    "probabilities cut": lambda folder: cut(folder / PROBABILITIES),
    "header cut": lambda folder: cut(folder / PROBABILITIES, 0.01),
    "probabilities missing": lambda folder: (folder / PROBABILITIES).unlink(),
    "probabilities changed": lambda folder: other_values(folder / PROBABILITIES),
    "rows swapped": lambda folder: rows_swapped(folder / PROBABILITIES),
    "record cut": lambda folder: cut(folder / RECORD),
    "record empty": lambda folder: (folder / RECORD).write_text(""),
    "record a list": lambda folder: (folder / RECORD).write_text("[1]"),
    "record without a key": lambda folder: (folder / RECORD).write_text('{"trial": {}}'),
    "time changed": lambda folder: changed(folder / RECORD, seconds=1.0),
    "settings changed": lambda folder: changed(folder / RECORD, settings={}),
    "not UTF-8": lambda folder: (folder / RECORD).write_bytes(b"\xff"),
}


@pytest.fixture
def copied(comparison, compared, tmp_path, monkeypatch):
    """The comparison's folder as it was left, to be damaged; its trials' folders; its table."""
    for name in ("mine.csv", "mine.yaml"):
        shutil.copy(comparison / name, tmp_path)
    shutil.copytree(comparison / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    names = dict.fromkeys(name for row in figures(compared[0])["variants"] for name in row["trials"])
    return [tmp_path / "outputs" / "trials" / name for name in names], figures(compared[0])


def test_damaged_trials_are_trained_again_and_that_is_said(copied, tmp_path):
    folders, table = copied
    left = [read_trial(folder)[1] for folder in folders]
    kinds = ["probabilities cut", "probabilities missing", "record cut", "probabilities changed"]
    for folder, kind in zip(folders, kinds, strict=True):
        DAMAGE[kind](folder)
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    for folder in folders:
        assert [str(folder.relative_to(tmp_path)) in line for line in said.splitlines() if "made again" in line].count(
            True
        ) == 1
    assert "4 trainings to do" in said
    assert figures(tmp_path / "table") == table
    for folder, before in zip(folders, left, strict=True):
        assert read_trial(folder)[1].values["test"].tobytes() == before.values["test"].tobytes()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_trial_is_taken_from_the_archive_again(kind, copied, compared, tmp_path, monkeypatch):
    folders, table = copied
    shutil.copytree(compared[0], tmp_path / "table")
    DAMAGE[kind](folders[1])
    monkeypatch.setattr(Trials, "_run_script", None)
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert [folders[1].name in line for line in said.splitlines() if "made again" in line] == [True]
    assert "4 of 4 trainings are done already" in said
    assert figures(tmp_path / "table") == table
    read_trial(folders[1])


def test_a_trial_under_another_ones_name_is_not_believed(copied, monkeypatch):
    """With or without the check sum, which records of before do not have."""
    folders, _ = copied
    monkeypatch.setattr(Trials, "_run_script", None)
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    assert "4 trainings, 3 of them done" in call(run_compare.main, "mine.yaml", "--plan")
    record = json.loads((folders[0] / RECORD).read_text())
    del record["sha256"]
    (folders[0] / RECORD).write_text(json.dumps(record))
    assert "4 trainings, 3 of them done" in call(run_compare.main, "mine.yaml", "--plan")


def test_records_of_before_without_a_check_sum_are_still_read(copied, monkeypatch, tmp_path):
    folders, table = copied
    for folder in folders:
        record = json.loads((folder / RECORD).read_text())
        assert len(record.pop("sha256")) == 64
        (folder / RECORD).write_text(json.dumps(record))
    monkeypatch.setattr(Trials, "_run_script", None)
    for attempt in range(2):  # the second time from the archive alone
        said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
        assert "4 of 4 trainings are done already" in said, attempt
        assert "made again" not in said
        assert figures(tmp_path / "table") == table
        shutil.rmtree(tmp_path / "outputs")


def archived(tmp_path, change):
    """The archive's table and its metadata changed by `change`."""
    path = tmp_path / "table" / "predictions.parquet"
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"emodeberta"])
    table, about = change(table, about)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"emodeberta": json.dumps(about)}), path)


def with_other_value(table, about):
    column = table["probability_dark"].to_numpy().copy()
    column[5] = 1 - column[5]
    return table.set_column(6, "probability_dark", pyarrow.array(column, pyarrow.float32())), about


def with_bytes_turned(tmp_path):
    path = tmp_path / "table" / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(byte ^ 0x55 for byte in content[4:400])
    path.write_bytes(content)


ARCHIVES = {
    "cut": lambda tmp_path: cut(tmp_path / "table" / "predictions.parquet"),
    "not parquet": lambda tmp_path: (tmp_path / "table" / "predictions.parquet").write_bytes(b"PAR1 cut off"),
    "bytes turned": with_bytes_turned,
    "a value changed": lambda tmp_path: archived(tmp_path, with_other_value),
    "a row lost": lambda tmp_path: archived(tmp_path, lambda table, about: (table.slice(1), about)),
    "no records": lambda tmp_path: archived(tmp_path, lambda table, about: (table, {"labels": about["labels"]})),
    "records no objects": lambda tmp_path: archived(
        tmp_path, lambda table, about: (table, about | {"trials": dict.fromkeys(about["trials"], 1)})
    ),
    "a column lost": lambda tmp_path: archived(tmp_path, lambda table, about: (table.drop_columns("row"), about)),
    "a null": lambda tmp_path: archived(
        tmp_path,
        lambda table, about: (
            table.set_column(6, "probability_dark", pyarrow.nulls(len(table), pyarrow.float32())),
            about,
        ),
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_damaged_archive_is_said_and_written_again(kind, copied, compared, tmp_path, monkeypatch):
    """While the trainings themselves are there it costs nothing; without them, its trainings are to be done again."""
    _, table = copied
    shutil.copytree(compared[0], tmp_path / "table")
    ARCHIVES[kind](tmp_path)
    monkeypatch.setattr(Trials, "_run_script", None)
    plan = call(run_compare.main, "mine.yaml", "--plan", "--output_dir", "table", "--trials_dir", "none")
    assert "table/predictions.parquet: " in plan
    done = int(plan.rpartition("4 trainings, ")[2].split()[0])
    assert done == {"a value changed": 3, "a row lost": 3}.get(kind, 0)

    call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert figures(tmp_path / "table") == table
    shutil.rmtree(tmp_path / "outputs")
    assert "4 trainings, 4 of them done" in call(run_compare.main, "mine.yaml", "--plan", "--output_dir", "table")


def test_a_damaged_run_of_a_killed_driver_is_trained_again(copied, monkeypatch, tmp_path):
    """Killed between the training and its record, and what the training left cut since."""
    folders, table = copied
    (folders[0] / RECORD).unlink()
    run = folders[0] / "run"
    run.mkdir()
    (run / "all_results.json").write_text('{"train_runtime": 1.0, "test_rows": 45')
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert f"{run.relative_to(tmp_path)}: is damaged" in said
    assert figures(tmp_path / "table") == table
    assert not run.exists()


def test_a_table_that_is_damaged_is_made_again(copied, compared, tmp_path):
    """Also where only some of its rows are asked for, which is looked up in the table of before."""
    shutil.copytree(compared[0], tmp_path / "table")
    cut(tmp_path / "table" / "comparison.json")
    call(run_compare.main, "mine.yaml", "--variants", "mean", "--output_dir", "table")
    assert [row["name"] for row in figures(tmp_path / "table")["variants"]] == ["mean"]


def test_rows_that_no_trial_has_are_named(copied, tmp_path):
    """As in a file of before, which has no check sum."""
    folders, _ = copied
    record = json.loads((folders[0] / RECORD).read_text())
    del record["sha256"], record["rows"]["test"]
    (folders[0] / RECORD).write_text(json.dumps(record))
    saved = read_probabilities(folders[0] / PROBABILITIES)
    lost = {split: row_ids[1:] for split, row_ids in saved.ids.items()}
    values = {split: np.ascontiguousarray(each[1:]) for split, each in saved.values.items()}
    write_probabilities(folders[0] / PROBABILITIES, lost, values, saved.label_names)
    with pytest.raises(InputError, match="no probabilities of row 'n"):
        call(run_compare.main, "mine.yaml", "--output_dir", "table")
