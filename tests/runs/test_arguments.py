import pytest
from support import ROOT
from transformers import TrainingArguments

import run_reproduce
from trainer_ext import ChildTuningArguments
from trainer_ext.data.load import DataArguments
from trainer_ext.data.pretraining_texts import PretrainingArguments
from trainer_ext.errors import InputError
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS
from trainer_ext.training.warm_start import CheckpointArguments

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
    with pytest.raises(InputError, match=r"started 2 processes, but they are not connected.*two_processes_cpu\.yaml"):
        parser.parse(["--output_dir", "out", "--bf16", "false"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parser.parse(["--output_dir", "out", "--bf16", "false"])[-1].world_size == 1
