"""Run many trainings by `run_classify.py` or another program, each in its own process and only once.

A trial is a recipe with overrides, a fold to hold out and a seed. Its folder is named by a hash of everything that
should decide its result: the resolved flags, the data, the stage it starts from (identified by that stage's flags and
data), and the version of the training code. Machine and library versions, which change only rounding and random draws,
are recorded in the folder. Finished trials are skipped. A killed trial resumes from its last checkpoint. A lock, held
by both the driver and the training process, keeps a trial from being trained twice at a time. A trial whose files are
damaged or were changed is made again: from an archive, from what its training left, or by another training.
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm.auto import tqdm

from ..data.corpus import Corpus
from ..data.label_maps import transfer_digest
from ..errors import InputError
from ..files import RESULTS, file_digest, handed_on, lock, read_object, write_json, write_text
from ..training.distillation import OUT_OF_FOLD
from .checkpoints import checkpoint_digest
from .run import not_made, training_settings
from .trial import (
    RECORD,
    RUN,
    Trial,
    convert_run,
    duration,
    expected_seconds,
    last_words,
    machine,
    precision,
    read_record,
    read_trial,
    training_gflop,
    trial_name,
    write_record,
)
from .trial_archive import open_archives, write_archive
from .variants import CLASSIFY, Programs, extra_columns, resolve, split_program

ROOT = Path(__file__).resolve().parents[2]
# The version of what a training computes, given flags and data. Raised where tests/model/test_reference.py finds other
# losses than those recorded. A change of code that leaves them alone leaves finished trials valid.
COMPUTATION = 1
LIBRARIES = ("torch", "transformers", "accelerate", "scikit-learn")


def add_trials_dir(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--trials_dir`, the folder for trials, to a parser; `--members_dir` is its old name."""
    default = Path("outputs") / "trials"
    parser.add_argument(
        "--trials_dir",
        "--members_dir",
        type=Path,
        default=default,
        help=f"where trainings are kept (default: {default})",
    )


