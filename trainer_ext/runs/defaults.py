"""Every default of run_classify.py for people's own data, from which run_search.py starts, too.

They apply where no recipe is given and the rows come from --train_file or from a Hub dataset that is not built in. A
flag that is given always wins. With a recipe, flags that it leaves out keep the library's defaults.
"""

import logging
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.checks import check_data
from ..data.columns import choose_columns
from ..data.corpus import Corpus
from ..data.emotion_corpora import BUILT_IN
from ..data.folds import hold_out_validation
from ..data.load import DataArguments, corpus_arguments, load_corpus
from ..data.tables import Table
from ..flag_parser import MINILM
from ..recipes import RecipeParser
from ..training.head import ModelArguments
from ..training.warm_start import encoder_weights
from .flags import apply_selection
from .run import CLASSIFY_ARGUMENTS, RunArguments

logger = logging.getLogger(__name__)

# For an encoder of up to this many weights: learning rate and texts per batch.
SIZES = (
    (30e6, 1e-4, 32),  # MiniLM
    (150e6, 3e-5, 16),  # base
    (600e6, 1e-5, 8),  # large
    (math.inf, 5e-6, 4),
)
LORA_RATE = 10.0  # LoRA's rate, as a multiple
FEW_ROWS = 500  # with fewer training rows: smaller batches, more epochs, more validation
SMALL_BATCH = 8
EPOCHS, EPOCHS_OF_FEW_ROWS = 10, 20  # at most, for training stops early
# Without validation rows: epochs in which the model sees about this many texts, but at least 3 and at most 10.
TEXTS_UNSEEN, EPOCHS_UNSEEN = 8000, (3, 10)
PATIENCE = 2
VALIDATION, VALIDATION_OF_FEW_ROWS = 10, 20  # percent of the training rows
DECIDE_VALIDATION = {"validation_split_percentage", "train_on_validation"}
WARMUP = 0.1  # of the training; with --max_steps, which may be a try of a few steps, there is none
# Those of them that a search takes: what a training learns depends on them, or how fast it is.
_SEARCHED_FROM = {
    "model_name_or_path", "learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size", "weight_decay",
    "warmup_steps", "num_train_epochs",
}  # fmt: skip
ALWAYS = {"per_device_eval_batch_size": 64, "weight_decay": 0.01}


