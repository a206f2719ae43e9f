"""One training run: its flags, its output folder, where it resumes, and results that appear whole."""

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
from typing import Any, Literal

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
from ..recipes import PUBLISH_RESTRICTED, flag
from ..training.divergence import StopIfDiverged, check_last_step
from ..training.head import ModelArguments
from .checkpoints import PROCESSES, checkpoints, checkpoints_of_weights, remove_incomplete_checkpoints
from .provenance import precision, provenance, recipe_digest, training_arguments

logger = logging.getLogger(__name__)

# Flags that do not change what is learnt; a run may go on with others.
NOT_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "token", "hub_token", "cache_dir", "disable_tqdm",
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_always_push", "data_dir",
    "log_level", "log_level_replica", "preprocessing_num_workers", "report_to", "run_name", "project", "local_rank",
    "tfidf_baseline", "publish_restricted", "extra_tests", "use_cpu", "dataloader_pin_memory",
}  # fmt: skip
# Settings that do not bind a run that is resumed, though they are in a trial's identity: what is evaluated, logged and
# kept on the way, and where files lie, whose rows' hash is a setting of its own.
_NOT_BINDING = {
    "train_file", "test_file", "target_file", "distill_from", "max_predict_samples", "do_eval", "do_predict",
    "per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
    "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "include_for_metrics",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "include_num_input_tokens_seen", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter",
    "logging_steps", "logging_strategy", "save_on_each_node", "save_only_model", "save_total_limit",
    "skip_memory_metrics", "torch_empty_cache_steps",
}  # fmt: skip
# These bind where the weights to keep are chosen on the way.
_CHOOSING = {"validation_file", "max_eval_samples", "save_steps", "save_strategy"}
# Flags added later. At their defaults they are left out of the settings, so that older trainings keep their names.
_LATER = {
    "pretrained_share": 0.0, "head_learning_rate": None, "layerwise_lr_decay": 1.0, "quoting": "auto",
    "text_column_delimiter": " ", "trust_remote_code": False,
}  # fmt: skip


@dataclass
class RunArguments:
    """What to do around training."""

    _argument_group_name = "Run"

    select: Literal["last", "best_on_dev", "average"] = flag(
        "last",
        "Weights to keep: of the last epoch; of the epoch with the best validation macro F1 (the paper's; its score "
        "is then a selection score); or the mean of the last --average_epochs epochs.",
    )
    average_epochs: int = flag(3, "How many epochs --select average takes the mean of.")
    pretrained_share: float = flag(
        0.0,
        "Mix this share of the checkpoint's encoder weights into the trained ones at the end (WiSE-FT, Wortsman et al. "
        "2022, https://arxiv.org/abs/2109.01903). It helps on texts unlike those in training; 0.2 is a start.",
    )
    head_learning_rate: float | None = flag(
        None, "Learning rate of the new head; --learning_rate is then the encoder's (default: the same for both)."
    )
    layerwise_lr_decay: float = flag(
        1.0,
        "Multiply the learning rate by this from each encoder layer to the one below (Howard and Ruder 2018, "
        "https://aclanthology.org/P18-1031); 0.9 is common. 1 gives all layers the same.",
    )
    overwrite_output_dir: bool = flag(
        False,
        "Replace a finished run in --output_dir, or an unfinished other one. Leave it out to resume the new run later.",
    )
    tokens_per_batch: int | None = flag(
        None,
        "Training batches of texts of like length, as many as make at most so many tokens with padding, instead of "
        "a fixed number of texts. Bounds memory; speeds up models that compute padding, which sdpa's do "
        "not. The batch size then varies, and a text in a batch of few weighs more.",
    )
    tfidf_baseline: bool = flag(
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
    publish_restricted: bool = flag(False, PUBLISH_RESTRICTED)


# What run_classify.py takes.
CLASSIFY_ARGUMENTS = (ModelArguments, DataArguments, TransferArguments, RunArguments, ChildTuningArguments)


def training_settings(*parts: Any) -> dict[str, Any]:
    """The flags that decide what is learnt, from the dataclasses of a script; `TrainingArguments` come last."""
    *parts, args = parts
    settings = {key: value for part in parts for key, value in asdict(part).items()} | args.to_dict()
    left_out = NOT_SETTINGS | {key for key, default in _LATER.items() if settings.get(key) == default}
    return {key: value for key, value in settings.items() if key not in left_out}


# In all_results.json, parts that failed: [`Run.part`].
NOT_MADE = "not_made"
_STAGING = ".incomplete-"  # and a name of its own, for results that are being written
_REPLACED = ".replaced-"  # for what --overwrite_output_dir takes away
# What a run leaves in its folder, and run_export.py for it; an overwritten run's files go, so that none of them passes
# for the new one's.
_OUTPUTS = (
    CHECKPOINTS, "README.md", "*_emodeberta.py", RESULTS, "config.json", "confusion_matrix.*", "fusion.*",
    "learning_curve.*", "left_out.json", "onnx", "reliability.*",
    "*.safetensors", "model.safetensors.index.json", "predictions*.tsv", "run.json", "training_args.json", "*token*",
    "vocab.txt", "spm.model",
)  # fmt: skip


def check_usable(folder: Path, settings: dict, overwrite: bool) -> None:
    """Look at the output folder; changes nothing.

    Args:
        folder: May be absent.
        settings: What decides the run's result, as JSON values. Once there is a checkpoint, a run resumes only with the
            same, as far as they decide what is learnt.
        overwrite: The user's word that what is there may go.

    Raises:
        InputError: if it holds something else than a run (with `overwrite` too), a finished run, or an unfinished one
            with other settings.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; want a folder for --output_dir")
    if not folder.exists():
        return
    started = folder / CHECKPOINTS / SETTINGS
    half_replaced = any(folder.glob(f"{_REPLACED}*")) and not started.exists()
    ours = started.exists() or (folder / RESULTS).exists() or half_replaced
    # A run that was killed at its very start leaves an empty folder, or this file half-written.
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
        changed = changed_settings(begun_settings(folder / CHECKPOINTS), settings)
        if changed:
            raise InputError(
                f"{folder}: holds an unfinished run with another {', '.join(changed)}; give the same to go on, another "
                "--output_dir, or --overwrite_output_dir"
            )


def not_made(folder: Path) -> list[str]:
    """Return the parts that a finished run could not make; started again in the same way it makes them."""
    return read_object(folder / RESULTS).get(NOT_MADE, [])


def changed_settings(before: dict, settings: dict) -> list[str]:
    """Return the names of the settings that differ, among those that decide what is learnt."""
    now = json.loads(json.dumps(settings))
    ignored = _NOT_BINDING if now.get("load_best_model_at_end") else _NOT_BINDING | _CHOOSING
    return sorted(key for key in ({**before, **now}).keys() - ignored if before.get(key) != now.get(key))


def start(folder: Path, settings: dict, overwrite: bool) -> None:
    """Claim the folder for this process, until [`staged`] is done, and note the settings.

    With `overwrite`, an earlier run's checkpoints and results are moved aside first, and removed when the settings of
    the new one are there: a kill in between leaves a folder that the same command takes.

    Raises:
        InputError: as [`claim`], and as [`check_usable`] of whatever happened since.
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
    for left in (*folder.glob(f"{_REPLACED}*"), *folder.glob(f"{_STAGING}*")):  # of this start, and of killed ones
        shutil.rmtree(left)


@contextmanager
def staged(folder: Path, last: bool = True) -> Iterator[Path]:
    """A folder to write results into. On success its files move into `folder`, `all_results.json` last.

    Args:
        folder: That [`start`] claimed.
        last: Nothing more will be written: other processes may have `folder`.
    """
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    yield staging
    open_to_readers(staging)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == RESULTS):
        if path.is_dir():  # there already if an earlier start was killed here
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    staging.rmdir()
    if last:
        release(folder)


