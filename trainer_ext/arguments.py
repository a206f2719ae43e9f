"""Flags and YAML recipes: the dataclasses of the scripts, parsed by `HfArgumentParser`.

A recipe is a YAML file of flag names and values. It is read as if its entries stood on the command line before the
real ones, so every flag overrides it, and both are checked alike.
"""

import difflib
import json
import os
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from . import run_folder
from .child_tuning import ChildTuningArguments
from .errors import InputError
from .precision import Choice, choose

# Flags that do not change what is learnt; a run may go on with others.
_NOT_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "token", "hub_token", "cache_dir", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push", "data_dir",
    "log_level", "log_level_replica", "preprocessing_num_workers", "report_to", "run_name", "project", "local_rank",
    "tfidf_baseline", "publish_restricted", "extra_tests", "use_cpu", "dataloader_pin_memory",
}  # fmt: skip
# Flags added later. At their defaults they are left out of the settings, so that older trainings keep their names.
_LATER = {"pretrained_share": 0.0}

_PUBLISH_RESTRICTED = (
    "With --push_to_hub: also a model that saw data for restricted use, whose terms you have read and which let you "
    "publish it. Its card names them."
)


def _flag(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class CheckpointArguments:
    """What to start from."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = _flag(
        None,
        "Checkpoint to start from, a folder or a Hub id: DeBERTa-v2/v3, BERT-shaped (BERT, MiniLM, RoBERTa, "
        "XLM-R, DistilBERT, ELECTRA, MPNet; the same function at step 0) or an EmoDeBERTa of an earlier stage.",
    )
    model_revision: str | None = _flag(None, "Branch, tag or commit of the checkpoint on the Hub.")
    tokenizer_name: str | None = _flag(None, "Tokenizer, if it is not the checkpoint's own.")
    from_scratch: bool = _flag(
        False, "Take only the checkpoint's configuration and tokenizer; weights are random (the paper's w/o PLM row)."
    )
    relative_attention: bool = _flag(
        False, "Give a BERT-shaped checkpoint DeBERTa's relative positions; it still computes the same at step 0."
    )
    cache_dir: str | None = _flag(None, "Where downloads from the Hub are kept.")
    token: str | None = _flag(None, "Hub token, if not the one of `hf auth login`.")


@dataclass
class ModelArguments(CheckpointArguments):
    """What to start from, and the head."""

    pooling: Literal["mean", "cls"] | None = _flag(
        None, "Text vector: mean of the token states (the paper), or [CLS]; as in an EmoDeBERTa checkpoint, else mean."
    )
    classifier_hidden_size: int | None = _flag(
        None,
        "Width of the head's hidden layer, 0 to leave it out; as in an EmoDeBERTa checkpoint, else 1024 (the paper's).",
    )
    classifier_dropout: float | None = _flag(
        None, "Dropout in the head; as in an EmoDeBERTa checkpoint, else 0.1 (the paper's)."
    )
    class_weights: Literal["none", "balanced"] = _flag(
        "none", "Weights of the classes in the loss; balanced: by the inverse of their training counts, mean 1 a row."
    )
    lora_rank: int | None = _flag(
        None,
        "Train low-rank updates of this rank in the encoder's linear layers, and the head, in place of all weights "
        "(LoRA, by PEFT); they are merged at the end. Wants a rate some ten times as high.",
    )


@dataclass
class DataArguments:
    """What to read."""

    _argument_group_name = "Data"

    dataset_name: str | None = _flag(
        None,
        "wassa2022 (built in; needs --data_dir), go_emotions or xed with their own labels, several a row (built in; "
        "from --data_dir, else from the Hub), or a dataset on the Hub.",
    )
    dataset_config_name: str | None = _flag(None, "Configuration of the Hub dataset.")
    data_dir: str | None = field(
        default_factory=lambda: os.environ.get("EMODEBERTA_DATA"),
        metadata={
            "help": "Folder with wassa2022/, goemotions/ and xed/; the environment's EMODEBERTA_DATA if not given."
        },
    )
    train_file: str | None = _flag(None, "Training file: .csv, .tsv, .json, .jsonl or .parquet.")
    validation_file: str | None = _flag(None, "Validation file.")
    test_file: str | None = _flag(None, "Test file; its labels may be missing.")
    train_split_name: str | None = _flag(None, "The Hub dataset's name for train.")
    validation_split_name: str | None = _flag(None, "The Hub dataset's name for validation.")
    test_split_name: str | None = _flag(None, "The Hub dataset's name for test.")
    split_column_name: str | None = _flag(
        None, "Column of the training file that says train, validation (or dev) or test for each row."
    )
    validation_split_percentage: float = _flag(
        0.0, "Without a validation split, take about this share of the training rows, whole groups only."
    )
    cv_folds: int | None = _flag(
        None,
        "Cross-validation: divide the training rows into so many folds, the same ones every time, whole groups only, "
        "and hold out --cv_fold as the test split; other splits are left out. run_compare.py runs them all.",
    )
    cv_fold: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Which of --cv_folds to hold out, counted from 0; one or several."},
    )
    bagging: bool = _flag(
        False,
        "Train on a bootstrap sample: as many writers as there are, drawn by --seed with replacement, each with all "
        "rows (Breiman 1996; how the paper's late fusion makes its models differ).",
    )
    text_column_name: str | None = _flag(
        None, "Column with the text; text if not given.", aliases=["--text_column_names"]
    )
    label_column_name: str | None = _flag(
        None,
        "Column with the label: a name, an integer, a list of names (several classes) or of numbers (one-hot, or a "
        "distribution); or several columns separated by commas, one per label. label if not given.",
    )
    group_column_name: str | None = _flag(
        None,
        "Column that names the writer of a row: writers are split, and resampled for intervals, as a whole.",
        aliases=["--group_column"],
    )
    id_column_name: str | None = _flag(None, "Column that identifies a row in predictions.tsv; else the row number.")
    label_set: list[str] = field(
        default_factory=list,
        metadata={"help": "The label set, in order; else all labels of all splits, sorted."},
    )
    max_seq_length: int = _flag(256, "Longest text in tokens; longer ones are cut, counted and reported.")
    max_train_samples: int | None = _flag(None, "Use only the first rows of train, for a quick try.")
    max_eval_samples: int | None = _flag(None, "Use only the first rows of validation.")
    max_predict_samples: int | None = _flag(None, "Use only the first rows of test, and of each of --extra_tests.")


@dataclass
class TargetArguments:
    """Whose evaluation texts a stage before the target's must not see."""

    target_dataset_name: str | None = _flag(
        None,
        "wassa2022: what equals, nearly equals, holds or is part of one of its dev or test essays is removed from the "
        "corpus, counted and named.",
    )
    target_file: list[str] = field(
        default_factory=list,
        metadata={"help": "The same for files of a target of your own: its validation and test texts."},
    )
    target_text_column_name: str = _flag("text", "Column with the text in --target_file.")


@dataclass
class TransferArguments(TargetArguments):
    """Other corpora under the target's labels."""

    _argument_group_name = "Supervised transfer"

    transfer_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpora to transfer from: go_emotions, xed (from --data_dir, else from the Hub), or a .yaml file "
            "that maps the labels of one of your own, as those in trainer_ext/label_maps do. With --dataset_name or "
            "--train_file give --augmentation; without, they are what is trained on: a stage whose folder is the next "
            "one's --model_name_or_path."
        },
    )
    augmentation: Literal["none", "RA", "BA"] = _flag(
        "none",
        "Which rows of --transfer_datasets to take (paper, section 2.3.1): Random Augmentation, any; Balanced "
        "Augmentation, equally many of each class. Only rows with exactly one of the target's labels are taken.",
    )
    augmentation_rows: int | None = _flag(
        None, "RA: rows in all, 1000 if not given; BA: rows a class, 400 if not given (Mundra et al. 2021)."
    )
    ba_mode: Literal["added", "topped_up"] = _flag(
        "added",
        "BA adds so many rows to each class, or tops each class up to so many rows, the target's own counted; the "
        "literature does not say which.",
    )
    join_to_words: int | None = _flag(
        None,
        "Join texts of one label to about so many words (half to one and a half times as many), before rows are "
        "chosen: comments have 13 words, WASSA's essays 82.",
    )
    distill_from: str | None = _flag(
        None,
        "Folder of run_fuse.py's recipe: learn the ensemble's distribution in place of the labels. The target's "
        "training rows get its out-of-fold one, from members that did not see them; rows of --transfer_datasets what "
        "it predicts for them.",
    )


