"""Runs that are started again: trainings from their checkpoints, stages of a recipe, folders in use or overwritten."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, call

import run_classify
import run_classify as script
import run_export
import run_mlm
import run_reproduce
from trainer_ext.baselines import mtl
from trainer_ext.data.emotion_corpora import WASSA_LABELS
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.files import check_free, claim, release
from trainer_ext.runs.checkpoints import checkpoints, checkpoints_of_weights, is_complete
from trainer_ext.runs.run import check_usable, staged, start
from trainer_ext.training.trainer import ResumableTrainer

FLAGS = [*ESSAY_FLAGS, "--bf16", "false", "--keep_checkpoints"]
FLAGS += ["--max_train_samples", 60, "--max_eval_samples", 10, "--max_predict_samples", 5]


@pytest.fixture
def classify(v3_folder, tmp_path):
    """Train into a folder of the test's, in this process; return the folder."""

    def run(name: str, *flags: object) -> Path:
        call(script.main, "--model_name_or_path", v3_folder, *FLAGS, *flags, "--output_dir", tmp_path / name)
        return tmp_path / name

    return run


def killed(finished: Path, keep: int | None = None) -> None:
    """Leave of a finished run what a kill leaves after its first `keep` checkpoints, or after all."""
    for path in finished.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in checkpoints(finished)[keep:] if keep is not None else []:
        shutil.rmtree(path)


