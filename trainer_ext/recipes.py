"""Parse flags and YAML recipes into the scripts' dataclasses, with `HfArgumentParser`.

The texts of `transformers.TrainingArguments` describe its `Trainer`. Where our scripts do otherwise, and for the flags
that people set most, the text is here. These flags come first in their section, in this order.

A recipe is a YAML file of flag names and values. It is read as if its entries came first on the command line. So every
flag overrides it, and both are checked in the same way.
"""

import os
import re
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from .child_tuning import ChildTuningArguments
from .errors import InputError
from .files import CHECKPOINTS, begun_settings
from .flag_parser import FlagFormatter, FlagParser, true_or_false
from .precision import Choice, choose

# ---- What the library's flags do, for `--help` -----------------------------------------------------------------------
HELP = {
    "output_dir": "Folder for the model, its card, figures and predictions. An unfinished run in it is resumed.",
    "num_train_epochs": "Number of passes over the training rows.",
    "max_steps": "Stop after this many optimizer steps, whatever --num_train_epochs says. -1: no such limit.",
    "learning_rate": "Highest learning rate: the one after the warm-up.",
    "warmup_steps": "Optimizer steps until the learning rate is at its highest; below 1, a share of all steps.",
    "per_device_train_batch_size": "Rows in a training batch, on each device.",
    "gradient_accumulation_steps": "Batches in an optimizer step. More of them need no more memory.",
    "per_device_eval_batch_size": "Rows in a batch of evaluation and prediction, on each device.",
    "seed": "Seed of new layers, the order of rows, dropout and masks.",
    "bf16": "true: train in mixed precision with bfloat16. false: train in float32. Default: whichever is faster here, "
    "timed once per machine.",
    "fp16": "Train in mixed precision with float16, for GPUs without bfloat16.",
    "use_cpu": "Train on the CPU, even if there is an accelerator.",
    "do_train": "Train. Only needed together with --do_eval or --do_predict, which alone do not train.",
    "do_eval": "Without --do_train: evaluate the finished model of --model_name_or_path on validation rows. A training "
    "always ends with that.",
    "do_predict": "Without --do_train: predict the test rows with the finished model of --model_name_or_path. A "
    "training always ends with that.",
    "eval_strategy": "When to evaluate on validation rows during training. The finished model is always evaluated.",
    "save_strategy": "When to save a checkpoint. A run that was killed resumes from the last one.",
    "save_total_limit": "Number of checkpoints to keep; older ones are deleted. --select average keeps those it needs.",
    "save_only_model": "Save checkpoints without the optimizer. A killed run then starts anew.",
    "resume_from_checkpoint": "Checkpoint folder to resume from. Default: the last one in --output_dir, if there is "
    "one.",
    "push_to_hub": "When the folder is finished, check it and publish it on the Hub in one commit, as run_publish.py "
    "does. Checkpoints are never uploaded.",
    "hub_model_id": "With --push_to_hub: the repository, as owner/name. Default: the name of --output_dir, in your own "
    "account.",
    "hub_private_repo": "With --push_to_hub: false makes a new repository public. Default: it is private.",
    "hub_revision": "With --push_to_hub: the branch to push to. Default: main.",
    "hub_token": "With --push_to_hub: a Hub token, if not the one of `hf auth login`.",
    "hub_strategy": "No effect here: the finished folder is published once.",
    "hub_always_push": "No effect here: the finished folder is published once.",
    "load_best_model_at_end": "Keep the weights of the checkpoint with the best --metric_for_best_model.",
    "metric_for_best_model": "Figure by which --load_best_model_at_end chooses. Default: perplexity for run_mlm.py, "
    "else the loss.",
    "train_sampling_strategy": "Order of the training rows. group_by_length is refused: a resumed run would see "
    "other batches; use --tokens_per_batch.",
    "dataloader_drop_last": "Leave out the last training batch of an epoch if it is not full. Predictions always cover "
    "every row.",
    "fsdp": "Shard the model over several GPUs with FSDP2; see recipes/accelerate/fsdp2.yaml.",
    "fsdp_config": "Settings of --fsdp, as JSON or a JSON file; fsdp_version must be 2.",
    "deepspeed": "DeepSpeed's settings, as JSON or a JSON file. Not with --child_tuning, whose masks cannot reach its "
    "optimizer; to shard a model, use --fsdp.",
    "use_liger_kernel": "No effect here: Liger has no kernels for this architecture.",
}
# Refused with any value but the default (runs/flags.py says why), or set by launchers only. Left out of `--help`.
HIDDEN = frozenset(
    {"prediction_loss_only", "eval_do_concat_batches", "batch_eval_metrics", "label_names", "local_rank"}
)


