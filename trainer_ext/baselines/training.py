"""Do what the baseline scripts share: read the rows, train, and write predictions and figures."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch.nn import Module
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.corpus import Corpus
from ..data.folds import bootstrap_groups, check_trainable, hold_out_folds, limit_rows, split_off_validation
from ..data.load import DataArguments, corpus_arguments, load_corpus
from ..errors import InputError
from ..evaluation.predictions import (
    evaluated,
    predict_splits,
    print_results,
    write_plots,
    write_predictions,
)
from ..files import digest
from ..precision import Choice
from ..recipes import HubAccess
from ..runs.flags import check_whole_batch, complete_folders
from ..runs.run import Run, training_settings

logger = logging.getLogger(__name__)


def begin(
    model_args: Any,
    data_args: DataArguments,
    args: TrainingArguments,
    chosen: Choice,
    extra_columns: Sequence[str] = (),
) -> tuple[Corpus, Run]:
    """Return the corpus of the flags and the run, after checking that its output folder may be used.

    `args.output_dir` becomes a subfolder for checkpoints.

    Raises:
        InputError: if a flag is missing, rows cannot be read or have several labels, or the folder is in use.
    """
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    logger.info(chosen)
    output_dir = complete_folders(args, model_args, data_args)
    if args.hub_model_id:
        raise InputError("--push_to_hub: a baseline is for comparison and is not published; leave the flag out")
    corpus = load_corpus(
        **corpus_arguments(data_args, HubAccess(cache_dir=model_args.cache_dir, token=model_args.token)),
        extra_columns=extra_columns,
    )
    check_trainable(corpus)
    if corpus.classes("train").ndim == 2:
        raise InputError("this system gives a row one label; this corpus has several a row")
    if data_args.cv_folds is not None:
        corpus = hold_out_folds(corpus, data_args.cv_folds, data_args.cv_fold)
    corpus = split_off_validation(corpus, data_args.validation_split_percentage, args.seed)
    corpus = limit_rows(corpus, data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples)
    if data_args.bagging:
        corpus = bootstrap_groups(corpus, args.seed)
    check_whole_batch(len(corpus.splits["train"]), None, args)
    if not corpus.is_labelled("validation"):
        args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False
    if args.save_strategy == SaveStrategy.BEST and args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = "loss", False
    settings = training_settings(model_args, data_args, args) | {
        "training data": digest(corpus.splits["train"].to_list())
    }
    return corpus, Run(output_dir, settings, args, chosen, model_args)


def trainer_arguments(
    args: TrainingArguments, model: Module, tokenizer: PreTrainedTokenizerBase, encoded: dict
) -> dict[str, Any]:
    """Return the keyword arguments of a `Trainer` that pads each batch to its longest row.

    Args:
        encoded: The encoded rows by split.
    """
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
    """Train, or resume from the last checkpoint; then predict all other splits and write figures, predictions and
    plots.

    Args:
        encoded: The encoded rows by split.
        run: The run from [`begin`].
        system: Name of the system in the printed table.
        probabilities_of: Function from the model's raw predictions to probabilities `(rows, labels)`.
        save: Function that writes model and tokenizer into a folder, given the raw predictions by split.
    """
    trained = run.train(trainer, run.begin())
    results, probabilities, predictions = predict_splits(trainer, encoded, corpus, probabilities_of)
    if run.args.process_index != 0:
        return
    results |= {f"{split}_rows": len(rows) for split, rows in corpus.splits.items()}
    results |= trained.metrics | {"seed": run.args.seed}
    with run.model() as folder:
        save(folder, predictions)
    with run.results(results) as folder:
        write_predictions(folder, corpus, probabilities)
        with run.part("the plots"):
            write_plots(folder, corpus, probabilities, trainer.state.log_history)
    print_results(results, evaluated(corpus), {system: ""})
    print(f"\nsaved to {run.folder}/")