def same_weights(one: Path, other: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def history(folder: Path) -> list[dict]:
    """A run's log, without what a clock says."""
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    return [
        {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}
        for entry in state["log_history"]
    ]


# ---- The end, and the log -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [("--max_steps", 10), ("--num_train_epochs", 1.3), ("--num_train_epochs", 1)])
def test_a_run_killed_after_its_last_step_is_evaluated_and_not_trained(length, classify, tmp_path):
    """Twice. In its constant rate every step would show."""
    flags = [*length, "--save_steps", 4, "--lr_scheduler_type", "constant", "--eval_strategy", "epoch"]
    straight = classify("straight", *flags)
    last = checkpoints(straight)[-1].name
    shutil.copytree(straight, tmp_path / "again")
    for _ in range(2):
        killed(tmp_path / "again")
        classify("again", *flags)
        assert checkpoints(tmp_path / "again")[-1].name == last
        assert same_weights(straight, tmp_path / "again")
    figures = [json.loads((folder / "all_results.json").read_text()) for folder in (straight, tmp_path / "again")]
    assert figures[0].keys() == figures[1].keys()
    for name, value in figures[0].items():
        assert name.endswith(("_runtime", "_per_second")) or figures[1][name] == value, name
    curves = [json.loads((folder / "learning_curve.json").read_text()) for folder in (straight, tmp_path / "again")]
    assert [entry.get("eval_loss") for entry in curves[0]] == [entry.get("eval_loss") for entry in curves[1]]


@pytest.mark.parametrize("save_steps", [3, 4, 5])
@pytest.mark.parametrize(
    ("batches", "log"),
    [
        (("--tokens_per_batch", 500), ("--logging_steps", 4)),
        (("--gradient_accumulation_steps", 2), ("--logging_strategy", "epoch")),
    ],
)
def test_a_resumed_run_has_the_log_of_the_uninterrupted_one(batches, save_steps, log, classify, tmp_path):
    """Checkpoints between two logs, and at an epoch's last step, which is saved before the epoch is evaluated."""
    flags = ["--num_train_epochs", 2, "--save_steps", save_steps, "--eval_strategy", "epoch", *log, *batches]
    straight = classify("straight", *flags)
    shutil.copytree(straight, tmp_path / "resumed")
    killed(tmp_path / "resumed", keep=1)
    resumed = classify("resumed", *flags)
    assert same_weights(straight, resumed)
    assert history(straight) == history(resumed)
    figures = [json.loads((folder / "all_results.json").read_text()) for folder in (straight, resumed)]
    assert figures[0]["train_loss"] == pytest.approx(figures[1]["train_loss"], abs=1e-6)


# ---- Which checkpoints, with which settings -----------------------------------------------------------------------
def test_checkpoints_of_weights_stay_and_the_run_starts_over(v3_folder, tmp_path):
    flags = ["--model_name_or_path", v3_folder, *FLAGS, "--max_steps", 6, "--save_steps", 2, "--save_only_model"]
    flags += ["--child_tuning", "D"]
    run = lambda name: forked.run(ROOT / "run_classify.py", *flags, "--output_dir", tmp_path / name, cwd=tmp_path)  # noqa: E731
    run("straight")
    process = forked.Forked(ROOT / "run_classify.py", *flags, "--output_dir", tmp_path / "killed", cwd=tmp_path)
    while not checkpoints_of_weights(tmp_path / "killed"):
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    process.kill()
    left = [path.name for path in checkpoints_of_weights(tmp_path / "killed")]
    said = run("killed").stderr
    assert f"{', '.join(left)}: weights only (--save_only_model), so training cannot resume from them" in said
    assert "cut short" not in said
    assert same_weights(tmp_path / "straight", tmp_path / "killed")
    for path in checkpoints_of_weights(tmp_path / "killed"):
        assert (path / "child_network.safetensors").exists()
        assert not is_complete(path)


def test_a_start_that_failed_binds_nothing(classify, tmp_path):
    flags = ["--max_steps", 4, "--save_steps", 2]
    with pytest.raises(InputError, match="diverged"):
        classify("run", *flags, "--learning_rate", "1e30")
    with pytest.raises(InputError, match=r"(?i)lomo"):
        classify("run", *flags, "--optim", "lomo", "--child_tuning", "F")
    classify("run", *flags)
    killed(tmp_path / "run", keep=1)
    with pytest.raises(InputError, match="unfinished run with another child_tuning, learning_rate; give the same"):
        classify("run", *flags, "--learning_rate", "1e-4", "--child_tuning", "F")


def test_settings_that_decide_nothing_learnt_do_not_bind(classify, tmp_path):
    flags = ["--max_steps", 8, "--save_steps", 4]
    straight = classify("straight", *flags)
    shutil.copytree(straight, tmp_path / "again")
    killed(tmp_path / "again", keep=1)
    moved = tmp_path / "moved.tsv"
    shutil.copyfile(ESSAYS, moved)
    others = ["--train_file", moved, "--per_device_eval_batch_size", 3, "--logging_steps", 1, "--save_total_limit", 1]
    others += ["--dataloader_num_workers", 1, "--max_eval_samples", 8]
    again = classify("again", *flags, *others)
    assert same_weights(straight, again)
    steps = [entry["step"] for entry in history(again) if "loss" in entry]
    assert steps == [4, 5, 6, 7, 8]  # --logging_steps holds from here on
    killed(again, keep=1)
    moved.write_text(ESSAYS.read_text().replace(" ", " and ", 1))
    with pytest.raises(InputError, match="another training data"):
        classify("again", *flags, *others)


def test_a_named_checkpoint_binds_as_that_of_the_folder_does(classify, tmp_path):
    flags = ["--max_steps", 4, "--save_steps", 2]
    straight = classify("straight", *flags)
    resume = ["--resume_from_checkpoint", straight / "checkpoints" / "checkpoint-2"]
    assert same_weights(straight, classify("again", *flags, *resume, "--per_device_eval_batch_size", 3))
    labels = json.loads((straight / "config.json").read_text())["id2label"].values()
    for name, change in (
        ("label_set", ["--label_set", *reversed(labels)]),
        ("classifier_hidden_size", ["--classifier_hidden_size", 16]),
    ):
        said = f"checkpoint-2: is of a run with another {name}.*; give the same to go on, or leave --resume_from_check"
        with pytest.raises(InputError, match=said):
            classify("other", *flags, *resume, *change)
    assert not (tmp_path / "other").exists()
    shutil.move(straight / "checkpoints" / "run.json", tmp_path)  # as if the checkpoint were of another program
    classify("other", *flags, *resume, "--learning_rate", "1e-4")


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize("name", ["rng_state_1.pth", "rng_state_0.pth", "optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_without_every_processs_random_state_is_passed_over(damage, name, two_processes, tmp_path):
    straight, flags = two_processes
    again = tmp_path / "again"
    shutil.copytree(straight, again)
    killed(again)
    assert [path.name for path in checkpoints(again)] == ["checkpoint-2", "checkpoint-4"]
    path = again / "checkpoints" / "checkpoint-4" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if damage == "missing":
        path.unlink()
    assert [path.name for path in checkpoints(again)] == ["checkpoint-2"]
    if name == "rng_state_1.pth":
        done = forked.run(ROOT / "run_classify.py", *flags, "--output_dir", again, cwd=tmp_path, ranks=2)
        assert "checkpoint-4 was cut short and is removed" in done.stderr
        assert same_weights(straight, again)


@pytest.fixture(scope="module")
def two_processes(v3_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    flags = ["--model_name_or_path", v3_folder, *FLAGS, "--max_steps", 4, "--save_steps", 2]
    forked.run(ROOT / "run_classify.py", *flags, "--output_dir", folder / "run", cwd=folder, ranks=2)
    return folder / "run", flags


def test_the_state_is_written_when_every_process_has_written_its_random_state(tmp_path):
    """The second process is slow to write; when the first has written its state, that file is whole."""
    said = forked.run(ROOT / "tests" / "forked.py", "save_slowly", tmp_path, cwd=tmp_path, ranks=2).stdout
    assert "complete when the state was there: True" in said


# ---- Divergence ---------------------------------------------------------------------------------------------------
def left_of(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {".lock"}) if folder.exists() else []


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("precision", ["false", "true"])
def test_a_training_that_diverges_ends_in_one_line_and_leaves_no_model(steps, precision, classify, tmp_path):
    flags = ["--learning_rate", "1e30", "--max_steps", steps, "--save_steps", 1, "--bf16", precision]
    with pytest.raises(InputError, match=r"the training diverged: .* not finite .*want a lower rate") as stopped:
        classify("run", *flags)
    assert "\n" not in str(stopped.value)
    assert left_of(tmp_path / "run") == ["checkpoints"]
    for path in checkpoints(tmp_path / "run"):
        assert all(weight.isfinite().all() for weight in load_file(path / "model.safetensors").values())
    with pytest.raises(InputError, match="the training diverged"):
        classify("run", *flags)
    classify("run", "--max_steps", 2, "--overwrite_output_dir")


def test_weights_that_are_not_finite_from_the_start_are_no_model(v3_folder, tmp_path, classify):
    shutil.copytree(v3_folder, tmp_path / "broken")
    weights = load_file(v3_folder / "model.safetensors")
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        classify("run", "--max_steps", 2, "--model_name_or_path", tmp_path / "broken")


def test_continued_pre_training_and_the_baselines_stop_too(v3_folder, bert_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(f"They closed the {i} gate and nobody came." for i in range(60)))
    flags = ["--learning_rate", "1e30", "--max_steps", 3, "--use_cpu", "--bf16", "false"]
    with pytest.raises(InputError, match="the training diverged"):
        call(
            *(run_mlm.main, "--model_name_or_path", v3_folder, "--train_file", tmp_path / "texts.txt", *flags),
            *("--output_dir", tmp_path / "mlm", "--max_seq_length", 32),
        )
    assert left_of(tmp_path / "mlm") == ["checkpoints"]
    rows = ["text\tlabel\tlength"] + [f"gate {i}\t{i % 2}\t{i}" for i in range(40)]
    (tmp_path / "rows.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="the training diverged"):
        call(
            *(mtl.main, "--model_name_or_path", bert_folder, "--train_file", tmp_path / "rows.tsv", *flags),
            *("--output_dir", tmp_path / "mtl", "--number_targets", "length"),
        )
    assert left_of(tmp_path / "mtl") == ["checkpoints"]


def test_the_trainers_of_every_script_resume_alike():
    from run_classify import EmotionTrainer
    from run_mlm import PretrainingTrainer
    from trainer_ext.baselines.t5 import LabelNameTrainer

    assert issubclass(EmotionTrainer, ResumableTrainer)
    assert issubclass(PretrainingTrainer, ResumableTrainer)
    assert issubclass(LabelNameTrainer, ResumableTrainer)


# ---- run_reproduce.py ------------------------------------------------------------------------------------------------
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
    assert described["stages"].keys() == content["stages"].keys()
    for line in described["stages"].values():
        assert line["command"].startswith("run_classify.py --train_file ")
        assert str(tmp_path) not in line["command"]
        assert 0 < line["minutes"] < 10
    figures = json.loads((tmp_path / "outputs" / "second" / "all_results.json").read_text())
    of_second = described["files"]["predictions_EMO.tsv"]["validation"]
    assert of_second["rows"] == figures["validation_rows"]
    for name in (*SEVEN_FIGURES, "macro_f1_low", "macro_f1_high"):
        assert of_second[name] == pytest.approx(figures[f"eval_{name}"])

    assert "0 of 2 stages to run" in forked.run(*arguments, cwd=tmp_path).stdout


def test_minutes_of_a_stage_are_its_folders(tmp_path):
    """Two recipes may have a stage of one name; and the one that ran last says nothing about the other."""
    first, second = (run_reproduce.Stage("student", ["run_classify.py"], tmp_path / name, 1) for name in "ab")
    log = tmp_path / "stages.json"
    run_reproduce.note_start(log, first)
    first.output_dir.mkdir()
    (first.output_dir / "all_results.json").write_text("{}")
    os.utime(first.output_dir / "all_results.json", (time.time() + 600, time.time() + 600))
    run_reproduce.note_start(log, second)
    assert run_reproduce.noted(log, [first])["student"]["minutes"] == pytest.approx(10, abs=0.2)
    assert run_reproduce.noted(log, [second]) == {}  # it has not ended


def test_a_first_stage_may_take_no_time_and_tokens_are_not_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    command = "run_classify.py --hub_token secret"
    content = {"stages": {"first": stage(command, "outputs/first", 0), "second": stage(command, "outputs/second", 30)}}
    Path("whole.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def finish(of_stage, *_):
        of_stage.output_dir.mkdir()
        (of_stage.output_dir / "all_results.json").write_text("{}")

    monkeypatch.setattr(run_reproduce, "run_stage", finish)
    caplog.set_level("INFO")
    planned = call(run_reproduce.main, "whole.yaml")
    assert "1 stages left, about 0.5 h at this rate" in caplog.messages
    assert "run_classify.py --hub_token '***' -> outputs/first/" in planned
    with pytest.raises(InputError, match="want stage first: ") as stopped:
        call(run_reproduce.main, "whole.yaml")
    assert "secret" not in planned + caplog.text + str(stopped.value)


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


def test_a_stage_that_started_from_another_run_is_not_done(v3_folder, tmp_path, monkeypatch, capsys):
    """Trained again in the same way, the first stage counts as the same."""
    monkeypatch.chdir(tmp_path)
    flags = [*map(str, ESSAY_FLAGS), "--bf16", "false", "--max_train_samples", "20", "--max_steps", "1"]
    Path("second.yaml").write_text(yaml.safe_dump({"model_name_or_path": "outputs/first"}))

    def stages(seed: int) -> None:
        first = ["run_classify.py", *flags, "--model_name_or_path", str(v3_folder), "--seed", str(seed)]
        commands = {"first": first, "second": ["run_classify.py", "second.yaml", *flags]}
        lines = {name: stage(" ".join(command), f"outputs/{name}") for name, command in commands.items()}
        Path("whole.yaml").write_text(yaml.safe_dump({"stages": lines}, sort_keys=False))

    def here(of_stage, *_):
        call_as("run_classify.py", script.main, *of_stage.command[1:], "--output_dir", str(of_stage.output_dir))

    monkeypatch.setattr(run_reproduce, "run_stage", here)
    stages(seed=1)
    call(run_reproduce.main, "whole.yaml")
    shutil.rmtree("outputs/first")
    assert "1 of 2 stages to run" in call(run_reproduce.main, "whole.yaml")
    assert "0 of 2 stages to run" in call(run_reproduce.main, "whole.yaml")
    shutil.rmtree("outputs/first")
    stages(seed=2)
    says = (
        r"outputs/second: was made by python run_classify\.py second\.yaml .*, from another outputs/first; want stage"
    )
    with pytest.raises(InputError, match=says):
        call(run_reproduce.main, "whole.yaml")
    planned = call(run_reproduce.main, "whole.yaml", "--plan")
    assert "done  first" in planned
    assert "another run  second" in planned
    assert ", from another outputs/first; move or remove it first" in planned


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
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "a"), "2": str(tmp_path / "b")}, {})
    with pytest.raises(ValueError, match="line 2: 'bliss'; want one of"):
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "c")}, {})
    with pytest.raises(ValueError, match="not there"):
        run_reproduce.collect_submission(tmp_path / "out", {"1": str(tmp_path / "d")}, {})
    assert not (tmp_path / "out").exists()


