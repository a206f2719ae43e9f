"""The pipeline: from texts to labels; and the same model as ONNX."""

import copy
import json
import logging
import random
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import forked
import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, TINY, XXLARGE_STYLE, call
from transformers import AutoTokenizer, TextClassificationPipeline
from transformers.pipelines.pt_utils import KeyDataset

import pipeline_emodeberta as module
import run_export
from configuration_emodeberta import EmoDebertaConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from texts_emodeberta import beginning, token_budget_batches, truncated
from trainer_ext.errors import InputError
from trainer_ext.release.folder_check import check_files
from trainer_ext.release.handler import EndpointHandler
from trainer_ext.scoring.scorer import score
from trainer_ext.scoring.text_stream import Row
from trainer_ext.training.warm_start import warm_start

TEXTS = [f"{'the river took the road and ' * (i * 7 % 23)}nobody {i}" for i in range(60)]


@pytest.fixture(scope="module")
def parts(v3_folder, tokenizer):
    torch.manual_seed(0)
    labels = {0: "anger", 1: "fear", 2: "joy"}
    return {"model": warm_start(str(v3_folder), id2label=labels).eval(), "tokenizer": tokenizer, "device": "cpu"}


@pytest.fixture
def classify(parts) -> EmotionPipeline:
    return EmotionPipeline(**parts)


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 3000))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    batches = list(token_budget_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[position] for position in batch) * len(batch) <= budget


