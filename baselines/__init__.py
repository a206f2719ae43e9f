"""The systems that EmoDeBERTa is compared with, on the same readers and metrics."""
