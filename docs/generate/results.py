"""Write docs/results.md from the JSON files in results/: ours beside the paper's, ingredient by ingredient.

python docs/generate/results.py
"""

import argparse
import json
from pathlib import Path

from trainer_ext.comparison import score_cells

ROOT = Path(__file__).resolve().parents[2]
# Li et al. 2022, Tables 1 and 3: macro F1 on WASSA 2022's test set.
PAPER = 0.698
PAPER_WITHOUT = {
    "continued pre-training": 0.639,
    "supervised transfer": 0.652,
    "Child-Tuning": 0.656,
    "late fusion": 0.664,
    "pre-trained weights": 0.254,
}
# Where the ingredient was added: comparisons' folders, the variants that have it, and what to call them here.
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
        "child_tuning_seeds": {"F, p .5": "F, p .5", "D, p .3": "D, p .3"},
        "single": {"Child-Tuning F": "F, p .5, after a stage on GoEmotions and XED"},
    },
}
ONE_MODEL = "all ingredients, one model"


TABLE = ("| | macro F1 | difference | p |", "|---|---|---|---|")
RULES = ("hard vote", "soft vote", "weighted", "selected")
# What was submitted: the row of the fusion's table that the model's recipe was measured by.
SUBMITTED = {
    "predictions_EMO.tsv": ("ensemble", "selected"),
    "predictions_EMO_single.tsv": ("single model", "class-balanced stage"),
    "predictions_EMO_student.tsv": ("student", "student"),
}


def read(pattern: str) -> dict[str, dict]:
    """The JSON files of results/ that fit, by their folders' names."""
    paths = sorted((ROOT / "results").glob(pattern))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def comparisons() -> dict[str, dict]:
    """What run_compare.py wrote."""
    return read("compare/*/comparison.json")


def fusions() -> dict[str, dict]:
    """What run_fuse.py wrote."""
    return read("fuse/*/fusion.json")


def submission() -> dict:
    """What run_reproduce.py wrote."""
    return read("wassa2022/submission.json")["wassa2022"]


def page(found: dict[str, dict], fused: dict[str, dict], submitted: dict) -> str:
    """docs/results.md."""
    lines = [
        "# Results\n",
        "Written by `python docs/generate/results.py` from the JSON files in `results/`; do not edit. The paper's "
        "figures are of DeBERTa-v2-xxlarge (1.5B parameters) on WASSA 2022's test set; ours of MiniLM (22M) by "
        "writer-grouped cross-validation over the 1,860 training essays, so the levels cannot be compared, only what"
        " an ingredient brings. Intervals (95%) and p (Holm-corrected within a comparison) are about the trained "
        "models at hand; one seed says little about another.\n",
        *without_each(found["ablation"]),
        *left_out(fused["wassa2022"]),
        *added(found, fused["wassa2022"]),
        *tried(found["single"], fused["wassa2022_candidates"]),
        *full_recipe(fused["wassa2022"], submitted),
        "## Every comparison\n",
        *(line for folder, content in found.items() for line in one_comparison(folder, content)),
        "## Every fusion\n",
        *(line for folder, content in fused.items() for line in one_fusion(folder, content)),
    ]
    return "\n".join(lines)


