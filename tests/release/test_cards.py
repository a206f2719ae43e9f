"""Every card and page rendered as Markdown: tables are tables, and names show as they are, whatever they are."""

import json
import re
from itertools import cycle

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCardData
from support import ROOT, TINY, check_card, check_page, read

from configuration_emodeberta import EmoDebertaConfig
from trainer_ext.data.label_maps import TransferRows
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.errors import InputError
from trainer_ext.escape import in_code, in_markdown, one_line
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.error_analysis import analyse_errors
from trainer_ext.evaluation.fusion import compare_fusions, without_figures
from trainer_ext.evaluation.pages import comparison_page, errors_section
from trainer_ext.evaluation.validation_fit import ValidationFit
from trainer_ext.recipes import CardArguments
from trainer_ext.release.card_words import confidence_sections, encoder_in_words, family_of
from trainer_ext.release.ensemble_folder import EnsembleMember, read_members, write_ensemble_card
from trainer_ext.release.licence import Upstream, languages_of, licence_for, upstream_of
from trainer_ext.release.model_card import PretrainingFacts, RunFacts, Section, write_card

PLAIN = ["joy", "fear", "anger"]
# What Markdown, HTML or a template would take for something else.
NASTY = [
    *("$_$", "a|b", "two\nlines", "*bold*", "__init__", "`code`", "<b>x</b>", "&lt;", "[x](http://x.org)", "# head"),
    *("~~gone~~", "back\\slash", "a\\|b", "{{ 7 * 7 }}", "![x](y.png)", "<!-- gone", "1. one", "- dash", "日本語 😀"),
    *("rise\u2028fall", "R&D; x < y", "turn\u202eround", "nul\0l", "half\ud83d", "[^1]: note", "```", "| --- |", ">q"),
]
KINDS = pytest.mark.parametrize("names", [PLAIN, NASTY], ids=["plain", "nasty"])


def shown(names) -> list[str]:
    """As a card shows them: in one line, with what no file can hold replaced."""
    return [one_line(name).strip(" ") for name in names]


@pytest.fixture
def facts(names):
    """What every card of a training knows, where each name is one of the user's."""
    return {
        "name": names[0], "repo_id": names[1], "command": f"run_classify.py {names[1]}", "languages": [],
        "licence": "other", "terms": names[2], "bases": [Upstream(names[0])], "tags": ["bert"],
        "datasets": ["owner/corpus"], "citations": ["go_emotions", "none of them", "bert", "bert"],
        "sections": [Section("Thresholds", f"Of {names[0]}.", ["label", names[1]], [[names[2], "0.5"]])],
        "encoder": "BERT, 2 layers", "parameters": 12_345, "max_seq_length": 64, "source": names[1],
        "guard": LeakageGuard(names[1]), "hyperparameters": [["seed", "1"], ["optimizer", names[0]]],
        "log": [["epoch", "step", "training loss"], ["1", "3", "0.5"]], "precision": "bf16", "hardware": "a CPU",
        "minutes": 1.0, "versions": {"Python": "3.11", "torch": "2.13"},
    }  # fmt: skip


