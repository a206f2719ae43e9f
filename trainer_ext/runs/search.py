"""Search flags of run_classify.py by cross-validation, with Optuna's samplers and pruners.

A configuration is a set of values, trained fold by fold. One that is behind after some folds is stopped. The study is
kept in a file, so that an interrupted search proposes what it would have proposed without the interruption. The
trainings are trials of the cache, see [`Trials`].
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError, first_line
from ..evaluation.pages import changes
from ..files import digest
from ..recipe_file import Flags
from .search_space import Range, SearchRecipe
from .trial import Trial, duration, measured_rate, one_a_fold, precision
from .trials import Trials

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
except ImportError as error:
    raise InputError("run_search.py needs Optuna: pip install optuna (or this project with extra `search`)") from error

OWN = "the recipe's own values"
STUDY = "study.jsonl"  # Optuna's journal, in the output folder
_FIRST = 4  # configurations that are trained on all folds before one may be stopped
_REPEATS = 30  # proposals in a row that were trained before: then the space is taken to be exhausted
_AGAIN = "tried before"  # marks such a proposal

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass
class Configuration:
    """A set of values to try.

    Attributes:
        name: Its number, or [`OWN`].
        values: The proposed value of each searched flag that has an effect.
        trials: One training per fold.
        scores: Macro F1 over the rows of the first fold, of the first two folds, and so on, as far as trained.
        state: `finished` on all folds, `stopped` after some, `failed` in a training, or `running`.
        why: Why a training failed.
    """

    name: str
    values: Flags
    trials: list[Trial]
    scores: list[float]
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    why: str | None = None
    asked: Any = None  # Optuna's trial, while running


class Search:
    """A search of the values of flags.

    Args:
        recipe: What to search.
        trials: The cache of trainings; its shared flags are `recipe.settings`.
        score: Returns the running macro F1 of these trainings, of the first folds: one figure per training.
        folder: An existing folder, for Optuna's file.
        sampler: `tpe` proposes values like those of the best so far, `random` draws them.
        pruner: `median` stops a configuration whose gain over the recipe's own values, on the folds so far, is below
            the median of the finished ones. `none` stops none.

    Raises:
        InputError: if Optuna's file cannot be read.
    """

    def __init__(
        self,
        recipe: SearchRecipe,
        trials: Trials,
        score: Callable[[list[Trial]], list[float]],
        folder: Path,
        sampler: Literal["tpe", "random"] = "tpe",
        pruner: Literal["median", "none"] = "median",
    ):
        self._recipe, self._trials, self._score, self._sampler = recipe, trials, score, sampler
        values = {flag: recipe.own[flag] for flag in recipe.space if recipe.applies(flag, {})}
        self.own = Configuration(OWN, values, one_a_fold(recipe.overrides({}), recipe.cv_folds, recipe.seed, OWN), [])
        described = {flag: repr(values) for flag, values in recipe.space.items()}
        name = digest([[trials.path(trial).name for trial in self.own.trials], described, sampler, pruner])
        median = optuna.pruners.MedianPruner(n_startup_trials=_FIRST)
        try:
            file = str(folder / STUDY)
            lock = JournalFileOpenLock(file)  # the default lock is a link, which Windows does not allow everybody
            storage = optuna.storages.JournalStorage(JournalFileBackend(file, lock))
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=median if pruner == "median" else optuna.pruners.NopPruner(),
            )
            others = len(optuna.get_all_study_names(storage)) - 1
            self._resume()
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            raise InputError(f"{folder / STUDY}: cannot be used ({first_line(error)}); remove it") from error
        if others and not self._study.get_trials():
            print(f"{folder / STUDY}: has a search with other flags, data or values; this one starts anew", flush=True)

    # ---- What was done in earlier starts --------------------------------------------------------------------------
    def _resume(self) -> None:
        """Read the configurations of earlier starts. One that was running is to be proposed again."""
        self.configurations: list[Configuration] = []
        for found in self._study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            self._study.tell(found.number, state=optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(found.params)
        for found in self._study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]):
            if OWN in found.user_attrs:
                continue
            whole = found.state == optuna.trial.TrialState.COMPLETE
            configuration = self._configuration(self._short(found.params))
            configuration.why = found.user_attrs.get("failed")
            configuration.state = "finished" if whole else "failed" if configuration.why else "stopped"
            configuration.scores = found.user_attrs["scores"]
            self.configurations.append(configuration)

    @property
    def seconds(self) -> float:
        """Return how long the search took, all starts together."""
        return self._study.user_attrs.get("seconds", 0.0)

    # ---- The search -----------------------------------------------------------------------------------------------
    def run(self, most: int | None, budget: float | None) -> None:
        """Train configurations until there are `most`, the recipe's own among them, or `budget` seconds are over.

        Raises:
            InputError: if a training of the recipe's own values fails, or the budget is over before they are done.
        """
        before, start = self.seconds, time.monotonic()

        def spend() -> float:
            spent = before + time.monotonic() - start
            self._study.set_user_attr("seconds", round(spent, 1))
            return spent

        def too_long(trials: list[Trial]) -> str | None:
            """Return why these trainings are not started, or `None`."""
            if budget is None or (not self._measured() and spend() <= budget):
                return None  # without a measured speed, the estimate is too rough to refuse a training
            needed, left = self._trials.estimate(trials), budget - spend()
            if needed == 0 or needed <= left:
                return None
            return f"{duration(max(left, 0))} of the budget are left, and the next training takes about " + duration(
                needed
            )

        left = [trial for trial in self.own.trials if not self._trials.finished(trial)]
        if left:
            took = f"{duration(self._trials.estimate(left[:1]))}{'' if self._measured() else ', roughly guessed'}"
            print(f"a training of {OWN} takes about {took}; logs in {self._trials.folder}/*/log.txt", flush=True)
        bar = tqdm(total=most or round(budget / 60), desc="search", unit="configuration" if most else "min")
        with bar:
            active: list[Configuration] = [self.own]
            while active:
                following = self._following(active)
                if reason := too_long(following):
                    if self.own in active:
                        done = f"{len(self.own.scores)} of {self._recipe.cv_folds} folds"
                        least = math.ceil((spend() + self._trials.estimate(self.own.trials)) / 60)
                        raise InputError(
                            f"{reason}; {OWN} have {done}: give a larger --budget (about {least}m for these alone), or "
                            "fewer --cv_folds"
                        )
                    tqdm.write(f"{reason}; stopped. A larger --budget resumes from here")
                    break
                failed = self._trials.attempt(following, bar)
                for configuration in active:
                    self._judge(configuration, failed)
                active = [each for each in active if each.state == "running"]
                tried = 1 + len(self.configurations)
                while self.own.state == "finished" and len(active) < self._trials.jobs:
                    if (most and tried >= most) or (new := self._propose()) is None:
                        break
                    active.append(new)
                    self.configurations.append(new)
                    tried += 1
                bar.n = tried - len(active) if most else min(bar.total, round(spend() / 60))
                if finished := self.finished():
                    bar.set_postfix_str(f"best macro F1 {max(each.scores[-1] for each in finished):.3f}")
            spend()
        self.configurations = [each for each in self.configurations if each.state != "running"]

    def _measured(self) -> bool:
        """Return whether a training was timed on this machine."""
        dtype = precision(self._trials.settings(self.own.trials[0]))
        return measured_rate(self._trials.folder, self._trials.jobs, dtype) is not None

    def finished(self) -> list[Configuration]:
        """Return the configurations that were trained on all folds, the recipe's own first."""
        return [each for each in (self.own, *self.configurations) if each.state == "finished"]

    def _following(self, active: list[Configuration]) -> list[Trial]:
        """Return the next training of each configuration; of the recipe's own values as many as fit at a time."""
        if self.own in active:
            return self.own.trials[len(self.own.scores) :][: self._trials.jobs]
        return [each.trials[len(each.scores)] for each in active]

    def _judge(self, configuration: Configuration, failed: dict[str, InputError]) -> None:
        """Score a configuration after a training, and decide whether it goes on."""
        own, trials = configuration is self.own, configuration.trials
        if errors := [failed[trial.name] for trial in trials if trial.name in failed]:
            if own:
                raise errors[0]
            configuration.state, configuration.why = "failed", str(errors[0])
            configuration.asked.set_user_attr("failed", configuration.why)
        else:
            whole = takewhile(self._trials.finished, trials)  # several at a time, where several fit
            done = sum(1 for _ in whole) if own else len(configuration.scores) + 1
            configuration.scores = self._score(trials[:done])
            if done == len(trials):
                configuration.state = "finished"
        if own:
            if configuration.state == "finished":
                self._tell_own()
                tqdm.write(f"{OWN}: macro F1 {configuration.scores[-1]:.3f}")
            return
        asked, done = configuration.asked, len(configuration.scores)
        asked.set_user_attr("scores", configuration.scores)
        if configuration.state == "running":
            asked.report(configuration.scores[-1] - self.own.scores[done - 1], done)
            if not asked.should_prune():
                return
            configuration.state = "stopped"
        if configuration.state == "finished":
            asked.report(configuration.scores[-1] - self.own.scores[-1], done)
            self._study.tell(asked, configuration.scores[-1])
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        tqdm.write(f"{configuration.name}: {said(configuration, self.own)}")

    # ---- Proposals ------------------------------------------------------------------------------------------------
    def _propose(self) -> Configuration | None:
        """Return a configuration that was not tried, or `None` if the sampler finds none."""
        known = {self._trials.path(each.trials[0]) for each in (self.own, *self.configurations)}
        for _ in range(_REPEATS):
            # A seed for each proposal, so that it depends on what was tried, and not on where the search was stopped.
            number = sum(_counts(each) for each in self._study.get_trials(deepcopy=False))
            seed = (self._recipe.seed + number) % 2**32
            self._study.sampler = (
                optuna.samplers.TPESampler(seed=seed)
                if self._sampler == "tpe"
                else optuna.samplers.RandomSampler(seed=seed)
            )
            asked = self._study.ask()
            values: Flags = {}
            # Child-Tuning's variant before its p, which without Child-Tuning is not asked for
            for flag, choices in sorted(self._recipe.space.items(), key=lambda pair: pair[0] == "child_tuning_p"):
                if self._recipe.applies(flag, values):
                    values[flag] = _suggest(asked, flag, choices)
            new = self._configuration(self._short(values))
            new.asked = asked
            if self._trials.path(new.trials[0]) not in known:
                return new
            asked.set_user_attr(_AGAIN, True)
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        tqdm.write(f"{_REPEATS} proposals in a row were tried before; stopped: the space is used up")
        return None

    def _configuration(self, values: Flags) -> Configuration:
        """Return a configuration with the next number."""
        recipe, name = self._recipe, str(1 + len(self.configurations))
        return Configuration(name, values, one_a_fold(recipe.overrides(values), recipe.cv_folds, recipe.seed, name), [])

    def _short(self, values: Flags) -> Flags:
        """Return proposed values with the figures that are used."""
        space = self._recipe.space
        return {
            flag: space[flag].short(value) if isinstance(space[flag], Range) else value
            for flag, value in values.items()
        }

    def _tell_own(self) -> None:
        """Tell the study of the recipe's own values, if they are in its space."""
        space, own = self._recipe.space, {}
        for flag, value in self.own.values.items():
            choices = space[flag]
            if not (choices.holds(value) if isinstance(choices, Range) else value in choices):
                return
            own[flag] = int(value) if isinstance(choices, Range) and choices.whole else value
        if any(OWN in each.user_attrs for each in self._study.get_trials(deepcopy=False)):
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                params=own,
                distributions={flag: _distribution(space[flag]) for flag in own},
                value=self.own.scores[-1],
                intermediate_values={done + 1: 0.0 for done in range(len(self.own.scores))},
                user_attrs={OWN: True},
            )
        )

    def importance(self) -> dict[str, float]:
        """Return the share of each flag in how good the configurations were, by PED-ANOVA; empty with too few."""
        if len(self.finished()) < 2 * _FIRST:
            return {}
        found = optuna.importance.get_param_importances(self._study)
        return {flag: round(share, 3) for flag, share in found.items() if np.isfinite(share)}