@dataclass
class RunArguments:
    """What to do around training."""

    _argument_group_name = "Run"

    select: Literal["last", "best_on_dev", "average"] = _flag(
        "last",
        "Weights to keep: of the last epoch; of the epoch with the best validation macro F1 (the paper's; its score "
        "is then a selection score); or the mean of the last --average_epochs epochs.",
    )
    average_epochs: int = _flag(3, "How many epochs --select average takes the mean of.")
    pretrained_share: float = _flag(
        0.0,
        "Mix this share of the checkpoint's encoder weights into the trained ones at the end (WiSE-FT, Wortsman et al. "
        "2022, https://arxiv.org/abs/2109.01903). It helps on texts unlike those in training; 0.2 is a start.",
    )
    overwrite_output_dir: bool = _flag(False, "Replace a finished run in --output_dir, or an unfinished other one.")
    tokens_per_batch: int | None = _flag(
        None,
        "Training batches of texts of like length, as many as make at most so many tokens with padding, instead of "
        "a fixed number of texts. Bounds memory; speeds up models that compute padding, which sdpa's do "
        "not. The batch size then varies, and a text in a batch of few weighs more.",
    )
    tfidf_baseline: bool = _flag(
        False, "Train TF-IDF + logistic regression on the same splits and report its scores beside the model's."
    )
    extra_tests: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled files to test the finished model on, besides the test split: every row of each, columns "
            "named as in --train_file, figures named after the file. Or wassa2022, for its 1,860 training essays. "
            "Training texts that copy one of theirs are left out."
        },
    )
    publish_restricted: bool = _flag(False, _PUBLISH_RESTRICTED)


