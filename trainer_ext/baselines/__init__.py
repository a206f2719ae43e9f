"""The systems to compare EmoDeBERTa with, on the same corpora and metrics."""
