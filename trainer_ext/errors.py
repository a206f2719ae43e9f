"""The error that a user can put right, and how a command ends with it."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Wrong input. The message says what was wrong, in which file and row, and what would be right."""


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main`: an [`InputError`] is one line on standard error (of the first process), no traceback."""
    try:
        main()
    except InputError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; start it again in the same way", file=sys.stderr)
        sys.exit(130)
