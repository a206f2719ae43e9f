"""Write docs/results.md from the JSON files of this folder: ours beside the paper's, ingredient by ingredient.

python results/page.py
"""

import argparse
import json
from pathlib import Path

from trainer_ext.comparison import score_cells

ROOT = Path(__file__).resolve().parents[1]
# Li et al. 2022, Tables 1 and 3: macro F1 on WASSA 2022's test set.
PAPER = 0.698
PAPER_WITHOUT = {
    "continued pre-training": 0.639,
    "supervised transfer": 0.652,
    "Child-Tuning": 0.656,
    "late fusion": 0.664,
    "pre-trained weights": 0.254,
}
# Where the ingredient was added to plain fine-tuning: comparisons' folders, and the variants that have it.
ADDED = {
    "continued pre-training": {"mlm": ["continued pre-training"]},
    "supervised transfer": {
        "transfer": [
            "stage on GoEmotions", "stage on GoEmotions and XED", "stage on both, class-balanced", "RA", "BA, added"
        ]
    },
    "Child-Tuning": {"child_tuning_seeds": ["F, p .5", "D, p .3"], "child_tuning": ["F, p .3"]},
}  # fmt: skip


TABLE = ("| | macro F1 | difference | p |", "|---|---|---|---|")
RULES = ("hard vote", "soft vote", "weighted", "selected")
# What was submitted: the row of the fusion's table that the model's recipe was measured by.
SUBMITTED = {
    "predictions_EMO.tsv": ("ensemble", "selected"),
    "predictions_EMO_single.tsv": ("single model", "GoEmotions and XED"),
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
        "Written by `python results/page.py` from the JSON files in `results/`; do not edit. The paper's figures are "
        "of DeBERTa-v2-xxlarge (1.5B parameters) on WASSA 2022's test set; ours of MiniLM (22M) by writer-grouped "
        "cross-validation over the 1,860 training essays, so the levels cannot be compared, only what an ingredient "
        "brings. Intervals (95%) and p (Holm-corrected within a comparison) are about the trained models at hand; one "
        "seed says little about another.\n",
        *added(found, fused["wassa2022"]),
        *left_out(fused["wassa2022"]),
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
        f"The paper: macro F1 {PAPER:.3f} less that without the ingredient. Ours: plain fine-tuning with the "
        "ingredient less without; of late fusion, the ensemble less the first of its members.\n",
        "| ingredient | paper | ours | brings | p | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for ingredient, without in PAPER_WITHOUT.items():
        rows = [
            (row, ", ".join(map(str, found[folder]["seeds"])))
            for folder, names in ADDED.get(ingredient, {}).items()
            for row in found.get(folder, {"variants": []})["variants"]
            if row["name"] in names
        ]
        if ingredient == "late fusion":
            rows = [(row, "1") for row in ensemble["variants"] if row["name"] in RULES]
        first = [ingredient, f"{PAPER - without:+.3f}"]
        if not rows:
            lines.append(f"| {' | '.join([*first, 'not measured yet'])} | | | |")
        for row, seeds in rows:
            lines.append(f"| {' | '.join([*first, row['name'], *score_cells(row)[2:], seeds])} |")
            first = ["", ""]
    return [*lines, ""]


def left_out(ensemble: dict) -> list[str]:
    """What is left of the ensemble without an ingredient."""
    lines = [
        "## Without an ingredient\n",
        "The ensemble of `recipes/fuse/wassa2022.yaml` by cross-validation, and what is left of it without the members "
        "that use an ingredient, its rule fitted anew; without late fusion, its first member. The paper (Table 3) "
        "takes the ingredient out of every model.\n",
        "| without | paper | ours | difference | p |",
        "|---|---|---|---|---|",
    ]
    against = {row["name"]: row for row in ensemble["against_the_ensemble"]}
    lines.append(f"| nothing | {PAPER:.3f} | {score_cells(against['the ensemble'])[1]} | | |")
    for ingredient, without in PAPER_WITHOUT.items():
        ours = ["no member has it" if ingredient in ADDED else "not measured yet", "", ""]
        if f"without {ingredient}" in against:
            ours = score_cells(against[f"without {ingredient}"])[1:]
        lines.append(f"| {' | '.join([ingredient, f'{without:.3f}', *ours])} |")
    return [*lines, ""]


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