@KINDS
def test_the_card_of_a_run(names, facts, tmp_path):
    transferred = TransferRows(list(names), licences=dict.fromkeys(names, names[-1]), left_out={names[0]: 3})
    transferred.add("1", "a text", names[0], names[1])
    figures = [EvalResult("text-classification", "x", names[0], "f1", 0.5, dataset_split="test")]
    run = RunFacts(
        **facts, labels=list(names), evaluations=figures, multi_label=False, pooling="mean", head="32 to 3 labels",
        scores=[["split", "rows"], [names[0], "5"]], selection=True, unseen=True, resampled="writers",
        classes_of="test", classes=[["label", "F1"], *([name, "0.5"] for name in names)], confusion_matrix=True,
        answers=[{"text": name, "given": [{"label": name, "score": 0.5}]} for name in names],
        examples=[[name, name] for name in names], rows={"train": 9_000, names[0]: 5}, attribution=names[0],
        transferred=transferred, augmentation="Random Augmentation", distill_from=names[1],
    )  # fmt: skip
    write_card(tmp_path / "README.md", run)
    found = check_card(tmp_path / "README.md", pictures=False)
    assert found.headings == [
        *shown(names[:1]), "Use", "Labels", "Intended use and limits", "Results", "Thresholds", "Model", "Training",
        "Data", "Hyperparameters", "Log", "Versions", "Citation",
    ]  # fmt: skip
    answers, examples, scores, classes, section, transfers, values, log = found.tables
    assert [row[0] for row in answers[1:]] == [row[0] for row in examples[1:]] == shown(names)
    assert [row[0] for row in classes[1:]] == shown(names)
    assert scores[1] == [*shown(names[:1]), "5"]
    assert section == [["label", *shown(names[1:2])], [*shown(names[2:3]), "0.5"]]
    assert transfers[0][2:] == [row[0] for row in transfers[1:]] == shown(names)
    assert values[2][1] == shown(names)[0]
    assert log[1] == ["1", "3", "0.5"]
    assert any(", ".join(shown(names)) in prose for prose in found.prose)
    assert any(f"Command: run_classify.py {shown(names)[1]}" in prose for prose in found.prose)
    assert any(prose.endswith(f"train 9,000, {shown(names)[0]} 5") for prose in found.prose)
    assert "Python 3.11, torch 2.13" in found.prose
    assert found.data.model_name == names[0]
    assert found.data.eval_results[0].metric_value == 0.5
    assert re.findall(r"@\w+\{(.*),", found.code[-1][1]) == ["emodeberta", "lingjing", "go_emotions", "bert"]


def test_the_sections_of_a_card_about_what_was_fitted(tmp_path):
    measured = {"validation": {"coverage": 0.5, "answered_accuracy": 0.9}}
    accuracies = [
        {"accuracy": 0.9, "abstain_below": 0.4, "measured": measured},
        {"accuracy": 0.95, "abstain_below": None, "measured": {}},
    ]
    fit = ValidationFit(1.2, [0.3, 0.4, 0.5], 0.4, coverage={"accuracies": accuracies})
    calibration, coverage, thresholds = confidence_sections(tmp_path, fit, PLAIN)
    assert calibration.sentences.startswith("The logits are divided by a temperature of 1.20")
    assert [row[:2] for row in coverage.rows] == [["90%", "0.400"], ["95%", "cannot be reached"]]
    assert coverage.plot == "coverage.png"
    assert thresholds.rows == [["joy", "0.300"], ["fear", "0.400"], ["anger", "0.500"]]
    assert confidence_sections(tmp_path, ValidationFit(), PLAIN) == []


@pytest.mark.parametrize("names", [PLAIN])
def test_a_card_says_no_english_to_other_languages(facts, tmp_path):
    nothing = {
        "evaluations": [], "scores": [], "selection": False, "unseen": False, "classes_of": "", "classes": [],
        "confusion_matrix": False, "answers": [], "examples": [], "attribution": None, "transferred": None,
        "log": [], "sections": [], "terms": None, "licence": None, "datasets": [],
    }  # fmt: skip
    rest = {"labels": ["Wut", "Ruhe"], "multi_label": True, "pooling": "mean", "head": "2 labels", "resampled": "rows"}
    rest |= {"rows": {"train": 5}, "augmentation": "", "distill_from": "", "languages": ["no", "de"]}
    write_card(tmp_path / "README.md", RunFacts(**facts | nothing | rest))
    found = check_card(tmp_path / "README.md", pictures=False)
    assert found.data.language == ["no", "de"]
    assert not {"license", "widget", "datasets", "base_model", "model-index", "metrics"} & found.data.to_dict().keys()
    assert "emotion" not in found.data.tags  # no label is one that the project knows
    assert "happy" not in (tmp_path / "README.md").read_text()
    assert len(found.tables) == 1  # the hyperparameters
    assert "says which of its labels fit, none, one or several: Wut, Ruhe." in found.prose[0]


