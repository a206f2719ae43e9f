"""The error that a user can put right, and how a command ends with it."""

import os
import sys
from collections.abc import Callable

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
    """Run a script's `main`: an [`InputError`] is one line on standard error, no traceback. Of one that all processes
    meet, the first speaks."""
    try:
        main()
    except InputError as error:
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, ProcessError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; start it again in the same way", file=sys.stderr)
        sys.exit(130)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
