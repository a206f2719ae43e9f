"""One training run: its flags, its output folder, how it resumes, and results that are written all at once."""

import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..child_tuning import ChildTuningArguments, ChildTuningError
from ..data.label_maps import TransferArguments
from ..data.load import DataArguments
from ..errors import InputError, first_line
from ..escape import one_line
from ..files import (
    CHECKPOINTS,
    LOCK,
    RESULTS,
    SETTINGS,
    begun_settings,
    check_free,
    claim,
    open_to_readers,
    read_object,
    release,
    write_json,
)
from ..precision import Choice
from ..recipes import KEEP_CHECKPOINTS, CardArguments, flag
from ..training.callbacks import StopIfDiverged
from ..training.head import ModelArguments
from .checkpoints import (
    PROCESSES,
    checkpoints,
    checkpoints_of_weights,
    remove_incomplete_checkpoints,
    without_later_flags,
)
from .provenance import precision, provenance, recipe_digest, training_arguments

logger = logging.getLogger(__name__)

# Flags that do not change what is learnt. A run may resume with other values of these.
NOT_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "token", "hub_token", "cache_dir", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push", "data_dir",
    "log_level", "log_level_replica", "preprocessing_num_workers", "report_to", "run_name", "project", "local_rank",
    "tfidf_baseline", "keep_checkpoints", "publish_restricted", "extra_tests", "use_cpu", "dataloader_pin_memory",
    "language", "license", "card_examples", "calibrate", "target_accuracy",
}  # fmt: skip
# Settings that may change when a run resumes, though they are part of a trial's identity: what is evaluated, logged and
# saved on the way, and paths of files (a hash of the rows is a setting of its own).
_NOT_BINDING = {
    "train_file", "test_file", "target_file", "distill_from", "max_predict_samples", "do_eval", "do_predict",
    "per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
    "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "include_for_metrics",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "include_num_input_tokens_seen", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "save_on_each_node", "save_only_model", "save_total_limit",
    "skip_memory_metrics", "torch_empty_cache_steps",
}  # fmt: skip
# These may not change if the best weights are chosen during training.
_CHOOSING = {"validation_file", "max_eval_samples", "save_steps", "save_strategy"}


@dataclass
class RunArguments(CardArguments):
    """Flags for a training run, besides model, data and the library's own."""

    _argument_group_name = "Run"
    _refused_flags = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")  # --select says it

    select: Literal["last", "best_on_dev", "average"] = flag(
        "last",
        "Weights to keep. last: of the last epoch. best_on_dev: of the epoch with the best validation macro F1, as in "
        "the paper (that score is then optimistic). average: the mean of the last --average_epochs epochs.",
    )
    early_stopping_patience: int | None = flag(
        None,
        "Stop when neither macro F1 nor the loss on validation has improved in this many evaluations; 0 for never. "
        "Default: 2 for your own data without --num_train_epochs and --max_steps, else never.",
    )
    average_epochs: int = flag(3, "Number of epochs for --select average.")
    pretrained_share: float = flag(
        0.0,
        "After training, mix this share of the checkpoint's encoder weights into the trained ones (WiSE-FT, Wortsman "
        "et al. 2022, https://arxiv.org/abs/2109.01903). Helps on texts unlike the training texts; try 0.2 first.",
    )
    head_learning_rate: float | None = flag(
        None, "Learning rate of the new head; the encoder keeps --learning_rate. Default: the same for both."
    )
    layerwise_lr_decay: float = flag(
        1.0,
        "Multiply the learning rate by this factor from each encoder layer to the layer below (Howard and Ruder 2018, "
        "https://aclanthology.org/P18-1031); 0.9 is common. With 1, all layers have the same rate.",
    )
    overwrite_output_dir: bool = flag(
        False,
        "Replace a finished run in --output_dir, or an unfinished one with other settings. Omit it to resume later.",
    )
    keep_checkpoints: bool = flag(False, KEEP_CHECKPOINTS)
    tokens_per_batch: int | None = flag(
        None,
        "Fill training batches with texts of similar length up to this many tokens, padding included, instead of a "
        "fixed number of texts. Use it to limit memory. It also speeds up models that compute padding (sdpa does not). "
        "The batch size varies, and a text in a small batch weighs more.",
    )
    calibrate: bool = flag(
        True,
        "Fit a temperature on the labelled validation rows after training, and a threshold for each label if a text "
        "may have several, and keep them in config.json for everything that loads the model. Never with --cv_folds.",
    )
    target_accuracy: float | None = flag(
        None,
        "Also find on validation the probability from which this share of the answers is right, for example 0.9. Below "
        "it the pipeline and run_score.py give no label. The share of texts that is answered is printed.",
    )
    tfidf_baseline: bool = flag(
        False, "Also train TF-IDF + logistic regression on the same splits, and report its scores next to the model's."
    )
    extra_tests: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled files to test the finished model on, in addition to the test split. Their columns have "
            "the names of --train_file, their figures the name of the file. Or wassa2022, for its 1,860 training "
            "essays. Training texts that copy one of their texts are removed."
        },
    )
    card_examples: int = flag(
        0, "Show this many training rows per label in the model card. Give it only for texts that anybody may read."
    )