@pytest.mark.parametrize("options", [{}, {"top_k": None}, {"top_k": 2}, {"function_to_apply": "none"}])
def test_results_are_the_librarys_in_the_order_of_the_texts(classify, parts, options, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 25)  # several windows
    ours = classify(TEXTS, tokens_per_batch=300, **options)
    library = TextClassificationPipeline(**parts)(TEXTS, truncation=True, **options)
    assert len(ours) == len(TEXTS)
    for got, want in zip(ours, library, strict=True):
        for a, b in zip(*([x] if isinstance(x, dict) else x for x in (got, want)), strict=True):
            assert a["label"] == b["label"]
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_a_long_text_is_cut_to_the_same_tokens_before_it_is_tokenised(classify, tokenizer):
    rng, words = random.Random(0), " ".join(TEXTS).split()
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 600))) for _ in range(40)]
    texts += [f"{text[:90]}{' ' * 3000}{text}" for text in texts[:5]] + [f"{'x' * 2000} {text}" for text in texts[:5]]
    for text in texts:
        wanted = tokenizer([text], truncation=True, max_length=16)
        got = tokenizer([beginning(text, tokenizer, 16)], truncation=True, max_length=16)
        assert got["input_ids"] == wanted["input_ids"]
        assert truncated([got]) == truncated([wanted])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = classify("the river took the road and " * 700_000, max_length=16)
    assert classify(["the river took the road and " * 700_000, " " * 10**7 + "x"], max_length=16)[0]["label"]
    assert whole == classify("the river took the road and " * 100, max_length=16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB


def test_options_may_be_given_at_construction(classify, parts):
    options = {"stride": 4, "abstain_below": 0.9, "tokens_per_batch": 300}
    assert EmotionPipeline(**parts, **options)(TEXTS[:5]) == classify(TEXTS[:5], **options)


@pytest.mark.parametrize("option", [False, "do_not_truncate"])
def test_a_text_is_read_whole_on_request(option, classify, parts, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    long = TEXTS[3]
    ids = tokenizer([long])["input_ids"]
    assert len(ids[0]) > 100
    with torch.no_grad():
        want = float(parts["model"](torch.tensor(ids)).logits.softmax(dim=-1).max())
    for results in (classify([long], truncation=option), EmotionPipeline(**parts, truncation=option)([long])):
        assert results[0]["score"] == pytest.approx(want, abs=1e-5)


def test_no_text_is_read_beyond_the_models_positions(tokenizer):
    torch.manual_seed(0)
    config = EmoDebertaConfig(**ABSOLUTE | {"max_position_embeddings": 24}, num_labels=3)
    parts = {"model": EmoDebertaForSequenceClassification(config).eval(), "tokenizer": tokenizer, "device": "cpu"}
    classify, short, long = EmotionPipeline(**parts), "nobody told us", TEXTS[3]
    for options in ({"max_length": 25}, {"max_length": 25, "truncation": False}, {"max_length": 25, "stride": 4}):
        with pytest.raises(ValueError, match="max_length is 25; the model reads at most 24 tokens"):
            classify([short, long], **options)
        with pytest.raises(ValueError, match="max_length is 25; the model reads at most 24 tokens"):
            EmotionPipeline(**parts, **options)
    assert classify(long, max_length=24)[0]["label"]
    problem = {"label": None, "score": None, "error": "input 1: more tokens than the model reads"}
    for options in ({}, {"top_k": None}):
        (wanted,) = classify([short], **options)
        first, second, third, empty = classify([short, long, short, ""], truncation=False, **options)
        assert first == close(wanted)
        assert second == ([problem] if options else problem)
        assert third == close(wanted)
        assert "want a text" in str(empty)
    rows = [Row(short, None, None), Row(long, None, None)]
    assert np.isnan(score(classify, rows, None).probabilities).any(axis=1).tolist() == [False, True]
    assert [row.error for row in rows] == [None, "more tokens than the model reads"]


def test_an_ensemble_reads_what_each_of_its_members_reads(fused):
    """Of the three, one has positions, for 512 tokens."""
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(fused[0] / "all").eval()
    tokenizer = AutoTokenizer.from_pretrained(fused[0] / "all")
    classify = EmotionPipeline(model=model, tokenizer=tokenizer, device="cpu")
    assert classify("the river " * 600, max_length=512)[0]["label"]
    with pytest.raises(ValueError, match="max_length is 513; the model reads at most 512 tokens"):
        classify("the river", max_length=513)
    for tokenizer, most in zip(classify.tokenizers, (1024, 512), strict=True):  # the second is that of the member
        tokenizer.model_max_length = most
    assert classify("the river " * 600)[0]["label"]


def test_an_endpoint_calls_such_a_length_a_bad_request(finished):
    with pytest.raises(ValueError, match="max_length is 1024; the model reads at most 512 tokens"):
        EndpointHandler(str(finished[0]))({"inputs": "the river", "parameters": {"max_length": 1024}})


class Map(torch.utils.data.Dataset):
    """Rows by number, as in torch: no `__iter__`, and no end for those that ask for one row after the other."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, position):
        return self.rows[position % len(self.rows)]


class Columns(list):
    """What `evaluate`'s evaluator sends: a list that holds nothing and yields pairs, the second text `None` or not."""

    def __iter__(self):
        return iter(PAIRS)

    def __len__(self):
        return len(PAIRS)


PAIRS = [{"text": "the road", "text_pair": "nobody told us"}, {"text": "river", "text_pair": None}, {"text": "why"}]


@pytest.mark.parametrize("options", [{}, {"top_k": None}, {"top_k": 1}, {"max_length": 4}])
def test_one_input_and_pairs_give_what_the_library_gives(classify, parts, options):
    library = TextClassificationPipeline(**parts)
    for item in [TEXTS[0], *PAIRS, PAIRS, [PAIRS[0], "river"], [[["the road", "nobody told us"]]]]:
        assert classify(item, **options) == close(library(item, truncation=True, **options))
    assert classify([]) == []


def test_pairs_may_come_in_columns(classify):
    want = classify([{"text": "the road", "text_pair": "why"}, {"text": "river", "text_pair": "nobody"}])
    assert classify({"text": ["the road", "river"], "text_pair": ["why", "nobody"]}) == want
    assert classify(["the road", "river"], text_pair=["why", "nobody"]) == want
    assert list(classify(iter(["the road", "river"]), text_pair=iter(["why", "nobody"]))) == want
    assert classify("the road", text_pair="why") == [want[0]]
    assert classify(["the road"], text_pair="why") == [want[0]]
    with pytest.raises(ValueError, match="text_pair: 1 for 2 texts"):
        classify(["the road", "river"], text_pair=["why"])


@pytest.mark.parametrize("rows", [TEXTS[:5], PAIRS])
def test_a_dataset_of_torch_ends(classify, rows):
    assert list(classify(Map(rows))) == classify(rows)
    assert list(classify(KeyDataset([{"body": text} for text in TEXTS[:5]], "body"))) == classify(TEXTS[:5])
    assert classify(Columns()) == classify(PAIRS)


def test_texts_in_memory_come_back_as_a_list(classify):
    want, table = classify(TEXTS[:5]), Dataset.from_dict({"text": TEXTS[:5], "mood": range(5)})
    series = pandas.Series(TEXTS[:5], index=[9, 9, 3, 2, 1])
    array, arrow = np.array(TEXTS[:5]), table.data["text"]
    for texts in (tuple(TEXTS[:5]), array, array[:, None], series, series.astype("category"), table["text"], arrow):
        assert classify(texts) == want
    assert classify(series, text_pair=series) == classify(TEXTS[:5], text_pair=TEXTS[:5])
    assert isinstance(classify(table.select_columns(["text"])), Iterator)


@pytest.mark.parametrize("kind", [Dataset.to_pandas, Dataset.to_iterable_dataset, lambda rows: rows])
def test_a_table_is_refused_with_the_column_to_give(classify, kind):
    for names in (["text", "mood"], ["mood", "text"]):
        with pytest.raises(ValueError, match=r'a table .*; give the column with the texts, such as df\["text"\]'):
            classify(kind(Dataset.from_dict(dict.fromkeys(names, TEXTS[:2]))))
    with pytest.raises(ValueError, match=r'such as df\["body"\]'):
        classify(kind(Dataset.from_dict({"body": TEXTS[:2]})))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (set(TEXTS[:2]), "a set, which has no order; give a list"),
        (np.array(TEXTS[:4]).reshape(2, 2), r"an array of shape \(2, 2\); give the texts in one dimension"),
        (np.array(TEXTS[0]), r"an array of shape \(\)"),
        (DatasetDict(train=Dataset.from_dict({"text": TEXTS[:2]})), "a DatasetDict with train; give one of them"),
        (pandas.DataFrame({0: TEXTS[:2]}), r"such as df\[0\]"),
    ],
)
def test_texts_whose_order_is_unclear_are_refused(classify, texts, says):
    with pytest.raises(ValueError, match=says):
        classify(texts)
    assert classify(str)[0]["label"] is None