@KINDS
def test_the_card_of_an_ensemble(names, tmp_path):
    rng = np.random.default_rng(0)
    gold, folds = np.arange(60) % 3, np.arange(60) // 3 % 5
    probabilities = rng.dirichlet(np.ones(3), size=(len(names), 60))
    figures, _ = compare_fusions(names, probabilities, gold, None, folds, names[:3], "weighted")
    figures |= {"scored_on": "labelled validation rows", "against_the_ensemble": figures["variants"]}
    members = []
    for name, pooling in zip(names, cycle(["mean", "cls"])):
        config = EmoDebertaConfig(**TINY, pooling=pooling, classifier_hidden_size=None)
        members.append(EnsembleMember(tmp_path / "none", name, config, "", licence="other"))
    card = CardArguments(language=["en"])
    write_ensemble_card(tmp_path / "README.md", names[0], members, figures, f"run_fuse.py {names[0]}", card)
    headings = [*shown(names[:1]), "Use", "Intended use and limits", "Members", "Results", "Calibration", "Citation"]
    found = check_card(tmp_path / "README.md", pictures=False)
    assert found.headings == headings
    of_members, scores, against, disagreement, calibration = found.tables
    assert [row[0] for row in of_members[1:]] == shown(names)
    assert of_members[1][1:5] == [
        "DeBERTa-v2",
        "2 layers of 32",
        "mean of the token states",
        "32 to 2 labels, dropout 0.1",
    ]
    assert [row[0] for row in scores[1:]] == [*shown(names), "hard vote", "soft vote", "weighted", "selected"]
    assert len(against) == len(scores)
    assert disagreement[0][1:] == [row[0] for row in disagreement[1:]] == shown(names)
    assert len(calibration) == 3
    assert (found.data.license, found.data.language) == ("other", "en")

    bare = without_figures(names, names, "hard")
    write_ensemble_card(tmp_path / "README.md", "bare", members, bare, "run_fuse.py", CardArguments())
    found = check_card(tmp_path / "README.md", pictures=False)
    assert found.headings == ["bare", *headings[1:5], "Citation"]
    assert found.tables[0][0][-1] == "head"  # no weights
    assert len(found.tables) == 1


@KINDS
def test_the_card_of_a_pretraining(names, facts, tmp_path):
    of_texts = {"licences": dict.fromkeys(names, names[1]), "target_licence": names[2], "left_out": {names[0]: 2}}
    masking = "15% of the words; of these 80% <mask>, 10% random, 10% unchanged"
    for scores, rows in (("Perplexity 3.", 3), ("", None)):
        write_card(
            tmp_path / "README.md",
            PretrainingFacts(**facts, **of_texts, mask_token="<mask>", masking=masking, rows=rows, scores=scores),
        )
        found = check_card(tmp_path / "README.md", pictures=False)
        assert found.headings == [
            *shown(names[:1]), "Use", "Intended use and limits", "Results", "Thresholds", "Model", "Training", "Data",
            "Hyperparameters", "Log", "Versions", "Citation",
        ]  # fmt: skip
        assert 'fill("I was so <mask> when I heard of it.")' in found.code[0][1]
        assert any("80% <mask>, 10% random" in prose for prose in found.prose)
        assert ("Perplexity 3." in found.prose) == bool(scores)
        assert found.data.pipeline_tag == "fill-mask"


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
    found = check_page(page)
    assert found.headings == shown(names[:1])
    scores, of_classes = found.tables
    assert [row[0] for row in scores[1:]] == [row[0] for row in of_classes[1:]] == shown(names)
    assert of_classes[0][1:] == shown(names)

    ids = [names[i % len(names)] for i in range(90)]
    columns = {name: [names[i % 3] for i in range(90)] for name in names}
    page = errors_section(analyse_errors(systems, names[0], gold, None, names, ids, columns))
    headings = [f"Errors of {shown(names)[0]}", "Most frequent confusions", "Most contested rows"]
    found = check_page(page)
    assert found.headings == [*headings, *(f"By {name}" for name in shown(names))]
    assert len(found.tables) == 2 + len(names)
    assert {row[0] for row in found.tables[1][1:]} <= set(shown(names))
    assert [table[0][0] for table in found.tables[2:]] == shown(names)


