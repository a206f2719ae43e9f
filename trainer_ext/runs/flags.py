"""Check the flags of the training scripts together, and set what follows from them."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from ..data.corpus import Corpus
from ..data.label_maps import TransferArguments
from ..data.load import DataArguments
from ..errors import InputError, first_line
from ..files import CHECKPOINTS
from ..flag_parser import NO_OUTPUT_DIR
from ..training.callbacks import bars_on_a_terminal_only
from ..training.head import ModelArguments
from ..training.large_models import check_sharding, is_sharded
from .checkpoints import is_complete
from .run import RunArguments

logger = logging.getLogger(__name__)
# With other values, the library returns no predictions, or not in one piece.
_USUAL = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "label_names": None,
}
# Flags that name a folder to read.
_FOLDERS_READ = ("model_name_or_path", "tokenizer_name", "distill_from", "resume_from_checkpoint")
_AT_LEAST_0 = (lambda value: 0 <= value < math.inf), "0 or more"
_AT_LEAST_1 = (lambda value: value >= 1), "at least 1"
_SHARE = (lambda value: 0 <= value < 1), "0 or more, and less than 1"
# For each flag of the library: a test of the range, and its description.
_RANGES = {
    "learning_rate": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "max_grad_norm": ((lambda value: value is None or value >= 0), "0 or more"),
    "warmup_steps": _AT_LEAST_0,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _AT_LEAST_0,
    "label_smoothing_factor": _SHARE,
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "dataloader_num_workers": _AT_LEAST_0,
    "seed": ((lambda value: 0 <= value < 2**32), "0 to 4294967295"),
}


def complete_folders(args: TrainingArguments, *parts: Any) -> Path:
    """Return the output folder, and set `args.output_dir` to its subfolder for checkpoints.

    `args.hub_model_id` becomes the repository to publish to, or `None`. `Trainer` itself publishes nothing, because it
    would also upload its pickled arguments.

    Args:
        parts: The script's other dataclasses of flags; one has `model_name_or_path`, one `overwrite_output_dir`.

    Raises:
        InputError: if the model or the folder is not named, the checkpoint to resume from is missing, overwriting would
            remove what is read, or nothing is trained that could be resumed or published.
    """
    flags = {name: value for part in parts for name, value in vars(part).items()}
    model_name_or_path = flags["model_name_or_path"]
    if not model_name_or_path:
        raise InputError("give --model_name_or_path, a folder or a Hub id, for example microsoft/deberta-v3-base")
    if not args.output_dir:
        raise InputError(NO_OUTPUT_DIR)
    check_training(args)
    bars_on_a_terminal_only(args)
    output_dir = Path(args.output_dir)
    if output_dir.resolve() == Path(model_name_or_path).resolve():
        raise InputError(f"--output_dir {output_dir}: is --model_name_or_path, which stays as it is; give another")
    if (flags.get("preprocessing_num_workers") or 0) < 0:
        raise InputError(f"--preprocessing_num_workers is {flags['preprocessing_num_workers']}; want 0 or more")
    if flags["overwrite_output_dir"]:
        _check_nothing_read_inside(output_dir, flags | {"resume_from_checkpoint": args.resume_from_checkpoint})
    if not trains(args) and args.world_size > 1:
        raise InputError("--do_eval and --do_predict without --do_train are for one process; run_score.py takes many")
    if args.push_to_hub and not trains(args):
        raise InputError("--push_to_hub publishes after a training; run_publish.py publishes a finished folder")
    if args.resume_from_checkpoint and not trains(args):
        raise InputError("--resume_from_checkpoint is for a training; give the checkpoint as --model_name_or_path")
    args.output_dir = str(output_dir / CHECKPOINTS)
    args.hub_model_id = (args.hub_model_id or output_dir.resolve().name) if args.push_to_hub else None
    args.push_to_hub = False
    if args.resume_from_checkpoint and not is_complete(Path(args.resume_from_checkpoint)):
        raise InputError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: no complete checkpoint there")
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False
    return output_dir


def _check_nothing_read_inside(output_dir: Path, flags: dict[str, Any]) -> None:
    for name in _FOLDERS_READ:
        folder = Path(flags.get(name) or "")
        if flags.get(name) and folder.exists() and folder.resolve().is_relative_to(output_dir.resolve()):
            raise InputError(
                f"--overwrite_output_dir would remove {folder}, which --{name} reads; give another --output_dir"
            )


def check_training(args: TrainingArguments) -> None:
    """Check the ranges of the library's own flags, that the packages they need are installed, and that those of the
    optimizer and of the learning rate's schedule fit together.

    Raises:
        InputError: at the first problem.
    """
    for name, (holds, wanted) in _RANGES.items():
        if not holds(value := getattr(args, name)):
            raise InputError(f"--{name} is {value}; want {wanted}")
    for name, usual in _USUAL.items():
        if getattr(args, name) != usual:
            raise InputError(
                f"--{name}: not supported, because evaluation needs all predictions in one piece; leave it out"
            )
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise InputError(f"--num_train_epochs is {args.num_train_epochs}; want more than 0, or --max_steps")
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (RuntimeError, ImportError, ValueError) as error:
        raise InputError(f"--report_to {' '.join(args.report_to)}: {first_line(error)}") from error
    _check_optimizer(args)
    _check_schedule(args)


def _check_optimizer(args: TrainingArguments) -> None:
    if args.optim_args and any(part.count("=") != 1 for part in args.optim_args.split(",")):
        raise InputError(f"--optim_args {args.optim_args}: want name=value, several of them separated by commas")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, TypeError, ValueError) as error:
        if "need to pass a" not in str(error):  # a model, which there will be
            raise InputError(f"--optim {OptimizerNames(args.optim).value}: {first_line(error)}") from error


def _check_schedule(args: TrainingArguments) -> None:
    name, steps = SchedulerType(args.lr_scheduler_type), {"num_warmup_steps": 10, "num_training_steps": 10**6}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        get_scheduler(name, optimizer, **steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(
            f"--lr_scheduler_type {name.value}: {first_line(error)}; want --lr_scheduler_kwargs that fit it"
        ) from error


def complete_arguments(
    model_args: ModelArguments,
    data_args: DataArguments,
    transfer_args: TransferArguments,
    run_args: RunArguments,
    args: TrainingArguments,
) -> Path:
    """Do what [`complete_folders`] does, check the flags of run_classify.py together, and set `Trainer`'s arguments.

    Returns:
        The output folder.

    Raises:
        InputError: if a flag is out of range, or flags exclude each other.
    """
    output_dir = complete_folders(args, model_args, data_args, transfer_args, run_args)
    _check_ranges(run_args)
    _check_batches(run_args, args)
    _check_combinations(model_args, run_args, args)
    apply_selection(run_args, args)
    return output_dir


def apply_selection(run_args: RunArguments, args: TrainingArguments) -> None:
    """Set the arguments of `Trainer` that follow from `--select`."""
    if run_args.select != "last":
        args.save_strategy = SaveStrategy.EPOCH
    if run_args.select == "average":
        args.save_total_limit = max(run_args.average_epochs, args.save_total_limit or 0)
    if run_args.select == "best_on_dev":
        args.eval_strategy = IntervalStrategy.EPOCH
        args.load_best_model_at_end = True
        args.metric_for_best_model, args.greater_is_better = "eval_macro_f1", True
        logger.info("the best epoch is chosen on validation, so the validation score is a little too high")


def trains(args: TrainingArguments) -> bool:
    """Return whether to train: always, except with `--do_eval` or `--do_predict` but without `--do_train`."""
    evaluates = (
        args.do_eval and args.eval_strategy == IntervalStrategy.NO
    )  # with another strategy, the library sets do_eval
    return args.do_train or not (args.do_predict or evaluates)


def asked_for(args: TrainingArguments, corpus: Corpus) -> list[str]:
    """Return the splits to evaluate without training: validation for `--do_eval`, test splits for `--do_predict`.

    Raises:
        InputError: if the corpus has no such split.
    """
    wanted = {"validation": args.do_eval, "train": False}
    splits = [split for split in corpus.splits if wanted.get(split, args.do_predict)]
    if not splits:
        need = "--validation_file" if args.do_eval else "--test_file or --extra_tests"
        raise InputError(f"nothing to {'evaluate' if args.do_eval else 'predict'}: give {need}, or leave out --do_…")
    return splits


def check_corpus(corpus: Corpus, data_args: DataArguments, run_args: RunArguments, args: TrainingArguments) -> None:
    """Check that the flags fit the corpus.

    Without labelled validation rows, evaluation during training and `--calibrate` are turned off. `--calibrate` is also
    turned off if folds are held out, since anything fitted must then be fitted across folds.

    Raises:
        InputError: if a flag needs other rows, or the model may not be published without `--publish_restricted`.
    """
    if args.hub_model_id and corpus.licence and not run_args.publish_restricted:
        raise InputError(
            f"--push_to_hub: {corpus.source} is for {corpus.licence}; if its terms let you publish what saw it, "
            "give --publish_restricted"
        )
    check_whole_batch(len(corpus.splits["train"]), run_args.tokens_per_batch, args)
    run_args.check_terms(corpus.source, corpus.licence)
    if run_args.card_examples < 0:
        raise InputError(f"--card_examples is {run_args.card_examples}; want 0 or more")
    if run_args.card_examples and corpus.licence:
        raise InputError(f"--card_examples: {corpus.source} is for {corpus.licence}; leave it out")
    if run_args.tfidf_baseline and corpus.multi_label:
        raise InputError("--tfidf_baseline compares single-label classifiers; leave it out for several classes a row")
    if run_args.tfidf_baseline and (fewest := min(filter(None, corpus.class_counts("train").values()))) < 4:
        raise InputError(
            f"--tfidf_baseline chooses its regularisation in 4 folds, and a class has {fewest} training rows only; "
            "leave it out"
        )
    if run_args.early_stopping_patience and args.eval_strategy == IntervalStrategy.NO:
        raise InputError("--early_stopping_patience needs evaluations on the way; give --eval_strategy epoch")
    run_args.calibrate = run_args.calibrate and data_args.cv_folds is None and corpus.is_labelled("validation")
    if run_args.target_accuracy is not None:
        if corpus.multi_label:
            raise InputError(
                "--target_accuracy is for one label per text; a text may have several here, or none at all"
            )
        if not run_args.calibrate:
            raise InputError(
                "--target_accuracy needs labelled validation rows, and neither --cv_folds nor --calibrate false; give "
                "some, for example with --validation_split_percentage 10"
            )
    if not corpus.is_labelled("validation"):
        if run_args.early_stopping_patience:
            raise InputError("--early_stopping_patience needs labelled validation rows; give some, or leave it out")
        if run_args.select == "best_on_dev":
            raise InputError("--select best_on_dev needs labelled validation rows; give some, or --select last")
        args.eval_strategy, args.eval_on_start = IntervalStrategy.NO, False


def check_whole_batch(rows: int, tokens_per_batch: int | None, args: TrainingArguments) -> None:
    """Check that `--dataloader_drop_last` leaves a batch to train on.

    Args:
        rows: Number of training rows.

    Raises:
        InputError: if there are fewer rows than all processes take at a time.
    """
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and tokens_per_batch is None and rows < batch:
        raise InputError(
            f"--dataloader_drop_last: {rows} training rows are less than one batch of {batch}, so nothing would be "
            "trained; leave it out, or give a smaller --per_device_train_batch_size"
        )


def warn_of_clipping(model: nn.Module, args: TrainingArguments) -> None:
    """Warn if gradients are clipped below Adam's epsilon, as with the paper's 1e-6, because steps then shrink."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    clipped = (args.max_grad_norm or 0.0) / weights**0.5
    if 0 < clipped < args.adam_epsilon:
        logger.warning(
            f"--max_grad_norm {args.max_grad_norm:g} over {weights:,} weights: a gradient is about {clipped:.0e}, "
            f"under --adam_epsilon {args.adam_epsilon:g}; steps of Adam shrink by as much"
        )


