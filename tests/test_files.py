"""Output folders: one process at a time, whatever is killed; and what --overwrite_output_dir leaves when it is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from support import ESSAY_FLAGS, ROOT, call

import run_export
from trainer_ext.errors import InputError
from trainer_ext.files import check_free, claim, release
from trainer_ext.runs.run import check_usable, staged, start

IN_USE = "another process is writing to this folder; wait until it ends, or give another folder"


def held_by_another(folder: Path, then: str) -> subprocess.Popen:
    """A process that has claimed the folder, and then does something else until it is killed."""
    code = (
        "import os, sys, time; from pathlib import Path; from trainer_ext.files import claim\n"
        f"claim(Path(sys.argv[1])); {then}; print('held', flush=True); time.sleep(600)"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "held\n"
    return started


@pytest.mark.parametrize("then", ["pass", "os.fork() or time.sleep(3)"])
def test_a_folder_is_its_process_until_that_is_killed(then, tmp_path):
    """A worker that was forked off the process, and outlives it, does not keep the folder."""
    folder = tmp_path / "deep" / "out"
    started = held_by_another(folder, then)
    for look in (claim, check_free):
        with pytest.raises(InputError, match=IN_USE):
            look(folder)
    started.kill()
    started.wait()
    claim(folder)
    claim(tmp_path / "deep" / ".." / "deep" / "out")  # again, by another name
    release(folder)
    with held_by_another(folder, "pass") as again:
        again.kill()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to \(Not a directory\); give another folder"):
        claim(tmp_path / "file" / "out")


def test_of_two_runs_on_one_folder_the_second_is_refused(v3_folder, tmp_path):
    flags = ["--model_name_or_path", v3_folder, *ESSAY_FLAGS, "--max_steps", 6, "--output_dir", "out"]
    first = forked.Forked(ROOT / "run_classify.py", *flags, cwd=tmp_path)
    while not (tmp_path / "out" / ".lock").exists():
        assert first.poll() is None, first.stderr[-3000:]
        time.sleep(0.01)
    for more in ([], ["--overwrite_output_dir"], ["--seed", 5]):
        second = forked.run(ROOT / "run_classify.py", *flags, *more, cwd=tmp_path, check=False)
        if first.poll() is None:
            assert second.returncode == 2
            assert [line for line in second.stderr.splitlines() if "error" in line] == [f"error: out: {IN_USE}"]
            break
    assert first.wait() == 0
    assert (tmp_path / "out" / "all_results.json").is_file()


def test_of_two_fusions_on_one_folder_one_is_whole(fused, tmp_path):
    members = [fused[0] / name for name in ("first", "cls", "other")]
    started = {
        rule: forked.Forked(
            *(ROOT / "run_fuse.py", "--members", *members, "--fusion", rule, "--output_dir", "out"), cwd=tmp_path
        )
        for rule in ("hard", "soft")
    }
    codes = {rule: process.wait() for rule, process in started.items()}
    assert sorted(codes.values()) == [0, 2]
    winner, loser = sorted(codes, key=codes.get)
    assert started[loser].stderr.strip().splitlines()[-1].startswith("error: out: ")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["fusion"] == winner
    assert f"--fusion {winner}" in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob(".incomplete*"))


@pytest.mark.parametrize("part", [[], ["--part", "2/2"]])
def test_of_two_scorings_of_the_same_shards_the_second_is_refused(part, finished, tmp_path):
    """A part of another cut that holds no shard of the first is let in; one that holds some is not."""
    (tmp_path / "texts.txt").write_text("".join(f"The gate {number} is shut.\n" for number in range(30)))
    flags = ["--model", finished[0], "--input", "texts.txt", "--output", "scores", "--rows_per_shard", 10]
    script = ROOT / "run_score.py"
    with held_by_another(tmp_path / "scores" / ".locks" / "share-3-of-4", "pass") as first:
        done = forked.run(script, *flags, *part, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"error: scores: {IN_USE}"
        forked.run(script, *flags, "--part", "1/2", cwd=tmp_path)
        first.kill()
    forked.run(script, *flags, *part, cwd=tmp_path)
    assert json.loads((tmp_path / "scores" / "manifest.json").read_text())["complete"]


def test_an_export_waits_for_nobody(finished, tmp_path):
    with held_by_another(tmp_path / "onnx", "pass") as other:
        with pytest.raises(InputError, match=IN_USE):
            call(run_export.main, finished[0], "--output_dir", tmp_path / "onnx")
        other.kill()


OLD = ("README.md", "all_results.json", "config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx")


@pytest.mark.parametrize("finished_run", [True, False])
def test_overwriting_is_killed_at_every_step_and_the_same_command_goes_on(finished_run, tmp_path):
    for steps in range(1, 100):
        folder = tmp_path / f"killed-{steps}"
        for name in (*OLD, "checkpoints/run.json", "checkpoints/checkpoint-4/model.safetensors", "notes.md"):
            if finished_run or name != "all_results.json":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("{}")
        if not (child := os.fork()):
            left = steps

            def count(event, arguments):
                nonlocal left
                changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")
                left -= changes or (event == "open" and arguments[1] not in ("r", None))
                if left == 0:
                    left = -1  # the next line is an event, too
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            try:
                start(folder, {"seed": 2}, True)
            finally:
                os._exit(0)
        was_killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if not (folder / "checkpoints" / "run.json").exists():  # else the old run, or the new one, goes on
            with pytest.raises(InputError, match=r"give --overwrite_output_dir again, or another|holds a finished run"):
                check_usable(folder, {"seed": 2}, False)
        check_usable(folder, {"seed": 2}, True)
        start(folder, {"seed": 2}, True)
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "checkpoints", "notes.md"]
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["run.json"]
        with staged(folder) as staging:
            (staging / "all_results.json").write_text("{}")
        if not was_killed:
            assert steps > 10
            return
    raise AssertionError("it was never done")


def test_what_a_run_leaves_can_be_read_by_others(finished, fused, comparison, tmp_path):
    (tmp_path / "any").touch()
    usual = (tmp_path / "any").stat().st_mode & 0o777  # as the umask has it
    for folder in (finished[0], fused[0] / "all", comparison / "outputs", comparison / "results"):
        assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {usual}
