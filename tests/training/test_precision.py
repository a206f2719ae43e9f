"""The choice between float32 and bf16: measured, remembered, printed, recorded, and kept by what is resumed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from support import ESSAY_FLAGS, ROOT

from trainer_ext import precision, recipes
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.precision import Choice, Timing, choose, measure, timed
from trainer_ext.recipes import RecipeParser

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    timed.cache_clear()
    yield tmp_path / "cache" / "emodeberta" / "precision.json"
    timed.cache_clear()


def test_the_space_has_a_copy_of_the_same_file():
    assert (ROOT / "space" / "precision.py").read_bytes() == (ROOT / "trainer_ext" / "precision.py").read_bytes()


def test_the_faster_one_is_chosen_and_both_times_are_said(cache):
    choice = choose(CPU)
    assert choice.name == ("bf16" if choice.timing.bf16_ms < choice.timing.float32_ms else "float32")
    assert f"{choice.timing.bf16_ms:.2f} ms in bf16 and {choice.timing.float32_ms:.2f} ms in float32" in str(choice)
    slower, faster = Timing(2.0, 3.0), Timing(3.0, 2.0)
    assert (slower.bf16_is_faster, faster.bf16_is_faster, Timing(2.0, None).bf16_is_faster) == (False, True, False)
    assert "no bf16" in str(Timing(2.0, None))


def test_a_measurement_takes_about_a_tenth_of_a_second():
    measure(CPU)  # loads kernels
    start = time.perf_counter()
    found = measure(CPU)
    assert time.perf_counter() - start < 2  # three turns of a slow machine with others on it
    assert found.float32_ms > 0
    assert found.bf16_ms > 0


def test_a_machine_is_measured_once(cache):
    first = timed(CPU)
    assert json.loads(cache.read_text()) == {
        precision.machine(CPU): {"float32_ms": first.float32_ms, "bf16_ms": first.bf16_ms}
    }
    cache.write_text(json.dumps({precision.machine(CPU): {"float32_ms": 1.0, "bf16_ms": 7.0}, "other": None}))
    timed.cache_clear()
    assert timed(CPU) == Timing(1.0, 7.0)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"%s": {}}', '{"%s": {"float32_ms": "x", "bf16_ms": 1}}', '{"%s": 3}']
)
def test_a_spoilt_note_is_measured_anew(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("%s", precision.machine(CPU)))
    assert timed(CPU).float32_ms > 0
    assert precision.machine(CPU) in json.loads(cache.read_text())


def test_without_a_cache_folder_it_is_measured_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    timed.cache_clear()
    assert timed(CPU).float32_ms > 0
    timed.cache_clear()


def test_processes_that_start_together_agree(cache):
    code = "import torch; from trainer_ext.precision import timed; print(timed(torch.device('cpu')))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1
    assert said.pop().startswith("a matrix product takes")


# ---- In the scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_training_takes_the_faster_one_unless_told_otherwise(faster, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "choose", lambda device: Choice(faster, "as the test says"))
    parser = RecipeParser((ChildTuningArguments,))

    def parse(*flags: str) -> tuple[bool, str]:
        (args,) = parser.parse(["--output_dir", str(tmp_path / "run"), *flags])
        return args.bf16, parser.precision.name

    assert parse() == (faster == "bf16", faster)
    for refusal in (["--bf16", "false"], ["--bf16=false"], ["--fp16", "false"]):
        assert parse(*refusal) == (False, "float32")
    assert parse("--bf16", "--use_cpu") == (True, "bf16")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path / 'run'}\nbf16: false\n")
    assert parser.parse([str(recipe)])[0].bf16 is False


@pytest.mark.parametrize("began", ["bf16", "float32"])
def test_a_run_resumes_in_its_own_precision_on_another_machine(began, cache, tmp_path, monkeypatch):
    other = "float32" if began == "bf16" else "bf16"
    monkeypatch.setattr(recipes, "choose", lambda device: Choice(other, "as the test says"))
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "checkpoint-3").mkdir(parents=True)
    (checkpoints / "run.json").write_text(json.dumps({"bf16": began == "bf16", "fp16": False}))
    parser = RecipeParser((ChildTuningArguments,))
    for flags, expected in (
        (["--output_dir", tmp_path / "run"], began),
        (["--output_dir", tmp_path / "new", "--resume_from_checkpoint", checkpoints / "checkpoint-3"], began),
        (["--output_dir", tmp_path / "new"], other),
    ):
        assert parser.parse(list(map(str, flags)))[0].bf16 is (expected == "bf16")
        assert parser.precision.name == expected


def test_a_killed_run_goes_on_as_it_began_and_records_why(v3_folder, tmp_path):
    """Started in one precision, finished where the other is faster; the machine's note decides which that is."""
    cache = tmp_path / "cache" / "emodeberta" / "precision.json"
    cache.parent.mkdir(parents=True)
    flags = [
        *ESSAY_FLAGS,
        "--keep_checkpoints",
        "--model_name_or_path",
        v3_folder,
        "--output_dir",
        "out",
        "--max_steps",
        6,
        "--save_steps",
        3,
    ]
    flags += ["--max_eval_samples", 20, "--max_predict_samples", 20]
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "ACCELERATE_MIXED_PRECISION": "no"}

    def run(times: dict, *more: object) -> subprocess.CompletedProcess:
        cache.write_text(json.dumps({precision.machine(CPU): times}))
        return forked.run(ROOT / "run_classify.py", *flags, *more, cwd=tmp_path, env=env, check=False)

    bf16, float32 = {"float32_ms": 9.0, "bf16_ms": 3.0}, {"float32_ms": 2.0, "bf16_ms": 8.0}
    first = run(bf16)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "precision: bf16 (a matrix product takes 3.00 ms in bf16 and 9.00 ms in float32)" in first.stderr
    out = tmp_path / "out"
    record = json.loads((out / "run.json").read_text())
    assert record["precision"] == "bf16"
    assert record["precision_choice"]["timing"] == bf16
    # As after a kill between the two checkpoints.
    (out / "all_results.json").unlink()
    for path in (out / "checkpoints" / "checkpoint-6").iterdir():
        path.unlink()
    again = run(float32)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "precision: bf16 (as the run that is resumed)" in again.stderr
    assert "resuming from checkpoint-3" in again.stderr
    assert json.loads((out / "run.json").read_text())["precision"] == "bf16"
    third = run(float32, "--overwrite_output_dir")
    assert "precision: float32 (a matrix product takes 8.00 ms in bf16 and 2.00 ms in float32)" in third.stderr
