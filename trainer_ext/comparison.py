"""Tables of several systems on the same rows, and where one of them errs; JSON first, pages from it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .metrics import SEVEN_FIGURES, EmotionMetric
from .significance import GroupCounts, draw_groups, holm, interval, paired_difference, randomization_test

FEWEST_ROWS = 20  # of a subgroup whose macro F1 is worth a line


def decide(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Class ids `(..., rows)`, or 0/1 `(..., rows, labels)` where a row may have several."""
    return (probabilities > 0.5).astype(int) if multi_label else probabilities.argmax(axis=-1)


def compare(
    systems: dict[str, np.ndarray],
    gold: np.ndarray,
    groups: Sequence[str] | None,
    label_names: Sequence[str],
) -> list[dict]:
    """Macro F1 of each system, and its difference to the first.

    Args:
        systems: By name, probabilities `(seeds, rows, labels)`.
        gold: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
        groups: The writer of each row; rows are taken to be independent if not given.
        label_names: In the order of the columns.

    Returns:
        For each system its figures, as means over seeds: macro F1 with 95% interval and by seed; the difference to
        the first with interval, p-value and Holm's correction of it; the seven figures; F1 of each label.
    """
    multi_label = gold.ndim == 2
    metric = EmotionMetric(label_names, multi_label=multi_label)
    rows, counts = [], []
    for name, probabilities in systems.items():
        decisions = decide(probabilities, multi_label)
        scores = [metric.compute(predictions=of_seed, references=gold) for of_seed in decisions]
        counts.append(GroupCounts(gold, decisions, groups, len(label_names)))
        rows.append(
            {
                "name": name,
                "macro_f1": _mean(scores, "macro_f1"),
                "interval": interval(counts[-1].macro_f1(draw_groups(len(counts[-1])))),
                "macro_f1_by_seed": [score["macro_f1"] for score in scores],
                "figures": {figure: _mean(scores, figure) for figure in SEVEN_FIGURES},
                "f1": {label: _mean(scores, f"f1_{label}") for label in label_names},
            }
        )
    for row, of_system in zip(rows[1:], counts[1:], strict=True):
        found, ends = paired_difference(counts[0], of_system)
        by_seed = np.subtract(row["macro_f1_by_seed"], rows[0]["macro_f1_by_seed"]).tolist()
        p = randomization_test(counts[0], of_system)
        row["difference"] = {"macro_f1": found, "interval": ends, "by_seed": by_seed, "p": p}
    for row, p in zip(rows[1:], holm([row["difference"]["p"] for row in rows[1:]]), strict=True):
        row["difference"]["p_holm"] = p
    return rows


def _mean(scores: list[dict], name: str) -> float:
    """Over the seeds; a label that neither stands in gold nor is predicted has no F1."""
    values = [score[name] for score in scores if name in score]
    return float(np.mean(values)) if values else float("nan")


def analyse_errors(
    systems: dict[str, np.ndarray],
    of: str,
    gold: np.ndarray,
    groups: Sequence[str] | None,
    label_names: Sequence[str],
    ids: Sequence[str],
    columns: dict[str, Sequence[str]],
    rows_shown: int = 20,
) -> dict:
    """Where the system `of` errs, and which rows all systems contest.

    Args:
        systems, gold, groups, label_names: As [`compare`]; the contested rows are those of all systems and seeds.
        ids: Of the rows.
        columns: By name, a value for each row; numbers with many values are taken by quarters.

    Returns:
        `confusions` (gold and predicted label, count over the seeds, ids of the rows, most often confused first),
        `contested` (rows whose gold label the models find least probable) and `columns` (macro F1 of each value).
        Where a row may have several labels, only `columns`.
    """
    multi_label = gold.ndim == 2
    decisions = decide(systems[of], multi_label)
    found: dict = {"of": of, "models": sum(len(each) for each in systems.values()), "columns": {}}
    for name, values in columns.items():
        found["columns"][name] = _by_value(banded(values), gold, decisions, groups, len(label_names))
    if multi_label:
        return found
    wrong: Counter[tuple[int, int]] = Counter()
    rows_of: dict[tuple[int, int], Counter[str]] = {}
    for of_seed in decisions:
        for index in np.flatnonzero(of_seed != gold):
            pair = (int(gold[index]), int(of_seed[index]))
            wrong[pair] += 1
            rows_of.setdefault(pair, Counter())[ids[index]] += 1
    found["confusions"] = [
        {
            "gold": label_names[pair[0]],
            "predicted": label_names[pair[1]],
            "share_of_gold": count / (len(decisions) * int((gold == pair[0]).sum())),
            "rows": [row for row, _ in rows_of[pair].most_common(rows_shown)],
            "number_of_rows": len(rows_of[pair]),
        }
        for pair, count in wrong.most_common(10)
    ]
    every = np.concatenate(list(systems.values()))  # (models, rows, labels)
    mean = every.mean(axis=0)
    of_gold = mean[np.arange(len(gold)), gold]
    found["contested"] = [
        {
            "id": ids[index],
            "gold": label_names[gold[index]],
            "probability_of_gold": float(of_gold[index]),
            "models_say": label_names[mean[index].argmax()],
            "probability": float(mean[index].max()),
            "share_of_models": float((every[:, index].argmax(axis=1) == mean[index].argmax()).mean()),
        }
        for index in np.argsort(of_gold, kind="stable")[:rows_shown]
    ]
    return found


