"""run_score.py --engine ray: on two nodes, of which one dies, what run_score.py writes without it."""

import json
import subprocess
import sys
import threading
import time

import forked
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from support import ROOT, call

import run_score
from trainer_ext.errors import InputError
from trainer_ext.scoring.cluster import _opened, _read, plan
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.text_stream import open_source

SCRIPT = ROOT / "run_score.py"
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
    (tmp_path / "x.csv").write_text("body\nhello\n")
    with pytest.raises(InputError, match=r"x\.csv: no column 'text'"):
        call(run_score.main, *flags, tmp_path / "x.csv")
    assert not (tmp_path / "out").exists()


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
    code = (
        "import os, signal, time\n"
        "from trainer_ext.scoring.cluster import _ended_by_signals\n"
        f"with _ended_by_signals():\n    os.kill(os.getpid(), signal.{name})\n"
        "    while True:\n        try:\n            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n            pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.strip()) == (status, "stopped; start it again in the same way")