@dataclass
class Defaults:
    """The flags of a run that people's own data fill in.

    Attributes:
        given: Names of the flags that the user gave.
        own_data: Whether the defaults of this file apply.
        chosen: Value by flag, of those filled in.
        tables: The rows of the user's files, if they were read to choose columns, until [`load`] takes them.
    """

    given: set[str]
    own_data: bool
    chosen: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] | None = None

    @classmethod
    def begin(
        cls, parser: RecipeParser, model_args: ModelArguments, data_args: DataArguments, trains: bool
    ) -> "Defaults":
        """Return the defaults of a run, once model and columns are set.

        Raises:
            InputError: if the columns cannot be chosen, see [`choose_columns`].
        """
        named = data_args.dataset_name not in (None, "wassa2022", *BUILT_IN)
        own_data = parser.recipe is None and bool(data_args.train_file or named)
        defaults = cls(parser.given, own_data and trains)
        if defaults.own_data:
            defaults._fill(model_args, model_name_or_path=MINILM)
        if parser.recipe is None and (
            named or data_args.train_file or data_args.validation_file or data_args.test_file
        ):
            defaults.tables = choose_columns(data_args, model_args.hub_access())
        if defaults.own_data:
            names = [f"{kind}_column_name" for kind in ("text", "label", "group", "id", "split")]
            columns = {name: getattr(data_args, name) for name in names if name not in defaults.given}
            defaults.chosen |= {name: column for name, column in columns.items() if column is not None}
        return defaults

    def load(self, described: dict[str, Any], train_only: bool = False) -> Corpus:
        """Return [`load_corpus`] of these arguments, without reading files a second time."""
        tables, self.tables = self.tables, None
        return load_corpus(**described, train_only=train_only, tables=tables)

    def with_validation(self, corpus: Corpus, seed: int) -> Corpus:
        """Return the corpus with a validation split, if it has none and no flag says how to make one."""
        if not self.own_data or "validation" in corpus.splits or self.given & DECIDE_VALIDATION:
            return corpus
        rows = len(corpus.splits["train"])
        percentage = VALIDATION_OF_FEW_ROWS if rows < FEW_ROWS else VALIDATION
        divided = hold_out_validation(corpus, percentage, seed)
        if "validation" in divided.splits:
            self.chosen["validation_split_percentage"] = percentage
        else:
            logger.warning(f"{corpus.source}: too few rows (or groups) per class to hold out any; nothing is validated")
        return divided

    def complete(
        self, corpus: Corpus, model_args: ModelArguments, run_args: RunArguments, args: TrainingArguments
    ) -> None:
        """Set the flags of the training that were not given, in place, and log them."""
        if self.own_data:
            self._choose(corpus, model_args, run_args, args)
            self._report()

    def _choose(
        self, corpus: Corpus, model_args: ModelArguments, run_args: RunArguments, args: TrainingArguments
    ) -> None:
        few = len(corpus.splits["train"]) < FEW_ROWS
        weights = encoder_weights(model_args.model_name_or_path, model_args.model_access())
        rate, batch = next((rate, batch) for most, rate, batch in SIZES if weights <= most)
        rate *= 1 if model_args.lora_rank is None else LORA_RATE
        batch = min(batch, SMALL_BATCH) if few else batch
        self._fill(args, learning_rate=rate, per_device_train_batch_size=batch, **ALWAYS)
        if not self.given & {"logging_steps", "logging_strategy"}:
            self._fill(args, logging_strategy=IntervalStrategy.EPOCH)
        if "max_steps" not in self.given:
            self._fill(args, warmup_steps=WARMUP)
        if not self.given & {"save_steps", "save_strategy"}:
            self._fill(args, save_strategy=SaveStrategy.EPOCH, save_total_limit=1)
        if corpus.is_labelled("validation"):
            self._fill(args, eval_strategy=IntervalStrategy.EPOCH)
            if args.eval_strategy == IntervalStrategy.EPOCH and args.save_strategy == SaveStrategy.EPOCH:
                self._fill(run_args, select="best_on_dev")
        validated = run_args.select == "best_on_dev"
        if not self.given & {"num_train_epochs", "max_steps"}:
            if validated:
                self._fill(run_args, early_stopping_patience=PATIENCE)
                epochs = EPOCHS_OF_FEW_ROWS if few else EPOCHS
            else:
                least, most = EPOCHS_UNSEEN
                epochs = min(max(round(TEXTS_UNSEEN / len(corpus.splits["train"])), least), most)
            self._fill(args, num_train_epochs=epochs)
        apply_selection(run_args, args)

    def _report(self) -> None:
        """Log them, but for the columns, which are logged as they are chosen."""
        chosen = {name: value for name, value in self.chosen.items() if not name.endswith("_column_name")}
        shown = " ".join(f"--{name} {getattr(value, 'value', value)}" for name, value in chosen.items())
        lines = textwrap.wrap(f"defaults: {shown}", 80, subsequent_indent="  ", break_on_hyphens=False)
        logger.info("\n".join(lines))

    @classmethod
    def of_search(cls, argv: Sequence[str]) -> tuple[dict[str, Any], Corpus | None]:
        """Return the flags that a search on people's own data starts from besides those of `argv`, and the data.

        A fold has no validation rows, so nothing is chosen on them. Other data have no such flags, and are not read.

        Raises:
            InputError: if a flag is wrong, the columns cannot be chosen, or the data cannot be read.
        """
        parser = RecipeParser(CLASSIFY_ARGUMENTS)
        model_args, data_args, _, run_args, args = parser.parse(["--output_dir", "-", *argv])
        defaults = cls.begin(parser, model_args, data_args, trains=True)
        if not defaults.own_data:
            return {}, None
        corpus = defaults.load(corpus_arguments(data_args, model_args.hub_access()))
        check_data(corpus, data_args, model_args.class_weights)
        defaults._choose(corpus.only_splits(["train"]), model_args, run_args, args)
        kept = {name for name in defaults.chosen if name in _SEARCHED_FROM or name.endswith("_column_name")}
        defaults.chosen = {name: value for name, value in defaults.chosen.items() if name in kept}
        defaults._report()
        return defaults.chosen, corpus

    def _fill(self, arguments: Any, **values: Any) -> None:
        """Set the flags that were not given."""
        for name, value in values.items():
            if name not in self.given:
                setattr(arguments, name, value)
                self.chosen[name] = value