@dataclass
class PretrainingArguments(TargetArguments):
    """What `run_mlm.py` reads, masks and leaves out."""

    _argument_group_name = "Pre-training"

    dataset_name: list[str] = field(
        default_factory=list,
        metadata={
            "help": "go_emotions and xed (built in: from --data_dir, else from the Hub), or one dataset on the Hub."
        },
    )
    dataset_config_name: str | None = _flag(None, "Configuration of the Hub dataset.")
    data_dir: str | None = field(
        default_factory=lambda: os.environ.get("EMODEBERTA_DATA"),
        metadata={
            "help": "Folder with goemotions/, xed/ and wassa2022/; the environment's EMODEBERTA_DATA if not given."
        },
    )
    train_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Files of texts: .txt (one a line), .csv, .tsv, .json, .jsonl or .parquet."},
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "Files of texts to measure perplexity on; else see the next flag."}
    )
    validation_split_percentage: float = _flag(
        5.0, "Without --validation_file, hold out about this share of the texts for perplexity; 0 for none."
    )
    text_column_name: str = _flag("text", "Column with the text.")
    streaming: bool = _flag(
        False,
        "Read --train_file or the Hub dataset as it is trained on, for corpora larger than memory: give --max_steps. "
        "Texts are then not deduplicated, and --tokens_per_batch is not offered.",
    )
    line_by_line: bool = _flag(
        True,
        "A text is one row, cut at --max_seq_length; false: a longer text becomes several rows and nothing is cut. "
        "Either way no attention goes from one text to another.",
    )
    max_seq_length: int = _flag(256, "Longest row in tokens.")
    mlm_probability: float = _flag(0.15, "Share of tokens to predict (the paper's, after BERT).")
    whole_word_masking: bool = _flag(False, "Choose whole words instead of tokens. Needs a fast tokenizer.")
    include_target_train: bool = _flag(
        False, "Also train on the training essays of --target_dataset_name (not the paper's way)."
    )
    max_train_samples: int | None = _flag(None, "Use only so many texts, for a quick try.")
    max_eval_samples: int | None = _flag(None, "Measure perplexity on only so many; of a stream 1,000.")
    preprocessing_num_workers: int | None = _flag(None, "Processes that tokenise.")
    head_warmup_steps: int = _flag(
        0,
        "Where the checkpoint has no usable head for masked words (DeBERTa-v3, MiniLM), train the new one alone for so "
        "many steps first, the encoder frozen.",
    )
    head_learning_rate: float = _flag(1e-3, "Of these steps.")
    tokens_per_batch: int | None = _flag(
        None,
        "Pack batches: texts of like length, as many as make so many tokens, one after the other without padding in "
        "the layers or attention across them; in place of --per_device_train_batch_size.",
    )
    overwrite_output_dir: bool = _flag(False, "Replace a finished run in --output_dir, or an unfinished other one.")
    publish_restricted: bool = _flag(False, _PUBLISH_RESTRICTED)


