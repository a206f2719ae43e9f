"""How commands end: one line for what a user can put right, a traceback for a fault of the program."""

import resource
import subprocess
import sys

import forked
import pytest
from support import ESSAY_FLAGS, ROOT

from trainer_ext.errors import InputError, expand_home
from trainer_ext.escape import labels_of_columns, one_line, probability_column

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
