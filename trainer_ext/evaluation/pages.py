"""Write a comparison, a search and an error analysis as Markdown pages."""

from ..escape import in_code, in_markdown, table
from .error_analysis import FEWEST_ROWS


# ---- Pages --------------------------------------------------------------------------------------------------------
def score_cells(row: dict) -> list[str]:
    """Return four table cells for a row of [`compare`]: name, macro F1, difference to the first system, and p-value.

    Macro F1 and the difference include their intervals. The first system's last two cells are empty.
    """
    low, high = row["interval"]
    cells = [row["name"], f"{row['macro_f1']:.3f} ({low:.3f} to {high:.3f})", "", ""]
    if "difference" in row:
        found = row["difference"]
        low, high = found["interval"]
        p = found["p_holm"]
        cells[2:] = [f"{found['macro_f1']:+.3f} ({low:+.3f} to {high:+.3f})", f"{p:.3f}" if p >= 0.0005 else "<0.001"]
    return cells


def comparison_page(content: dict) -> str:
    """Return the comparison as a Markdown page, from its JSON."""
    seeds = ", ".join(map(str, content["seeds"]))
    scored = f"{content['folds']}-fold cross-validation" if content["folds"] else "the validation split"
    if "only_folds" in content:
        scored += f" (folds {', '.join(map(str, content['only_folds']))} only)"
    drawn = f"{content['groups']} writers" if content["grouped"] else "rows"
    rows = []
    for row in content["variants"]:
        cells = score_cells(row)
        values = row["macro_f1_by_seed"]
        cells.append(f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else "")
        loss, minutes = row["last_training_loss"], row["minutes_a_training"]
        cells += [f"{row['figures']['micro_f1']:.3f}", "" if loss is None else f"{loss:.2f}"]
        rows.append([*cells, "" if minutes is None else f"{minutes:.1f}"])
    of_classes = [[row["name"], *(f"{value:.3f}" for value in row["f1"].values())] for row in content["variants"]]
    figures = ("macro F1", "difference", "p (Holm)", "over seeds", "micro F1", "training loss", "minutes per training")
    lines = [
        f"# {in_markdown(content['name'])}\n",
        f"{content['rows']} rows of {in_markdown(content['source'])}, {scored}, "
        f"seed{'s' * (len(content['seeds']) > 1)} {seeds}. "
        f"Intervals are 95% intervals, from resampling {drawn}. The difference is to the first row, on the same texts. "
        f"p is from a randomization test, with Holm's correction for {max(1, len(content['variants']) - 1)} "
        "comparisons. Intervals and p describe these trained models: they do not say what another seed would change. "
        "The training loss is the last one logged, on a training's own rows.\n",
        f"{in_code(content['command'])}\n",
        *table(["", *figures], rows),
        "",
        "F1 of each class:\n",
        *table(["", *content["labels"]], of_classes),
        "",
        f"Measured on {in_markdown(content['machine'])}.",
        "",
        "![macro F1 and differences](comparison.png)",
        "",
    ]
    return "\n".join(lines)


def changes(values: dict, own: dict) -> str:
    """Return the values of flags, by name, that are not the recipe's own, as text."""
    return ", ".join(f"{flag} {value}" for flag, value in values.items() if value != own.get(flag))


