"""Make the blocks of docs/results.md and docs/comparisons.md, and the plot of the ablation."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib

from docs.generate.blocks import shown, table
from docs.generate.performance import SVG, svg
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.evaluation.pages import comparison_page, errors_section, score_cells
from trainer_ext.evaluation.plots import draw_comparison, drawn_as_text

# Li et al. 2022, Tables 1 and 3: macro F1 on WASSA 2022's test set.
PAPER = 0.698
PAPER_WITHOUT = {
    "continued pre-training": 0.639,
    "supervised transfer": 0.652,
    "Child-Tuning": 0.656,
    "late fusion": 0.664,
    "pre-trained weights": 0.254,
}
# Where each ingredient was added: the comparison's folder, its variants that have the ingredient, and their names here.
ADDED = {
    "continued pre-training": {
        "mlm": {
            "continued pre-training": "before fine-tuning",
            "the same, a fifth of the rate": "the same, a fifth of the rate",
            "the same, one epoch of three": "the same, one epoch of three",
        },
        "mlm_longer": {"continued pre-training": "before fine-tuning of twice the epochs"},
    },
    "supervised transfer": {
        "transfer_seeds": {
            "stage on GoEmotions": "stage on GoEmotions",
            "stage on both, class-balanced": "stage on GoEmotions and XED, class-balanced",
        },
        "transfer": {
            "stage on GoEmotions and XED": "stage on GoEmotions and XED",
            "RA": "Random Augmentation",
            "BA, added": "Balanced Augmentation",
        },
    },
    "Child-Tuning": {
        "child_tuning_seeds": {"F, p .5": "F, p 0.5", "D, p .3": "D, p 0.3"},
        "single": {"Child-Tuning F": "F, p 0.5, after a stage on GoEmotions and XED"},
    },
}
# Demszky et al. 2020, Table 4: BERT on GoEmotions' test rows, at thresholds that the paper does not give.
GO_EMOTIONS = {"macro_f1": 0.46, "macro_precision": 0.40, "macro_recall": 0.63}
# What our tables call a variant whose name in a comparison is short.
IN_FULL = {
    "both sizes summed": "MiniLM and MPNet, summed",
    "none": "fine-tuning only",
    "RA": "Random Augmentation",
    "BA, added": "Balanced Augmentation, added",
    "BA, topped up": "Balanced Augmentation, topped up",
    "selected": "selected members",
    "stage on both, class-balanced": "stage on GoEmotions and XED, class-balanced",
    "stage on both, joined to essay length": "stage on GoEmotions and XED, joined to essay length",
}
ONE_MODEL = "all ingredients, one model"


HEADER = ["", "macro F1", "difference", "p"]
RULES = ("hard vote", "soft vote", "weighted", "selected")
# The submissions, by their JSON file: the fusion whose table holds the cross-validated scores, and for each file what
# the model is and its row in that table, if it has one.
SUBMITTED = {
    "wassa2022/submission.json": (
        "base",
        {
            "predictions_EMO.tsv": ("both sizes: ensemble", "selected"),
            "predictions_EMO_single.tsv": ("MPNet alone", "MPNet"),
            "predictions_EMO_student.tsv": ("MiniLM, student of that ensemble", None),
        },
    ),
    "wassa2022/minilm.json": (
        "wassa2022",
        {
            "predictions_EMO.tsv": ("MiniLM: ensemble", "selected"),
            "predictions_EMO_single.tsv": ("MiniLM alone", "class-balanced stage"),
            "predictions_EMO_student.tsv": ("MiniLM, student of that ensemble", "student"),
        },
    ),
}


def blocks(folder: Path) -> dict[str, list[str]]:
    """Return the lines of each block, from the JSON files in a folder like results/."""
    compared, fused = read(folder, "compare/*/comparison.json"), read(folder, "fuse/*/fusion.json")
    submissions = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in SUBMITTED}
    ensemble = fused["wassa2022"]
    made = {
        "ablation": ablation(compared["ablation"]),
        "ensemble": scores(
            row for row in ensemble["against_the_ensemble"] if row["name"].startswith(("the ensemble", "without "))
        ),
        "ingredients": ingredients(compared, ensemble),
        "single": scores(compared["single"]["variants"]),
        "bagging": bagging(fused["wassa2022_candidates"]),
        "base": scores(compared["base"]["variants"]),
        "sizes": sizes(compared["base_folds"], small=fused["wassa2022"], both=fused["base"]),
        "probe": probe(json.loads((folder / "probe.json").read_text(encoding="utf-8"))),
        "dev": dev(json.loads((folder / "wassa2022-minilm.json").read_text(encoding="utf-8"))),
        "quickstart": quickstart(json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))),
        "baselines": baselines(compared["baselines"]),
        "submission": submission_table(fused, submissions),
        "fusions": [line for name, content in fused.items() for line in one_fusion(name, content)],
    }
    if (benchmark := folder / "go_emotions.json").exists():
        made["go_emotions"] = go_emotions(json.loads(benchmark.read_text(encoding="utf-8")))
    return made


def baselines(content: dict) -> list[str]:
    """Return the table of the baselines, and the command that made it."""
    return [*scores(content["variants"]), "", f"{shown(content['command'])}, seed {listed(content['seeds'])}"]


def comparisons(folder: Path) -> dict[str, list[str]]:
    """Return the block of docs/comparisons.md: what `run_compare.py` writes for each comparison, without row ids."""
    lines = []
    for name, content in read(folder, "compare/*/comparison.json").items():
        variants = [row | {"name": in_full(row["name"])} for row in content["variants"]]
        command = shown(content["command"]).strip("`")
        page = comparison_page(content | {"name": name, "variants": variants, "command": command})
        page = page.replace("\n![macro F1 and differences](comparison.png)\n", "")
        page += errors_section(content["errors"] | {"of": in_full(content["errors"]["of"])}, ids=False)
        lines += [*re.sub(r"^#", "##", page, flags=re.MULTILINE).splitlines(), ""]
    return {"comparisons": lines}


def plots(folder: Path, target: Path) -> dict[Path, str]:
    """Return the plot of the ablation as SVG, by its file in the folder `target`."""
    variants = read(folder, "compare/ablation/comparison.json")["ablation"]["variants"]
    with matplotlib.rc_context(SVG), drawn_as_text([row["name"] for row in variants]) as names:
        return {target / "ablation.svg": svg(draw_comparison(variants, names))}


def read(folder: Path, pattern: str) -> dict[str, dict]:
    """Return the content of the JSON files that fit a pattern, by the names of their folders."""
    paths = sorted(folder.glob(pattern))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def scores(rows: Iterable[dict]) -> list[str]:
    """Return a table of macro F1 and its difference to the first row."""
    return table(HEADER, [score_cells(row | {"name": in_full(row["name"])}) for row in rows])


def in_full(name: str) -> str:
    """Return a variant's name as somebody reads it who has not seen the recipe."""
    return re.sub(r"(?<!\d)(\.\d)", r"0\1", IN_FULL.get(name, name))


