"""What a row of probabilities decides."""

import numpy as np

ROUNDING = 1e-6  # by which a probability may be above 1


def decide(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids `(..., rows)`, or 0/1 `(..., rows, labels)` where a row may have several."""
    return (probabilities > 0.5).astype(int) if multi_label else probabilities.argmax(axis=-1)