def test_the_cards_of_finished_folders(finished, fused):
    """Of a run with all plots, and of an ensemble: they hold what was measured, and say what the models are."""
    found = check_card(finished[0] / "README.md")
    results = json.loads((finished[0] / "all_results.json").read_text())
    scores = next(table for table in found.tables if table[0][0] == "split")
    assert [row[0] for row in scores[1:]] == ["validation", "test"]
    low, high = results["test_macro_f1_low"], results["test_macro_f1_high"]
    assert scores[2][3:5] == [f"{results['test_macro_f1']:.3f}", f"{low:.3f} to {high:.3f}"]
    log = next(table for table in found.tables if table[0][0] == "epoch")
    assert [row[1] for row in log[1:]] == ["12", "24"]  # as often as it was evaluated
    assert log[0] == ["epoch", "step", "training loss", "validation loss", "macro F1"]
    values = next(dict(table) for table in found.tables if table[0][0] == "hyperparameter")
    assert (values["learning rate"], values["batch size"], values["steps"]) == ("0.001", "8", "24")
    assert values["Child-Tuning"] == "F, p = 0.3, masks the gradient"
    says = "Encoder: BERT, 2 layers, hidden size 32, 4 heads, disentangled attention of DeBERTa, added to it"
    assert says in found.prose
    assert found.data.tags == ["emodeberta", "emotion", "bert", "child-tuning"]
    assert not {"language", "license", "base_model"} & found.data.to_dict().keys()  # nobody said
    assert "the card names no language, because that of the base model is not known; --language" in finished[1].stderr
    assert re.findall(r"@\w+\{(.*),", found.code[-1][1]) == ["emodeberta", "lingjing", "child_tuning", "bert"]

    found = check_card(fused[0] / "all" / "README.md")
    members = [["first", "DeBERTa-v2"], ["cls", "DeBERTa-v2"], ["other", "BERT"]]
    assert [row[:2] for row in found.tables[0][1:]] == members
    assert found.data.tags == ["emodeberta", "emotion", "ensemble", "deberta-v2", "bert"]


def test_the_card_of_a_run_with_several_labels(in_process, tmp_path):
    """What the flags ask for is in it; without them no row of the user's is."""
    rows = [{"text": f"Zeile {i}, die nur hier steht.", "label": ["Wut", "Ruhe|"][: i % 2 + 1]} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ("--train_file", tmp_path / "rows.jsonl", "--validation_file", tmp_path / "rows.jsonl", "--max_steps", 1)
    in_process(*files, "--language", "de", "--license", "cc-by-4.0", "--card_examples", 1)
    found = check_card(tmp_path / "out" / "README.md")
    assert (found.data.language, found.data.license) == ("de", "cc-by-4.0")
    assert found.tables[0] == [["label", "training rows with it"], ["Ruhe|", rows[1]["text"]], ["Wut", rows[0]["text"]]]
    assert "micro F1" in found.tables[1][0]
    assert [result.metric_name for result in found.data.eval_results] == ["macro F1", "accuracy", "micro F1"]

    in_process(*files, "--overwrite_output_dir")
    assert "Zeile" not in (tmp_path / "out" / "README.md").read_text()
    check_card(tmp_path / "out" / "README.md")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--language", "English"], "--language English: want codes of ISO 639, for example en, de or pt-BR"),
        (["--license", "The MIT"], "--license The MIT: want an id of https://hf.co/docs/hub/repositories-licenses"),
        (["--card_examples", "-1"], "--card_examples is -1; want 0 or more"),
    ],
)
def test_what_a_card_cannot_say_is_refused(flags, says, in_process, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "one,a\ntwo,b\n" * 4)
    with pytest.raises(InputError, match=re.escape(says)):
        in_process("--train_file", tmp_path / "rows.csv", *flags)
    assert not (tmp_path / "out").exists()


