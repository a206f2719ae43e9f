"""Errors that a user can fix, and how a command ends with them."""

import os
import re
import sys
from collections.abc import Callable, Sequence

from .escape import one_line


class InputError(ValueError):
    """An error for wrong input. The message says what is wrong, in which file and row, and what would be right.

    Args:
        message: One line; line breaks in it become spaces.
        more: Further lines.
    """

    def __init__(self, message: str, *more: str):
        super().__init__("\n".join(map(one_line, (message, *more))))


class ProcessError(InputError):
    """An error that occurred in only one of several processes."""


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main`; if an error occurs that a user can fix, print one line on standard error and exit.

    Such errors are an `InputError`, or a problem of the machine: files, disk space or memory. If several processes
    have the same error, only the first prints it. Characters that the terminal cannot show are printed as escapes.
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
    """Return the arguments with `~` as the home folder, also where the shell does not do it (`--flag=~/folder`)."""
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + _HOME, each) for each in arguments]


_HOME = os.path.expanduser("~").replace("\\", "/")
# Signs of torch's and safetensors' write errors, which are not an OSError.
_WRITER_FAILED = ("PytorchStreamWriter", "inline_container.cc", "(os error ")


def of_the_machine(error: BaseException) -> str | None:
    """Return a one-line message for an error of files, disk or memory, or `None` for another error."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    if any(sign in str(error) for sign in _WRITER_FAILED):
        why = one_line(first_line(error))
        return f"a file was not written whole ({why}); make room on the disk and start it again in the same way"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return (
            "out of memory; give smaller batches (--per_device_train_batch_size, or --tokens_per_batch), a smaller "
            "--max_seq_length, or --gradient_checkpointing"
        )
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
