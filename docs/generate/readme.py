"""Make the blocks of README.md: what the quick start prints, what its model answers, and the table of results."""

import json
from pathlib import Path

from docs.generate.blocks import table
from docs.generate.results import PAPER
from trainer_ext.evaluation.predictions import side_by_side

# Li et al. 2022, Table 1: macro F1 on WASSA 2022's test set.
FIELD = {"ELECTRA ensemble, Mundra et al. 2021": 0.588}
# Our rows: the folder of a fusion or comparison, the row in its table, and what to call it here.
OURS = (
    ("fuse/wassa2022/fusion.json", "selected", "late fusion of MiniLMs, 22M parameters each"),
    ("fuse/base/fusion.json", "selected", "late fusion of three MiniLMs and one MPNet"),
    ("compare/base_folds/comparison.json", "MPNet", "one MPNet, 110M parameters, after supervised transfer"),
    (
        "compare/transfer_seeds/comparison.json",
        "stage on both, class-balanced",
        "one MiniLM, after supervised transfer",
    ),
    ("compare/transfer_seeds/comparison.json", "none", "one MiniLM, fine-tuned only"),
    ("fuse/wassa2022/fusion.json", "TF-IDF + logistic regression", "TF-IDF and logistic regression"),
)


def blocks(folder: Path) -> dict[str, list[str]]:
    """Return the lines of each block, from the JSON files in a folder like results/."""
    quickstart = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))["runs"]
    return {
        "quickstart": printed(quickstart[0]),
        "answers": answers(next(run["answers"] for run in quickstart if "answers" in run)),
        "results": results(folder),
    }


def printed(run: dict) -> list[str]:
    """Return the last lines that a run of the quick start prints."""
    sets = {"test": run["figures"] | {"rows": run["rows"], "tfidf_macro_f1": run["tfidf"]["macro_f1"]}}
    sets |= run["extra_tests"]
    rows = side_by_side({f"{name}_{key}": value for name, row in sets.items() for key, value in row.items()}, [*sets])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))]
        )
        for first, *cells in rows
    ]
    return ["```text", *lines, "", "saved to outputs/quickstart/", "```"]


def answers(found: list[dict]) -> list[str]:
    """Return what the snippet prints: the answers to the first two texts of the model's card."""
    shown = [{"label": answer["label"], "score": round(answer["score"], 2)} for answer in found[:2]]
    return ["```text", str(shown), "```"]


def results(folder: Path) -> list[str]:
    """Return the paper, the field and our models in one table."""
    paper = {"LingJing: DeBERTa-v2-xxlarge, 1.5B parameters, late fusion": PAPER} | FIELD
    rows = [["paper", name, f"{macro_f1:.3f}", "", "test set"] for name, macro_f1 in paper.items()]
    for path, variant, name in OURS:
        variants = json.loads((folder / path).read_text(encoding="utf-8"))["variants"]
        (row,) = (row for row in variants if row["name"] == variant)
        low, high = row["interval"]
        rows.append(["ours", name, f"{row['macro_f1']:.3f}", f"{low:.3f} to {high:.3f}", "cross-validation"])
    return table(["", "system", "macro F1", "95% interval", "scored by"], rows)