@pytest.mark.parametrize("bad", ["", " ", None, float("nan"), 3, b"the river"])
def test_one_bad_input_has_an_error_as_in_a_list(classify, bad):
    for options in ({}, {"top_k": None}):
        (result,) = classify([bad], **options)
        assert classify(bad, **options) == (result if options else [result])
    assert classify(bad)[0]["label"] is None


def close(result):
    """A result to compare with, up to the rounding of another batch."""
    if isinstance(result, dict):
        return result | {"score": pytest.approx(result["score"], abs=1e-5)}
    return [close(entry) for entry in result]


def test_a_stream_stays_one(classify, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 8)
    read = []

    def stream():
        for text in TEXTS:
            read.append(text)
            yield text

    results = classify(stream())
    assert not read
    first = next(results)
    assert len(read) == 8
    assert [first, *results] == classify(TEXTS)


@pytest.mark.parametrize(
    "bad", [None, 7, b"text", ["a", "b"], float("nan"), "", " \n", {"text_pair": "b"}, {"text": "a", "pair": "b"}]
)
def test_one_bad_row_does_not_lose_the_others(classify, bad, monkeypatch, caplog):
    monkeypatch.setattr(module.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        results = classify(["a", bad, "b"])
    assert [results[0], results[2]] == classify(["a", "b"])
    assert (results[1]["label"], results[1]["score"]) == (None, None)
    assert results[1]["error"].startswith("input 1: ")
    assert "1 of 3 inputs are empty or not texts" in caplog.text


@pytest.mark.parametrize(
    "text", ["\U0001f642\U0001f62d", "\x00\x07\x1b[31m", "\ufeff\u200b word", "a" * 1_000_000, "\ud800"]
)
def test_odd_texts_get_a_label_or_an_error(classify, text):
    result = classify(["road", text, "river"])
    assert result[0]["label"]
    assert result[2]["label"]
    assert result[1]["label"] or result[1]["error"]


def test_ten_thousand_mixed_inputs_each_get_a_label_or_an_error(classify):
    draw = random.Random(0)
    no_text = [None, 7, 7.5, float("nan"), b"river", ["road"], {"body": "road"}, "\u200b\ufeff", "", " \n\t", "\ud800"]
    odd = ["\U0001f642\U0001f62d", "\x00\x07\x1b[31m", "\ufeff\u200b word", "7", "<b>road</b>", "\u202e road", "?"]
    inputs = [draw.choice([*odd, *TEXTS[:40]]) + f" {i}" for i in range(10_000)]
    bad = set(draw.sample(range(10_000), 2_000))
    for position in bad:
        inputs[position] = draw.choice(no_text)
    inputs[min(set(range(10_000)) - bad)] = "a" * 1_000_000
    results = list(classify(iter(inputs)))
    assert len(results) == 10_000
    for position, result in enumerate(results):
        if position in bad:
            assert result["label"] is None
            assert result["error"].startswith(f"input {position}: ")
        else:
            assert result["label"]
            assert "error" not in result
    for position in draw.sample(sorted(set(range(10_000)) - bad), 50):
        assert results[position]["score"] == pytest.approx(classify(inputs[position])[0]["score"], abs=1e-5)


INVISIBLE = ["\u200b\u200d\ufeff", "\u00ad", "\u2060\u2063", "\u3164", "\u2800", "\u034f", "\ufe0f", "\x00\x1b"]
VISIBLE = ["\U0001f642", "\u2764\ufe0f", "?", "7", "\u200bno", "\u0928\u092e", "\u20ac", "\U0001fae9"]


@pytest.mark.parametrize("text", ["", " ", "\U000e0041", *INVISIBLE])
def test_an_input_that_shows_nothing_has_an_error_in_the_shape_of_a_result(classify, text):
    for item in (text, {"text": text}, [text], ["a", text]):
        (plain,) = [classify(item)] if isinstance(item, dict) else classify(item)[-1:]
        assert plain["label"] is None
        assert "want a text" in plain["error"]
        every = classify(item, top_k=None)
        last = every[-1] if isinstance(item, list) else every
        assert [entry["label"] for entry in last] == [None]


@pytest.mark.parametrize(
    "text", ["\U0001f642", "\u2764\ufe0f", "?", "7", "\u200bno", "\u0928\u092e", "\u20ac", "\U0001fae9"]
)
def test_a_symbol_is_a_text(classify, text):
    assert classify(text)[0]["label"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [{}, {"abstain_below": 0.4}, {"top_k": None}, {"stride": 2}, {"top_k": 1}])
def test_logits_that_are_no_numbers_give_no_label(parts, number, options):
    model = copy.deepcopy(parts["model"])
    model.classifier.out_proj.bias.data[0] = number
    for result in EmotionPipeline(**parts | {"model": model})(["a day", "river"], **options):
        result = result[0] if isinstance(result, list) else result
        assert (result["label"], result["score"]) == (None, None)
        assert "gives no number" in result["error"]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"abstain_bellow": 0.5}, "did you mean abstain_below"),
        ({"topk": 2}, "did you mean top_k"),
        ({"maximum_length": 9}, "did you mean max_length"),
        ({"return_all_scores": True}, "unknown option 'return_all_scores'"),
        ({"return_tensors": "pt"}, "unknown option"),
        ({"qwertz": 1}, "the options are stride"),
        ({"top_k": 0}, "want at least 1"),
        ({"max_length": 2}, "max_length is 2"),
    ],
)
def test_an_option_that_does_nothing_is_refused(classify, parts, option, says):
    with pytest.raises(ValueError, match=says):
        classify(TEXTS[:2], **option)
    with pytest.raises(ValueError, match=says):
        EmotionPipeline(**parts, **option)