def banded(values: Sequence[str]) -> list[str]:
    """The values; numbers with more than 8 different ones by quarters of the rows."""
    try:
        numbers = np.array([float(value) if value.strip() else np.nan for value in values])
    except ValueError:
        return list(values)
    if len(set(numbers[~np.isnan(numbers)])) <= 8:
        return ["" if np.isnan(number) else f"{number:g}" for number in numbers]
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    position = np.searchsorted(edges, numbers, side="right").clip(1, len(edges) - 1)
    return [
        "" if np.isnan(number) else f"{edges[at - 1]:g} to {edges[at]:g}"
        for number, at in zip(numbers, position, strict=True)
    ]


def _by_value(values, gold, decisions, groups, number_of_labels: int) -> list[dict]:
    """Rows, and macro F1 with interval where there are enough of them, of each value."""
    table = []
    values = np.asarray(values)
    groups = None if groups is None else np.asarray(groups)
    for value in sorted(set(values.tolist()), key=_numeric_first):
        here = values == value
        row = {"value": value, "rows": int(here.sum())}
        if groups is not None:
            row["groups"] = len(set(groups[here]))
        if row["rows"] >= FEWEST_ROWS:
            counts = GroupCounts(
                gold[here], decisions[:, here], None if groups is None else groups[here], number_of_labels
            )
            row["macro_f1"] = float(counts.macro_f1()[0])
            row["interval"] = interval(counts.macro_f1(draw_groups(len(counts))))
        table.append(row)
    return table


def _numeric_first(value: str) -> tuple:
    try:
        return (0, float(value.split(" to ")[0]), value)
    except ValueError:
        return (1, 0.0, value)


# ---- Pages --------------------------------------------------------------------------------------------------------


def score_cells(row: dict) -> list[str]:
    """Of a row of [`compare`]: name, macro F1 and difference with their intervals, p; the first has no difference."""
    low, high = row["interval"]
    cells = [row["name"], f"{row['macro_f1']:.3f} ({low:.3f} to {high:.3f})", "", ""]
    if "difference" in row:
        found = row["difference"]
        low, high = found["interval"]
        p = found["p_holm"]
        cells[2:] = [f"{found['macro_f1']:+.3f} ({low:+.3f} to {high:+.3f})", f"{p:.3f}" if p >= 0.0005 else "<0.001"]
    return cells


def comparison_page(content: dict) -> str:
    """The comparison as Markdown, from its JSON."""
    seeds = ", ".join(map(str, content["seeds"]))
    scored = f"{content['folds']}-fold cross-validation" if content["folds"] else "the validation split"
    drawn = f"{content['groups']} writers" if content["grouped"] else "rows"
    lines = [
        f"# {content['name']}\n",
        f"{content['rows']} rows of {content['source']}, {scored}, seed{'s' * (len(content['seeds']) > 1)} {seeds}. "
        f"Macro F1 with 95% intervals, {drawn} resampled; the difference is to the first line, paired; p from a "
        f"randomization test, Holm-corrected over {max(1, len(content['variants']) - 1)} comparisons. Intervals and p "
        "are about these trained models: what another seed would change is not in them. The training loss is the last "
        "one logged: how far a training got on its own rows.\n",
        f"`{content['command']}`\n",
        "| | macro F1 | difference | p (Holm) | over seeds | micro F1 | training loss | minutes a training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["variants"]:
        cells = score_cells(row)
        values = row["macro_f1_by_seed"]
        cells.append(f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "")
        loss, minutes = row["last_training_loss"], row["minutes_a_training"]
        cells += [f"{row['figures']['micro_f1']:.3f}", "" if loss is None else f"{loss:.2f}"]
        cells.append("" if minutes is None else f"{minutes:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    labels = content["labels"]
    lines += ["", "F1 of each class:\n", f"| | {' | '.join(labels)} |", f"|---{'|---' * len(labels)}|"]
    for row in content["variants"]:
        lines.append(f"| {row['name']} | {' | '.join(f'{value:.3f}' for value in row['f1'].values())} |")
    lines += ["", f"Measured on {content['machine']}.", "", "![macro F1 and differences](comparison.png)", ""]
    return "\n".join(lines)


def errors_page(content: dict) -> str:
    """The error analysis as Markdown, from its JSON: ids and figures, no text."""
    lines = [f"# Errors of {content['of']}\n"]
    if "confusions" in content:
        lines += ["## Most frequent confusions\n", "| gold | predicted | of gold | rows | their ids |"]
        lines.append("|---|---|---|---|---|")
        for row in content["confusions"]:
            more = row["number_of_rows"] - len(row["rows"])
            shown = ", ".join(row["rows"]) + (f" and {more} more" if more else "")
            cells = [row["gold"], row["predicted"], f"{row['share_of_gold']:.0%}", str(row["number_of_rows"]), shown]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            "",
            "## Most contested rows\n",
            f"Rows whose gold label all {content['models']} models together find least probable: errors of theirs, or "
            "of the annotation.\n",
            "| id | gold | probability | models say | probability | of the models |",
            "|---|---|---|---|---|---|",
        ]
        for row in content["contested"]:
            lines.append(
                f"| {row['id']} | {row['gold']} | {row['probability_of_gold']:.3f} | {row['models_say']} "
                f"| {row['probability']:.3f} | {row['share_of_models']:.0%} |"
            )
        lines.append("")
    for name, rows in content["columns"].items():
        grouped = "groups" in rows[0]
        lines += [f"## By {name}\n", f"| {name} | rows |{' writers |' * grouped} macro F1 |"]
        lines.append(f"|---|---|{'---|' * grouped}---|")
        for row in rows:
            score = f"fewer than {FEWEST_ROWS} rows"
            if "macro_f1" in row:
                score = f"{row['macro_f1']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"
            writers = f" {row['groups']} |" if grouped else ""
            lines.append(f"| {row['value'] or '(empty)'} | {row['rows']} |{writers} {score} |")
        lines.append("")
    return "\n".join(lines)