def _check_ranges(run_args: RunArguments) -> None:
    if not 0 <= run_args.pretrained_share < 1:
        raise InputError(f"--pretrained_share is {run_args.pretrained_share}; want 0 or more, and less than 1")
    if run_args.head_learning_rate is not None and run_args.head_learning_rate <= 0:
        raise InputError(f"--head_learning_rate is {run_args.head_learning_rate}; want more than 0")
    if not 0 < run_args.layerwise_lr_decay <= 1:
        raise InputError(f"--layerwise_lr_decay is {run_args.layerwise_lr_decay}; want more than 0, and at most 1")
    if run_args.average_epochs < 1:
        raise InputError(f"--average_epochs is {run_args.average_epochs}; want at least 1")
    if (run_args.early_stopping_patience or 0) < 0:
        raise InputError(f"--early_stopping_patience is {run_args.early_stopping_patience}; want 0 (never) or more")
    if run_args.target_accuracy is not None and not 0 < run_args.target_accuracy <= 1:
        raise InputError(
            f"--target_accuracy is {run_args.target_accuracy:g}; want a share above 0 and at most 1, for example 0.9"
        )
    if run_args.tokens_per_batch is not None and run_args.tokens_per_batch < 1:
        raise InputError(f"--tokens_per_batch is {run_args.tokens_per_batch}; want at least 1")


