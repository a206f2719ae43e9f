"""Every card and page rendered as Markdown: tables are tables, and names show as they are, whatever they are."""

import ast
import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trainer_ext.data.label_maps import TransferRows
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.escape import in_code, in_markdown, one_line
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.error_analysis import analyse_errors
from trainer_ext.evaluation.fusion_table import compare_fusions, without_figures
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.evaluation.pages import comparison_page, errors_page
from trainer_ext.evaluation.validation_fit import ValidationFit
from trainer_ext.release.confidence import confidence
from trainer_ext.release.ensemble_folder import read_members
from trainer_ext.release.model_card import write_ensemble_card, write_model_card, write_pretraining_card

PLAIN = ["joy", "fear", "anger"]
# What Markdown, HTML or a template would take for something else.
NASTY = [
    *("$_$", "a|b", "two\nlines", "*bold*", "__init__", "`code`", "<b>x</b>", "&lt;", "[x](http://x.org)", "# head"),
    *("~~gone~~", "back\\slash", "a\\|b", "{{ 7 * 7 }}", "![x](y.png)", "<!-- gone", "1. one", "- dash", "日本語 😀"),
    *("rise\u2028fall", "R&D; x < y", "turn\u202eround", "nul\0l", "half\ud83d", "[^1]: note", "```", "| --- |", ">q"),
]
KINDS = pytest.mark.parametrize("names", [PLAIN, NASTY], ids=["plain", "nasty"])