# The dataclasses of run_classify.py's flags.
CLASSIFY_ARGUMENTS = (ModelArguments, DataArguments, TransferArguments, RunArguments, ChildTuningArguments)


def training_settings(*parts: Any) -> dict[str, Any]:
    """Return the flags that affect what is learnt, by name, from a script's dataclasses, `TrainingArguments` last."""
    *parts, args = parts
    settings = {key: value for part in parts for key, value in asdict(part).items()} | args.to_dict()
    return without_later_flags({key: value for key, value in settings.items() if key not in NOT_SETTINGS})


# Key in all_results.json for the parts that failed, see [`Run.part`].
NOT_MADE = "not_made"
_STAGING = ".incomplete-"  # prefix of folders for results that are being written
_REPLACED = ".replaced-"  # prefix of folders for what --overwrite_output_dir removes
# Files that a run or run_export.py writes. Those of an overwritten run are removed, so that none is mistaken for one of
# the new run.
_OUTPUTS = (
    CHECKPOINTS, "README.md", "*_emodeberta.py", RESULTS, "config.json", "confusion_matrix.*", "coverage.*", "fusion.*",
    "learning_curve.*", "left_out.json", "onnx", "reliability.*",
    "*.safetensors", "model.safetensors.index.json", "predictions*.tsv", "run.json", "training_args.json", "*token*",
    "vocab.txt", "spm.model", "handler.py", "requirements.txt",
)  # fmt: skip