def added(found: dict[str, dict], ensemble: dict) -> list[str]:
    """What each ingredient brings to plain fine-tuning."""
    lines = [
        "## What each ingredient brings\n",
        f"The paper: macro F1 {PAPER:.3f} less that without the ingredient. Ours: fine-tuning with the ingredient less "
        "that without, nothing else added but what the row says; of late fusion, the ensemble less the first of its "
        "members.\n",
        "| ingredient | paper | ours | brings | p | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for ingredient, without in PAPER_WITHOUT.items():
        rows = [
            (row | {"name": names[row["name"]]}, ", ".join(map(str, found[folder]["seeds"])))
            for folder, names in ADDED.get(ingredient, {}).items()
            for row in found[folder]["variants"]
            if row["name"] in names
        ]
        if ingredient == "late fusion":
            rows = [(row, "1") for row in ensemble["variants"] if row["name"] in RULES]
        first = [ingredient, f"{PAPER - without:+.3f}"]
        for row, seeds in rows:
            lines.append(f"| {' | '.join([*first, row['name'], *score_cells(row)[2:], seeds])} |")
            first = ["", ""]
    return [*lines, ""]


def without_each(content: dict) -> list[str]:
    """The paper's Table 3 on a single model."""
    table = {row["name"]: row for row in content["variants"]}
    lines = [
        "## Without each ingredient\n",
        f"The paper's Table 3, and the same on one MiniLM over {len(content['seeds'])} seeds: continued pre-training, "
        "a stage of supervised transfer, then fine-tuning under Child-Tuning; differences to that model. The paper's "
        "first line has late fusion, too, which here is the summed vote of the seeds "
        f"(`{content['command']}`, [table, plot](../results/compare/ablation/comparison.md)).\n",
        "| without | paper | difference | ours | difference | p |",
        "|---|---|---|---|---|---|",
        f"| nothing | {PAPER:.3f} | | {score_cells(table['all ingredients, late fusion'])[1]} | | |",
    ]
    for ingredient, without in PAPER_WITHOUT.items():
        row = table[ONE_MODEL if ingredient == "late fusion" else f"without {ingredient}"]
        cells = [ingredient, f"{without:.3f}", f"{without - PAPER:+.3f}", *score_cells(row)[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    fused = table["all ingredients, late fusion"]
    low, high = fused["difference"]["interval"]
    return [
        *lines,
        "",
        f"The line without late fusion is the model that the others are compared with; late fusion brings it "
        f"{fused['difference']['macro_f1']:+.3f} ({low:+.3f} to {high:+.3f}). The paper and this agree on pre-trained "
        "weights, on supervised transfer and on Child-Tuning, which here loses by itself and gains after a stage of "
        "transfer (below). They do not on continued pre-training: on MiniLM it brings nothing.\n",
    ]


def left_out(ensemble: dict) -> list[str]:
    """What is left of the ensemble without an ingredient."""
    lines = [
        "## The ensemble without an ingredient\n",
        "The ensemble of `recipes/fuse/wassa2022.yaml` by cross-validation, and what is left of it without the members "
        "that use an ingredient, its rule fitted anew; without late fusion, its first member.\n",
        *TABLE,
    ]
    rows = [row for row in ensemble["against_the_ensemble"] if row["name"].startswith(("the ensemble", "without "))]
    return [*lines, *(f"| {' | '.join(score_cells(row))} |" for row in rows), ""]


def tried(single: dict, candidates: dict) -> list[str]:
    """What was tried to push the score."""
    bagged = [
        row for row in candidates["variants"] if row["name"].startswith("soft vote, ") and "bagged" in row["name"]
    ]
    shown = "; ".join(f"{row['name'].removeprefix('soft vote, ')}: {row['macro_f1']:.3f}" for row in bagged)
    return [
        "## What was tried to push the score\n",
        "On top of the stage on GoEmotions and XED, one seed:\n",
        *TABLE,
        *(f"| {' | '.join(score_cells(row))} |" for row in single["variants"]),
        "",
        "None of them differs from the stage by more than chance explains. Kept: the class-balanced stage, the best "
        "here and over three seeds, in the single model; XED after GoEmotions, the single layer, [CLS] and "
        "Child-Tuning as members that differ. Left out of the ensemble, for the list of members without them had the "
        "highest cross-validated figure of about ten lists (what lists differ by was not tested): smoothed labels, "
        "weighted classes, Balanced Augmentation after the stage, what has no stage, and bagging (soft vote of "
        f"{shown}). Distillation: the student, below. Not tried: layer-wise learning rates, averaged weights, final "
        "members that saw dev.\n",
    ]


def full_recipe(ensemble: dict, submitted: dict) -> list[str]:
    """What was submitted, and how good its models are."""
    lines = [
        "## The full recipe\n",
        f"`{submitted['command']}` at commit {submitted['commit'][:7]}, made before its predictions. The "
        "cross-validated figure is a selection score: the same rows chose the recipe. Dev's rows chose nothing, and "
        "no model was trained on them; the test set's labels are not public, so its figure is not known.\n",
        "| | cross-validated macro F1 | dev macro F1 | test predictions |",
        "|---|---|---|---|",
    ]
    table = {row["name"]: row for row in ensemble["variants"]}
    for file, content in submitted["files"].items():
        name, row = SUBMITTED[file]
        dev = content["validation"]
        lines.append(
            f"| {name} | {score_cells(table[row])[1]} | {dev['macro_f1']:.3f} ({dev['macro_f1_low']:.3f} to "
            f"{dev['macro_f1_high']:.3f}) | [{file}](../results/wassa2022/{file}), {content['rows']} lines |"
        )
    return [*lines, ""]


def one_comparison(folder: str, content: dict) -> list[str]:
    """A comparison's table."""
    return [
        f"### {folder}\n",
        f"`{content['command']}`, {content['rows']:,} rows, {content['folds']} folds "
        f"([table, plot](../results/compare/{folder}/comparison.md), "
        f"[errors](../results/compare/{folder}/errors.md))\n",
        *TABLE,
        *(f"| {' | '.join(score_cells(row))} |" for row in content["variants"]),
        "",
    ]


def one_fusion(folder: str, content: dict) -> list[str]:
    """A fusion's table."""
    before, after = (content["calibration"][when]["expected_calibration_error"] for when in ("before", "after"))
    return [
        f"### {folder}\n",
        f"`{content['command']}`, {content['rows']:,} {content['scored_on']} differences to the first member "
        f"([figures](../results/fuse/{folder}/fusion.json), [plot](../results/fuse/{folder}/fusion.png)). The "
        f"folder keeps the rule `{content['fusion']}`; its expected calibration error is {before:.3f}, with a "
        f"temperature fitted on other writers {after:.3f} "
        f"([reliability](../results/fuse/{folder}/reliability.png)).\n",
        *TABLE,
        *(f"| {' | '.join(score_cells(row))} |" for row in content["variants"]),
        "\nAgainst the ensemble:\n",
        *TABLE,
        *(f"| {' | '.join(score_cells(row))} |" for row in content["against_the_ensemble"]),
        "",
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    (ROOT / "docs" / "results.md").write_text(page(comparisons(), fusions(), submission()), encoding="utf-8")


if __name__ == "__main__":
    main()