def read(text: str) -> SimpleNamespace:
    """Tables as lists of rows of shown texts, headings, fenced code, prose; and what may not be there."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    found = SimpleNamespace(tables=[], headings=[], code=[], prose=[], strange=[], pictures=[], links=[])
    for before, token in pairwise([SimpleNamespace(type=""), *tokens]):
        if token.type == "table_open":
            found.tables.append([])
        elif token.type == "tr_open":
            found.tables[-1].append([])
        elif token.type == "fence":
            found.code.append(token.content)
        elif token.type == "html_block":
            found.strange.append(token.content)
        elif token.type == "inline":
            shown = ""
            for part in token.children:
                if part.type in ("text", "text_special", "code_inline"):
                    shown += part.content
                elif part.type == "softbreak":
                    shown += " "
                elif part.type == "image":
                    found.pictures.append(part.attrs["src"])
                elif part.type == "link_open":
                    found.links.append(part.attrs["href"])
                elif part.type not in ("link_close", *(["strong_open", "strong_close"] * (before.type != "td_open"))):
                    found.strange.append((part.type, token.content))
            if before.type in ("th_open", "td_open"):
                found.tables[-1][-1].append(shown)
            else:
                (found.headings if before.type == "heading_open" else found.prose).append(shown)
    return found


def check(text: str, headings: list[str], tables: int) -> SimpleNamespace:
    found = read(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    assert found.headings == headings
    assert len(found.tables) == tables
    for table in found.tables:
        assert len(table) > 1
        assert len({len(row) for row in table}) == 1
    assert not found.strange
    assert set(found.links) <= {"https://aclanthology.org/2022.wassa-1.22/"}
    assert all(picture.endswith(".png") and "/" not in picture and picture != "y.png" for picture in found.pictures)
    assert not any("|--" in prose or prose.lstrip().startswith("| ") for prose in found.prose)
    for code in found.code:
        ast.parse(code)
    return found


def shown(names) -> list[str]:
    """As a card shows them: in one line, with what no file can hold replaced."""
    return [one_line(name).strip(" ") for name in names]


@KINDS
def test_the_card_of_a_run(names, tmp_path):
    results = {f"{prefix}_{figure}": 0.5 for prefix in ("eval", "test") for figure in SEVEN_FIGURES}
    results |= {f"{prefix}_tfidf_{figure}": 0.4 for prefix in ("eval", "test") for figure in SEVEN_FIGURES}
    results |= {f"{prefix}_macro_f1_{end}": 0.3 for prefix in ("eval", "test", names[0]) for end in ("low", "high")}
    results |= {f"{p}_{f}_{n}": 0.2 for p in ("eval", "test") for f in ("precision", "recall", "f1") for n in names}
    results |= {f"{names[0]}_macro_f1": 0.1, f"{names[0]}_accuracy": 0.1, f"{names[0]}_tfidf_macro_f1": 0.1}
    rows = {"train": 9, "validation": 3, "test": 3, names[0]: 5}
    transferred = TransferRows(list(names), licences=dict.fromkeys(names, names[-1]), left_out={names[0]: 3})
    transferred.add("1", "a text", names[0], names[1])
    measured = {
        names[0]: {"coverage": 0.5, "answered_accuracy": 0.9},
        names[1]: {"coverage": 0.0, "answered_accuracy": None},
    }
    accuracies = [
        {"accuracy": 0.9, "abstain_below": 0.4, "measured": measured},
        {"accuracy": 0.95, "abstain_below": None, "measured": {}},
    ]
    fit = ValidationFit(1.2, [0.3] * len(names), 0.4, coverage={"accuracies": accuracies})
    write_model_card(
        tmp_path / "README.md",
        model_name=names[0], repo_id=names[1], base_model=names[0], labels=list(names), results=results | {
            f"{split}_rows": number for split, number in rows.items()}, rows=rows, grouped=True, source=names[1],
        licence=names[2], attribution=names[0], selected="best_on_dev", confusion_matrix=True, distill_from=names[1],
        reliability={
            "split": names[0], "calibration": {"after": {"expected_calibration_error": 0.1, "brier_score": 0.2}}},
        confidence=confidence(fit, list(names)), max_seq_length=64,
        child_tuning="F", child_tuning_p=0.3, epochs="2", minutes="1.0", transferred=transferred,
        augmentation=SimpleNamespace(augmentation="BA", ba_mode="topped_up", join_to_words=80),
        answers=[{"text": name, "given": [{"label": name, "score": 0.5}]} for name in names],
        guard=LeakageGuard(names[1]), command=f"run_classify.py {names[1]}", precision="bf16", seed=1, hardware="a CPU",
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    headings = [*shown(names[:1]), "Use", "Results", "Training", "Intended use and limits", "Citation"]
    found = check(text, headings, 9)
    answers, beside, _, of_classes, *_, coverage, thresholds, transfers = found.tables
    assert [row[:2] for row in coverage[1:]] == [["90%", "0.40"], ["95%", "cannot be reached"]]
    assert coverage[0][2:] == shown(names[:2])
    assert [row[0] for row in thresholds[1:]] == shown(names)
    assert [row[0] for row in answers[1:]] == shown(names)
    assert beside[0][0] == "test set"
    assert [row[0] for row in of_classes[1:]] == shown(names)
    assert transfers[0][2:] == [row[0] for row in transfers[1:]] == shown(names)
    assert any(", ".join(shown(names)) in prose for prose in found.prose)
    assert any(f"Command: run_classify.py {shown(names)[1]}" in prose for prose in found.prose)
    assert ModelCard.load(tmp_path / "README.md").data.model_name == names[0]


@KINDS
def test_the_card_of_an_ensemble(names, tmp_path):
    rng = np.random.default_rng(0)
    gold, folds = np.arange(60) % 3, np.arange(60) // 3 % 5
    probabilities = rng.dirichlet(np.ones(3), size=(len(names), 60))
    figures, _ = compare_fusions(names, probabilities, gold, None, folds, names[:3], "weighted")
    figures |= {"scored_on": "labelled validation rows", "against_the_ensemble": figures["variants"]}
    members = [SimpleNamespace(name=name, licence="other") for name in names]
    write_ensemble_card(tmp_path / "README.md", names[0], members, figures, f"run_fuse.py {names[0]}")
    headings = [*shown(names[:1]), "Use", "Results", "Intended use and limits", "Citation"]
    found = check((tmp_path / "README.md").read_text(encoding="utf-8"), headings, 3)
    scores, against, disagreement = found.tables
    assert [row[0] for row in scores[1:]] == [*shown(names), "hard vote", "soft vote", "weighted", "selected"]
    assert len(against) == len(scores)
    assert disagreement[0][1:] == [row[0] for row in disagreement[1:]] == shown(names)

    write_ensemble_card(tmp_path / "README.md", "bare", members, without_figures(names, names, "hard"), "run_fuse.py")
    check((tmp_path / "README.md").read_text(encoding="utf-8"), ["bare", *headings[1:]], 0)


@KINDS
def test_the_card_of_a_pretraining(names, tmp_path):
    corpus = SimpleNamespace(
        source=names[0], licences=dict.fromkeys(names, names[1]), target_licence=names[2], left_out={names[0]: 2},
        guard=LeakageGuard(names[1]),
    )  # fmt: skip
    write_pretraining_card(
        tmp_path / "README.md", model_name=names[0], base_model=names[1], repo_id=names[0], corpus=corpus,
        upstream_licence=names[2], mask_token="<mask>", probability=0.15, whole_words=True, seed=1,
        results={"train_rows": 3, "train_runtime": 60.0}, command="run_mlm.py", precision="bf16", hardware="a CPU",
    )  # fmt: skip
    found = check(
        (tmp_path / "README.md").read_text(encoding="utf-8"),
        [*shown(names[:1]), "Use", "Training", "Limits", "Citation"], 0,
    )  # fmt: skip
    assert 'fill("I was so <mask> when I heard of it.")' in found.code[0]
    assert any("80% <mask>, 10% random" in prose for prose in found.prose)


@KINDS
def test_the_pages_of_a_comparison(names):
    rng = np.random.default_rng(0)
    gold = np.arange(90) % len(names)
    systems = {name: rng.dirichlet(np.ones(len(names)), size=(1, 90)) for name in names}
    variants = compare(systems, gold, None, names)
    for row in variants:
        row |= {"last_training_loss": 0.5, "minutes_a_training": 1.0}
    page = comparison_page({
        "name": names[0], "command": f"run_compare.py {names[1]}", "source": names[0], "rows": 90, "grouped": False,
        "groups": 90, "folds": 5, "seeds": [1], "labels": names, "machine": names[1], "variants": variants,
    })  # fmt: skip
    scores, of_classes = check(page, shown(names[:1]), 2).tables
    assert [row[0] for row in scores[1:]] == [row[0] for row in of_classes[1:]] == shown(names)
    assert of_classes[0][1:] == shown(names)

    ids = [names[i % len(names)] for i in range(90)]
    columns = {name: [names[i % 3] for i in range(90)] for name in names}
    page = errors_page(analyse_errors(systems, names[0], gold, None, names, ids, columns))
    headings = [f"Errors of {shown(names)[0]}", "Most frequent confusions", "Most contested rows"]
    found = check(page, [*headings, *(f"By {name}" for name in shown(names))], 2 + len(names))
    assert {row[0] for row in found.tables[1][1:]} <= set(shown(names))
    assert [table[0][0] for table in found.tables[2:]] == shown(names)


@pytest.mark.parametrize("name", NASTY)
def test_a_name_shows_as_it_is(name):
    for text in (f"x {in_markdown(name)} y", f"| a |\n|---|\n| x {in_markdown(name)} y |"):
        found = read(text)
        (said,) = found.prose or [found.tables[0][1][0]]
        assert said == f"x {shown([name])[0]} y"
        assert not found.strange
        assert not found.links + found.pictures
    assert read(f"x {in_code(name)} y").prose == [f"x {one_line(name)} y"]


def test_a_run_with_such_labels_finishes_and_can_be_fused(in_process, tmp_path):
    """To the end: predictions, plots, card; and writers are writers, though there is a label called group."""
    labels = ["group", "id", "error", "text", *(name for name in NASTY if name.isprintable())]
    rows = [{"text": f"gate {i}", "label": name, "who": f"w{i % 5}"} for i, name in enumerate(labels * 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ("--train_file", tmp_path / "rows.jsonl", "--validation_file", tmp_path / "rows.jsonl")
    in_process(*files, "--group_column_name", "who", "--max_steps", 1)
    out = tmp_path / "out"
    found = read((out / "README.md").read_text(encoding="utf-8").partition("\n# ")[2])
    assert [row[0] for row in found.tables[2][1:]] == sorted(labels)
    assert not found.strange
    for name in ("confusion_matrix.png", "reliability.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    (member,) = read_members([out])
    assert member.predictions.groups == [row["who"] for row in rows]
    assert [sorted(labels)[label] for label in member.predictions.gold] == [row["label"] for row in rows]
