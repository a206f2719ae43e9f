"""Find out what a training started from, and under which licence and for which languages it may be published."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, hf_hub_download

from ..data.corpus import Corpus
from ..data.emotion_corpora import BUILT_IN
from ..errors import InputError, first_line
from ..files import CHECKPOINTS, shown
from ..recipes import DEFAULT_ACCESS, HubAccess, hub_answers
from ..training.checkpoint_source import PINNED
from ..training.distillation import OUT_OF_FOLD

# ---- Licences --------------------------------------------------------------------------------------------------------
# Files that are not part of a model: checkpoints, predictions with writers and gold labels, and those of training rows.
NOT_PUBLISHED = re.compile(rf"{CHECKPOINTS}/.*|predictions.*\.tsv|{re.escape(OUT_OF_FOLD)}|(.*/)?(\.|__pycache__).*")


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


# ---- Upstream --------------------------------------------------------------------------------------------------------
# The encoders that a training can start from, by `model_type`. The key is a tag of each card.
FAMILIES = {
    "deberta-v2": "DeBERTa-v2",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "mpnet": "MPNet",
}


@dataclass(frozen=True)
class Upstream:
    """A checkpoint, and what its card says. What is not known is empty.

    Attributes:
        name: As a card shows it: a Hub id or a folder without the path of this machine.
        hub_ids: Its Hub id. For a folder, the Hub ids of the models that it came from, as its card names them.
        revision: Commit on the Hub.
        licence: As the Hub writes it.
        languages: ISO 639 codes.
        datasets: Hub ids of the datasets of earlier stages, if it is a folder of this project.
        family: A key of `FAMILIES`, if its card has it as a tag.
    """

    name: str
    hub_ids: tuple[str, ...] = ()
    revision: str | None = None
    licence: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    family: str | None = None


def upstream_of(
    name_or_path: str,
    access: HubAccess = DEFAULT_ACCESS,
    from_scratch: bool = False,
) -> Upstream:
    """Return what is known of a checkpoint: from the card in its folder, or from the Hub, if that answers.

    Args:
        name_or_path: Folder or Hub id.
        access: How to reach the Hub, if the name is a Hub id.
        from_scratch: Only its configuration was used. Then its licence, languages and data say nothing of the model.
    """
    if from_scratch:
        return Upstream(shown(name_or_path))
    folder = Path(name_or_path)
    if folder.exists():
        return _described(shown(name_or_path), folder if folder.is_dir() else folder.parent, (), None)
    pin = PINNED.get(name_or_path)
    if pin is not None and access.revision in (None, pin.revision):
        return Upstream(name_or_path, (name_or_path,), pin.revision, pin.licence, ("en",))
    try:
        card = hf_hub_download(
            name_or_path, "README.md", **access.arguments(), local_files_only=not hub_answers(),
        )  # fmt: skip
    except (OSError, ValueError):  # no card, no network or no Hub id
        return Upstream(name_or_path, (name_or_path,) if name_or_path.count("/") == 1 else (), access.revision)
    return _described(name_or_path, Path(card).parent, (name_or_path,), Path(card).parent.name)


def languages_of(asked: Sequence[str], sources: Iterable[str], bases: Sequence[Upstream]) -> list[str]:
    """Return the languages of a model's texts: those of the flag, else of the corpora, else of the checkpoints.

    A checkpoint with several languages is not used, because the texts may be in any of them.

    Args:
        asked: Languages that `--language` names.
        sources: Names of the corpora.
        bases: Checkpoints that the model started from.
    """
    sources = set(sources)
    if asked:
        return list(asked)
    if sources and sources <= {"wassa2022", *BUILT_IN}:
        return ["en"]
    of_bases = {base.languages for base in bases}
    return list(of_bases.pop()) if len(of_bases) == 1 and all(len(known) == 1 for known in of_bases) else []


def licence_for(asked: str | None, terms: str | None, bases: Sequence[Upstream]) -> str | None:
    """Return the licence of a model: `other` under restricting terms, else as asked, else that of the checkpoints."""
    of_bases = {base.licence for base in bases}
    return "other" if terms or "other" in of_bases else asked or (of_bases.pop() if len(of_bases) == 1 else None)


def _described(name: str, folder: Path, hub_ids: tuple[str, ...], revision: str | None) -> Upstream:
    try:
        card = card_of(folder)
    except InputError:  # the card of a stranger, which need not be good YAML
        card = None
    if card is None:
        return Upstream(name, hub_ids, revision)
    tags = _strings(card.get("tags"))
    ours = "emodeberta" in tags
    return Upstream(
        name,
        hub_ids or (_strings(card.get("base_model")) if ours else ()),
        revision,
        card.get("license") if isinstance(card.get("license"), str) else None,
        _strings(card.get("language")),
        _strings(card.get("datasets")) if ours else (),
        next((family for family in FAMILIES if ours and family in tags), None),
    )


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(each for each in ([value] if isinstance(value, str) else value or ()) if isinstance(each, str))
