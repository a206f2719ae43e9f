"""Run all stages of a recipe in order, from the data folder to the files to submit.

    python run_reproduce.py recipes/wassa2022_full.yaml --data_dir FOLDER --plan
    python run_reproduce.py recipes/wassa2022_full.yaml --data_dir FOLDER        (or make reproduce)

The YAML file lists the stages. Each has a command (without --data_dir and --output_dir), its output folder, and about
how many minutes it takes on the machine named by `minutes_on`. It also names the folders whose predictions are
submitted:

    minutes_on: two cores of an AMD EPYC
    stages:
      transfer: {command: run_classify.py recipes/transfer.yaml, output_dir: outputs/transfer, minutes: 40}
      single model: {command: run_classify.py recipes/wassa2022.yaml, output_dir: outputs/wassa2022, minutes: 15}
    submission_dir: results/wassa2022
    submission: {predictions_EMO_single.tsv: outputs/wassa2022}

If it is stopped or killed, run the same command again. Finished stages are skipped (remove a stage's folder to repeat
it). An interrupted stage resumes from its last checkpoint. Trainings of run_compare.py and run_fuse.py are kept in
outputs/trials. A folder that another command or another recipe made is an error. After each stage, the remaining time
is estimated from the time so far. submission.json lists the stages with their minutes and the machine.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_reproduce")  # --help and wrong flags end here; the imports below take seconds

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from trainer_ext.data.emotion_corpora import WASSA_LABELS
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.comparison import bootstrap_macro_f1
from trainer_ext.evaluation.metrics import EmotionMetric
from trainer_ext.evaluation.predictions import PREDICTIONS, read_predictions
from trainer_ext.files import (
    CHECKPOINTS,
    RESULTS,
    SETTINGS,
    begun_settings,
    file_digest,
    handed_on,
    lock,
    read_object,
    shown,
    write_json,
)
from trainer_ext.recipe_file import Schema, check_recipe, read_recipe
from trainer_ext.runs.checkpoints import checkpoint_digest
from trainer_ext.runs.provenance import command_line, flags_of, recipe_digest, without_secrets
from trainer_ext.runs.run import NOT_SETTINGS
from trainer_ext.runs.trial import machine

ROOT = Path(__file__).resolve().parent
# Flags that do not change what a stage writes.
IGNORED = NOT_SETTINGS | {"jobs", "trials_dir", "members_dir", "results_dir"}
STAGES = "stages.json"
logger = logging.getLogger("run_reproduce")


def _runs_a_script(command: str) -> str:
    """Return the command if it runs a script of this project; pydantic adds the place to a `ValueError`."""
    try:
        script = [*shlex.split(command), ""][0]
    except ValueError as error:
        raise ValueError(f"{command!r}: {error}") from error
    if script not in {path.name for path in ROOT.glob("run_*.py")} - {Path(__file__).name}:
        raise ValueError(f"{command!r}; want a command that begins with a run_*.py")
    return command


class StageLine(Schema):
    """One stage as the YAML file has it, checked; [`Stage`] is the same, ready to run."""

    command: Annotated[str, AfterValidator(_runs_a_script)]
    output_dir: Annotated[str, Field(min_length=1)]
    minutes: Annotated[float, Field(ge=0)]


class ReproduceFile(Schema):
    """The schema of the YAML file."""

    minutes_on: str = "an unnamed machine"
    stages: Annotated[dict[str, StageLine], Field(min_length=1)]
    submission_dir: str = "."
    submission: dict[str, str] | None = None


@dataclass
class Stage:
    """One command of the recipe.

    Attributes:
        name: Name for messages.
        command: Script and flags.
        output_dir: The folder that it writes.
        minutes: About how long it takes on the recipe's machine.
    """

    name: str
    command: list[str]
    output_dir: Path
    minutes: float

    @property
    def finished(self) -> bool:
        return (self.output_dir / RESULTS).exists()

    @property
    def printed(self) -> str:
        """Return the command for messages, without tokens."""
        return shlex.join(without_secrets(self.command))

    def made_otherwise(self) -> str | None:
        """Return the command that made the finished folder if it is not this stage's; `None` if it is.

        The contents of the recipes are compared, too, and the run that the stage started from.
        """
        if not self.finished:
            return None
        of_run, of_fusion = (read_object(self.output_dir / name) for name in (SETTINGS, "fusion.json"))
        made = of_run if "command" in of_run else of_fusion
        said = str(made.get("command", "an unknown command"))
        own = shlex.join(map(shown, without_secrets(self.command)))
        if flags_of(said, IGNORED) != flags_of(own, IGNORED):
            return said
        if made.get("recipe") not in (None, recipe_digest(self.command[1:])):
            return f"{said}, with another {self.command[1]}"
        before = begun_settings(self.output_dir / CHECKPOINTS).get("model_name_or_path")
        if before and (start := self.start()) and before not in (start, checkpoint_digest(start)):
            return f"{said}, from another {start}"  # the oldest runs noted its path
        return None

    def start(self) -> str | None:
        """Return the folder of the finished run that the stage starts from; `None` if it starts from none."""
        _, flags = flags_of(shlex.join(self.command), set())
        recipe = read_recipe(Path(self.command[1])) if recipe_digest(self.command[1:]) else {}
        start = (flags.get("model_name_or_path") or [recipe.get("model_name_or_path")])[0]
        finished = start and all((Path(start) / name).is_file() for name in (RESULTS, "config.json"))
        return start if finished else None


def main() -> None:
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    minutes_on, stages, submission_dir, submission = read_stages(args.recipe)
    left = [stage for stage in stages if not stage.finished]
    finished = [stage for stage in stages if stage.finished]
    others = {stage.name: made for stage in finished if (made := stage.made_otherwise())}
    for stage in stages:
        state = "done" if stage.finished else f"about {stage.minutes:.0f} min"
        state = "another run" if stage.name in others else state
        print(f"{state:>13}  {stage.name}: {stage.printed} -> {stage.output_dir}/")
    planned = [stage for stage in stages if stage in left or stage.name in others]
    print(f"{len(planned)} of {len(stages)} stages to run, about {_hours(planned, 1.0)} on {minutes_on}")
    for stage in stages:
        if stage.name in others:
            print(f"another run: {stage.output_dir} was made by {others[stage.name]}; move or remove it first")
    if args.plan:
        return
    check_made(finished)
    outputs = stages[0].output_dir.parent
    outputs.mkdir(parents=True, exist_ok=True)
    with lock(outputs / ".reproduce.lock", "a stage") as held:
        spent = expected = 0.0
        while left := [stage for stage in left if not stage.finished]:  # another process may have finished one
            stage, *left = left
            logger.info(f"\n==== {stage.name} ====")
            start = time.monotonic()
            note_start(outputs / STAGES, stage)
            run_stage(stage, args.data_dir, held)
            spent, expected = spent + time.monotonic() - start, expected + stage.minutes * 60
            if left:
                rate = spent / expected if expected else 1.0  # a stage may be said to take no time
                logger.info(f"{len(left)} stages left, about {_hours(left, rate)} at this rate")
        check_made(finished)  # one may have started from a stage that ran again
        if submission:
            collect_submission(submission_dir, submission, noted(outputs / STAGES, stages))


def check_made(stages: list[Stage]) -> None:
    """Check that each finished folder was made by its stage.

    Raises:
        InputError: if another command, another recipe or another starting checkpoint made it.
    """
    for stage in stages:
        if made := stage.made_otherwise():
            raise InputError(
                f"{stage.output_dir}: was made by {made}; want stage {stage.name}: {stage.printed}; "
                "move or remove that folder"
            )


def _hours(stages: list[Stage], rate: float) -> str:
    return f"{sum(stage.minutes for stage in stages) * rate / 60:.1f} h"


def run_stage(stage: Stage, data_dir: str | None, held: int) -> None:
    """Run the command of a stage.

    Args:
        held: The [`lock`] to pass on to the command.

    Raises:
        InputError: if the command fails; it has printed why.
    """
    environment = os.environ | ({"EMODEBERTA_DATA": data_dir} if data_dir else {})
    script, *flags = stage.command
    command = [sys.executable, ROOT / script, *flags, "--output_dir", stage.output_dir]
    done = subprocess.run(command, env=environment, **handed_on(held), stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise InputError(f"stage {stage.name}: {script} ended with exit status {done.returncode}; see above")


def note_start(path: Path, stage: Stage) -> None:
    """Add a stage that starts to the JSON file of stages, by its folder: recipes may share names of stages."""
    command = shlex.join(map(shown, without_secrets(stage.command)))
    line = {"command": command, "started": round(time.time()), "machine": machine()}
    write_json(path, read_object(path) | {str(stage.output_dir): line})


def noted(path: Path, stages: list[Stage]) -> dict[str, dict]:
    """Return what is known of each finished stage, with its minutes from its last start, whoever saw it end."""
    lines, known = read_object(path), {}
    for stage in stages:
        if stage.finished and (line := lines.get(str(stage.output_dir))):
            seconds = (stage.output_dir / RESULTS).stat().st_mtime - line["started"]
            known[stage.name] = line | {"minutes": round(seconds / 60, 1)}
    return known


def collect_submission(folder: Path, files: dict[str, str], stages: dict[str, dict]) -> None:
    """Copy each model's predictions_EMO.tsv into `folder`, and write submission.json about the models.

    submission.json has each file's model and hash, the model's figures on labelled validation rows, and the stages.

    Args:
        files: By file name in `folder`, the model's folder.
        stages: As [`noted`] returns them.

    Raises:
        InputError: if a line is not a label, or the files have different numbers of lines.
    """
    rows: dict[str, int] = {}
    for name, source in files.items():
        path = Path(source) / "predictions_EMO.tsv"
        if not path.is_file():
            raise InputError(f"{path}: not there; its model predicted no test rows")
        labels = path.read_text(encoding="utf-8").splitlines()
        for number, label in enumerate(labels, 1):
            if label not in WASSA_LABELS:
                raise InputError(f"{path}, line {number}: {label!r}; want one of {', '.join(WASSA_LABELS)}")
        rows[name] = len(labels)
    if len(set(rows.values())) > 1:
        raise InputError(f"{folder}: {rows}; want as many lines in each")
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, source in files.items():
        partial = folder / f".{name}.partial"
        shutil.copyfile(Path(source) / "predictions_EMO.tsv", partial)
        partial.replace(folder / name)
        found[name] = {"model": source, "rows": rows[name], "sha256": file_digest(folder / name)}
        found[name]["validation"] = validation_figures(Path(source))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    content = {"command": command_line(), "commit": commit.stdout.strip() or None, "files": found, "stages": stages}
    write_json(folder / "submission.json", content)
    logger.info(f"submission: {', '.join(found)} in {folder}/")


def validation_figures(folder: Path) -> dict[str, float | int]:
    """Return the seven figures of a model's labelled validation rows, the 95% interval of macro F1, and the number of
    rows.

    The result is empty if there are no such rows.
    """
    rows = [row for row in read_predictions(folder, one_label=True).rows if row.split == "validation" and row.gold]
    if not rows:
        return {}
    if unknown := {label for row in rows for label in (row.gold, row.predicted)} - set(WASSA_LABELS):
        raise InputError(f"{folder / PREDICTIONS}: label {unknown.pop()!r}; want one of {', '.join(WASSA_LABELS)}")
    gold, predicted = ([WASSA_LABELS.index(getattr(row, name)) for row in rows] for name in ("gold", "predicted"))
    figures = EmotionMetric(WASSA_LABELS).compute(predictions=predicted, references=gold)
    low, high = bootstrap_macro_f1(np.array(gold), np.array(predicted), [row.group or row.id for row in rows])
    return {"rows": len(rows), "macro_f1_low": low, "macro_f1_high": high} | figures


def read_stages(path: Path) -> tuple[str, list[Stage], Path, dict[str, str]]:
    """Read the YAML file of the stages.

    Returns:
        The machine that the minutes are for, the stages, the folder of the submission, and by each of its file names
        the folder of the model.

    Raises:
        InputError: if a key is unknown, a command is not one of this project, or no stage writes a folder that is
            named.
    """
    content = read_recipe(path)
    if not content.get("stages") and content.keys() <= ReproduceFile.model_fields.keys():
        raise InputError(f"{path}: no stages; want `stages:` with a name, command, output_dir and minutes for each")
    file = check_recipe(content, ReproduceFile, path)
    stages = [
        Stage(name, shlex.split(row.command), Path(row.output_dir), row.minutes) for name, row in file.stages.items()
    ]
    made = [str(stage.output_dir) for stage in stages]
    if twice := [folder for folder in made if made.count(folder) > 1]:
        raise InputError(f"{path}, stages: two leave {twice[0]}; want a folder for each")
    submission = file.submission or {}
    for name, folder in submission.items():
        if Path(name).name != name:
            raise InputError(f"{path}, submission, {name}: want the name of a file, without folders")
        if str(Path(folder)) not in made:
            raise InputError(f"{path}, submission, {name}: no stage leaves {folder}")
    return file.minutes_on, stages, Path(file.submission_dir), submission


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="the stages; see above")
    made.add_argument("--data_dir", help="folder with the corpora (default: the environment variable EMODEBERTA_DATA)")
    made.add_argument("--plan", action="store_true", help="print the stages and how long they take, and stop")
    return made


if __name__ == "__main__":
    run_command(main)
