"""Read and prepare rows: corpora, label maps, augmentation, folds, and the guard against leakage."""
