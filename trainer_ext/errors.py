"""The one exception for input that a user can put right: a file, a row, a flag, a checkpoint."""


class InputError(ValueError):
    """Says in one line what was wrong, where (file and row), and what would be right."""
