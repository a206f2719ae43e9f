"""Make the blocks of README.md and recipes/README.md: what the quick start prints, the results, each recipe's score."""

import json
from pathlib import Path

import yaml

from docs.generate.blocks import table
from docs.generate.results import PAPER, in_full, read
from trainer_ext.evaluation.predictions import side_by_side

# ---- README.md: what the quick start prints, what its model answers, and the table of results ------------------------
# Li et al. 2022, Table 1: macro F1 on WASSA 2022's test set.
FIELD = {"ELECTRA ensemble, Mundra et al. 2021": 0.588}
# Our rows: the folder of a fusion or comparison, the row in its table, and what to call it here.
OURS = (
    ("fuse/wassa2022/fusion.json", "selected", "late fusion of MiniLMs, 22M parameters each"),
    ("fuse/base/fusion.json", "selected", "late fusion of three MiniLMs and one MPNet"),
    ("compare/base_folds/comparison.json", "MPNet", "one MPNet, 110M parameters, after supervised transfer (one seed)"),
    (
        "compare/transfer_seeds/comparison.json",
        "stage on both, class-balanced",
        "one MiniLM, after supervised transfer (mean of three seeds)",
    ),
    ("compare/transfer_seeds/comparison.json", "none", "one MiniLM, fine-tuned only (mean of three seeds)"),
    ("fuse/wassa2022/fusion.json", "TF-IDF + logistic regression", "TF-IDF and logistic regression"),
)


def readme_blocks(folder: Path) -> dict[str, list[str]]:
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


# ---- recipes/README.md: how long each recipe took, and what score it reached -----------------------------------------
# The recipes whose predictions are submitted files, by the file.
SUBMITTED = {"predictions_EMO_single.tsv": "wassa2022.yaml", "predictions_EMO.tsv": "wassa2022_full.yaml"}


def recipe_blocks(folder: Path) -> dict[str, list[str]]:
    """Return the lines of the block, from the JSON files in a folder like results/."""
    rows = [*single(folder), *stages(folder), *comparisons(folder)]
    return {"scores": table(["recipe", "score", "scored on", "model", "minutes", "machine"], rows)}


def single(folder: Path) -> list[list[str]]:
    """Return a row for each recipe that trains one model."""
    quickstart, plain, mlm, labels_28 = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("quickstart.json", "wassa2022-minilm.json", "mlm.json", "go_emotions.json")
    )
    run, mean = quickstart["runs"][0], plain["over_runs"]["macro_f1"]["mean"]
    before, after = mlm["curve"][0]["eval_perplexity"], mlm["figures"]["eval_perplexity"]
    tuned = labels_28["runs"][0]
    return [
        [
            "`quickstart.yaml`",
            macro_f1(run["figures"]),
            "test rows",
            "MiniLM",
            f"{run['train_minutes']:.0f}",
            run["hardware"],
        ],
        [
            "`plain.yaml`",
            f"{mean:.3f}",
            "dev essays",
            f"MiniLM, mean of {len(plain['runs'])} seeds",
            span([run["train_minutes"] for run in plain["runs"]]),
            plain["runs"][0]["hardware"],
        ],
        [
            "`mlm.yaml`",
            f"perplexity {after:.1f}, before training {before:.0f}",
            "held-out texts",
            "MiniLM",
            f"{mlm['figures']['train_runtime'] / 60:.0f}",
            mlm["run"]["hardware"],
        ],
        [
            "`go_emotions.yaml`",
            macro_f1(tuned["tuned"]),
            "test rows",
            "MiniLM, 28 labels",
            f"{tuned['train_minutes']:.0f}",
            tuned["hardware"],
        ],
    ]


def stages(folder: Path) -> list[list[str]]:
    """Return a row for the stages of the full recipe, from the recipe and the submission that it made."""
    recipe = yaml.safe_load((folder.parent / "recipes" / "wassa2022_full.yaml").read_text(encoding="utf-8"))
    files = json.loads((folder / "wassa2022" / "minilm.json").read_text(encoding="utf-8"))["files"]
    minutes = {"transfer.yaml": recipe["stages"]["transfer from GoEmotions and XED"]["minutes"]}
    minutes["wassa2022.yaml"] = recipe["stages"]["single model"]["minutes"]
    minutes["wassa2022_full.yaml"] = sum(stage["minutes"] for stage in recipe["stages"].values())
    models = {"wassa2022.yaml": "MiniLM after transfer", "wassa2022_full.yaml": "the ensemble; minutes of all stages"}
    scores = {SUBMITTED[file]: [macro_f1(files[file]["validation"]), "dev essays"] for file in SUBMITTED}
    return [
        [f"`{name}`", *scores.get(name, ["", ""]), models.get(name, "MiniLM"), str(took), recipe["minutes_on"]]
        for name, took in minutes.items()
    ]


def comparisons(folder: Path) -> list[list[str]]:
    """Return a row for each comparison and fusion: its best row, and the minutes of one training."""
    rows = []
    for name, content in read(folder, "compare/*/comparison.json").items():
        took = [row["minutes_a_training"] for row in content["variants"] if row["minutes_a_training"] is not None]
        recipe = f"`compare/{content['name']}.yaml`" + (f", as `{name}`" if name != content["name"] else "")
        rows.append([recipe, *best(content), f"{span(took)} per training", content["machine"]])
    for name, content in read(folder, "fuse/*/fusion.json").items():
        rows.append([f"`fuse/{name}.yaml`", *best(content), "", ""])
    return rows


def best(content: dict) -> list[str]:
    """Return the highest macro F1 of a table, with its interval, what it was scored on, and the row's name."""
    row = max(content["variants"], key=lambda row: row["macro_f1"])
    low, high = row["interval"]
    only = f", {len(content['only_folds'])} folds of {content['folds']}" if "only_folds" in content else ""
    return [f"{row['macro_f1']:.3f} ({low:.3f} to {high:.3f})", f"cross-validation{only}", in_full(row["name"])]


def macro_f1(figures: dict) -> str:
    """Return macro F1 with its interval."""
    return f"{figures['macro_f1']:.3f} ({figures['macro_f1_low']:.3f} to {figures['macro_f1_high']:.3f})"


def span(minutes: list[float]) -> str:
    """Return the smallest and the largest number of minutes, or one number where they are the same."""
    return " to ".join(dict.fromkeys((f"{min(minutes):.0f}", f"{max(minutes):.0f}")))


def review_blocks(folder: Path) -> dict[str, list[str]]:
    """Return the block of the guide on reviews: how many of the changed labels are near the top of the list."""
    content = json.loads((folder / "review.json").read_text())
    corpora: dict[str, list[dict]] = {}
    for run in content["runs"]:
        corpora.setdefault(run["corpus"], []).append(run)
    places = list(content["mean"])
    rows = [
        [
            {"both": "GoEmotions and XED", "go_emotions": "GoEmotions", "xed": "XED"}.get(corpus, corpus),
            f"{runs[0]['rows']:,}",
            *(" and ".join(f"{run['found'][place]:.0%}" for run in runs) for place in places),
            " and ".join(f"{run['bound']['first 10%']:.0%}" for run in runs),
        ]
        for corpus, runs in corpora.items()
    ]
    rows.append(["mean", "", *(f"{content['mean'][place]:.0%}" for place in places), ""])
    return {"review": table(["corpus", "rows", *places, "bound, 10%"], rows)}
