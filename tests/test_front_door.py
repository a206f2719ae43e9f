"""`--help` and wrong flags are answered before torch and transformers are imported, by the scripts' own flags."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from support import ROOT

from docs.generate.flags import content, parser_of
from trainer_ext import front_door
from trainer_ext.errors import InputError

SCRIPTS = sorted(path.stem for path in ROOT.glob("run_*.py"))


def test_the_file_holds_the_flags_of_the_scripts():
    assert front_door.FLAGS.read_text(encoding="utf-8") == content(), "run `make docs`"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_that_of_the_script_itself(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    live, _ = parser_of(importlib.import_module(script).main)
    live.prog = f"{script}.py"
    frozen = front_door.parser_of(script, json.loads(front_door.FLAGS.read_text(encoding="utf-8")))
    assert frozen.format_help() == live.format_help()


def ask(*command: object, cwd=ROOT) -> tuple[subprocess.CompletedProcess, float]:
    """Start a command that may import neither torch nor transformers, and return the seconds that it computed."""
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(ROOT)}
    before = os.times()
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert not {"torch", "transformers", "datasets", "numpy"} & set(imported)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return subprocess.CompletedProcess(command, done.returncode, done.stdout, "\n".join(lines)), seconds


def test_help_and_a_typo_take_less_than_two_seconds():
    done, seconds = ask("run_classify.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: run_classify.py [RECIPE.yaml]")
    assert seconds < 2
    done, seconds = ask("run_score.py", "--hlep")
    assert done.returncode == 2
    assert done.stderr == "error: unknown argument '--hlep'; did you mean --help?"
    assert seconds < 2


def test_the_commands_of_the_package_answer_as_early():
    code = "import sys; sys.argv[0] = '/bin/emodeberta-{}'; from trainer_ext.front_door import start; start()"
    done, _ = ask("-c", code.format("push"), "--help")
    assert done.stdout.startswith("usage: emodeberta-push ")
    assert "--repo_id" in done.stdout
    done, _ = ask("-c", code.format("classify"), "--learning_rat", "1")
    assert (done.returncode, done.stderr) == (
        2, "error: unknown argument '--learning_rat'; did you mean --learning_rate?",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        ("run_classify", ["--poolin", "cls"], "unknown argument '--poolin'; did you mean --pooling?"),
        ("run_classify", ["--pooling", "max"], "argument --pooling: invalid choice: 'max'"),
        ("run_classify", ["--optim", "adam"], "argument --optim: invalid choice: 'adam'"),
        ("run_classify", ["--max_seq_length", "long"], "argument --max_seq_length/--max-seq-length: invalid int value"),
        ("run_classify", ["--bf16", "maybe"], "argument --bf16: 'maybe'; want true or false"),
        ("run_classify", [], "give --output_dir"),
        ("run_classify", ["none.yaml"], "none.yaml: no such recipe"),
        ("run_mlm", ["wrong.yaml"], "wrong.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("run_mlm", ["value.yaml"], "value.yaml: argument --learning_rate/--learning-rate: invalid float value: 'f'"),
        ("run_search", ["none.yaml", "--trials", "2"], "none.yaml: no such recipe"),
        ("run_compare", [], "the following arguments are required: COMPARISON.yaml"),
        ("run_compare", ["none.yaml", "--plan"], "none.yaml: no such recipe"),
        ("run_compare", ["value.yaml"], "value.yaml: unknown key 'learning_rate'; want columns, cv_folds,"),
        ("run_compare", ["pool.yaml"], "pool.yaml, b: unknown key 'poolin'; did you mean 'pooling'?"),
        ("run_fuse", ["pool.yaml", "--output_dir", "o"], "pool.yaml: unknown key 'variants'"),
        ("run_compare", ["value.yaml", "--plam"], "unknown argument '--plam'; did you mean --plan?"),
        ("run_compare", ["value.yaml", "--poolin", "cls"], "unknown argument '--poolin'; did you mean --pooling?"),
        ("run_compare", ["good.yaml", "--pooling", "max"], "argument --pooling: invalid choice: 'max'"),
        ("run_fuse", ["--fusion", "loud", "--output_dir", "o"], "argument --fusion: invalid choice: 'loud'"),
        ("run_fuse", ["value.yaml"], "the following arguments are required: --output_dir"),
        ("run_reproduce", ["none.yaml"], "none.yaml: no such recipe"),
        ("run_score", ["--hlep"], "unknown argument '--hlep'; did you mean --help?"),
        ("run_score", ["--input", "x"], "the following arguments are required: --model"),
        ("run_score", ["--model", "m", "--format", "xls"], "argument --format: invalid choice: 'xls'"),
        ("run_export", ["m", "--int9"], "unknown argument '--int9'; did you mean --int8?"),
        ("run_publish", ["m"], "the following arguments are required: --repo_id"),
    ],
)
def test_what_is_wrong_is_said_early(script, argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("learning_rat: 1\n", encoding="utf-8")
    (tmp_path / "pool.yaml").write_text("variants: {a: {}, b: {poolin: cls}}\n", encoding="utf-8")
    (tmp_path / "good.yaml").write_text("variants: {a: {}, b: {pooling: cls}}\n", encoding="utf-8")
    (tmp_path / "value.yaml").write_text("learning_rate: f\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        front_door.check(script, argv)
    assert str(error.value).startswith(says)


def test_what_is_right_goes_on_to_the_script(monkeypatch):
    monkeypatch.chdir(ROOT)
    front_door.check("run_classify", ["recipes/plain.yaml", "--no_remove_unused_columns", "--max-steps=3"])
    front_door.check("run_compare", ["recipes/compare/pooling.yaml", "--seeds", "1", "2", "--pooling", "cls"])
    for path in [*(ROOT / "recipes" / "compare").glob("*.yaml"), *(ROOT / "recipes" / "fuse").glob("*.yaml")]:
        front_door.check("run_fuse" if path.parent.name == "fuse" else "run_compare", [str(path), "--output_dir", "o"])
    front_door.check("run_fuse", ["--members", "a", "b", "--output_dir", "o"])
    front_door.check("run_score", ["--model", "m", "-", "--part", "1/4", "--rows_per_shard", "none"])  # says it itself


def test_a_flag_that_only_the_code_has_yet_is_left_to_the_script(tmp_path, monkeypatch):
    flags = json.loads(front_door.FLAGS.read_text(encoding="utf-8"))
    monkeypatch.setattr(front_door, "FLAGS", tmp_path / "flags.json")
    known = flags["scripts"]["run_classify"]["sections"]["Model"]
    known[:] = [flag for flag in known if "--pooling" not in flag["names"]]
    front_door.FLAGS.write_text(json.dumps(flags), encoding="utf-8")
    front_door.check("run_classify", ["--pooling", "cls", "--output_dir", "o"])
    front_door.FLAGS.write_text(json.dumps(flags | {"transformers": "5.99"}), encoding="utf-8")
    front_door.check("run_classify", ["--unheard_of"])  # another version of the library may know it


def test_help_shows_our_flags_first_and_says_what_they_do_here():
    text = front_door.parser_of("run_classify", json.loads(front_door.FLAGS.read_text(encoding="utf-8"))).format_help()
    positions = [text.index(f"\n{section}:") for section in ("Model", "Data", "Run", "Child-Tuning", "Training")]
    assert positions == sorted(positions)
    assert text.index("--output_dir OUTPUT_DIR") < text.index("Further flags of transformers.TrainingArguments")
    words = " ".join(text.split())
    assert "--hub_private_repo HUB_PRIVATE_REPO With --push_to_hub: false makes a new repository public" in words
    assert "every time the model is saved" not in words
    for refused in ("prediction_loss_only", "label_names", "load_best_model_at_end", "batch_eval_metrics"):
        assert f"--{refused}" not in text
