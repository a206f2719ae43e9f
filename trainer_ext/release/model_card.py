"""Write the model card (README.md) of an output folder, from the figures of the run."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment

from ..data.label_maps import TransferRows
from ..escape import in_code, in_markdown, table
from ..evaluation.fusion_table import voters
from ..evaluation.metrics import SEVEN_FIGURES
from ..evaluation.pages import score_cells
from ..evaluation.predictions import SYSTEMS, side_by_side
from ..files import shown
from .ensemble_folder import EnsembleMember

TEMPLATE = Path(__file__).with_name("model_card_template.md")
ENSEMBLE_TEMPLATE = Path(__file__).with_name("ensemble_card_template.md")
PRETRAINING_TEMPLATE = Path(__file__).with_name("pretraining_card_template.md")
# Example texts for the card, written for this project.
TRY = (
    "I am so happy today!",
    "They lied to us again, and I am furious.",
    "I keep thinking of my grandmother, and I miss her so much.",
    "The bridge reopens on Tuesday at nine.",
)
WIDGET = [{"text": text} for text in TRY]


def write_model_card(
    target: Path,
    *,
    model_name: str,
    repo_id: str,
    base_model: str,
    labels: list[str],
    results: dict[str, float],
    rows: dict[str, int],
    grouped: bool,
    **facts: object,
) -> None:
    """Write the model card of a classifier, with metadata for the Hub (including `model-index`).

    Args:
        target: Path of the README.md.
        model_name, repo_id, base_model: Names for the title, the usage snippet and the metadata.
        labels: The label set.
        results: Figures by name as in `all_results.json`: `eval_macro_f1`, `test_f1_<label>`, ...
        rows: Number of rows by split.
        grouped: Whether intervals were resampled by writer.
        facts: Other values that the template prints.
    """
    tables, evaluations = [], []
    splits = [split for split in rows if split != "train"]
    extra = [split for split in splits if split not in ("validation", "test")]
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if f"{prefix}_macro_f1" not in results:
            continue
        figures = [
            [system, *(f"{results[f'{prefix}_{infix}{name}']:.3f}" for name in SEVEN_FIGURES)]
            for system, infix in SYSTEMS.items()
            if f"{prefix}_{infix}macro_f1" in results
        ]
        low, high = results.get(f"{prefix}_macro_f1_low"), results.get(f"{prefix}_macro_f1_high")
        tables.append(
            {
                "split": split,
                "rows": rows[split],
                "columns": [name.replace("_", " ").replace("f1", "F1") for name in SEVEN_FIGURES],
                "figures": figures,
                "interval": f"{low:.3f} to {high:.3f}",
                "unit": "writers" if grouped else "rows",
                "classes": [
                    [name, *(f"{results[f'{prefix}_{figure}_{name}']:.3f}" for figure in ("precision", "recall", "f1"))]
                    for name in labels
                    if f"{prefix}_f1_{name}" in results
                ],
            }
        )
        evaluations += [
            EvalResult(
                task_type="text-classification",
                dataset_type=str(facts["source"]),
                dataset_name=str(facts["source"]),
                dataset_split=split,
                metric_type=metric,
                metric_name=name,
                metric_value=round(results[f"{prefix}_{figure}"], 4),
            )
            for figure, metric, name in (("macro_f1", "f1", "macro F1"), ("accuracy", "accuracy", "accuracy"))
        ]
    data = ModelCardData(
        language="en",
        license="other" if facts["licence"] else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["emotion", "emodeberta", "deberta-v2", "child-tuning"],
        base_model=_hub_id(base_model),
        model_name=model_name,
        widget=WIDGET,
        eval_results=evaluations or None,
    )
    _write(
        target,
        TEMPLATE,
        data,
        model_name=model_name,
        repo_id=repo_id,
        base_model=shown(base_model),
        labels=labels,
        tables=tables,
        side_by_side=side_by_side(results, splits) if extra else [],
        rows=", ".join(f"{split} {number}" for split, number in rows.items()),
        answer_rows=[
            [answer["text"], "; ".join(map(_answer, answer["given"])) or "none of its labels"]
            for answer in facts["answers"]
        ],
        transfer_rows=_transfer_rows(facts["transferred"]) if facts["transferred"] else [],
        **facts,
    )


def write_pretraining_card(target: Path, *, model_name: str, base_model: str, **facts: object) -> None:
    """Write the model card of a `run_mlm.py` folder; `facts` are the values that its template prints."""
    data = ModelCardData(
        language="en",
        license="other" if facts["corpus"].target_licence or facts["upstream_licence"] else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["emotion", "emodeberta", "deberta-v2"],
        base_model=_hub_id(base_model),
    )
    _write(
        target,
        PRETRAINING_TEMPLATE,
        data,
        model_name=model_name,
        base_model=shown(base_model),
        **facts,
    )


def write_ensemble_card(
    target: Path, model_name: str, members: Sequence[EnsembleMember], figures: dict, command: str
) -> None:
    """Write the model card of a `run_fuse.py` folder; `figures` are those in its fusion.json."""
    data = ModelCardData(
        language="en",
        license="other" if any(member.licence == "other" for member in members) else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["emotion", "emodeberta", "deberta-v2", "ensemble"],
        model_name=model_name,
        widget=WIDGET,
    )
    _write(
        target,
        ENSEMBLE_TEMPLATE,
        data,
        model_name=model_name,
        command=command,
        restricted=[member.name for member in members if member.licence == "other"],
        voters=voters(figures),
        score_rows=_score_rows,
        disagreement_rows=[
            [name, *(f"{share:.2f}" for share in shares)]
            for name, shares in zip(figures["members"], figures.get("disagreement", ()), strict=False)
        ],
        **figures,
    )


def _answer(given: dict) -> str:
    """Return a label and its probability, as the pipeline gave them."""
    return f"{given['label'] or 'not sure'}, {100 * given['score']:.0f}%"


class _Markdown(str):
    """Text that is already Markdown, so it is not escaped."""


def _write(target: Path, template: Path, data: ModelCardData, **facts: object) -> None:
    """Fill a template; values are escaped unless a filter or function of the template made them Markdown."""

    def as_text(value: object) -> object:
        return in_markdown(value) if isinstance(value, str) and not isinstance(value, _Markdown) else value

    environment = Environment(finalize=as_text)
    environment.filters["code"] = lambda text: _Markdown(in_code(text))
    environment.filters["python"] = lambda text: _Markdown(json.dumps(text, ensure_ascii=False))
    environment.filters["repr"] = lambda text: _Markdown(repr(text))
    environment.globals["as_table"] = lambda header, rows: _Markdown("\n".join(table(header, rows)))
    card = environment.from_string(template.read_text(encoding="utf-8"))
    text = card.render(card_data=_Markdown(data.to_yaml()), **facts)
    target.write_text(text + "\n", encoding="utf-8", errors="replace")


def _transfer_rows(transferred: TransferRows) -> list[list[str]]:
    """Return table rows of the added corpora: name, licence, and number of rows per label."""
    return [
        [name, str(transferred.licences[name]), *map(str, counts.values())]
        for name, counts in transferred.counts().items()
    ]


def _score_rows(variants: Sequence[dict]) -> list[list[str]]:
    """Return table rows of systems: name, macro F1, interval, difference to the first system, p-value."""
    return [
        [row["name"], f"{row['macro_f1']:.3f}", "{:.3f} to {:.3f}".format(*row["interval"]), *score_cells(row)[2:]]
        for row in variants
    ]


def _hub_id(name: str) -> str | None:
    """Return the name if it can be one on the Hub and is not a local folder, else `None`."""
    return name if "/" in name and not Path(name).exists() else None