class Run:
    """One training and its output folder, from the first look at the folder to the results.

    Args:
        folder: May be absent.
        settings: What decides the result, as JSON values.
        args: Of the trainer. Checkpoints go to a subfolder, `args.output_dir`.
        chosen: The precision of training, and why.
        overwrite: Whether an earlier run in the folder may be removed.

    Raises:
        InputError: as [`check_usable`], and if another process is writing to the folder.
    """

    def __init__(self, folder: Path, settings: dict, args: TrainingArguments, chosen: Choice, overwrite: bool):
        settings = {**settings, PROCESSES: args.world_size}
        check_usable(folder, settings, overwrite)
        if args.process_index == 0:  # the process that claims it, for all of this run
            check_free(folder)
        self.folder, self.settings, self.args, self.overwrite = folder, settings, args, overwrite
        self.provenance = provenance(args, chosen)
        self._not_made: list[str] = []

    def begin(self) -> str | None:
        """Make the folder, or clean it up after a kill. Return the checkpoint to resume from, if there is one."""
        with self.args.main_process_first(desc="output folder"):
            if self.args.process_index == 0:
                start(self.folder, self.settings, self.overwrite)
                for name in remove_incomplete_checkpoints(self.folder):
                    logger.info(f"{name} was cut short and is removed")
                if weights := checkpoints_of_weights(self.folder):
                    logger.warning(
                        f"{', '.join(path.name for path in weights)}: weights alone (--save_only_model), from which "
                        "no training resumes; they stay until checkpoints of this start replace them"
                    )
        resume = self.args.resume_from_checkpoint or next(map(str, reversed(checkpoints(self.folder))), None)
        if resume:
            logger.info(f"resuming from {Path(resume).name}")
        return resume

    def train(self, trainer: Trainer, resume: str | None) -> TrainOutput:
        """Train from the start, or from a checkpoint.

        Raises:
            InputError: if the training diverges, or its flags name an optimizer that is not installed or that
                Child-Tuning does not work with.
        """
        logger.info(f"training with world size {self.args.world_size} on {self.args.device}, {precision(self.args)}")
        trainer.add_callback(StopIfDiverged())
        try:
            trained = trainer.train(resume_from_checkpoint=resume)
            check_last_step(trainer)
            return trained
        except BaseException as error:
            release(self.folder)  # a notebook's process lives on
            if isinstance(error, ChildTuningError | ImportError):
                raise InputError(first_line(error)) from error
            raise

    @contextmanager
    def model(self) -> Iterator[Path]:
        """Yield a folder for the trained model, which appears in the run's folder before anything else is tried."""
        with staged(self.folder, last=False) as folder:
            yield folder
            write_json(folder / "run.json", self.provenance | {"recipe": recipe_digest(sys.argv[1:])})
            write_json(folder / "training_args.json", training_arguments(self.args))
        logger.info(f"the model is in {self.folder}/")

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Make a part that a model can do without. If that fails, a line says so, and the run goes on.

        The run then does not count as finished: started again in the same way, it makes its parts again.
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
        """Yield a folder for what else the run leaves. It appears in the run's folder together, `figures` last.

        Raises:
            InputError: if a loss among the figures is not finite.
        """
        for name, value in figures.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise InputError(f"the training diverged: {name} is {value}; nothing is published; want a lower rate")
        with staged(self.folder) as folder:
            yield folder
            write_json(folder / RESULTS, figures | ({NOT_MADE: self._not_made} if self._not_made else {}))
