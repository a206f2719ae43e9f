"""Find out under which licence a model may be published, from the cards of the models it came from."""

import re
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..data.corpus import Corpus
from ..errors import InputError, first_line
from ..files import CHECKPOINTS

# Files that are not part of a model: checkpoints, and predictions with writers and gold labels.
NOT_PUBLISHED = re.compile(rf"{CHECKPOINTS}/.*|predictions.*\.tsv|(.*/)?(\.|__pycache__).*")


def card_of(folder: Path) -> ModelCardData | None:
    """Return the metadata of a folder's model card, or `None` without one.

    Raises:
        InputError: if the card cannot be read.
    """
    card = folder / "README.md"
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{card}: cannot be read ({first_line(error)}), so its licence is unknown; mend its YAML or remove the file"
        ) from error
    except ValueError:  # not a model card
        return None


def licence_of(folder: Path) -> str | None:
    """Return the licence in a folder's model card, or `None` without one; `other` means that its use is restricted.

    Raises:
        InputError: as [`card_of`].
    """
    card = card_of(folder)
    return None if card is None else card.license


def restricted_upstream(*folders: str | None) -> str | None:
    """Return the terms of the first folder with restricted use, or `None`; a folder is a checkpoint or a teacher."""
    for folder in filter(None, folders):
        if licence_of(Path(folder)) == "other":
            return f"use under the terms of {Path(folder).resolve().name}, see its card"
    return None


def with_upstream_licence(corpus: Corpus, *folders: str | None) -> Corpus:
    """Return the corpus with the terms of [`restricted_upstream`], if it has none of its own."""
    return replace(corpus, licence=corpus.licence or restricted_upstream(*folders))
