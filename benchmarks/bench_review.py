"""Measure how many flipped labels run_review.py finds in real texts.

    python -m benchmarks.bench_review --output results/review.json

Takes 2,000 training rows of examples/emotions.parquet, of both corpora and of each, and all of examples/essays.tsv.
Gives 5% of them another label at random, and looks for these in the first part of the list. The rows have mistakes of
their own, which are in the list, too.

A bound tells how much there is to find for such models: labels are drawn from their own probabilities, at the
temperature that fits the labels before the flips, and 5% of them are flipped. Then no order of the rows by these
probabilities finds more on average.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from trainer_ext.baselines.probe import text_vectors
from trainer_ext.baselines.review_models import encoder_at_hand, quick_predictions
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import run_command
from trainer_ext.evaluation.decisions import apply_temperature, fit_temperature
from trainer_ext.evaluation.error_analysis import review
from trainer_ext.files import write_json
from trainer_ext.runs.provenance import command_line

CORPORA = ("both", "go_emotions", "xed", "essays")
SIMULATIONS = 20
MODELS = ("text vectors", "character n-grams")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--rows", type=int, default=2000, help="rows to draw (default: 2,000)")
    parser.add_argument("--share", type=float, default=0.05, help="share of labels to flip (default: 0.05)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of rows and flips (default: 1 2)")
    parser.add_argument("--encoder", help="as run_review.py's")
    parser.add_argument("--cv_folds", type=int, default=10, help="default: 10, as run_review.py")
    args = parser.parse_args()
    encoder = args.encoder or encoder_at_hand()
    figures = {"command": command_line(), "sources": ["examples/emotions.parquet", "examples/essays.tsv"]}
    figures |= {"share": args.share, "folds": args.cv_folds, "encoder": encoder}
    runs = []
    for seed in args.seeds:
        for of in CORPORA:
            runs.append(measure(of, seed, args.rows, args.share, args.cv_folds, encoder))
            print(of, seed, runs[-1]["found"], runs[-1]["bound"], flush=True)
        parts = runs[0]["found"]
        figures["mean"] = {part: round(float(np.mean([run["found"][part] for run in runs])), 3) for part in parts}
        write_json(args.output, figures | {"runs": runs})
        print("mean", figures["mean"])


def measure(of: str, seed: int, rows: int, share: float, folds: int, encoder: str) -> dict:
    """Return the share of flipped labels in the first 5%, 10% and 20% of the rows, by their place in the list."""
    draw = np.random.default_rng(seed)
    if of == "essays":
        corpus = load_corpus(files={"train": "examples/essays.tsv"}, id_column="id", group_column="writer")
        part = corpus.splits["train"]
        rows = len(part)
    else:
        corpus = load_corpus(
            files={"train": "examples/emotions.parquet"}, split_column="split", id_column="id", extra_columns=["source"]
        )
        whole = corpus.splits["train"]
        if of != "both":
            whole = whole.select(np.flatnonzero(np.array(whole["column_source"]) == of))
        part = whole.select(np.sort(draw.choice(len(whole), rows, replace=False)))
    true = np.array(part["labels"])
    labels = len(corpus.label_names)
    given, flipped = flip(true, share, labels, draw)
    start = time.perf_counter()
    corpus = corpus.with_splits(train=part.remove_columns("labels").add_column("labels", given.tolist()))
    vectors_of = partial(text_vectors, encoder, max_seq_length=256, layers=True, fast=True)
    models = quick_predictions(corpus, folds, vectors_of)
    seconds = time.perf_counter() - start
    mean = np.mean(models, axis=0)
    return {
        "corpus": of,
        "seed": seed,
        "rows": rows,
        "flipped": len(flipped),
        "accuracy_before_flips": float((mean.argmax(axis=1) == true).mean()),
        "found": found(models, given, flipped),
        "found_by_one": {name: found([each], given, flipped) for name, each in zip(MODELS, models, strict=True)},
        "bound": bound(mean, true, share, draw),
        "seconds": round(seconds, 1),
    }


def flip(true: np.ndarray, share: float, labels: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of which a share was flipped, and the numbers of the flipped rows."""
    flipped = draw.choice(len(true), round(len(true) * share), replace=False)
    given = true.copy()
    given[flipped] = (given[flipped] + draw.integers(1, labels, len(flipped))) % labels
    return given, flipped


def found(models: list[np.ndarray], given: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    """Return the share of the flipped rows in each first part of the list."""
    order = review([(np.arange(len(given)), each) for each in models], len(given), given, False).order
    return {
        f"first {percent}%": float(np.isin(flipped, order[: len(given) * percent // 100]).mean())
        for percent in (5, 10, 20)
    }


def bound(mean: np.ndarray, true: np.ndarray, share: float, draw: np.random.Generator) -> dict[str, float]:
    """Return what is found on average where the labels are drawn from the (calibrated) probabilities themselves."""
    fitted = apply_temperature(mean, fit_temperature(mean, true))
    times = []
    for _ in range(SIMULATIONS):
        drawn = (fitted.cumsum(axis=1) < draw.random((len(true), 1))).sum(axis=1).clip(max=fitted.shape[1] - 1)
        times.append(found([fitted], *flip(drawn, share, fitted.shape[1], draw)))
    return {part: round(float(np.mean([each[part] for each in times])), 3) for part in times[0]}


if __name__ == "__main__":
    run_command(main)