def test_the_papers_recipe_has_a_plan():
    said = call(run_reproduce.main, ROOT / "recipes" / "wassa2022_full.yaml", "--plan")
    assert "stages to run, about" in said


# ---- One process per folder, and files that are whole or not there ---------------------------------------------------
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


def test_an_export_replaces_no_model_of_others(finished, tmp_path):
    """Neither one of another name beside an export, nor one without the report of an export."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    for name, report in (("other.onnx", True), ("other.onnx", False), ("model.onnx", False)):
        (folder / name).write_bytes(b"mine")
        if report:
            (folder / "export.json").write_text("{}")
        with pytest.raises(InputError, match=rf"is in use \({name} is not part of an export\); give another"):
            call(run_export.main, finished[0], "--output_dir", folder, "--overwrite_output_dir")
        assert (folder / name).read_bytes() == b"mine"
        for path in folder.iterdir():
            path.unlink()


READS = ("model_name_or_path", "tokenizer_name", "resume_from_checkpoint")


@pytest.mark.parametrize(
    ("main", "flag", "more"),
    [
        *((main, flag, ()) for main in (script.main, run_mlm.main, mtl.main) for flag in READS),
        (script.main, "distill_from", ()),
        (script.main, "model_name_or_path", ("--do_predict",)),
    ],
)
def test_what_is_read_is_not_overwritten(main, flag, more, v3_folder, tmp_path, monkeypatch):
    """A checkpoint of the run in the output folder, which is named in another way."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(v3_folder, "out/checkpoints/checkpoint-1")
    Path("out/all_results.json").write_text("{}")
    Path("rows.csv").write_text("text,label\nThe road is open.,joy\nNobody came.,fear\n")
    before = sorted(Path("out").rglob("*"))
    start = ("--model_name_or_path", v3_folder, "--train_file", "rows.csv", "--use_cpu", "--overwrite_output_dir")
    read = (f"--{flag}", tmp_path / "out" / "checkpoints" / "checkpoint-1", *more)
    with pytest.raises(InputError, match=f"would remove .*checkpoint-1, which --{flag} reads; give another"):
        call(main, *start, *read, "--output_dir", "out/../out")
    assert sorted(Path("out").rglob("*")) == before


def test_a_name_on_the_hub_is_no_folder_to_overwrite(v3_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\nThe road is open.,joy\nNobody came.,fear\n")
    flags = ("--model_name_or_path", v3_folder, "--tokenizer_name", "owner/name", "--use_cpu", "--overwrite_output_dir")
    with pytest.raises(InputError, match="is in use"):
        call(script.main, *flags, "--train_file", "rows.csv", "--output_dir", ".")


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
