"""Training runs and comparisons of many runs: folders, checkpoints, provenance and trials."""
