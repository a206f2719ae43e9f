"""What a message quotes of the input cannot add a line to it, or steer a terminal."""

import subprocess
import sys

from trainer_ext.errors import InputError
from trainer_ext.escape import labels_of_columns, one_line, probability_column


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
