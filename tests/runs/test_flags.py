"""Flags, recipe files and defaults: what they set, and one line for what people get wrong in them."""

import csv
import json
import logging
import re
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ESSAYS, ROOT
from transformers import TrainerControl, TrainerState, TrainingArguments

import run_compare
import run_fuse
import run_reproduce
from trainer_ext import ChildTuningArguments
from trainer_ext.data import load
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.label_maps import read_label_map
from trainer_ext.data.load import DataArguments, corpus_arguments
from trainer_ext.data.pretraining_texts import PretrainingArguments
from trainer_ext.data.tables import read_file
from trainer_ext.errors import InputError
from trainer_ext.recipe_file import read_recipe
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.checkpoints import checkpoints
from trainer_ext.runs.defaults import Defaults
from trainer_ext.runs.flags import apply_selection, check_corpus, complete_folders
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS, RunArguments, training_settings
from trainer_ext.training import callbacks
from trainer_ext.training.callbacks import StopEarly
from trainer_ext.training.warm_start import CheckpointArguments

# ---- Flags -----------------------------------------------------------------------------------------------------------
# Flags of the library's run_classification.py that people type from memory.
FAMILIAR = """
model_name_or_path tokenizer_name cache_dir model_revision token dataset_name dataset_config_name train_file
validation_file test_file train_split_name validation_split_name test_split_name text_column_name
text_column_names label_column_name max_seq_length max_train_samples max_eval_samples max_predict_samples
output_dir overwrite_output_dir num_train_epochs max_steps learning_rate seed bf16 push_to_hub hub_model_id
per_device_train_batch_size gradient_accumulation_steps resume_from_checkpoint
""".split()  # noqa: SIM905


@pytest.fixture
def parser() -> RecipeParser:
    return RecipeParser(CLASSIFY_ARGUMENTS, prog="run_classify.py")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_familiar_flags_are_there(parser):
    assert all(f"--{name}" in parser._option_string_actions for name in FAMILIAR)


def test_every_flag_overrides_the_recipe(parser, recipe):
    path = recipe("output_dir: out\nlearning_rate: 2e-5\npooling: cls\nlabel_set: [b, a]\nbf16: false\nmax_steps: -1\n")
    model, data, _, run, training = parser.parse([path])
    assert (model.pooling, data.label_set, run.select) == ("cls", ["b", "a"], "last")
    assert (training.learning_rate, training.max_steps, training.bf16) == (2e-5, -1, False)
    model, data, _, _, training = parser.parse(
        [path, "--learning_rate", "1e-3", "--pooling=mean", "--label_set", "c", "--max-steps", "5"]
    )
    assert (training.learning_rate, model.pooling, data.label_set, training.max_steps) == (1e-3, "mean", ["c"], 5)


