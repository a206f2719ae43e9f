"""Licences of the data that a model saw."""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from ..errors import InputError
from ..files import CHECKPOINTS

# A run's rows, with writers and gold labels, are not part of a model.
NOT_PUBLISHED = re.compile(rf"{CHECKPOINTS}/.*|predictions.*\.tsv|(.*/)?(\.|__pycache__).*")


def licence_of(folder: Path) -> str | None:
    """Of the card in a local folder; `other` means that what the model saw restricts its use."""
    card = folder / "README.md"
    try:
        return ModelCard.load(card).data.license if card.is_file() else None
    except ValueError:  # a card of another kind
        return None
    except yaml.YAMLError as error:
        raise InputError(f"{card}: its header, which names the licence, is not YAML ({error})") from error


def restricted_upstream(*folders: str | None) -> str | None:
    """Terms that a model has from the first of these that is restricted: where it starts, whom it learns from."""
    for folder in filter(None, folders):
        if licence_of(Path(folder)) == "other":
            return f"use under the terms of {Path(folder).resolve().name}, see its card"
    return None