def check_usable(folder: Path, settings: dict, overwrite: bool) -> None:
    """Check that a run may use the output folder. Nothing is changed.

    Args:
        folder: May be absent.
        settings: Settings of the run, as JSON values. An unfinished run with checkpoints resumes only if those that
            affect what is learnt are the same.
        overwrite: Whether an earlier run in the folder may be removed.

    Raises:
        InputError: if the folder holds something other than a run (even with `overwrite`), a finished run, or an
            unfinished run with other settings.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; want a folder for --output_dir")
    if not folder.exists():
        return
    started = folder / CHECKPOINTS / SETTINGS
    half_replaced = any(folder.glob(f"{_REPLACED}*")) and not started.exists()
    ours = started.exists() or (folder / RESULTS).exists() or half_replaced
    # A run that was killed at its start leaves an empty folder, or only these files.
    start_of_run = (f".{SETTINGS}.", LOCK)
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(start_of_run))
    if not ours and any(files):
        raise InputError(f"{folder}: is in use (not empty, and no run of this script); give another --output_dir")
    if overwrite:
        return
    if half_replaced:
        raise InputError(
            f"{folder}: --overwrite_output_dir was stopped while it replaced an earlier run; give "
            "--overwrite_output_dir again, or another --output_dir"
        )
    if (folder / RESULTS).exists() and not not_made(folder):
        raise InputError(f"{folder}: holds a finished run; give another --output_dir, or --overwrite_output_dir")
    if checkpoints(folder) or checkpoints_of_weights(folder):
        before, otherwise = begun_settings(folder / CHECKPOINTS), "another --output_dir, or --overwrite_output_dir"
        _check_unchanged(f"{folder}: holds an unfinished run", before, settings, otherwise)


def _check_unchanged(what: str, before: dict, settings: dict, otherwise: str) -> None:
    if changed := changed_settings(before, settings):
        raise InputError(f"{what} with another {', '.join(changed)}; give the same to go on, {otherwise}")


def not_made(folder: Path) -> list[str]:
    """Return the parts that failed in a finished run. If the run is started again, only these are made."""
    return read_object(folder / RESULTS).get(NOT_MADE, [])


def changed_settings(before: dict, settings: dict) -> list[str]:
    """Return the names of the settings that differ, among those that affect what is learnt."""
    before, now = without_later_flags(before), json.loads(json.dumps(settings))
    ignored = _NOT_BINDING if now.get("load_best_model_at_end") else _NOT_BINDING | _CHOOSING
    return sorted(key for key in ({**before, **now}).keys() - ignored if before.get(key) != now.get(key))


def start(folder: Path, settings: dict, overwrite: bool) -> None:
    """Claim the folder for this process until [`staged`] is done, and write the settings.

    With `overwrite`, an earlier run's checkpoints and results are first moved aside, and removed once the new settings
    are written. So the same command works again after a kill in between.

    Raises:
        InputError: as [`claim`] and [`check_usable`].
    """
    claim(folder)
    check_usable(folder, settings, overwrite)
    if overwrite and (old := [path for pattern in _OUTPUTS for path in folder.glob(pattern)]):
        aside = Path(tempfile.mkdtemp(prefix=_REPLACED, dir=folder))
        for path in dict.fromkeys(old):
            path.rename(aside / path.name)
        logger.info(f"{folder}: an earlier run is removed; to resume this one later, leave --overwrite_output_dir out")
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    write_json(folder / CHECKPOINTS / SETTINGS, settings)
    for left in (*folder.glob(f"{_REPLACED}*"), *folder.glob(f"{_STAGING}*")):  # left by this process or by killed ones
        shutil.rmtree(left)


@contextmanager
def staged(folder: Path, last: bool = True) -> Iterator[Path]:
    """Yield a folder to write results into. On success, its files move into `folder`, `all_results.json` last.

    Args:
        folder: A folder that [`start`] claimed.
        last: If true, nothing more will be written, so the claim on `folder` is released.
    """
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    yield staging
    open_to_readers(staging)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == RESULTS):
        if path.is_dir():  # it may already be there if an earlier run was killed at this point
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    staging.rmdir()
    if last:
        release(folder)


class FolderFlags(Protocol):
    """The flags of a script that say what happens to its output folder."""

    overwrite_output_dir: bool
    keep_checkpoints: bool


class Run:
    """One training and its output folder, from the first check of the folder to the results.

    Args:
        folder: Output folder; may be absent.
        settings: Settings that decide the result, as JSON values.
        args: Arguments of the trainer. `args.output_dir` is a subfolder for checkpoints.
        chosen: The precision of training, and why it was chosen.
        flags: Whether an earlier run in the folder may be removed, and whether checkpoints stay at the end.
        defaults: Flags that were filled in, for run.json.

    Raises:
        InputError: as [`check_usable`], if another process is writing to the folder, or if the checkpoint that is named
            to resume from is of a run with other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict,
        args: TrainingArguments,
        chosen: Choice,
        flags: FolderFlags,
        defaults: dict[str, Any] | None = None,
    ):
        settings = {**settings, PROCESSES: args.world_size}
        check_usable(folder, settings, flags.overwrite_output_dir)
        if checkpoint := args.resume_from_checkpoint:
            before, otherwise = begun_settings(Path(checkpoint).parent), "or leave --resume_from_checkpoint out"
            if PROCESSES in before:  # else the checkpoint is from another program
                _check_unchanged(f"{checkpoint}: is of a run", before, settings, otherwise)
        if args.process_index == 0:  # this process claims the folder for all processes of the run
            check_free(folder)
        self.folder, self.settings, self.args = folder, settings, args
        self.overwrite, self.keep_checkpoints = flags.overwrite_output_dir, flags.keep_checkpoints
        self.provenance = provenance(args, chosen) | ({"defaults": defaults} if defaults else {})
        self._not_made: list[str] = []

    def begin(self) -> str | None:
        """Create the folder, or clean it up after a kill, and return the checkpoint to resume from, or `None`."""
        with self.args.main_process_first(desc="output folder"):
            if self.args.process_index == 0:
                start(self.folder, self.settings, self.overwrite)
                for name in remove_incomplete_checkpoints(self.folder):
                    logger.info(f"{name} was cut short and is removed")
                if weights := checkpoints_of_weights(self.folder):
                    logger.warning(
                        f"{', '.join(path.name for path in weights)}: weights only (--save_only_model), so "
                        "training cannot resume from them; this run's checkpoints will replace them"
                    )
        resume = self.args.resume_from_checkpoint or next(map(str, reversed(checkpoints(self.folder))), None)
        if resume:
            logger.info(f"resuming from {Path(resume).name}")
        return resume

    def train(self, trainer: Trainer, resume: str | None) -> TrainOutput:
        """Train from the start, or from a checkpoint.

        Args:
            resume: Path of the checkpoint, or `None`.

        Raises:
            InputError: if training diverges, the optimizer is not installed, or Child-Tuning does not work with it.
        """
        logger.info(f"training with world size {self.args.world_size} on {self.args.device}, {precision(self.args)}")
        trainer.add_callback(StopIfDiverged())
        try:
            return trainer.train(resume_from_checkpoint=resume)
        except BaseException as error:
            release(self.folder)  # in a notebook, the process does not end here
            if isinstance(error, ChildTuningError | ImportError):
                raise InputError(first_line(error)) from error
            raise

    @contextmanager
    def model(self) -> Iterator[Path]:
        """Yield a folder to save the trained model into; its files move into the run's folder first of all results."""
        with staged(self.folder, last=False) as folder:
            yield folder
            write_json(folder / "run.json", self.provenance | {"recipe": recipe_digest(sys.argv[1:])})
            write_json(folder / "training_args.json", training_arguments(self.args))
        logger.info(f"the model is in {self.folder}/")

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Guard a block that makes an optional part of the results: a failure is logged, and the run continues.

        A run with a failed part does not count as finished. Started again with the same command, it makes the missing
        parts.
        """
        try:
            yield
        except Exception as error:
            self._not_made.append(what)
            logger.error(
                f"{what} could not be made ({type(error).__name__}: {one_line(first_line(error))}). The model is in "
                f"{self.folder}/ all the same; start the same command again to make what is missing"
            )
            logger.debug("", exc_info=True)

    @contextmanager
    def results(self, figures: dict[str, Any]) -> Iterator[Path]:
        """Yield a folder for the other results. All its files move into the run's folder together, the file of
        `figures` last. Then the run is finished, and its checkpoints are removed unless they are to be kept.

        Raises:
            InputError: if a loss among the figures is not finite.
        """
        for name, value in figures.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise InputError(f"the training diverged: {name} is {value}; nothing is published; want a lower rate")
        with staged(self.folder, last=False) as folder:
            yield folder
            write_json(folder / RESULTS, figures | ({NOT_MADE: self._not_made} if self._not_made else {}))
        if self.keep_checkpoints:
            open_to_readers(self.folder / CHECKPOINTS)
        elif not self._not_made:  # else the same command resumes, and makes what is missing
            for path in (self.folder / CHECKPOINTS).glob("checkpoint-*"):
                shutil.rmtree(path)
        release(self.folder)