# ---- Recipes ---------------------------------------------------------------------------------------------------------
# A language as the Hub has it (ISO 639: two or three letters, perhaps with a region), and the id of a licence.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

KEEP_CHECKPOINTS = (
    "Keep the checkpoints when the run is finished (--save_total_limit says how many). By default they are removed, "
    "because the model is saved and a finished run is not resumed."
)


def flag(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class HubAccess:
    """How to reach a checkpoint or a dataset on the Hub.

    Attributes:
        revision: Branch, tag or commit; `None` for the newest.
        cache_dir: Folder for downloads; `None` for the Hub client's own.
        token: Hub token; `None` for that of `hf auth login`.
    """

    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None

    def arguments(self) -> dict[str, str]:
        """Return what is set, as keyword arguments for `from_pretrained` or `load_dataset`."""
        return {name: value for name, value in vars(self).items() if value is not None}


DEFAULT_ACCESS = HubAccess()


def hub_answers() -> bool:
    """Return whether the Hub answers one short request; its client would retry for half a minute without a network."""
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whatever the HTTP library raises, and offline mode
        return False
    return True


@dataclass
class CardArguments:
    """Flags for what the model card says, and whether the model may be published.

    Raises:
        InputError: if a language or licence is not in the form that the Hub reads.
    """

    language: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Language of the texts for the model card, one or several, as ISO 639 codes: en, de. Default: the "
            "built-in corpus', else the base model's. If that is not known either, the card leaves it out."
        },
    )
    license: str | None = flag(
        None,
        "Licence of the model for its card, as the Hub writes it: apache-2.0, mit, cc-by-4.0. Default: the base "
        "model's. A model that saw data with restricted use has the licence other.",
    )
    publish_restricted: bool = flag(
        False,
        "With --push_to_hub: also publish a model that saw data with restricted use. Give it only after reading the "
        "data's terms, if they allow it. The card names them.",
    )

    def __post_init__(self):
        for code in self.language:
            if not _LANGUAGE.fullmatch(code):
                raise InputError(f"--language {code}: want codes of ISO 639, for example en, de or pt-BR")
        if self.license is not None and not _LICENCE.fullmatch(self.license):
            raise InputError(
                f"--license {self.license}: want an id of https://hf.co/docs/hub/repositories-licenses, for example "
                "apache-2.0, mit or cc-by-4.0"
            )

    def check_terms(self, source: str, terms: str | None) -> None:
        """Check that the licence does not promise more than the terms of what the model saw, if these restrict it.

        Raises:
            InputError: if it does.
        """
        if terms and self.license not in (None, "other"):
            raise InputError(f"--license {self.license}: {source} is for {terms}; leave it out, the card says other")


def add_card_flags(parser: ArgumentParser) -> None:
    """Add `--language` and `--license` of [`CardArguments`] to a parser of other flags."""
    of = CardArguments.__dataclass_fields__
    parser.add_argument("--language", nargs="+", default=[], metavar="CODE", help=of["language"].metadata["help"])
    parser.add_argument("--license", metavar="ID", help=of["license"].metadata["help"])