def ablation(content: dict) -> list[str]:
    """Return the paper's Table 3 next to ours, on a single model."""
    ours = {row["name"]: row for row in content["variants"]}
    rows = [["nothing", f"{PAPER:.3f}", "", *score_cells(ours["all ingredients, late fusion"])[1:]]]
    for ingredient, without in PAPER_WITHOUT.items():
        row = ours[ONE_MODEL if ingredient == "late fusion" else f"without {ingredient}"]
        rows.append([ingredient, f"{without:.3f}", f"{without - PAPER:+.3f}", *score_cells(row)[1:]])
    return [
        *table(["without", "paper", "difference", "ours", "difference", "p"], rows),
        "",
        f"Ours: {shown(content['command'])}, seeds {listed(content['seeds'])} ([more](comparisons.md#ablation)).",
    ]


def ingredients(compared: dict[str, dict], ensemble: dict) -> list[str]:
    """Return a table of what each ingredient adds to plain fine-tuning."""
    lines = []
    for ingredient, without in PAPER_WITHOUT.items():
        rows = [
            (row | {"name": names[row["name"]]}, listed(compared[folder]["seeds"]))
            for folder, names in ADDED.get(ingredient, {}).items()
            for row in compared[folder]["variants"]
            if row["name"] in names
        ]
        if ingredient == "late fusion":
            rows = [(row, "1") for row in ensemble["variants"] if row["name"] in RULES]
        first = [ingredient, f"{PAPER - without:+.3f}"]
        for row, seeds in rows:
            lines.append([*first, row["name"], *score_cells(row)[2:], seeds])
            first = ["", ""]
    return table(["ingredient", "paper's gain", "our variant", "our gain", "p", "seeds"], lines)


