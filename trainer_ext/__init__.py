"""Trainer extensions: everything to train an EmoDeBERTa, and Child-Tuning for any `transformers` model.

Only Child-Tuning is imported here, so that it can be used without the rest.
"""

from .child_tuning import ChildNetwork, ChildTuningArguments, ChildTuningTrainer

__all__ = ["ChildNetwork", "ChildTuningArguments", "ChildTuningTrainer"]