def test_dictionaries_and_nulls_pass(parser, recipe):
    path = recipe(
        "output_dir: out\nlr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 0.4}\ntest_file: null\n"
    )
    _, data, _, _, training = parser.parse([path])
    assert training.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert data.test_file is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1", "recipe.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("pooling: max", "invalid choice: 'max'"),
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("- a\n- b", "holds a list; want `flag: value` lines"),
        ("a: [", "not a YAML file"),
        ("output_dir: out\nchild_tuning_p: 0", r"child_tuning_p is 0.0; it must lie in \(0, 1\]"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(parser, recipe, text, says):
    with pytest.raises(InputError, match=says.replace("?", r"\?")) as error:
        parser.parse([recipe(text)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning_rat", "1"], "unknown argument '--learning_rat'; did you mean --learning_rate"),
        (["no_such.yaml"], "no_such.yaml: no such recipe"),
        (["--max_seq_length", "long"], "invalid int value: 'long'"),
    ],
)
def test_a_flag_that_does_not_fit_is_one_line(parser, argv, says):
    with pytest.raises(InputError, match=says):
        parser.parse(argv)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_how_to_run_it(parser, path):
    script = {"mlm": "run_mlm.py", "wassa2022_full": "run_reproduce.py"}.get(path.stem, "run_classify.py")
    if script == "run_reproduce.py":
        run_reproduce.read_stages(path)
    else:
        if script == "run_mlm.py":
            parser = RecipeParser((CheckpointArguments, PretrainingArguments, ChildTuningArguments))
        parser.parse([str(path)])
    assert path.read_text(encoding="utf-8").startswith(f"# run: python {script} recipes/{path.name}")


def test_help_has_sections_and_examples(parser, capsys):
    parser.description = "What it does.\n\n    python run_classify.py recipes/quickstart.yaml"
    with pytest.raises(SystemExit) as stop:
        parser.parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for section in ("Model:", "Data:", "Run:", "Child-Tuning:", "Training:"):
        assert f"\n{section}" in text
    assert "python run_classify.py recipes/quickstart.yaml" in text
    assert "--max-steps" not in text
    assert text.index("--child_tuning_p") < text.index("--per_device_train_batch_size")


def test_data_dir_comes_from_the_environment(parser, monkeypatch):
    monkeypatch.setenv("EMODEBERTA_DATA", "/somewhere")
    parser = RecipeParser((DataArguments, TrainingArguments))
    assert parser.parse(["--output_dir", "x"])[0].data_dir == "/somewhere"


def test_processes_that_a_launcher_started_but_nothing_connects_are_refused(parser, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as `accelerate launch` on a machine without the GPUs of its file
    with pytest.raises(InputError, match=r"started 2 processes, but they are not connected.*want --use_cpu"):
        parser.parse(["--output_dir", "out", "--bf16", "false"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parser.parse(["--output_dir", "out", "--bf16", "false"])[-1].world_size == 1


def test_a_repository_has_the_name_of_the_folder_that_a_dot_stands_for(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    args = TrainingArguments(".", use_cpu=True, push_to_hub=True)
    complete_folders(args, CheckpointArguments("owner/model"), RunArguments())
    assert args.hub_model_id == "mine"


# ---- Recipe files that people get wrong, or make to do harm ----------------------------------------------------------
STAGE = {"command": "run_classify.py recipes/quickstart.yaml", "output_dir": "out", "minutes": 1}
# By kind: how it is read, and the least that it may hold.
KINDS = {
    "comparison": (run_compare.read_comparison, {"variants": {"a": {}, "b": {}}}),
    "fusion": (lambda path: run_fuse.read_fusion_recipe(path, {}), {"members": {"a": {}, "b": {}}}),
    "labels": (lambda path: read_label_map(str(path)), {"train_file": "x.csv", "labels": {"joy": ["glad"]}}),
    "stages": (run_reproduce.read_stages, {"stages": {"a": STAGE}}),
}


def bomb(first: str = "[x, x, x]") -> str:
    """Ten lines that stand for nine to the power of ten values."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mean: {}\nother: {}\nmean: {}", "line 3: not a YAML file that can be read ('mean' is listed twice)"),
        ("variants:\n  1: {}\n  '1': {}", "line 3: .* ('1' is listed twice)"),
        ("a: 1\n? [x]\n: 2", "line 2: .* (a name is not text)"),
        (bomb(), "more than 1,000,000 characters, aliases written out"),
        (f'long: &l "{"x" * 20_000}"\nmany: [{"*l, " * 60}]', "more than 1,000,000 characters, aliases written out"),
        ("a: &a [*a]", "nested more than 40 deep"),
        ("a: " + "[" * 100_000, "nested more than 40 deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 40 deep"),
        ("a: !!python/object/apply:os.system [true]", "line 1: .*could not determine a constructor"),
        ("a: !!bool maybe", "not a YAML file that can be read"),
        ("a: !!set {x}", "could not determine a constructor"),
        (f"a: {'9' * 5000}", "not a YAML file that can be read"),
        ('a: "\\0"', "line 1: .*NUL"),
        ('a: "\\ud83d"', "line 1: .*lone surrogate"),
        (f"a: {'x' * 1_000_001}", "has 1,000,004 bytes; a recipe has at most 1,000,000"),
        ("- a\n- b", "holds a list; want `flag: value` lines"),
        (b"a: \xff", "not a YAML file in UTF-8 (invalid start byte at byte 3)"),
        ("a: *b", "line 1: .*undefined alias"),
    ],
    ids=range(18),
)
def test_what_a_file_can_do_wrong_is_one_line(text, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert re.fullmatch(f"{re.escape(str(path))}.*{'.*'.join(map(re.escape, says.split('.*')))}.*", str(error.value))


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.yaml").write_text(f"{bomb()}\nvariants: {{a: {{train_file: *a10}}, b: {{}}}}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "run_compare.py", tmp_path / "bomb.yaml"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/bomb.yaml, line ")
    assert len(done.stderr.splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "gone.yaml", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"no such recipe|cannot be read"):
            read_recipe(path)


def test_names_are_as_they_are_written_and_dates_are_text(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "1: {}\nno: {}\n2022-01-01: {}\non: 2022-13-99\nbase: &b {x: 1}\nc: {<<: *b, x: 2}"
    )
    content = read_recipe(tmp_path / "mine.yaml")
    assert list(content) == ["1", "no", "2022-01-01", "on", "base", "c"]
    assert (content["on"], content["c"]) == ("2022-13-99", {"x": 2})


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("comparison", {"seeds": "1"}, "seeds: '1'; want a list"),
        ("comparison", {"seeds": [1, "2"]}, "seeds, 1: '2'; want an integer"),
        ("comparison", {"seeds": [1, 1]}, "seeds: [1, 1]; a value is listed twice"),
        ("comparison", {"seeds": []}, "seeds: []; want at least one"),
        ("comparison", {"cv_folds": 2.5}, "cv_folds: 2.5; want an integer"),
        ("comparison", {"cv_folds": True}, "cv_folds: True; want an integer"),
        ("comparison", {"cv_folds": 1}, "cv_folds: 1 fold leaves no row to train on"),
        ("comparison", {"columns": "age"}, "columns: 'age'; want a list"),
        ("comparison", {"reference": ["a"]}, "reference: ['a']; want text"),
        ("comparison", {"recipe": 3}, "recipe: 3; want text"),
        ("comparison", {"settings": [1]}, "settings: [1]; want lines of `name: value`"),
        ("comparison", {"variants": ["a"]}, "variants: ['a']; want lines of `name: value`"),
        ("comparison", {"variants": {"a": [1]}}, "variants, a: [1]; want lines of `name: value`"),
        ("comparison", {"variants": {"a": {"program": ["x"]}}}, "a: program ['x']; want one of run_classify"),
        ("comparison", {"variants": {"a": {"help": []}}}, "a: unknown key 'help'"),
        ("comparison", {"variants": {"a": {"learning_rate": [1, 2]}}}, "a, learning_rate: [1, 2]; want one value"),
        ("comparison", {"variants": {"a": {"number_targets": [[1]]}}}, "unknown key 'number_targets'"),
        ("comparison", {"variants": {"a": {"report_to": [["x"]]}}}, "report_to: [['x']]; want a list of plain values"),
        ("comparison", {"sums": {"s": {"variants": "ab", "seeds": [1]}}}, "sums, s, variants: 'ab'; want a list"),
        ("comparison", {"sums": {"s": {"variants": ["a", "b"]}}}, "sums, s: no seeds"),
        ("fusion", {"cv_folds": "5"}, "cv_folds: '5'; want an integer"),
        ("fusion", {"tfidf": "yes"}, "tfidf: 'yes'; want true or false"),
        ("fusion", {"teachers": {"a": 1}}, "teachers: {'a': 1}; want a list"),
        ("fusion", {"without": {"x": [1]}}, "without, x, 0: 1; want text"),
        ("fusion", {"members": {"a": {"seed": "1"}, "b": {}}}, "a, seed: '1'; want an integer"),
        ("fusion", {"student": [1]}, "student: [1]; want lines of `name: value`"),
        ("labels", {"labels": ["glad"]}, "labels: ['glad']; want lines of `name: value`"),
        ("labels", {"train_file": 5}, "train_file: 5; want text"),
        ("labels", {"licence": ["mit"]}, "licence: ['mit']; want text"),
        ("stages", {"stages": {"a": STAGE | {"command": ["x"]}}}, "stages, a, command: ['x']; want text"),
        ("stages", {"stages": {"a": STAGE | {"command": "run_mlm.py 'x"}}}, 'command: "run_mlm.py \'x": No closing'),
        (
            "stages",
            {"stages": {"a": STAGE | {"command": "run_reproduce.py"}}},
            "want a command that begins with a run_",
        ),
        ("stages", {"stages": {"a": STAGE | {"minutes": "soon"}}}, "stages, a, minutes: 'soon'; want a number"),
        ("stages", {"stages": {"a": STAGE | {"minutes": float("nan")}}}, "stages, a, minutes: nan; want a finite"),
        ("stages", {"stages": {"a": STAGE, "b": STAGE}}, "stages: two leave out; want a folder for each"),
        ("stages", {"submission": {"../x.tsv": "out"}}, "submission, ../x.tsv: want the name of a file"),
        ("stages", {"submission": ["out"]}, "submission: ['out']; want lines of `name: value`"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_its_place(kind, change, says, tmp_path):
    read, least = KINDS[kind]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(least | change))
    with pytest.raises(InputError) as error:
        read(tmp_path / "mine.yaml")
    assert str(error.value).startswith(f"{tmp_path}/mine.yaml, ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a", "1", "-x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    *("variants", "members", "stages", "seeds", "cv_folds", "columns", "sums", "reference", "recipe", "settings"),
    *("labels", "left_out", "train_file", "tfidf", "student", "teachers", "without", "minutes_on", "learning_rate"),
])  # fmt: skip


@given(st.sampled_from([*KINDS, "flags"]), st.dictionaries(KEYS, VALUES, max_size=3), st.binary(max_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_recipe_gives_a_traceback(tmp_path, kind, change, tail):
    path = tmp_path / "mine.yaml"
    read, least = KINDS.get(kind, (lambda _: RecipeParser(CLASSIFY_ARGUMENTS).parse([str(path)]), {}))
    path.write_bytes(json.dumps(least | change, ensure_ascii=False).encode(errors="surrogatepass") + tail)
    said = None
    try:
        read(path)
    except InputError as error:
        said = str(error)
    assert said is None or ((str(path) in said or kind == "flags") and "\n" not in said)


def test_every_recipe_of_the_project_is_read():
    for path in sorted(Path(ROOT / "recipes").rglob("*.yaml")):
        assert read_recipe(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


# ---- Defaults for people's own data ----------------------------------------------------------------------------------
LINE = re.compile(r" *[\d.]+/\d+( +([\d.]+|-)){4}")


@pytest.fixture
def mine(tmp_path) -> str:
    """A csv of 48 essays whose columns have other names than the project's."""
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        essays = list(csv.DictReader(file, delimiter="\t"))[:48]
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Essay Text", "How they feel", "Author"])
        writer.writerows([row["text"], row["label"], f"a{index // 3}"] for index, row in enumerate(essays))
    return str(path)


def completed(*flags: object) -> tuple[dict, dict, Corpus]:
    """What the flags come to, what was filled in, and the corpus."""
    parser = RecipeParser(CLASSIFY_ARGUMENTS)
    model_args, data_args, transfer_args, run_args, args = parser.parse(
        [*map(str, flags), "--output_dir", "out", "--use_cpu", "--bf16", "false"]
    )
    defaults = Defaults.begin(parser, model_args, data_args, trains=True)
    apply_selection(run_args, args)
    corpus = defaults.load(corpus_arguments(data_args))
    corpus = defaults.with_validation(corpus, args.seed)
    defaults.complete(corpus, model_args, run_args, args)
    check_corpus(corpus, data_args, run_args, args)
    return training_settings(model_args, data_args, transfer_args, run_args, args), defaults.chosen, corpus


# ---- What is set --------------------------------------------------------------------------------------------------
def test_two_flags_train_stop_and_go_on_alike(mine, in_process, tmp_path, caplog, monkeypatch):
    """With a rate of 0 nothing improves: three evaluations, and a second start takes no step more."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(callbacks, "_UNTIL_KNOWN", 0.0)  # seconds
    results = in_process("--train_file", mine, "--learning_rate", 0, "--save_total_limit", 3, "--keep_checkpoints")
    assert (results["train_rows"], results["validation_rows"]) == (39, 9)  # three of sixteen authors
    said = caplog.messages
    assert any(line.endswith("text 'Essay Text', label 'How they feel', group 'Author'") for line in said)
    assert next(line.split() for line in said if line.startswith("class ")) == ["class", "train", "validation"]
    assert "steps: 100 (epochs: 20)" in said
    assert [bool(re.fullmatch(r"step 1 of 100; about \d+\.\d minutes left", line)) for line in said].count(True) == 1
    epochs = [line for line in said if LINE.fullmatch(line)]
    assert [line.split()[0] for line in epochs] == ["1/20", "2/20", "3/20"]
    assert max(map(len, epochs)) <= 80
    assert "stopped early, because validation did not improve" in said
    assert any(line.startswith("kept: epoch 1, with macro F1 ") for line in said)
    record = json.loads((tmp_path / "out" / "run.json").read_text())["defaults"]
    assert (record["early_stopping_patience"], record["select"], record["warmup_steps"]) == (2, "best_on_dev", 0.1)
    assert not {"learning_rate", "per_device_train_batch_size", "model_name_or_path"} & record.keys()  # were given
    assert (record["text_column_name"], record["label_column_name"]) == ("Essay Text", "How they feel")
    assert {"eval_loss", "loss"} <= {key for entry in log_of(tmp_path / "out") for key in entry}

    before = log_of(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path.name != "checkpoints":
            path.unlink()
    caplog.clear()
    in_process("--train_file", mine, "--learning_rate", 0, "--save_total_limit", 3, "--keep_checkpoints")
    assert log_of(tmp_path / "out") == before
    assert not any(LINE.fullmatch(line) for line in caplog.messages)


def log_of(folder) -> list[dict]:
    return json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())["log_history"]


def test_a_recipe_keeps_its_silence(mine, v3_folder, tmp_path):
    flags = {"train_file": mine, "model_name_or_path": str(v3_folder), "text_column_name": "Essay Text"}
    flags["label_column_name"] = "How they feel"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(flags))
    settings, chosen, corpus = completed(tmp_path / "mine.yaml")
    assert not chosen
    assert corpus.splits.keys() == {"train"}
    plain = TrainingArguments("out", use_cpu=True)
    for name in ("learning_rate", "num_train_epochs", "warmup_steps", "logging_strategy", "save_strategy"):
        assert settings[name] == asdict(plain)[name]
    assert (settings["select"], settings["group_column_name"]) == ("last", None)
    assert "early_stopping_patience" not in settings  # so that trials keep their names


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        (["--num_train_epochs", 3], {"num_train_epochs": 3, "select": "best_on_dev", "warmup_steps": 0.1}),
        (["--max_steps", 5], {"max_steps": 5, "warmup_steps": 0, "num_train_epochs": 3}),
        (["--select", "last"], {"select": "last", "eval_strategy": "epoch", "num_train_epochs": 10}),
        (["--save_steps", 5], {"select": "last", "save_strategy": "steps", "save_total_limit": None}),
        (["--validation_split_percentage", 0], {"select": "last", "eval_strategy": "no", "num_train_epochs": 10}),
        (["--lora_rank", 4, "--num_train_epochs", 2], {"learning_rate": 1e-3}),
        (["--num_train_epochs", 9, "--early_stopping_patience", 3], {"early_stopping_patience": 3}),
    ],
)
def test_given_flags_win(mine, v3_folder, flags, want):
    settings, chosen, _ = completed("--train_file", mine, "--model_name_or_path", v3_folder, *flags)
    assert {name: settings[name] for name in want} == want
    assert "early_stopping_patience" not in chosen
    assert not {str(flag)[2:] for flag in flags} & chosen.keys()


def test_a_search_starts_from_the_same_values(mine, v3_folder, caplog):
    caplog.set_level(logging.INFO)
    flags = ["--train_file", mine, "--model_name_or_path", str(v3_folder), "--learning_rate", "0.5"]
    found, corpus = Defaults.of_search(flags)
    assert found == {
        "text_column_name": "Essay Text", "label_column_name": "How they feel", "group_column_name": "Author",
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "weight_decay": 0.01, "warmup_steps": 0.1,
        "num_train_epochs": 10,
    }  # fmt: skip
    said = next(line for line in caplog.messages if line.startswith("defaults: "))
    assert set(re.findall(r"--(\w+)", said)) == {name for name in found if not name.endswith("_column_name")}
    columns = {name: value for name, value in found.items() if name.endswith("_column_name")}
    again = load.load_corpus(**corpus_arguments(DataArguments(train_file=str(mine), **columns)))
    assert corpus.label_names == again.label_names
    assert corpus.splits["train"].to_dict() == again.splits["train"].to_dict()
    assert Defaults.of_search(["--dataset_name", "wassa2022", "--data_dir", "x"]) == ({}, None)


def test_the_users_file_is_read_once(mine, v3_folder, monkeypatch):
    read = []
    monkeypatch.setattr(load, "read_file", lambda *path: read.append(path) or read_file(*path))
    completed("--train_file", mine, "--model_name_or_path", v3_folder)
    assert len(read) == 1


def test_patience_needs_evaluations(mine, v3_folder):
    start = ["--train_file", mine, "--model_name_or_path", v3_folder, "--early_stopping_patience", 2]
    with pytest.raises(InputError, match="early_stopping_patience needs evaluations"):
        completed(*start, "--eval_strategy", "no")
    with pytest.raises(InputError, match="early_stopping_patience needs"):
        completed(*start, "--validation_split_percentage", 0)


# ---- What is printed ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "epochs", "begins", "cells"),
    [
        ({"max_steps": 5000}, 1, "steps: 5,000", ["step", "3/5,000"]),
        ({"max_steps": 5000}, sys.maxsize, "steps: 5,000", ["step", "3/5,000"]),  # a stream
        ({"max_steps": 5000}, 7, "steps: 5,000 (epochs: 7)", ["epoch", "0/7"]),
        ({}, 7, "steps: 5,000 (epochs: 7)", ["epoch", "0/7"]),
    ],
)
def test_a_training_within_its_first_epoch_counts_steps(flags, epochs, begins, cells, caplog):
    caplog.set_level(logging.INFO)
    lines, control = callbacks.EpochLines(callbacks.PERPLEXITY), TrainerControl()
    args = TrainingArguments("out", use_cpu=True, disable_tqdm=True, **flags)
    state = TrainerState(max_steps=5000, num_train_epochs=epochs)
    lines.on_evaluate(args, state, control, {"eval_perplexity": 2.0})  # before a training: no line
    lines.on_train_begin(args, state, control)
    state.global_step, state.epoch, control.should_evaluate = 3, 0.0005862, True
    lines.on_step_end(args, state, control)
    assert control.should_log
    state.log_history.append({"loss": 1.5, "step": 3})
    lines.on_evaluate(args, state, control, {"eval_loss": 9.6, "eval_perplexity": 15213.456})
    first, header, line = (message.split() for message in caplog.messages)
    assert " ".join(first) == begins
    assert [header[0], line[0]] == cells
    assert line[1:4] == ["1.5000", "9.6000", "15213.46"]
    assert max(map(len, caplog.messages)) <= 80


# ---- When it stops ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("f1", "loss", "stops"),
    [
        ([0.5, 0.6, 0.6, 0.5], [1.0, 0.9, 0.9, 1.1], True),
        ([0.5, 0.6, 0.6], [1.0, 0.9, 0.9], False),
        ([0.0, 0.0, 0.0, 0.0], [1.0, 0.9, 0.8, 0.7], False),  # several classes per row: nothing is above 0.5 yet
        ([0.5, 0.4, 0.6, 0.7], [1.0, 1.1, 1.2, 1.3], False),
        ([0.7, 0.6, 0.6], [1.0, 1.1, 1.2], True),
        ([], [], False),
    ],
)
def test_patience_counts_evaluations_without_a_better_figure(f1, loss, stops):
    control = TrainerControl()
    history = [{"eval_macro_f1": each, "eval_loss": other} for each, other in zip(f1, loss, strict=True)]
    StopEarly(2).on_train_begin(None, TrainerState(log_history=[{"loss": 1.0}, *history]), control)
    assert control.should_training_stop == stops


def test_a_log_file_has_lines_and_no_bars(finished):
    _, done = finished
    assert "\r" not in done.stderr
    assert "'eval_loss'" not in done.stdout + done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines() if LINE.fullmatch(line)]
