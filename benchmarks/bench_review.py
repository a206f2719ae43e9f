"""Measure how many flipped labels run_review.py finds in real texts.

    python -m benchmarks.bench_review --output results/review.json

Takes 2,000 training rows of examples/emotions.parquet, of both corpora and of each, gives 5% of them another label at
random, and looks for these rows in the first part of the list. The rows have mistakes of their own, which are in the
list, too.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from trainer_ext.baselines.review_models import quick_predictions
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import run_command
from trainer_ext.evaluation.error_analysis import review
from trainer_ext.files import write_json
from trainer_ext.flag_parser import MINILM
from trainer_ext.runs.provenance import command_line

CORPORA = ("both", "go_emotions", "xed")
MODELS = ("text vectors", "character n-grams")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--rows", type=int, default=2000, help="rows to draw (default: 2,000)")
    parser.add_argument("--share", type=float, default=0.05, help="share of labels to flip (default: 0.05)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of rows and flips (default: 1 2 3)")
    parser.add_argument("--cv_folds", type=int, default=10, help="default: 10, as run_review.py")
    args = parser.parse_args()
    runs = [measure(of, seed, args.rows, args.share, args.cv_folds) for of in CORPORA for seed in args.seeds]
    figures = {"command": command_line(), "source": "examples/emotions.parquet", "rows": args.rows}
    figures |= {"flipped": runs[0]["flipped"], "folds": args.cv_folds, "encoder": MINILM, "runs": runs}
    for of in CORPORA:
        for name in runs[0]["found"]:
            print(of, name, [run["found"][name] for run in runs if run["corpus"] == of])
    write_json(args.output, figures)


def measure(of: str, seed: int, rows: int, share: float, folds: int) -> dict:
    """Return the share of flipped labels in the first 5%, 10% and 20% of the rows, by their place in the list."""
    corpus = load_corpus(
        files={"train": "examples/emotions.parquet"}, split_column="split", id_column="id", extra_columns=["source"]
    )
    draw, whole = np.random.default_rng(seed), corpus.splits["train"]
    if of != "both":
        whole = whole.select(np.flatnonzero(np.array(whole["column_source"]) == of))
    part = whole.select(np.sort(draw.choice(len(whole), rows, replace=False)))
    true = np.array(part["labels"])
    flipped = draw.choice(rows, round(rows * share), replace=False)
    given, labels = true.copy(), len(corpus.label_names)
    given[flipped] = (given[flipped] + draw.integers(1, labels, len(flipped))) % labels
    corpus = corpus.with_splits(train=part.remove_columns("labels").add_column("labels", given.tolist()))
    start = time.perf_counter()
    models = quick_predictions(corpus, folds, MINILM, 256)
    seconds = time.perf_counter() - start
    everything = np.arange(rows)

    def found(chosen: list[np.ndarray]) -> dict[str, float]:
        order = review([(everything, each) for each in chosen], rows, given, False).order
        return {
            f"first {percent}%": float(np.isin(flipped, order[: rows * percent // 100]).mean())
            for percent in (5, 10, 20)
        }

    mean = np.mean(models, axis=0)
    return {
        "corpus": of,
        "seed": seed,
        "flipped": len(flipped),
        "accuracy_before_flips": float((mean.argmax(axis=1) == true).mean()),
        "found": found(models),
        "found_by_one": {name: found([each]) for name, each in zip(MODELS, models, strict=True)},
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    run_command(main)
