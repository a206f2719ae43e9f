"""Collect finished runs of one recipe, one per seed, in one JSON file of figures with mean and spread.

python -m docs.generate.collect outputs/plain-1 outputs/plain-2 --output results/plain.json --note "what it shows"
"""

import argparse
import json
import statistics
from pathlib import Path

from trainer_ext.files import read_object, write_json

FIGURES = ("macro_f1", "micro_f1", "accuracy", "macro_precision", "macro_recall", "micro_precision", "micro_recall")


def collect(folders: list[Path], prefix: str) -> dict:
    """Return the figures of each run, and their mean, standard deviation, minimum and maximum over the runs."""
    runs = []
    for folder in folders:
        results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        wanted = (*FIGURES, "macro_f1_low", "macro_f1_high", "official_macro_precision")
        figures = {name: round(results[f"{prefix}_{name}"], 4) for name in wanted}
        if f"{prefix}_tuned_macro_f1" in results:
            run["tuned"] = {name: round(results[f"{prefix}_tuned_{name}"], 4) for name in wanted}
        figures |= {
            k.removeprefix(f"{prefix}_"): round(v, 4) for k, v in results.items() if k.startswith(f"{prefix}_f1_")
        }
        run |= {"figures": figures, "train_minutes": round(results["train_runtime"] / 60, 1)}
        run["rows"] = results["validation_rows" if prefix == "eval" else f"{prefix}_rows"]
        if extra := {name: extra_test(results, name) for name in extra_tests(results)}:
            run["extra_tests"] = extra
        if f"{prefix}_tfidf_macro_f1" in results:
            run["tfidf"] = {name: round(results[f"{prefix}_tfidf_{name}"], 4) for name in FIGURES}
        runs.append(run)
    over_runs = {}
    for name in FIGURES:
        values = [run["figures"][name] for run in runs]
        over_runs[name] = {
            "mean": round(statistics.mean(values), 4),
            "standard_deviation": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            "minimum": min(values),
            "maximum": max(values),
        }
    return {"over_runs": over_runs, "runs": runs}


def extra_tests(results: dict) -> list[str]:
    """Return the names of the test sets other than the corpus' own."""
    names = [name.removesuffix("_rows") for name in results if name.endswith("_rows")]
    return [name for name in names if f"{name}_macro_f1" in results and name not in ("validation", "test")]


def extra_test(results: dict, name: str) -> dict:
    """Return the figures of one test set: rows, accuracy, macro F1 with its interval, those of TF-IDF, recall by class.

    Args:
        results: Content of all_results.json.
        name: Name of the test set.
    """
    wanted = ("accuracy", "macro_f1", "macro_f1_low", "macro_f1_high", "tfidf_accuracy", "tfidf_macro_f1")
    found = {key: round(results[f"{name}_{key}"], 4) for key in wanted if f"{name}_{key}" in results}
    recall = {
        key.removeprefix(f"{name}_recall_"): round(value, 4)
        for key, value in results.items()
        if key.startswith(f"{name}_recall_")
    }
    return {"rows": results[f"{name}_rows"], **found, "recall": recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of run_classify.py")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--note", default="", help="one line that says what the figures are")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    content = read_object(args.output)  # what people wrote next to the figures stays
    content |= {"note": args.note or content.get("note", ""), "split": args.split}
    content |= collect(args.folders, "eval" if args.split == "validation" else "test")
    write_json(args.output, content)
    print(json.dumps(content["over_runs"]["macro_f1"]))


if __name__ == "__main__":
    main()
