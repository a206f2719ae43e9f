"""Runs and many of them: their folders, checkpoints, provenance, and the trials of a comparison."""
