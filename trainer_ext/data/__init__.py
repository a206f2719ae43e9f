"""Rows: corpora, label maps, augmentation, folds, and the guard against leakage."""