def listed(seeds: list[int]) -> str:
    """Return seeds as text."""
    return ", ".join(map(str, seeds))


def bagging(candidates: dict) -> list[str]:
    """Return the soft votes of the same two members, bagged and not bagged."""
    rows = [row for row in candidates["variants"] if row["name"].startswith("soft vote, ") and "bagged" in row["name"]]
    return table(["", "macro F1"], [score_cells(row)[:2] for row in rows])


def sizes(compared: dict, small: dict, both: dict) -> list[str]:
    """Return MiniLM and MPNet side by side: one model of each, their sum, and the ensembles."""
    one = {row["name"]: score_cells(row)[1] for row in compared["variants"]}
    selected = [
        next(score_cells(row)[1] for row in fusion["variants"] if row["name"] == "selected") for fusion in (small, both)
    ]
    rows = [
        ["one model after the stage", one["MiniLM"], one["MPNet"], f"{one['both sizes summed']}, summed"],
        ["late fusion, selected members", selected[0], "", selected[1]],
    ]
    return table(["macro F1", "MiniLM, 22M", "MPNet, 110M", "both sizes"], rows)


def probe(content: dict) -> list[str]:
    """Return the scores of logistic regression on the frozen vectors of each checkpoint."""
    return [*scores(content["models"]), "", shown(content["command"])]


def dev(content: dict) -> list[str]:
    """Return the seven figures of each seed on the dev rows, and their mean and spread."""
    rows = []
    for run in content["runs"]:
        figures = run["figures"]
        between = f"{figures['macro_f1_low']:.3f} to {figures['macro_f1_high']:.3f}"
        rows.append([f"seed {run['seed']}", *(f"{figures[name]:.3f}" for name in SEVEN_FIGURES), between])
    over = [content["over_runs"][name] for name in SEVEN_FIGURES]
    rows.append(
        ["mean ± standard deviation", *(f"{row['mean']:.3f} ± {row['standard_deviation']:.3f}" for row in over), ""]
    )
    return table(
        ["", *(name.replace("_", " ").replace("f1", "F1") for name in SEVEN_FIGURES), "95% interval of macro F1"], rows
    )


def quickstart(content: dict) -> list[str]:
    """Return every test set of the quick start's run that was also tested on WASSA's training essays."""
    (run,) = (run for run in content["runs"] if "wassa2022" in run["extra_tests"])
    sets = {"held-out rows": run["figures"] | {"rows": run["rows"], "tfidf_macro_f1": run["tfidf"]["macro_f1"]}}
    rows = []
    for name, row in (sets | run["extra_tests"]).items():
        cells = [name.replace("_", " "), f"{row['rows']:,}", f"{row['accuracy']:.1%}", f"{row['macro_f1']:.3f}"]
        rows.append(
            [*cells, f"{row['macro_f1_low']:.3f} to {row['macro_f1_high']:.3f}", f"{row['tfidf_macro_f1']:.3f}"]
        )
    header = ["test set", "rows", "right", "macro F1", "95% interval", "macro F1 of TF-IDF"]
    return [*table(header, rows), "", shown(run["command"])]


