"""Stages in order, killed and started again: real processes on a small checkpoint."""

import json
import sys
import time
from pathlib import Path

import forked
import pytest
import yaml
from support import ESSAY_FLAGS, ROOT, call

import run_classify
import run_reproduce
from trainer_ext.data.wassa2022 import WASSA_LABELS
from trainer_ext.errors import run_command
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.runs.checkpoints import checkpoints


def stage(command: str, output_dir: str, minutes: float = 1) -> dict:
    return {"command": command, "output_dir": output_dir, "minutes": minutes}


def test_killed_it_goes_on_and_leaves_the_submission(v3_folder, tmp_path):
    flags = [*map(str, ESSAY_FLAGS), "--model_name_or_path", str(v3_folder), "--bf16", "false"]
    train = " ".join(["run_classify.py", *flags, "--max_predict_samples", "30"])
    content = {
        "minutes_on": "a test",
        "stages": {
            "first": stage(f"{train} --max_steps 2", "outputs/first"),
            "second": stage(
                f"{train} --max_steps 90 --save_steps 3 --model_name_or_path outputs/first", "outputs/second"
            ),
        },
        "submission_dir": "results",
        "submission": {"predictions_EMO.tsv": "outputs/second", "predictions_EMO_single.tsv": "outputs/first"},
    }
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    arguments = (ROOT / "run_reproduce.py", "whole.yaml")
    process = forked.Forked(*arguments, cwd=tmp_path)
    while not checkpoints(tmp_path / "outputs" / "second"):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()  # the driver alone: its stage lives on, and the next start waits for it
    before = (tmp_path / "outputs" / "first" / "model.safetensors").stat().st_mtime_ns
    done = forked.run(*arguments, cwd=tmp_path)
    assert "1 of 2 stages to run, about 0.0 h on a test" in done.stdout
    assert "a stage: being run by a process of an earlier start" in done.stdout + done.stderr
    assert (tmp_path / "outputs" / "first" / "model.safetensors").stat().st_mtime_ns == before

    for name, folder in content["submission"].items():
        lines = (tmp_path / "results" / name).read_text()
        assert lines == (tmp_path / folder / "predictions_EMO.tsv").read_text()
        assert len(lines.splitlines()) == 30
        assert set(lines.splitlines()) <= set(WASSA_LABELS)
    described = json.loads((tmp_path / "results" / "submission.json").read_text())
    assert described["files"]["predictions_EMO.tsv"]["model"] == "outputs/second"
    assert len(described["commit"]) == 40
    figures = json.loads((tmp_path / "outputs" / "second" / "all_results.json").read_text())
    of_second = described["files"]["predictions_EMO.tsv"]["validation"]
    assert of_second["rows"] == figures["validation_rows"]
    for name in (*SEVEN_FIGURES, "macro_f1_low", "macro_f1_high"):
        assert of_second[name] == pytest.approx(figures[f"eval_{name}"])

    assert "0 of 2 stages to run" in forked.run(*arguments, cwd=tmp_path).stdout


def test_a_folder_that_another_command_made_is_no_stage(v3_folder, tmp_path, monkeypatch, capsys):
    """The stage's flags and one more, another value, and the same with another recipe."""
    monkeypatch.chdir(tmp_path)
    recipe = {"classifier_hidden_size": 16, "max_train_samples": 20}
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    flags = [*map(str, ESSAY_FLAGS), "--model_name_or_path", str(v3_folder), "--bf16", "false"]
    command = ["run_classify.py", "small.yaml", *flags, "--max_predict_samples", "4", "--num_train_epochs", "1"]
    content = {"minutes_on": "a test", "stages": {"first": stage(" ".join(command), "outputs/first")}}
    Path("whole.yaml").write_text(yaml.safe_dump(content))
    train = [*command[1:], "--output_dir", "outputs/first", "--overwrite_output_dir"]
    for change in (["--max_steps", "1"], ["--num_train_epochs", "0.5"]):
        call_as("run_classify.py", run_classify.main, *train, *change)
        planned = call(run_reproduce.main, "whole.yaml", "--plan")
        assert "another run  first" in planned
        assert "1 of 1 stages to run" in planned
        monkeypatch.setattr(sys, "argv", ["run_reproduce.py", "whole.yaml"])
        with pytest.raises(SystemExit):
            run_command(run_reproduce.main)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: outputs/first: was made by ")
        assert "want stage first: run_classify.py small.yaml" in line
    call_as("run_classify.py", run_classify.main, *train, "--log_level", "info")
    assert "done  first" in call(run_reproduce.main, "whole.yaml", "--plan")
    Path("small.yaml").write_text("# a comment\n" + yaml.safe_dump(recipe))
    assert "done  first" in call(run_reproduce.main, "whole.yaml", "--plan")
    Path("small.yaml").write_text(yaml.safe_dump(recipe | {"max_train_samples": 21}))
    assert "another run  first" in call(run_reproduce.main, "whole.yaml", "--plan")


def call_as(program: str, main, *arguments: str) -> None:
    """A script's main() in this process, under the name that its command line gives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        main()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "whole.yaml: no stages"),
        ({"stage": {}}, "unknown key 'stage'; want minutes_on, stages"),
        ({"stages": {"a": {"command": "run_classify.py"}}}, "whole.yaml, stages, a: no output_dir"),
        ({"stages": {"a": stage("rm -r results", "out")}}, "'rm -r results'; want a command that begins with a run_"),
        ({"stages": {"a": stage("run_x.py", "out")}}, "want a command that begins with a run_"),
        (
            {"stages": {"a": stage("run_classify.py", "out")}, "submission": {"b.tsv": "elsewhere"}},
            "submission, b.tsv: no stage leaves elsewhere",
        ),
        ({"stages": {"a": stage("run_classify.py --model_name_or_path nowhere", "out")}}, "stage a: run_classify.py"),
    ],
)
def test_errors_are_one_line(content, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_reproduce.py", "whole.yaml"])
    with pytest.raises(SystemExit) as stopped:
        run_command(run_reproduce.main)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line


def test_a_submission_holds_labels_and_as_many_lines_in_each_file(tmp_path):
    for name, lines in (("a", ["joy", "fear"]), ("b", ["joy"]), ("c", ["joy", "bliss"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions_EMO.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="want as many lines in each"):
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "a"), "2": str(tmp_path / "b")})
    with pytest.raises(ValueError, match="line 2: 'bliss'; want one of"):
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "c")})
    with pytest.raises(ValueError, match="not there"):
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "d")})
    assert not (tmp_path / "out").exists()


def test_the_papers_recipe_has_a_plan():
    said = call(run_reproduce.main, ROOT / "recipes" / "wassa2022_full.yaml", "--plan")
    assert "stages to run, about" in said
