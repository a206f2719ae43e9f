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


RULES = ("hard vote", "soft vote", "weighted", "selected")


def read(pattern: str) -> dict[str, dict]:
    """The JSON files of results/ that fit, by their folders' names."""
    paths = sorted((ROOT / "results").glob(pattern))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def comparisons() -> dict[str, dict]:
    """What run_compare.py wrote."""
    return read("compare/*/comparison.json")


def fusions() -> dict[str, dict]:
    """What run_fuse.py wrote: fusion.json and the plots, copied from the ensemble's folder."""
    return read("fuse/*/fusion.json")


def page(found: dict[str, dict], fused: dict[str, dict]) -> str:
    """docs/results.md."""
    lines = [
        "# Results\n",
        "Written by `python results/page.py` from the JSON files in `results/`; do not edit. The paper's figures are "
        "of DeBERTa-v2-xxlarge (1.5B parameters) on WASSA 2022's test set; ours of MiniLM (22M) by writer-grouped "
        "cross-validation over the 1,860 training essays, so the levels cannot be compared, only what an ingredient "
        "brings. Intervals (95%) and p (Holm-corrected within a comparison) are about the trained models at hand; one "
        "seed says little about another.\n",
        "## What each ingredient brings\n",
        f"The paper: macro F1 {PAPER:.3f} less that without the ingredient. Ours: plain fine-tuning with the "
        "ingredient less without; of late fusion, the ensemble less its best member.\n",
        "| ingredient | paper | ours | brings | p | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for ingredient, without in PAPER_WITHOUT.items():
        brings = f"{PAPER - without:+.3f}"
        if ingredient == "late fusion" and fused:
            for row in fused["wassa2022"]["variants"]:
                if row["name"] in RULES:
                    lines.append(f"| {' | '.join([ingredient, brings, row['name'], *score_cells(row)[2:], '1'])} |")
                    ingredient = brings = ""
            continue
        rows = [
            (row, ", ".join(map(str, found[folder]["seeds"])))
            for folder, names in ADDED.get(ingredient, {}).items()
            for row in found.get(folder, {"variants": []})["variants"]
            if row["name"] in names
        ]
        if not rows:
            lines.append(f"| {ingredient} | {brings} | not measured yet | | | |")
        for row, seeds in rows:
            cells = [ingredient, brings, row["name"], *score_cells(row)[2:], seeds]
            lines.append(f"| {' | '.join(cells)} |")
            ingredient = brings = ""
    lines += ["", "## Every comparison\n"]
    for folder, content in found.items():
        lines += [
            f"### {folder}\n",
            f"`{content['command']}`, {content['rows']:,} rows, {content['folds']} folds "
            f"([table, plot](../results/compare/{folder}/comparison.md), "
            f"[errors](../results/compare/{folder}/errors.md))\n",
            "| | macro F1 | difference | p |",
            "|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(score_cells(row))} |" for row in content["variants"]]
        lines.append("")
    if fused:
        lines.append("## Every fusion\n")
    for folder, content in fused.items():
        before, after = (content["calibration"][when]["expected_calibration_error"] for when in ("before", "after"))
        lines += [
            f"### {folder}\n",
            f"`{content['command']}`, {content['rows']:,} {content['scored_on']} differences to the first member "
            f"([figures](../results/fuse/{folder}/fusion.json), [plot](../results/fuse/{folder}/fusion.png)). The "
            f"folder keeps the rule `{content['fusion']}`; its expected calibration error is {before:.3f}, with a "
            f"temperature fitted on other writers {after:.3f} "
            f"([reliability](../results/fuse/{folder}/reliability.png)).\n",
            "| | macro F1 | difference | p |",
            "|---|---|---|---|",
            *(f"| {' | '.join(score_cells(row))} |" for row in content["variants"]),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    (ROOT / "docs" / "results.md").write_text(page(comparisons(), fusions()), encoding="utf-8")


if __name__ == "__main__":
    main()