def go_emotions(content: dict) -> list[str]:
    """Return the published scores on GoEmotions' test rows next to ours, at one half and at tuned thresholds."""
    rows = [["BERT, Demszky et al. 2020", f"{GO_EMOTIONS['macro_f1']:.2f}", ""]]
    rows[0] += ["", *(f"{GO_EMOTIONS[name]:.2f}" for name in ("macro_precision", "macro_recall"))]
    for run in content["runs"]:
        for figures, where in ((run["figures"], "threshold 0.5"), (run["tuned"], "tuned thresholds")):
            between = f"{figures['macro_f1_low']:.3f} to {figures['macro_f1_high']:.3f}"
            others = (f"{figures[name]:.3f}" for name in ("micro_f1", "macro_precision", "macro_recall"))
            rows.append([f"MiniLM, seed {run['seed']}, {where}", f"{figures['macro_f1']:.3f}", between, *others])
    run = content["runs"][0]
    header = ["", "macro F1", "95% interval", "micro F1", "macro precision", "macro recall"]
    told = (
        f"{shown(run['command'])}, {run['rows']:,} test rows, {run['train_minutes']:.0f} minutes on {run['hardware']}"
    )
    return [*table(header, rows), "", told]


def submission_table(fused: dict, submissions: dict) -> list[str]:
    """Return a table of the submitted files, with the scores of the models that made them."""
    rows, made = [], []
    for path, (fusion, files) in SUBMITTED.items():
        command, commit = (submissions[path][key] for key in ("command", "commit"))
        cross_validated = {row["name"]: row for row in fused[fusion]["variants"]}
        for file, (name, row) in files.items():
            content = submissions[path]["files"][file]
            lines = path if "labels" in content else f"wassa2022/{file}"
            dev = content["validation"]
            rows.append(
                [
                    name,
                    "" if row is None else score_cells(cross_validated[row])[1],
                    f"{dev['macro_f1']:.3f} ({dev['macro_f1_low']:.3f} to {dev['macro_f1_high']:.3f})"
                    if dev
                    else "trained on dev",
                    f"[{file}](../results/{lines}), {content['rows']} lines",
                ]
            )
        made += ["", f"[`results/{path}`](../results/{path}): made by {shown(command)} at commit {commit[:7]}."]
        if "again" in submissions[path]:
            made += ["", *again_table(submissions[path], {file: name for file, (name, _) in files.items()})]
    return [*table(["", "cross-validated macro F1", "dev macro F1", "test predictions"], rows), *made]


def again_table(first: dict, names: dict[str, str]) -> list[str]:
    """Return what another run of a submission's recipe gave, next to the first."""
    again = first["again"]
    minutes = sum(stage["minutes"] for stage in again["stages"].values())
    machines = " and ".join(dict.fromkeys(stage["machine"] for stage in again["stages"].values()))
    rows = []
    for file, name in names.items():
        scores = [f"{run['files'][file]['validation']['macro_f1']:.3f}" for run in (first, again)]
        rows.append([name, *scores, f"{again['files'][file]['lines_as_before']} of {first['files'][file]['rows']}"])
    return [
        f"The same recipe again, from nothing, at commit {again['commit'][:7]}: {minutes:.0f} minutes on {machines}. "
        f"{again['note']}",
        "",
        *table(["", "dev macro F1, first run", "this run", "equal test predictions"], rows),
    ]


def one_fusion(name: str, content: dict) -> list[str]:
    """Return a fusion's heading, command and tables."""
    before, after = (content["calibration"][when] for when in ("before", "after"))
    apart = [share for row, shares in enumerate(content["disagreement"]) for share in shares[:row]]
    return [
        f"### {name}\n",
        f"{shown(content['command'])}, {content['rows']:,} {content['scored_on']} differences to the first member "
        f"([figures](../results/fuse/{name}/fusion.json))\n",
        f"The folder keeps the rule `{content['fusion']}`. Its expected calibration error is "
        f"{before['expected_calibration_error']:.3f} (Brier score {before['brier_score']:.3f}). With a temperature "
        f"fitted on other writers, it is {after['expected_calibration_error']:.3f} ({after['brier_score']:.3f}). Any "
        f"two members disagree on {min(apart):.0%} to {max(apart):.0%} of the rows.\n",
        *scores(content["variants"]),
        "\nAgainst the ensemble:\n",
        *scores(content["against_the_ensemble"]),
        "",
    ]