def test_threads_that_share_a_pipeline_get_what_each_would_get_alone(classify, parts):
    """Eight threads, 320 calls with four settings, on two pipelines with one tokenizer."""
    options = [{}, {"max_length": 16}, {"stride": 8}, {"max_length": 64}]
    pipelines = [classify, EmotionPipeline(**parts)]
    texts = [f"{'the river took the road and nobody told us ' * (i % 9 + 1)} {i}" for i in range(48)]

    def call(number: int):
        thread, first = number % 8, number // 8
        return pipelines[thread // 4](texts[first : first + 8], **options[thread % 4])

    want = list(map(call, range(320)))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(320))) == want


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis", None])
def test_the_library_finds_the_pipeline_under_both_names(parts, tmp_path, python_without_project, task):
    EmotionPipeline(**parts).save_pretrained(tmp_path / "model")
    assert list(json.loads((tmp_path / "model" / "config.json").read_text())["custom_pipelines"]) == [
        "text-classification"
    ]
    out = python_without_project(f"""
from transformers import pipeline
for _ in range(2):
    classify = pipeline({task!r}, model={str(tmp_path / "model")!r}, trust_remote_code=True)
    print(type(classify).__name__, classify(["a day"], abstain_below=1.0)[0]["label"], classify([""])[0]["label"])
    classify.save_pretrained({str(tmp_path / "model")!r})
""")
    assert out.splitlines() == ["EmotionPipeline None None"] * 2