# What run_classify.py takes.
CLASSIFY_ARGUMENTS = (ModelArguments, DataArguments, TransferArguments, RunArguments, ChildTuningArguments)


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` whose first argument may be a YAML recipe, and whose errors are one line.

    Attributes:
        precision: Once parsed, the precision of training and why; `None` where nothing is trained.
    """

    precision: Choice | None = None

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(
            dataclass_types,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            usage="%(prog)s [RECIPE.yaml] [--flag value ...]",
            **kwargs,
        )

    def _add_dataclass_arguments(self, dtype: type) -> None:
        """A subclass of `TrainingArguments` in two sections: its own fields, then the library's hundred and more."""
        if not issubclass(dtype, TrainingArguments) or dtype is TrainingArguments:
            super()._add_dataclass_arguments(dtype)
            return
        library, hints = {f.name for f in fields(TrainingArguments)}, get_type_hints(dtype)
        name = "Child-Tuning" if issubclass(dtype, ChildTuningArguments) else "Sequence to sequence"
        for title, own in ((name, True), ("Training", False)):
            section = self.add_argument_group(title)
            for f in fields(dtype):
                if f.init and own == (f.name not in library):
                    f.type = hints[f.name]
                    self._parse_dataclass_field(section, f)

    def _parse_dataclass_field(self, parser, field):
        """The library's twin spelling of every flag (`--max-steps`) works but is not printed a second time."""
        before = set(map(id, parser._actions))
        HfArgumentParser._parse_dataclass_field(parser, field)
        for action in parser._actions:
            if id(action) not in before and action.nargs == 0:  # --no_x, which --x false says too
                action.help = SUPPRESS

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """The dataclasses, from a recipe (if the first argument is no flag) and the flags after it.

        Raises:
            InputError: for an unreadable recipe, an unknown key or flag, or a value that does not fit.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        recipe = []
        if argv and not argv[0].startswith("-"):
            path = Path(argv.pop(0))
            recipe = recipe_arguments(self, read_recipe(path), path)
        namespace, unknown = self.parse_known_args([*recipe, *argv])
        if unknown:
            flags = [flag for flag in self._option_string_actions if "_" in flag or "-" not in flag[2:]]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            raise InputError(
                f"unknown argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else "; see --help")
            )
        values = vars(namespace)
        if "bf16" in values:
            tokens = (token.partition("=")[0] for token in [*recipe, *argv])
            given = {token[2:].replace("-", "_") for token in tokens if token[:2] == "--"}
            self.precision = choose_precision(values, given)
        try:
            return tuple(
                kind(
                    **{name: values[name] for name, f in kind.__dataclass_fields__.items() if f.init and name in values}
                )
                for kind in self.dataclass_types
            )
        except (ValueError, ImportError) as error:
            raise InputError(" ".join(str(error).split())) from error

    def error(self, message: str) -> None:
        """argparse calls this for a value that does not fit."""
        raise InputError(message)


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML file of names and values.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such recipe")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; want `flag: value` lines")
    return content


def recipe_arguments(parser: RecipeParser, recipe: dict[str, Any], source: object) -> list[str]:
    """Flags by name as they would stand on a command line.

    Raises:
        InputError: for an unknown name or a value that does not fit; begins with `source`, where the recipe is from.
    """
    arguments: list[str] = []
    for key, value in recipe.items():
        if f"--{key}" not in parser._option_string_actions:
            known = [flag[2:] for flag in parser._option_string_actions]
            close = difflib.get_close_matches(str(key), known, n=1)
            raise InputError(f"{source}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if value is None:
            continue  # the flag's own default
        if isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            arguments.append(f"--{key}={json.dumps(value)}")
        else:
            arguments.append(f"--{key}={value}")
        try:
            parser.parse_known_args(arguments)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
    return arguments


def corpus_arguments(data_args: DataArguments, model_args: ModelArguments) -> dict[str, Any]:
    """The arguments of [`trainer_ext.corpora.load_corpus`] that the flags give."""
    files = {split: getattr(data_args, f"{split}_file") for split in ("train", "validation", "test")}
    split_names = {split: getattr(data_args, f"{split}_split_name") for split in files}
    return {
        "dataset_name": data_args.dataset_name,
        "dataset_config_name": data_args.dataset_config_name,
        "data_dir": data_args.data_dir,
        "files": {split: path for split, path in files.items() if path},
        "split_names": {split: name for split, name in split_names.items() if name},
        "text_column": data_args.text_column_name,
        "label_column": data_args.label_column_name,
        "group_column": data_args.group_column_name,
        "id_column": data_args.id_column_name,
        "split_column": data_args.split_column_name,
        "label_names": data_args.label_set or None,
        "cache_dir": model_args.cache_dir,
        "token": model_args.token,
    }


def training_settings(*parts: Any) -> dict[str, Any]:
    """The flags that decide what is learnt, from the dataclasses of a script; `TrainingArguments` come last."""
    *parts, args = parts
    settings = {key: value for part in parts for key, value in asdict(part).items()} | args.to_dict()
    left_out = _NOT_SETTINGS | {key for key, default in _LATER.items() if settings.get(key) == default}
    return {key: value for key, value in settings.items() if key not in left_out}


def choose_precision(values: dict[str, Any], given: set[str]) -> Choice:
    """Choose the precision of training, and set `bf16` in place. A resumed run keeps its own; else the faster one wins.

    Args:
        values: Values of `TrainingArguments`' fields; `bf16` and `use_cpu` may change.
        given: Names that the recipe or the command line set. `--bf16 false` keeps float32.
    """
    on_cpu = values["use_cpu"] or not torch.accelerator.is_available()
    by_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if given & {"bf16", "fp16"}:
        name = "bf16" if values["bf16"] else "fp16" if values["fp16"] else "float32"
        choice = Choice(name, "as the flags say")
    elif by_launcher != "no":
        choice = Choice(by_launcher, "as the launcher says")
    elif begun := _begun_precision(values):
        values["bf16"], values["fp16"] = begun == "bf16", begun == "fp16"
        choice = Choice(begun, "as the run that is resumed")
    else:
        choice = choose(torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator())
        values["bf16"] = choice.name == "bf16"
    if values["bf16"] and on_cpu:
        values["use_cpu"] = True  # `TrainingArguments` wants the word
    return choice


def _begun_precision(values: dict[str, Any]) -> str | None:
    """The precision of the unfinished run that these flags resume, so that another machine does not change it."""
    if checkpoint := values.get("resume_from_checkpoint"):
        settings = run_folder.begun_settings(Path(checkpoint).parent)
    elif values.get("overwrite_output_dir") or not values["output_dir"]:
        return None
    else:
        settings = run_folder.begun_settings(Path(values["output_dir"]) / run_folder.CHECKPOINTS)
    if not settings:
        return None
    return "bf16" if settings.get("bf16") else "fp16" if settings.get("fp16") else "float32"


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults after each flag; the description's lines as written; `--max_steps`, not also `--max-steps`."""

    def _format_action_invocation(self, action):
        shown = [flag for flag in action.option_strings if "-" not in flag[2:]] or action.option_strings
        metavar = (
            "" if action.nargs == 0 else f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )
        return ", ".join(shown) + metavar