class RecipeParser(FlagParser, HfArgumentParser):
    """An `HfArgumentParser` whose first argument may be a YAML recipe, and whose errors are one line.

    Attributes:
        precision: After parsing, the precision of training and why it was chosen; `None` if nothing is trained.
        recipe: After parsing, the recipe, or `None` without one.
        given: After parsing, the names of the flags that the recipe or the command line set.
    """

    precision: Choice | None = None
    recipe: Path | None = None
    given: frozenset[str] = frozenset()

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(
            dataclass_types,
            formatter_class=FlagFormatter,
            allow_abbrev=False,
            usage="%(prog)s [RECIPE.yaml] [--flag value ...]",
            **kwargs,
        )

    def _add_dataclass_arguments(self, dtype: type) -> None:
        """Add the flags of a dataclass. Those of `TrainingArguments` get two sections, the ones in `HELP` first."""
        if not issubclass(dtype, TrainingArguments):
            super()._add_dataclass_arguments(dtype)
            return
        library, hints = {f.name for f in fields(TrainingArguments)}, get_type_hints(dtype)
        name = "Child-Tuning" if issubclass(dtype, ChildTuningArguments) else "Sequence to sequence"
        hidden = HIDDEN.union(*(getattr(kind, "_refused_flags", ()) for kind in self.dataclass_types))
        settable = {f.name: f for f in fields(dtype) if f.init}
        own = [name for name in settable if name not in library]
        sections = {
            name: own,
            "Training": [name for name in HELP if name in settable],
            "Further flags of transformers.TrainingArguments": [name for name in settable if name not in {*own, *HELP}],
        }
        for title, names in sections.items():
            section = self.add_argument_group(title) if names else self
            for name in names:
                f = settable[name]
                f.type = hints[name]
                self._parse_dataclass_field(section, f)
                action = self._option_string_actions[f"--{name}"]
                action.help = SUPPRESS if name in hidden else HELP.get(name, action.help)

    def _parse_dataclass_field(self, parser, field):
        """Add the flags of a field, and hide the redundant `--no_x` from the help."""
        before = set(map(id, parser._actions))
        HfArgumentParser._parse_dataclass_field(parser, field)
        for action in parser._actions:
            if id(action) in before:
                continue
            if action.nargs == 0:  # --no_x, which --x false says too
                action.help = SUPPRESS
            elif action.type is string_to_bool:
                action.type = true_or_false

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Return the dataclasses, filled from a recipe (if the first argument is not a flag) and the flags after it.

        Raises:
            InputError: if the recipe cannot be read, a key or flag is unknown, a value does not fit, or a launcher's
                processes are not connected.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if argv and not argv[0].startswith("-"):
            self.recipe = Path(argv[0])
        namespace, arguments = self.read(argv)
        values = vars(namespace)
        tokens = (token.partition("=")[0] for token in arguments)
        self.given = frozenset(
            self._option_string_actions[token].dest for token in tokens if token in self._option_string_actions
        )
        if "output_dir" in values and values["output_dir"] is None:
            values["output_dir"] = ""  # with `None`, the library chooses a name
        if "bf16" in values:
            self.precision = choose_precision(values, self.given)
        try:
            made = tuple(
                kind(
                    **{name: values[name] for name, f in kind.__dataclass_fields__.items() if f.init and name in values}
                )
                for kind in self.dataclass_types
            )
        except (ValueError, ImportError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            raise InputError(" ".join(str(error).split()) or type(error).__name__) from error
        for arguments in made:
            if isinstance(arguments, TrainingArguments):
                check_processes(arguments)
        return made


def check_processes(args: TrainingArguments) -> None:
    """Raise [`InputError`] if a launcher started several processes that would each train on their own."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 == args.world_size:  # the library connects them on GPUs, or with --use_cpu
        raise InputError(
            f"the launcher started {started} processes, but they are not connected, because this machine has no GPU; "
            "want --use_cpu"
        )


def choose_precision(values: dict[str, Any], given: Set[str]) -> Choice:
    """Return the precision of training, and set `bf16` in `values`.

    In order of priority, it is that of the flags, of the launcher, of the run to resume, or the faster one on this
    machine.

    Args:
        values: Values of `TrainingArguments`' fields. `bf16`, `fp16` and `use_cpu` may change.
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
        values["use_cpu"] = True  # `TrainingArguments` requires it
    return choice


def _begun_precision(values: dict[str, Any]) -> str | None:
    """Return the precision of the unfinished run that these flags resume, so that it stays the same elsewhere."""
    if checkpoint := values.get("resume_from_checkpoint"):
        settings = begun_settings(Path(checkpoint).parent)
    elif values.get("overwrite_output_dir") or not values["output_dir"]:
        return None
    else:
        settings = begun_settings(Path(values["output_dir"]) / CHECKPOINTS)
    if not settings:
        return None
    return "bf16" if settings.get("bf16") else "fp16" if settings.get("fp16") else "float32"