def test_restricted_data_keep_their_licence():
    card = CardArguments(license="mit")
    with pytest.raises(InputError, match="--license mit: wassa2022 is for research; leave it out, the card says other"):
        card.check_terms("wassa2022", "research")
    card.check_terms("mine", None)
    open_, closed = Upstream("a", licence="mit"), Upstream("b", licence="other")
    assert licence_for(None, "research", [open_]) == "other"
    assert licence_for("cc-by-4.0", None, [open_]) == "cc-by-4.0"
    assert licence_for("cc-by-4.0", None, [open_, closed]) == "other"
    assert licence_for(None, None, [open_, open_]) == "mit"
    assert licence_for(None, None, [open_, Upstream("c")]) is None


def test_languages_are_those_of_the_flag_the_corpora_or_the_checkpoint():
    english, many = Upstream("a", languages=("en",)), Upstream("b", languages=("en", "fr"))
    assert languages_of(["de"], ["wassa2022"], [english]) == ["de"]
    assert languages_of([], ["go_emotions", "xed"], [many]) == ["en"]
    assert languages_of([], ["mine.csv", "xed"], [english]) == ["en"]
    assert languages_of([], ["mine.csv"], [many]) == []  # which of them, nobody knows
    assert languages_of([], ["mine.csv"], [english, Upstream("c")]) == []


def test_a_checkpoint_is_known_by_its_card(tmp_path):
    for number, tags in enumerate((["emodeberta", "bert"], ["bert"])):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        data = ModelCardData(
            language="no", license="mit", tags=tags, base_model="sentence-transformers/all-MiniLM-L6-v2",
            datasets=["owner/corpus"],
        )  # fmt: skip
        (folder / "README.md").write_text(f"---\n{data}\n---\n# x\n")
    ours, others = upstream_of(str(tmp_path / "0")), upstream_of(str(tmp_path / "1"))
    assert (ours.licence, ours.languages) == (others.licence, others.languages) == ("mit", ("no",))
    assert ours.hub_ids == ("sentence-transformers/all-MiniLM-L6-v2",)
    assert (ours.datasets, ours.family) == (("owner/corpus",), "bert")
    assert (others.hub_ids, others.datasets, others.family) == ((), (), None)
    pinned = upstream_of("sentence-transformers/all-MiniLM-L6-v2")
    assert (pinned.licence, pinned.languages, pinned.revision[:8]) == ("apache-2.0", ("en",), "1110a243")
    assert upstream_of("sentence-transformers/all-MiniLM-L6-v2", from_scratch=True).licence is None
    assert upstream_of("owner/not-here").hub_ids == ("owner/not-here",)
    (tmp_path / "0" / "README.md").write_text("---\nlicense: [\n---\n")
    assert upstream_of(str(tmp_path / "0")).licence is None

    config = EmoDebertaConfig(**TINY)
    assert encoder_in_words("bert", config, [*ours.hub_ids]).startswith(
        "MiniLM (BERT's shape), 2 layers, hidden size 32"
    )
    assert encoder_in_words("deberta-v2", config, ["microsoft/deberta-v3-base"]).startswith("DeBERTa-v3, 2 layers")
    mpnet = EmoDebertaConfig(relative_attention=False, position_bias_buckets=32)
    assert family_of("emodeberta", mpnet, Upstream("x")) == "mpnet"
    assert encoder_in_words("mpnet", mpnet, ()).endswith("absolute positions and MPNet's relative position bias")


def test_this_projects_citation_is_the_same_in_cards():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    bib = (ROOT / "trainer_ext" / "release" / "citations.bib").read_text(encoding="utf-8")
    ours, paper = bib.split("\n\n")[:2]
    assert {f"title = {{{cff['title']}}}", f"version = {{{cff['version']}}}"} <= set(re.findall(r"\w+ = \{.*\}", ours))
    (reference,) = cff["references"]
    names = " and ".join(f"{person['family-names']}, {person['given-names']}" for person in reference["authors"])
    assert all(text in paper for text in (reference["title"], names, reference["doi"], str(reference["year"])))


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
    found = check_card(out / "README.md")
    assert [row[0] for row in found.tables[2][1:]] == [*sorted(labels), "all, macro"]
    for name in ("confusion_matrix.png", "reliability.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    (member,) = read_members([out])
    assert member.predictions.groups == [row["who"] for row in rows]
    assert [sorted(labels)[label] for label in member.predictions.gold] == [row["label"] for row in rows]