def search_page(content: dict) -> str:
    """Return a search as a Markdown page, from its JSON."""
    nested, configurations = content["nested"], content["configurations"]
    own, winner = configurations[0]["name"], content["winner"]
    named = own if winner == own else f"configuration {winner}"
    count = {state: sum(row["state"] == state for row in configurations) for state in ("finished", "stopped", "failed")}
    drawn = f"{content['groups']} writers" if content["grouped"] else "rows"
    scores = [
        score_cells(nested["own"]),
        score_cells(nested["nested"]),
        [*score_cells(nested["selection"])[:2], "", ""],
    ]
    scores[2][0] = f"{named}, selection score"
    seen = (
        "Stopped configurations cannot be chosen, since they lack folds. The sampler, and the rule that stops, saw all "
        "folds, so the nested score may still be a little too high; `--sampler random --pruner none` rules that out."
        if content["sampler"] != "random" or content["pruner"] != "none"
        else "The values were drawn without looking at scores, so the choice for a fold uses nothing from its rows."
    )
    tried = []
    for row in configurations:
        score = row["scores"][-1] if row["scores"] else None
        gain = None if score is None else score - configurations[0]["scores"][len(row["scores"]) - 1]
        cells = ["", ""] if gain is None else [f"{score:.3f}", f"{gain:+.3f}" if row["name"] != own else ""]
        minutes = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        state = row["state"] if row["state"] != "stopped" else f"stopped after {len(row['scores'])}"
        values = {} if row["name"] == own else configurations[0]["values"]
        why = f"; {row['why']}" if "why" in row else ""
        tried.append([row["name"], *cells, state, minutes, changes(row["values"], values) + why])
    lines = [
        f"# Search {in_markdown(content['name'])}\n",
        f"{len(configurations)} configurations: {count['finished']} finished, {count['stopped']} stopped early, "
        f"{count['failed']} failed. {content['rows']} rows of {in_markdown(content['source'])}, "
        f"{content['folds']}-fold cross-validation, seed {content['seed']}, {content['minutes']:.0f} minutes.\n",
        f"{in_code(content['command'])}\n",
        *table(["", "macro F1", "difference", "p"], scores),
        "",
        "**Report the nested score.** It is what the search gains on rows that had no part in the choice: each fold is "
        "scored by the configuration that is best on the other folds. The selection score is the winner's own "
        f"cross-validation, which also chose it, so it is too high. {seen} 95% intervals, {drawn} resampled; "
        f"differences are paired, to {in_markdown(own)}.\n",
        f"By fold, the other folds chose: {', '.join(map(in_markdown, nested['chosen']))}. "
        "(If all choose the winner, the two scores are equal.)\n",
        "## The winner\n",
        f"{in_markdown(named[0].upper() + named[1:])}. Train it on all training rows with "
        "`python run_classify.py best.yaml`, in this folder.\n",
        *table(["flag", "value"], [[flag, str(value)] for flag, value in content["best"].items()]),
        "",
        "## All configurations\n",
        "The score and difference of a stopped configuration are over the folds it was trained on. Every training "
        "keeps its last epoch. Values that are the recipe's own are left out.\n",
        *table(["configuration", "macro F1", "difference", "folds", "minutes", "values"], tried),
        "",
    ]
    if content["importance"]:
        shares = [[flag, f"{share:.0%}"] for flag, share in content["importance"].items()]
        lines += [
            "## What mattered\n",
            "Each flag's share in telling the better half of the finished configurations from the rest (PED-ANOVA). "
            "With few configurations, it is a hint.\n",
            *table(["flag", "share"], shares),
            "",
        ]
    lines += [f"Measured on {in_markdown(content['machine'])}.", "", "![scores by configuration](search.png)", ""]
    return "\n".join(lines)


def errors_section(content: dict, ids: bool = True) -> str:
    """Return the error analysis as a section of a comparison's page, from its JSON: row ids and figures, no texts.

    Without `ids`, the rows of a confusion are only counted, and contested rows are left out.
    """
    lines = [f"\n## Errors of {in_markdown(content['of'])}\n"]
    if "confusions" in content and not ids:
        counted = [
            [row["gold"], row["predicted"], f"{row['share_of_gold']:.0%}", str(row["number_of_rows"])]
            for row in content["confusions"]
        ]
        lines += [*table(["gold", "predicted", "of gold", "rows"], counted), ""]
    elif "confusions" in content:
        confused = []
        for row in content["confusions"]:
            more = row["number_of_rows"] - len(row["rows"])
            shown = ", ".join(row["rows"]) + (f" and {more} more" if more else "")
            share = f"{row['share_of_gold']:.0%}"
            confused.append([row["gold"], row["predicted"], share, str(row["number_of_rows"]), shown])
        contested = [
            [
                *(row["id"], row["gold"], f"{row['probability_of_gold']:.3f}"),
                *(row["models_say"], f"{row['probability']:.3f}", f"{row['share_of_models']:.0%}"),
            ]
            for row in content["contested"]
        ]
        lines += [
            "### Most frequent confusions\n",
            *table(["gold", "predicted", "of gold", "rows", "their ids"], confused),
            "",
            "### Most contested rows\n",
            f"The {content['models']} models together find these gold labels least probable. Either the models are "
            "wrong or the annotation is.\n",
            *table(["id", "gold", "probability", "models say", "probability", "of the models"], contested),
            "",
        ]
    for name, rows in content["columns"].items():
        grouped = "groups" in rows[0]
        scored = []
        for row in rows:
            score = f"fewer than {FEWEST_ROWS} rows"
            if "macro_f1" in row:
                score = f"{row['macro_f1']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"
            writers = [str(row["groups"])] if grouped else []
            scored.append([row["value"] or "(empty)", str(row["rows"]), *writers, score])
        header = [name, "rows", *["writers"] * grouped, "macro F1"]
        lines += [f"### By {in_markdown(name)}\n", *table(header, scored), ""]
    return "\n".join(lines)