class Trials:
    """A folder of trainings, which serves as a cache.

    Args:
        folder: Folder with one subfolder per trial.
        recipe: Flags that all trials share.
        corpus: The rows that the trials read, with every trial's [`extra_columns`].
        source: Where the flags come from, for messages.
        jobs: Number of trainings at a time, spread over the GPUs or sharing the CPU cores. Default: one per GPU, or
            one.
        archives: Archives of finished trials, to restore trials that the folder lacks.
        programs: Programs that the trials' flags may name.

    Raises:
        InputError: if `jobs` is below 1, or an archive cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        recipe: dict[str, Any],
        corpus: Corpus,
        source: str,
        jobs: int | None = None,
        archives: Sequence[Path] = (),
        programs: Programs = CLASSIFY,
    ):
        self.folder, self.recipe, self.source = folder, recipe, source
        self.jobs = max(1, torch.cuda.device_count()) if jobs is None else jobs
        if self.jobs < 1:
            raise InputError(f"{self.jobs} trainings at a time; want at least 1")
        self._programs = programs
        self._archives = open_archives(archives, folder)
        self._corpus = corpus
        self._texts = corpus.splits["train"]["text"][:]
        self._data = corpus.digest(["id", "text", "group", "labels"])
        self._settings: dict[str, dict] = {}
        self._paths: dict[str, Path] = {}
        self._collected: dict[Path, str] = {}
        self._told: set[str] = set()
        self._transfer: dict[tuple[str, ...], str] = {}

    def settings(self, trial: Trial) -> dict[str, Any]:
        """Return the resolved flags that decide the trial's result, by name."""
        key = self._key(trial)
        if key not in self._settings:
            parsed = resolve(trial.flags(self.recipe), f"{self.source}, {trial.name}", self._programs)
            self._settings[key] = settings = training_settings(*parsed)
            if settings.get("target_dataset_name") or settings.get("target_file"):
                raise InputError(
                    f"{self.source}, {trial.name}: target_dataset_name and target_file would take rows out of the "
                    "folds; they are for a stage on other corpora"
                )
        return self._settings[key]

    def identity(self, trial: Trial) -> dict[str, Any]:
        """Return what identifies the trial: flags not at their defaults, data, and version of the training code."""
        settings = self.settings(trial)
        if not settings["model_name_or_path"]:
            raise InputError(f"{self.source}: no model_name_or_path; put it under settings, or give the flag")
        program, flags = split_program(trial.flags(self.recipe))
        # Against float32, whatever this machine would take by itself: bf16 gives other trials.
        defaults = training_settings(*resolve({"program": program, "bf16": False}, self.source, self._programs))
        changed = {name: value for name, value in settings.items() if value != defaults.get(name)}
        for name in ("train_file", "validation_file", "test_file"):
            changed.pop(name, None)  # their rows are in `data`
        if len(changed.get("cv_fold", [])) == 1:
            [changed["cv_fold"]] = changed["cv_fold"]  # as trials were named before there could be several
        if changed.get("model_name_or_path"):
            changed["model_name_or_path"] = self._checkpoint_digest(changed["model_name_or_path"])
        if teacher := changed.get("distill_from"):
            # Of the target's own rows the student learns what that file says; the ensemble is asked about other texts.
            said = Path(teacher) / OUT_OF_FOLD
            alone = said.is_file() and not settings.get("transfer_datasets")
            changed["distill_from"] = file_digest(said) if alone else checkpoint_digest(teacher)
        identity = {"settings": changed, "data": self._data, "computation": COMPUTATION}
        if settings.get("transfer_datasets"):
            identity["transfer_data"] = self._transfer_digest(settings)
        if program not in CLASSIFY:
            columns = extra_columns({**flags, "program": program}, self.source, self._programs)
            identity |= {"program": program, "columns": self._corpus.digest([f"column_{name}" for name in columns])}
        return identity

    def _checkpoint_digest(self, name: str) -> str:
        """Return [`checkpoint_digest`]; if a stage's folder is missing, the digest that an archive recorded for it."""
        if not Path(name).exists():
            for archive in self._archives:
                if name in archive.stages:
                    return archive.stages[name]
        return checkpoint_digest(name)

    def _transfer_digest(self, settings: dict[str, Any]) -> str:
        names = tuple(settings["transfer_datasets"])
        if names not in self._transfer:
            # `data_dir` is no setting: where the files lie does not matter
            data_dir = self.recipe.get("data_dir") or os.environ.get("EMODEBERTA_DATA")
            self._transfer[names] = transfer_digest(names, data_dir)
        return self._transfer[names]

    def path(self, trial: Trial) -> Path:
        """Return the trial's folder; if it lacks the trial and an archive has it, restore it first."""
        key = self._key(trial)
        if key not in self._paths:
            self._paths[key] = path = self.folder / trial_name(self.identity(trial))
            for archive in self._archives:
                if path.name in archive and not self.finished(trial):
                    try:
                        archive.restore(path)
                    except InputError as error:
                        self._tell(trial, error)
        return self._paths[key]

    def _key(self, trial: Trial) -> str:
        return json.dumps(trial.flags(self.recipe), sort_keys=True, default=str)

    def finished(self, trial: Trial) -> bool:
        """Return whether the trial is finished, complete and unchanged. Print a line if it is damaged."""
        if not (self.path(trial) / RECORD).exists():
            return False
        try:
            read_trial(self.path(trial))
        except InputError as error:
            self._tell(trial, error)
            return False
        return True

    def _tell(self, trial: Trial, damage: InputError) -> None:
        if str(damage) not in self._told:
            self._told.add(str(damage))
            tqdm.write(f"{damage}; made again ({trial.name})")

    def record(self, trial: Trial) -> dict[str, Any]:
        """Return the record of a finished trial: what was run, how long it took, and on which machine."""
        return read_record(self.path(trial))

    def collect(self, of_folds: Sequence[Trial], ids: Sequence[str], split: str) -> np.ndarray:
        """Return probabilities `(rows, labels)` in the order of `ids`, each row's from the trial that held it out."""
        found: dict[str, np.ndarray] = {}
        for trial in of_folds:
            _, probabilities = read_trial(self.path(trial))
            self._collected[self.path(trial)] = trial.variant
            found |= dict(zip(probabilities.ids.get(split, []), probabilities.values.get(split, []), strict=True))
        if lacking := next((row_id for row_id in ids if row_id not in found), None):
            paths = ", ".join(str(self.path(trial)) for trial in of_folds)
            raise InputError(f"{paths}: no probabilities of row {lacking!r}; remove them to train them again")
        return np.stack([found[row_id] for row_id in ids])

    def write_archive(self, path: Path) -> None:
        """Write all trials whose probabilities were collected to one parquet file."""
        write_archive(path, self._collected.items())

    def plan(self, trials: Sequence[Trial]) -> str:
        """Return a line with the number of trainings, how many are done, and about how long the others take."""
        different = {self.path(trial): trial for trial in trials}
        done = sum(map(self.finished, different.values()))
        rest = f"; the rest takes about {duration(self.estimate(trials))}" if done < len(different) else ""
        return f"{len(different)} trainings, {done} of them done{rest}"

    def estimate(self, trials: Sequence[Trial]) -> float:
        """Return about how many seconds the unfinished trials will take, with `jobs` at a time.

        The estimate uses trainings in the cache that ran on this machine without interruption and were not much
        smaller. If there are none, it uses the speed of a matrix product, measured now.
        """
        todo = {self.path(trial): trial for trial in trials if not self.finished(trial)}
        work = [(precision(self.settings(trial)), self._gflop(trial)) for trial in todo.values()]
        return expected_seconds(work, self.folder, self.jobs)

    def _gflop(self, trial: Trial) -> float:
        """Return about how many billion operations the training takes, counting 6 per weight and token."""
        held_out = 0 if trial.fold is None else len(trial.fold[1:]) / trial.fold[0]
        checkpoint = trial.flags(self.recipe)["model_name_or_path"]
        return training_gflop(self.settings(trial), held_out, self._texts, checkpoint)

    def train(self, trials: Sequence[Trial], keep_models: bool = False) -> None:
        """Train the trials that are not finished.

        Args:
            keep_models: Keep each training's output folder, as `run/`. If false, it is removed when the trial is done.

        Raises:
            InputError: if a training fails; the message says why, and where its log is.
        """
        waiting = {}
        for trial in trials:
            path = self.path(trial)
            if not self.finished(trial) or (keep_models and not (path / RUN / RESULTS).exists()):
                waiting[path] = trial
        total = len({self.path(trial) for trial in trials})
        done = total - len(waiting)
        if done:
            print(f"{done} of {total} trainings are done already", flush=True)
        if waiting:
            took = duration(self.estimate(list(waiting.values())))
            print(f"{len(waiting)} trainings to do, about {took}; logs in {self.folder}/*/log.txt", flush=True)
        with tqdm(total=total, initial=done, desc="trainings", unit="training", smoothing=0) as bar:

            def one(path: Path, trial: Trial, *how: Any) -> None:
                self._train_one(path, trial, keep_models, *how)
                bar.set_postfix_str(trial.name)
                bar.update()

            self._spread(waiting, one, bar)

    def attempt(self, trials: Sequence[Trial], bar: tqdm) -> dict[str, InputError]:
        """Train the trials that are not finished, and return the errors of those that failed, by the trial's name.

        Args:
            bar: The caller's progress bar, whose clock is kept going.
        """
        failed = {}

        def one(path: Path, trial: Trial, *how: Any) -> None:
            try:
                self._train_one(path, trial, False, *how)
            except InputError as error:
                failed[trial.name] = error

        self._spread({self.path(trial): trial for trial in trials if not self.finished(trial)}, one, bar)
        return failed

    def _spread(self, waiting: dict[Path, Trial], one: Callable[..., None], bar: tqdm) -> None:
        """Call `one(path, trial, device, running)` for each trial, `jobs` at a time; stop at the first error."""
        count = torch.cuda.device_count()
        devices: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for job in range(self.jobs):
            devices.put(str(job % count) if count else None)
        running: set[subprocess.Popen] = set()

        def on_a_device(path: Path, trial: Trial) -> None:
            device = devices.get()
            try:
                one(path, trial, device, running)
            finally:
                devices.put(device)

        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            left = {pool.submit(on_a_device, path, trial) for path, trial in waiting.items()}
            try:
                while left:
                    over, left = wait(left, timeout=1, return_when=FIRST_EXCEPTION)
                    for future in over:
                        future.result()
                    if sys.stderr.isatty():
                        bar.refresh()  # the time goes on between two trainings
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(running):
                    process.terminate()
                raise

    def _train_one(
        self, path: Path, trial: Trial, keep_models: bool, device: str | None, running: set[subprocess.Popen]
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        with lock(path / "lock", trial.name) as held:
            run = path / RUN
            if self.finished(trial) and ((run / RESULTS).exists() or not keep_models):
                return  # by whoever had the lock
            left = None
            if (run / RESULTS).exists() and not not_made(run):
                try:
                    left = convert_run(path)
                except InputError as error:
                    self._tell(trial, error)
                    (run / RESULTS).unlink()  # first: what a kill leaves of the folder does not pass for a finished run
                    shutil.rmtree(run)
            if left is None:
                resumed = run.exists()
                program, flags = split_program(trial.flags(self.recipe) | {"output_dir": str(run)})
                # The precision in the trial's name. Its own process might choose another while others run.
                flags["bf16"] = self.settings(trial)["bf16"]
                flags |= {"calibrate": False} if program in CLASSIFY else {}  # what is fitted is fitted across folds
                write_text(path / "recipe.yaml", yaml.safe_dump(flags, sort_keys=False, allow_unicode=True))
                start = time.time()
                self._run_script(path, program, device, held, running, trial.name)
                write_json(path / "time.json", {"seconds": round(time.time() - start, 1), "resumed": resumed})
                left = convert_run(path)
            write_record(
                path,
                {
                    "trial": asdict(trial),
                    **left,
                    **read_object(path / "time.json"),
                    "machine": machine(self.jobs),
                    "libraries": {name: version(name).partition("+")[0] for name in LIBRARIES},  # 2.9.0+cpu is 2.9.0
                    "gflop": round(self._gflop(trial), 1),
                    **self.identity(trial),
                },
            )
            if keep_models:
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
            else:
                (run / RESULTS).unlink()  # first, as above
                shutil.rmtree(run)

    def _run_script(
        self, path: Path, program: str, device: str | None, held: int, running: set[subprocess.Popen], name: str
    ) -> None:
        module = program if program in CLASSIFY else f"trainer_ext.{program}"
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        if device is None and self.jobs > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        with open(path / "log.txt", "ab") as log:
            before = log.tell()
            process = subprocess.Popen(
                # -P: a run_classify.py or trainer_ext/ in the working folder is not this project's
                [sys.executable, "-P", "-m", module, path / "recipe.yaml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                **handed_on(held),  # held on if this process dies first
            )
            running.add(process)
            try:
                code = process.wait()
            finally:
                running.discard(process)
        if code:
            said = last_words(path / "log.txt", before) or f"exit status {code}"
            raise InputError(f"training {name} failed: {said} (its log: {path}/log.txt)")
