"""Make an ensemble's folder and its card: read the members, compare their fusions, and save one repository."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification

from ..data.folds import group_folds
from ..errors import InputError
from ..evaluation.decisions import apply_temperature
from ..evaluation.fusion import FOLDS, check_names, compare_fusions, fuse_by_rule, voters, without_figures
from ..evaluation.pages import score_cells
from ..evaluation.predictions import PREDICTIONS, PredictionTable, read_predictions, write_rows
from ..recipes import CardArguments
from ..training.checkpoint_source import WEIGHTS
from ..training.saved_model import check_config, load_whole, reading, save_classifier
from .card_words import encoder_name, family_of, head_in_words, pooling_in_words
from .licence import languages_of, licence_for, licence_of, upstream_of
from .model_card import EnsembleFacts, Section, write_card

logger = logging.getLogger(__name__)
_NOT_OF_A_TOKENIZER = ("is_local", "local_files_only", "name_or_path")
_NOT_OF_A_MEMBER = ("auto_map", "custom_pipelines", "architectures", "transformers_version", "dtype", "model_type")
_NOT_OF_A_MEMBER += ("abstain_below",)  # the ensemble answers, and no member alone


@dataclass
class Predictions:
    """The rows of one split of a predictions.tsv that have a gold label.

    Attributes:
        split: Name of the split.
        ids, groups: Row ids and writers. Groups are empty strings if the run had none.
        gold: Class ids `(rows,)`.
        probabilities: `(rows, labels)`.
    """

    split: str
    ids: list[str]
    groups: list[str]
    gold: np.ndarray
    probabilities: np.ndarray


@dataclass
class EnsembleMember:
    """A member's folder and what was read from it.

    Attributes:
        folder, name: The folder, and the name of the member.
        config: Configuration of the model.
        tokenizer_hash: Hash of all tokenizer files, equal for equal tokenizers.
        predictions: Predictions on labelled rows, if the folder has any.
        licence: Licence in the folder's card. `other` means that the training data restrict the model's use.
    """

    folder: Path
    name: str
    config: EmoDebertaConfig
    tokenizer_hash: str
    predictions: Predictions | None = field(default=None, repr=False)
    licence: str | None = None


def read_members(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[EnsembleMember]:
    """Return the members of an ensemble, checked to fit together.

    Raises:
        InputError: if one is not an EmoDeBERTa classifier, or their labels differ.
    """
    names = list(names) if names else [folder.resolve().name for folder in folders]
    if len(names) != len(folders):
        raise InputError(f"--names: {len(names)} for {len(folders)} members")
    check_names(names)
    members = [_read_member(folder, name) for folder, name in zip(folders, names, strict=True)]
    first = members[0]
    for member in members[1:]:
        if member.config.id2label != first.config.id2label:
            raise InputError(
                f"{member.folder}: labels are {', '.join(member.config.id2label.values())}; those of "
                f"{first.folder} are {', '.join(first.config.id2label.values())}"
            )
    return members


def _read_member(folder: Path, name: str) -> EnsembleMember:
    weights = (folder / WEIGHTS, folder / f"{WEIGHTS}.index.json")
    if not (folder / "config.json").is_file() or not any(path.is_file() for path in weights):
        raise InputError(f"{folder}: no config.json and {WEIGHTS} there; want a folder of run_classify.py")
    with reading(folder, "its config.json cannot be read; want that of a folder of run_classify.py"):
        values, _ = EmoDebertaConfig.get_config_dict(folder)
        if values.get("model_type") != "emodeberta" or "SequenceClassification" not in str(values.get("architectures")):
            raise InputError(f"{folder}: no EmoDeBERTa classifier ({values.get('architectures')})")
        config = EmoDebertaConfig.from_dict(values)
        check_config(folder, config)
    if config.problem_type == "multi_label_classification":
        raise InputError(f"{folder}: gives several classes a row; a vote is on one")
    load_whole(EmoDebertaForSequenceClassification, folder, dtype="auto")  # find missing weights now
    tokenizer = hashlib.sha256()
    with reading(folder, "its tokenizer cannot be read"):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        for file in sorted([*folder.glob("*token*.json"), *folder.glob("vocab.txt"), *folder.glob("spm.model")]):
            content = file.read_bytes()
            if file.name == "tokenizer_config.json":  # the library adds where and how it was read
                values = {key: value for key, value in json.loads(content).items() if key not in _NOT_OF_A_TOKENIZER}
                content = json.dumps(values, sort_keys=True).encode()
            tokenizer.update(file.name.encode() + content)
    with reading(folder / PREDICTIONS, "cannot be read; want the table that run_classify.py writes"):
        predictions = _read_predictions(folder, config)
    return EnsembleMember(folder, name, config, tokenizer.hexdigest(), predictions, licence_of(folder))


def _read_predictions(folder: Path, config: EmoDebertaConfig) -> Predictions | None:
    """Return the predictions on validation rows with gold labels, else on test rows with gold labels, else `None`."""
    if not (folder / PREDICTIONS).is_file():
        return None
    table = _predictions_of(folder, config)
    for split in ("validation", "test"):
        of_split = [index for index, row in enumerate(table.rows) if row.split == split and row.gold]
        if of_split:
            rows = [table.rows[index] for index in of_split]
            return Predictions(
                split,
                [row.id for row in rows],
                [row.group for row in rows],
                np.array([table.label_names.index(row.gold) for row in rows]),
                table.probabilities[of_split],
            )
    return None


def _predictions_of(folder: Path, config: EmoDebertaConfig) -> PredictionTable:
    """Return the folder's predictions.tsv, checked to have the labels of its model in the same order.

    Raises:
        InputError: if it is not a table of predictions, or has other labels.
    """
    table = read_predictions(folder, one_label=True)
    labels = [config.id2label[label] for label in range(config.num_labels)]
    if table.label_names != labels:
        found = ", ".join(table.label_names)
        raise InputError(
            f"{folder / PREDICTIONS}: labels are {found}; those of its config.json are {', '.join(labels)}"
        )
    return table


def compare_folders(members: list[EnsembleMember], kept: str) -> dict:
    """Return the figures of [`compare_fusions`] on the labelled rows of the members' predictions.tsv.

    The entry `scored_on` names the split. If there are no or too few labelled rows, the result is that of
    [`without_figures`].

    Raises:
        InputError: if `kept` is a fitted rule and there are too few rows to fit it on, or the members' rows differ.
    """
    names, of_label = [member.name for member in members], members[0].config.id2label
    labels = [of_label[label] for label in range(len(of_label))]
    without = [str(member.folder) for member in members if member.predictions is None]
    if without:
        if kept in ("weighted", "selected"):
            raise InputError(
                f"--fusion {kept} is fitted on labelled rows; {', '.join(without)} has none in its predictions.tsv"
            )
        logger.info(f"no labelled rows in {', '.join(without)}: nothing is compared or calibrated")
        return without_figures(names, labels, kept)
    first = members[0].predictions
    for member in members[1:]:
        other = member.predictions
        if other.ids != first.ids or not np.array_equal(other.gold, first.gold):
            raise InputError(
                f"{member.folder}: its {other.split} rows are others than the {first.split} rows of "
                f"{members[0].folder}; members are compared on the same rows with the same gold labels"
            )
    groups = first.groups if all(first.groups) else None
    if len(set(groups or first.ids)) < FOLDS or np.bincount(first.gold).max() < FOLDS:
        told = f"{len(first.ids)} labelled rows of {len(set(groups or first.ids))} writers are too few to compare on"
        if kept in ("weighted", "selected"):
            raise InputError(f"--fusion {kept}: {told}")
        logger.info(told)
        return without_figures(names, labels, kept)
    probabilities = np.stack([member.predictions.probabilities for member in members])
    folds = group_folds(first.gold, groups or first.ids, FOLDS)
    figures, _ = compare_fusions(names, probabilities, first.gold, groups, folds, labels, kept)
    return figures | {"scored_on": f"labelled {first.split} rows"}


def write_fused_predictions(folder: Path, members: list[EnsembleMember], fusion: str, figures: dict) -> None:
    """Write the ensemble's predictions.tsv (and predictions_EMO.tsv for test rows), fused from the members' files.

    Nothing is written if a member has no such file, or the members' files have no rows or different rows.

    Args:
        members: Only the [`voters`].
    """
    tables = []
    for member in members:
        if not (member.folder / PREDICTIONS).is_file():
            logger.info(f"{member.folder}: no {PREDICTIONS} there, so the ensemble gets none")
            return
        tables.append(_predictions_of(member.folder, member.config))
    first, *others = ([(row.split, row.id) for row in table.rows] for table in tables)
    if not first:  # members without validation and test rows
        return
    if any(rows != first for rows in others):
        logger.info(f"the members' {PREDICTIONS} are about different rows, so the ensemble gets none")
        return
    weights = None if figures["weights"] is None else np.array(list(voters(figures).values()))
    fused = fuse_by_rule(fusion, np.stack([table.probabilities for table in tables]), weights)
    fused = apply_temperature(fused, figures["temperature"])
    labels = tables[0].label_names
    rows = [
        row._replace(predicted=labels[label]) for row, label in zip(tables[0].rows, fused.argmax(axis=1), strict=True)
    ]
    write_rows(folder, labels, rows, fused, True)


# ---- The folder ---------------------------------------------------------------------------------------------------
def save_ensemble(folder: Path, members: list[EnsembleMember], fusion: str, figures: dict) -> None:
    """Save an ensemble for `from_pretrained`: weights, configuration, code, and each different tokenizer once.

    Args:
        members: Only the [`voters`].
    """
    hashes = list(dict.fromkeys(member.tokenizer_hash for member in members))
    config = EmoDebertaEnsembleConfig(
        members=[_member_values(member.config) for member in members],
        member_names=[member.name for member in members],
        tokenizer_of_member=[hashes.index(member.tokenizer_hash) for member in members],
        fusion="hard" if fusion == "hard" else "soft",
        weights=None if figures["weights"] is None else list(voters(figures).values()),
        temperature=figures["temperature"],
        id2label=dict(members[0].config.id2label),
        label2id={name: label for label, name in members[0].config.id2label.items()},
        problem_type="single_label_classification",
    )
    model = EmoDebertaEnsembleForSequenceClassification(config)
    for slot, member in zip(model.members, members, strict=True):
        read = load_whole(EmoDebertaForSequenceClassification, member.folder, dtype=torch.float32)
        slot.load_state_dict(read.state_dict())
    tokenizers: list[PreTrainedTokenizerBase] = []
    for tokenizer_hash in hashes:
        source = next(member.folder for member in members if member.tokenizer_hash == tokenizer_hash)
        with reading(source, "its tokenizer cannot be read"):
            tokenizers.append(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    save_classifier(folder, model, *tokenizers)


def _member_values(config: EmoDebertaConfig) -> dict:
    return {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_A_MEMBER}


# ---- The card --------------------------------------------------------------------------------------------------------
_SCORES = ["", "macro F1", "95% interval", "difference", "p (Holm)"]


def write_ensemble_card(
    target: Path,
    name: str,
    members: Sequence[EnsembleMember],
    figures: dict,
    command: str,
    card: CardArguments,
) -> None:
    """Write the model card of an ensemble.

    Args:
        target: Path of the README.md.
        name: Name of the ensemble.
        members: The members that vote.
        figures: Those in its fusion.json.
        command: The command line that made it.
        card: Language and licence, if the user gave them.
    """
    bases = [upstream_of(str(member.folder)) for member in members]
    terms = restricting_terms(members)
    families = [
        family_of(member.config.model_type, member.config, base) for member, base in zip(members, bases, strict=True)
    ]
    encoders = [encoder_name(family, base.hub_ids) for family, base in zip(families, bases, strict=True)]
    weights = voters(figures)
    weighted = None not in weights.values()
    facts = EnsembleFacts(
        name=name,
        repo_id=name,
        command=command,
        languages=languages_of(card.language, (), bases),
        licence=licence_for(card.license, terms, bases),
        terms=terms,
        bases=bases,
        tags=["ensemble", *dict.fromkeys(families)],
        datasets=[dataset for base in bases for dataset in base.datasets],
        citations=[*map(str.lower, encoders), *families],
        sections=_calibration(figures),
        labels=figures["labels"],
        fusion=figures["fusion"],
        weights=weights,
        members=[
            ["", "encoder", "size", "text vector", "head", *["weight"] * weighted],
            *(
                [
                    member.name,
                    encoder,
                    f"{member.config.num_hidden_layers} layers of {member.config.hidden_size}",
                    pooling_in_words(member.config),
                    head_in_words(member.config),
                    *([f"{weights[member.name]:.3f}"] if weighted else []),
                ]
                for member, encoder in zip(members, encoders, strict=True)
            ),
        ],
        scored_on=_scored_on(figures),
        scores=[_SCORES, *map(_score_row, figures["variants"])],
        against=[_SCORES, *map(_score_row, figures.get("against_the_ensemble", ()))],
        disagreement=[
            ["", *figures["members"]],
            *(
                [member, *(f"{share:.2f}" for share in shares)]
                for member, shares in zip(figures["members"], figures.get("disagreement", ()), strict=False)
            ),
        ],
    )
    write_card(target, facts)


def restricting_terms(members: Sequence[EnsembleMember]) -> str | None:
    """Return the terms of the members whose training data restrict their use, or `None`."""
    restricted = [member.name for member in members if member.licence == "other"]
    return f"use under the terms of {', '.join(restricted)}, see their cards" if restricted else None


def _scored_on(figures: dict) -> str:
    if not figures["variants"]:
        return ""
    writers = f" of {figures['groups']:,} writers" if figures["grouped"] else ""
    return f"{figures['rows']:,} {figures['scored_on'].rstrip(',')}{writers}"


def _score_row(row: dict) -> list[str]:
    """Return table cells of a system: name, macro F1, interval, difference to the first system, p-value."""
    low, high = row["interval"]
    return [row["name"], f"{row['macro_f1']:.3f}", f"{low:.3f} to {high:.3f}", *score_cells(row)[2:]]


def _calibration(figures: dict) -> list[Section]:
    """Return how far the ensemble's scores are from the share of right answers, if that was measured."""
    if "calibration" not in figures:
        return []
    names = {"before": "unchanged", "after": f"with its temperature ({figures['temperature']:.2f} in this folder)"}
    rows = [
        [
            names[key],
            f"{figures['calibration'][key]['expected_calibration_error']:.3f}",
            f"{figures['calibration'][key]['brier_score']:.3f}",
        ]
        for key in names
    ]
    explained = f"How far the scores of the {figures['fusion']} fusion are from the share of right answers. 0 is best."
    header = ("", "expected calibration error", "Brier score (0 to 2)")
    return [Section("Calibration", explained, header, rows, "reliability.png")]