def test_abstaining(classify):
    plain = classify(TEXTS)
    middle = sorted(result["score"] for result in plain)[30]
    for got, want in zip(classify(TEXTS, abstain_below=middle), plain, strict=True):
        assert got == (want if want["score"] >= middle else want | {"label": None})
    with pytest.raises(ValueError, match="want a probability"):
        classify(TEXTS, abstain_below=2)


def test_a_budget_below_one_is_refused(classify):
    with pytest.raises(ValueError, match="want at least 1"):
        classify(TEXTS, tokens_per_batch=0)


def test_texts_that_are_cut_are_counted(classify, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    monkeypatch.setattr(module.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        classify(["nobody " * 40, "nobody", "road " * 30])
    assert "2 of 3 texts are longer than 16 tokens and were cut" in caplog.text


def test_lower_precision_and_several_classes(v3_folder, tokenizer):
    model = warm_start(str(v3_folder), num_labels=3, problem_type="multi_label_classification").eval()
    results = EmotionPipeline(model=model.to(torch.bfloat16), tokenizer=tokenizer)(TEXTS[:5], top_k=None)
    for row in results:
        assert all(0 <= entry["score"] <= 1 for entry in row)
        assert sum(entry["score"] for entry in row) != pytest.approx(1, abs=1e-3)  # sigmoid, each label by itself


def test_long_texts_are_read_in_windows(classify, parts, tokenizer, monkeypatch):
    """Against windows cut by hand: 14 tokens and the two special ones in each, 4 of them shared."""
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    long = "the river took the road and nobody told us why it had to be so " * 3
    (short, got) = classify(["nobody told us", long], stride=4, top_k=None)
    ids = tokenizer(long, add_special_tokens=False, truncation=False)["input_ids"]
    windows = [ids[start : start + 14] for start in range(0, len(ids) - 4, 10)]
    assert len(windows) > 3
    batch = [torch.tensor([[tokenizer.cls_token_id, *window, tokenizer.sep_token_id]]) for window in windows]
    with torch.no_grad():
        mean = torch.cat([parts["model"](ids).logits.softmax(dim=-1) for ids in batch]).mean(dim=0)
    labels = {label: number for number, label in parts["model"].config.id2label.items()}
    for entry in got:
        assert entry["score"] == pytest.approx(float(mean[labels[entry["label"]]]), abs=1e-5)
    assert short == classify(["nobody told us"], top_k=None)[0]
    assert classify(long, stride=4) == classify([long], stride=4)
    with pytest.raises(ValueError, match="want 0 to 13 shared tokens"):
        classify([long], stride=14)


def test_thresholds_choose_labels(v3_folder, tokenizer):
    labels = {0: "anger", 1: "fear", 2: "joy"}
    model = warm_start(str(v3_folder), id2label=labels, problem_type="multi_label_classification").eval()
    classify = EmotionPipeline(model=model, tokenizer=tokenizer)
    every = classify(TEXTS[:20], top_k=None)
    middle = sorted(entry["score"] for row in every for entry in row if entry["label"] == "fear")[10]
    for got, row in zip(classify(TEXTS[:20], thresholds={"fear": middle, "joy": 1.0}), every, strict=True):
        want = {"fear": middle, "joy": 1.0, "anger": 0.5}
        assert got == [entry for entry in row if entry["score"] >= want[entry["label"]]]
    with pytest.raises(ValueError, match="'hope' is not a label"):
        classify(TEXTS, thresholds={"hope": 0.5})
    with pytest.raises(ValueError, match="thresholds and top_k exclude each other"):
        classify(TEXTS, thresholds={"fear": 0.5}, top_k=1)
    made_with = EmotionPipeline(model=model, tokenizer=tokenizer, thresholds={"fear": 0.5})
    assert made_with(TEXTS[:20], top_k=None) == every


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_the_models_thresholds_are_for_probabilities(v3_folder, tokenizer, kind):
    """A logit below a threshold may be of a probability above it."""
    several = kind == "multi_label_classification"
    fitted = {"label_thresholds": [0.0, 0.0, 0.0]} if several else {"abstain_below": 1.0}
    model = warm_start(str(v3_folder), num_labels=3, problem_type=kind).eval()
    classify = EmotionPipeline(model=model, tokenizer=tokenizer)
    logits = classify(TEXTS[:3], function_to_apply="none")
    for name, value in fitted.items():
        setattr(model.config, name, value)
    assert classify(TEXTS[:3], function_to_apply="none") == logits
    own = classify(TEXTS[:3])
    assert own == classify(TEXTS[:3], function_to_apply="sigmoid" if several else "softmax")
    assert [len(row) for row in own] == [3] * 3 if several else [row["label"] for row in own] == [None] * 3
    given = {"thresholds": {}} if several else {"abstain_below": 0.5}
    with pytest.raises(ValueError, match="is for probabilities; leave out function_to_apply"):
        classify(TEXTS[:3], function_to_apply="none", **given)


def test_settings_fitted_for_other_labels_are_left_out(v3_folder, tmp_path):
    """A head for more labels would otherwise not load, or not be saved after its training."""
    several = "multi_label_classification"
    model = warm_start(str(v3_folder), num_labels=3, problem_type=several)
    model.config.label_thresholds, model.config.calibration_temperature = [0.2, 0.3, 0.4], 1.5
    model.save_pretrained(tmp_path)

    def loaded(**options) -> EmoDebertaConfig:
        model = EmoDebertaForSequenceClassification.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **options)
        model.save_pretrained(tmp_path / "again")
        return model.config

    for same in ({}, {"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"problem_type": several}):
        config = loaded(**same)
        assert (config.label_thresholds, config.calibration_temperature) == ([0.2, 0.3, 0.4], 1.5)
    others = ({"num_labels": 5}, {"id2label": {0: "a", 1: "b"}}, {"problem_type": "single_label_classification"})
    for other in others:
        config = loaded(**other)
        assert (config.label_thresholds, config.calibration_temperature) == (None, None)


def test_thresholds_are_for_several_classes(classify):
    with pytest.raises(ValueError, match="several classes per text"):
        classify(TEXTS, thresholds={"fear": 0.5})


# ---- ONNX ------------------------------------------------------------------------------------------------------------
UNSHARED = TINY | {"share_att_key": False, "pos_att_type": ["p2c"]}
ABSOLUTE = TINY | {"relative_attention": False, "position_biased_input": True, "position_buckets": -1}


BIASED = {"position_bias_buckets": 32}
CALIBRATED = ABSOLUTE | {"calibration_temperature": 1.7, "pooling": "cls"}


@pytest.mark.parametrize("options", [TINY, XXLARGE_STYLE, UNSHARED, CALIBRATED, ABSOLUTE | BIASED, UNSHARED | BIASED])
def test_the_graph_computes_the_logits_at_any_batch_and_length(options, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    config = EmoDebertaConfig(**options, initializer_range=0.3, num_labels=3)
    model = EmoDebertaForSequenceClassification(config).eval()
    run_export.export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, length in ((1, 3), (1, 20), (4, 41), (2, 400)):
        ids = torch.randint(5, 600, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, (length + 1) // 2 :] = 0
        with torch.no_grad():
            want = model(ids, mask).logits.numpy()
        (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(got - want).max() < 1e-5 * max(1, np.abs(want).max())


def test_a_trained_folder_is_exported_and_checked(finished, tmp_path):
    """In int8 too, which is kept only where it decides alike."""
    folder, _ = finished
    flags = ("--output_dir", tmp_path / "onnx", "--int8")
    done = forked.run(ROOT / "run_export.py", folder, *flags, cwd=tmp_path, check=False)
    written = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"export.json", "model.onnx"} <= written
    assert check_files(tmp_path / "onnx") == []  # no path of this machine, for one
    report = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert report["texts"] == 1008
    assert report["against PyTorch, float32"]["model.onnx"]["equal_decisions"] == 1
    int8 = report["against PyTorch, float32"]["model_int8.onnx"]
    kept = "model_int8.onnx" in written
    assert kept == (int8["equal_decisions"] >= 0.995) == (done.returncode == 0)
    assert kept or "int8 is not written" in done.stderr
    with pytest.raises(InputError, match=r"holds an export; give another --output_dir, or --overwrite_output_dir"):
        call(run_export.main, folder, "--output_dir", tmp_path / "onnx")
    call(run_export.main, folder, "--output_dir", tmp_path / "onnx", "--overwrite_output_dir")
    assert {path.name for path in (tmp_path / "onnx").glob("[!.]*")} == {"export.json", "model.onnx"}


@pytest.mark.parametrize("flags", [(), ("--overwrite_output_dir",)])
def test_an_export_replaces_nothing_but_an_export(finished, flags, tmp_path):
    """The model's own folder least of all."""
    shutil.copytree(finished[0], tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path / "model", tmp_path):
        with pytest.raises(InputError, match=r"is in use \(.* is not part of an export\); give another --output_dir"):
            call(run_export.main, tmp_path / "model", "--output_dir", folder, *flags)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere"),
        (["--check_file", "texts.csv", "MODEL"], "texts.csv: no such file"),
        (["--text_column_name", "essay", "MODEL"], "no column 'essay'"),
    ],
)
def test_errors_are_one_line(finished, arguments, says, tmp_path):
    folder, _ = finished
    arguments = [folder if argument == "MODEL" else argument for argument in arguments]
    with pytest.raises(InputError) as error:
        call(run_export.main, *arguments, "--output_dir", tmp_path / "o")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()
