"""Trainer extensions: everything to train an EmoDeBERTa, and Child-Tuning for any `transformers` model.

Only Child-Tuning is here, so that it can be used without the rest. It is imported on first use, because `transformers`
takes seconds, and the scripts answer `--help` before that.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .child_tuning import ChildNetwork, ChildTuningArguments, ChildTuningTrainer

__all__ = ["ChildNetwork", "ChildTuningArguments", "ChildTuningTrainer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import child_tuning  # imports transformers

    return getattr(child_tuning, name)
