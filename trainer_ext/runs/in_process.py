"""Call a script's `main` in this process, as its command line would."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import datasets
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def command_line(script: str, flags: dict[str, Any]) -> Iterator[None]:
    """Set the command line of a script, which its records name. Afterwards it and the logging are as before."""
    arguments = []
    for name, value in flags.items():
        if isinstance(value, list | tuple | set):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    root, before = logging.getLogger(), sys.argv
    level, handlers = root.level, list(root.handlers)
    sys.argv = [script, *arguments]
    try:
        yield
    finally:
        sys.argv, root.handlers = before, handlers
        root.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what a run prints, its log up to warnings, and the progress bars of its libraries."""
    level = logging.root.manager.disable
    bars, more_bars = datasets.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()
        if more_bars:
            transformers_logging.enable_progress_bar()
