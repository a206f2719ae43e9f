"""What the baselines' scripts have in common: rows in, a folder with predictions and figures out."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch.nn import Module
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from trainer_ext.data.corpus import Corpus
from trainer_ext.data.folds import check_trainable, hold_out_folds, limit_rows
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus
from trainer_ext.errors import InputError
from trainer_ext.evaluation.predictions import (
    evaluated,
    interval,
    is_labelled,
    prefix_of,
    print_results,
    write_plots,
    write_predictions,
)
from trainer_ext.files import CHECKPOINTS, digest
from trainer_ext.precision import Choice
from trainer_ext.runs.run import Run, training_settings

logger = logging.getLogger(__name__)


def begin(
    model_args: Any,
    data_args: DataArguments,
    args: TrainingArguments,
    chosen: Choice,
    extra_columns: Sequence[str] = (),
) -> tuple[Corpus, Run]:
    """Return the rows of the flags, one label each, and the run, whose output folder may be used.

    `args.output_dir` becomes a subfolder for checkpoints.

    Raises:
        InputError: for a flag that is missing, rows that cannot be read, a folder that is in use.
    """
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    logger.info(chosen)
    if not model_args.model_name_or_path or not args.output_dir:
        raise InputError("give --model_name_or_path and --output_dir")
    output_dir = Path(args.output_dir)
    args.output_dir = str(output_dir / CHECKPOINTS)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False
    corpus = load_corpus(
        **corpus_arguments(data_args, model_args.cache_dir, model_args.token), extra_columns=extra_columns
    )
    check_trainable(corpus)
    if corpus.classes("train").ndim == 2:
        raise InputError("this system gives a row one label; this corpus has several a row")
    if data_args.cv_folds is not None:
        hold_out_folds(corpus, data_args.cv_folds, data_args.cv_fold)
    limit_rows(corpus, data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples)
    if "validation" not in corpus.splits or "labels" not in corpus.splits["validation"].column_names:
        args.eval_strategy = IntervalStrategy.NO
    settings = training_settings(model_args, data_args, args) | {
        "training data": digest(corpus.splits["train"].to_list())
    }
    return corpus, Run(output_dir, settings, args, chosen, model_args.overwrite_output_dir)


def trainer_arguments(
    args: TrainingArguments, model: Module, tokenizer: PreTrainedTokenizerBase, encoded: dict
) -> dict[str, Any]:
    """What a `Trainer` is made of: padding to the longest of a batch, the splits of `encoded`."""
    return {
        "model": model,
        "args": args,
        "data_collator": DataCollatorWithPadding(tokenizer),
        "train_dataset": encoded["train"],
        "eval_dataset": encoded.get("validation"),
        "processing_class": tokenizer,
    }


def train_and_report(
    trainer: Trainer,
    encoded: dict[str, Dataset],
    corpus: Corpus,
    run: Run,
    *,
    system: str,
    probabilities_of: Callable[[Any], np.ndarray],
    save: Callable[[Path, dict[str, Any]], None],
) -> None:
    """Train, or resume from the last checkpoint; predict validation and test; leave figures, predictions and plots.

    Args:
        encoded: By split, what the model reads.
        run: Of [`begin`].
        system: What to call it in the table.
        probabilities_of: From what the model predicts to `(rows, labels)`.
        save: Writes model and tokenizer into a folder, given what the model predicted of each split.
    """
    trained = run.train(trainer, run.begin())
    results: dict[str, float] = {}
    predictions, probabilities = {}, {}
    for split in evaluated(corpus):
        prediction = trainer.predict(encoded[split], metric_key_prefix=prefix_of(split))
        predictions[split] = prediction.predictions
        probabilities[split] = probabilities_of(prediction.predictions)
        if is_labelled(corpus, split):
            results |= prediction.metrics | interval(corpus, split, probabilities[split].argmax(axis=1))
    if run.args.process_index != 0:
        return
    results |= {f"{split}_rows": len(rows) for split, rows in corpus.splits.items()}
    results |= trained.metrics | {"seed": run.args.seed}
    with run.results(results) as folder:
        save(folder, predictions)
        write_predictions(folder, corpus, probabilities)
        write_plots(folder, corpus, probabilities, trainer.state.log_history)
    print_results(results, evaluated(corpus), {system: ""})
    print(f"\nsaved to {run.folder}/")
