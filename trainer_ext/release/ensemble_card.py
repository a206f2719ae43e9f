"""Write the model card of an ensemble that run_fuse.py made."""

from collections.abc import Sequence
from pathlib import Path

from ..evaluation.fusion import voters
from ..evaluation.pages import score_cells
from ..recipes import CardArguments
from .card_words import encoder_name, family_of, head_in_words, pooling_in_words
from .ensemble_folder import EnsembleMember
from .model_card import EnsembleFacts, Section, write_card
from .upstream import languages_of, licence_for, upstream_of

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
