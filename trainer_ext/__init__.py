"""Trainer extensions: what trains an EmoDeBERTa, and Child-Tuning for any `transformers` model.

Only Child-Tuning is imported here, so that people with no interest in emotions can use it on its own.
"""

from .child_tuning import ChildNetwork, ChildTuningArguments, ChildTuningTrainer

__all__ = ["ChildNetwork", "ChildTuningArguments", "ChildTuningTrainer"]
