"""How commands answer: `--help` before torch is imported, one line for what a user can put right."""

import importlib
import json
import os
import resource
import subprocess
import sys

import forked
import pytest
from support import ESSAY_FLAGS, ROOT

from docs.generate.flags import content, parser_of
from trainer_ext import front_door
from trainer_ext.errors import InputError, expand_home
from trainer_ext.escape import labels_of_columns, one_line, probability_column

# ---- How commands end ------------------------------------------------------------------------------------------------
MAIN = """
import sys
from trainer_ext.errors import InputError, run_command

def main():
    {body}

run_command(main)
"""


def run(body: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process whose `main` has this body."""
    return subprocess.run(
        [sys.executable, "-c", MAIN.format(body=body), *arguments],
        cwd=ROOT,
        env={"PATH": "", "HOME": "/home/somebody", **environment},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise InputError('rows.csv, row 3: no text')", "error: rows.csv, row 3: no text\n"),
        ("open('/nowhere/rows.csv')", "error: /nowhere/rows.csv: No such file or directory\n"),
        ("open('/', 'w')", "error: /: Is a directory\n"),
        ("open('/dev/full', 'w', buffering=1).write('x' * 9000 + chr(10))", "error: No space left on device\n"),
        ("import torch; torch.save(torch.zeros(9999), '/dev/full')", "error: a file was not written whole ("),
        ("raise MemoryError", "error: out of memory; give smaller batches"),
        ("import torch; raise torch.OutOfMemoryError('CUDA')", "error: out of memory; give smaller batches"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(body, says, tmp_path):
    (tmp_path / "script.py").write_text(MAIN.format(body=body))
    done = forked.run(tmp_path / "script.py", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    (tmp_path / "script.py").write_text(MAIN.format(body="[][0]"))
    done = forked.run(tmp_path / "script.py", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_terminal_that_cannot_show_a_character_gets_its_code_point():
    done = run(r"print('\u5e78, \u00fc'); raise InputError('no label \u5e78')", PYTHONIOENCODING="cp1252")
    assert done.stdout == "\\u5e78, ü\n".encode("cp1252")
    assert done.stderr == rb"error: no label \u5e78" + b"\n"


def test_home_is_expanded_where_the_shell_leaves_it(monkeypatch):
    done = run("print(sys.argv[1:])", "--train_file=~/a.csv", "~", "~/b", "--text=a ~/c", "--name=~x")
    home = "/home/somebody"
    assert eval(done.stdout) == [f"--train_file={home}/a.csv", home, f"{home}/b", "--text=a ~/c", "--name=~x"]
    assert expand_home([]) == []


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(v3_folder, tmp_path):
    """A limit on the size of a file stands for the disk: weights do not fit, settings and states do."""
    command = [sys.executable, str(ROOT / "run_classify.py"), "--model_name_or_path", str(v3_folder)]
    command += [*map(str, ESSAY_FLAGS), "--max_steps", "2", "--save_steps", "1", "--max_predict_samples", "9"]
    command += ["--output_dir", str(tmp_path / "out")]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "error: a file was not written whole" in done.stderr
    assert "Traceback" not in done.stderr
    forked.run(*command[1:], cwd=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_message_is_one_line_whatever_it_quotes():
    label = "joy\r\nerror: all is well\u2028\x1b[2J\u202eyoj"
    assert str(InputError(f"label {label}; want fear")) == "label joy error: all is well [2J\ufffdyoj; want fear"
    assert str(InputError("not as it is:", "  a\nb", "  c")) == "not as it is:\n  a b\n  c"


def test_a_command_ends_with_that_line():
    code = (
        "from trainer_ext.errors import InputError, run_command\n"
        "def main(): raise InputError('label a\\nb \\ud83d \\x1b[31m')\nrun_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: label a b \ufffd  [31m\n")


def test_columns_name_their_labels():
    labels = ["group", "probability_x", ""]
    assert labels_of_columns([probability_column(label) for label in labels]) == labels
    assert labels_of_columns(["joy", "fear"]) == ["joy", "fear"]  # a file of before
    assert one_line("a  b") == "a  b"


# ---- `--help` and wrong flags ----------------------------------------------------------------------------------------
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