def said(configuration: Configuration, own: Configuration) -> str:
    """Return a line about how a configuration did."""
    values = changes(configuration.values, own.values)
    if configuration.state == "failed":
        return f"failed; {configuration.why}; {values}"
    score, done = configuration.scores[-1], len(configuration.scores)
    gain = score - own.scores[done - 1]
    if configuration.state == "finished":
        return f"macro F1 {score:.3f} ({gain:+.3f}); {values}"
    return f"stopped after {done} of {len(configuration.trials)} folds at {score:.3f} ({gain:+.3f}); {values}"


def _counts(found: optuna.trial.FrozenTrial) -> bool:
    """Return whether this was proposed in a search that was not interrupted."""
    waiting, failed = optuna.trial.TrialState.WAITING, optuna.trial.TrialState.FAIL
    return found.state != waiting and (found.state != failed or _AGAIN in found.user_attrs)


def _distribution(choices: Range | list) -> optuna.distributions.BaseDistribution:
    if isinstance(choices, list):
        return optuna.distributions.CategoricalDistribution(choices)
    if choices.whole:
        return optuna.distributions.IntDistribution(choices.low, choices.high, log=choices.log, step=choices.step or 1)
    return optuna.distributions.FloatDistribution(choices.low, choices.high, log=choices.log, step=choices.step)


def _suggest(asked: optuna.Trial, flag: str, choices: Range | list) -> Any:
    """Return Optuna's value for a flag."""
    if isinstance(choices, list):
        return asked.suggest_categorical(flag, choices)
    suggest = asked.suggest_int if choices.whole else asked.suggest_float
    step = choices.step or (1 if choices.whole else None)
    return suggest(flag, choices.low, choices.high, log=choices.log, step=step)
