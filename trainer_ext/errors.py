"""The error that a user can put right, and how a command ends with it."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Wrong input. The message says what was wrong, in which file and row, and what would be right."""


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
        anew = ", but without --overwrite_output_dir" * ("--overwrite_output_dir" in sys.argv)
        print(f"\nstopped; start it again in the same way{anew}", file=sys.stderr)
        sys.exit(130)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has no message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
