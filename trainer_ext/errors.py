"""The error that a user can put right, and how a command ends with it."""

import os
import re
import sys
from collections.abc import Callable, Sequence

from .escape import one_line


class InputError(ValueError):
    """Wrong input. The message says what was wrong, in which file and row, and what would be right.

    Args:
        message: One line; what it quotes of the input is made to fit in it.
        more: Further lines.
    """

    def __init__(self, message: str, *more: str):
        super().__init__("\n".join(map(one_line, (message, *more))))


class ProcessError(InputError):
    """What went wrong in this one of several processes."""


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main`, and end it with one line on standard error for what a user can put right.

    That is an [`InputError`], and what the machine does not give: a file, room on the disk, memory. Of an error that
    all processes meet, the first speaks. What a terminal cannot show is printed as its code point.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.argv[1:] = expand_home(sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        anew = ", but without --overwrite_output_dir" * ("--overwrite_output_dir" in sys.argv)
        print(f"\nstopped; start it again in the same way{anew}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        problem = str(error) if isinstance(error, InputError) else of_the_machine(error)
        if problem is None:
            raise
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, ProcessError):
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def expand_home(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `~` as the home folder also where a shell leaves it, as in `--flag=~/folder`."""
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + _HOME, each) for each in arguments]


_HOME = os.path.expanduser("~").replace("\\", "/")
# In the messages of torch's and safetensors' own writers, whose errors are no OSError.
_WRITER_FAILED = ("PytorchStreamWriter", "inline_container.cc", "(os error ")


def of_the_machine(error: BaseException) -> str | None:
    """Return one line for an error of files, disk or memory, or `None` for another error."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if any(sign in str(error) for sign in _WRITER_FAILED):
        why = one_line(first_line(error))
        return f"a file was not written whole ({why}); make room on the disk and start it again in the same way"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return (
            "out of memory; give smaller batches (--per_device_train_batch_size, or --tokens_per_batch), a smaller "
            "--max_seq_length, or --gradient_checkpointing"
        )
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