def _check_batches(run_args: RunArguments, args: TrainingArguments) -> None:
    if run_args.tokens_per_batch is not None and args.train_sampling_strategy != "random":
        raise InputError(
            f"--tokens_per_batch and --train_sampling_strategy {args.train_sampling_strategy} exclude each other"
        )
    if args.train_sampling_strategy == "group_by_length":
        raise InputError(
            "--train_sampling_strategy group_by_length draws from the global random state: processes would not share "
            "the rows out, and a resumed run would see other batches; use --tokens_per_batch"
        )


def _check_combinations(model_args: ModelArguments, run_args: RunArguments, args: TrainingArguments) -> None:
    if run_args.pretrained_share and model_args.from_scratch:
        raise InputError("--pretrained_share mixes the checkpoint's weights in; --from_scratch takes none")
    if args.load_best_model_at_end:
        raise InputError("--load_best_model_at_end chooses the epoch on validation; say so with --select best_on_dev")
    if args.save_strategy == SaveStrategy.BEST and run_args.select == "last":
        raise InputError("--save_strategy best keeps the best on validation; say so with --select best_on_dev")
    if is_sharded(args):
        check_sharding(args)
        if model_args.lora_rank is not None:
            raise InputError("--lora_rank under FSDP is not supported; its gradients and moments fit one GPU")
        if run_args.pretrained_share:
            raise InputError("--pretrained_share under FSDP is not supported; leave it out, or use DDP")
    if run_args.select == "average" and model_args.lora_rank is not None:
        raise InputError(
            "--select average and --lora_rank: the mean of low-rank factors is another model's; leave one out"
        )
    resumed, own = Path(args.resume_from_checkpoint or ""), Path(args.output_dir)
    if run_args.select == "average" and resumed.name and resumed.resolve().parent != own.resolve():
        raise InputError(
            f"--resume_from_checkpoint {resumed}: --select average needs the checkpoints of all "
            f"epochs in {own}; resume in that folder, or give another --select"
        )
    if run_args.select == "average" and args.save_only_model:
        raise InputError("--select average needs whole checkpoints; leave out --save_only_model")
