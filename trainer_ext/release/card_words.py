"""Say in words, for a model card, what a model is, how it was trained and how sure it is."""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from configuration_emodeberta import EmoDebertaConfig

from ..evaluation.validation_fit import ValidationFit, in_words
from .licence import FAMILIES, Upstream
from .model_card import Section


# ---- Encoder and head ---------------------------------------------------------------------------------------------
def family_of(source_type: str, config: EmoDebertaConfig, base: Upstream) -> str:
    """Return the key of `FAMILIES` of a model's encoder.

    Args:
        source_type: `model_type` of the checkpoint that it started from.
        config: Its configuration.
        base: What is known of that checkpoint. An EmoDeBERTa has the family in its card.
    """
    if source_type in FAMILIES:
        return source_type
    if base.family is not None:
        return base.family
    if config.relative_attention:
        return "deberta-v2"
    return "mpnet" if config.position_bias_buckets else "bert"


def encoder_name(family: str, names: Sequence[str]) -> str:
    """Return the name of an encoder: of its family, or a narrower one that a checkpoint's name gives away.

    Args:
        names: Names of the checkpoints that it came from.
    """
    called = " ".join(names).lower()
    if family == "deberta-v2":
        return "DeBERTa-v3" if "deberta-v3" in called else FAMILIES[family]
    return "MiniLM" if family == "bert" and "minilm" in called else FAMILIES[family]


def encoder_in_words(family: str, config: EmoDebertaConfig, names: Sequence[str]) -> str:
    """Return the kind and the size of an encoder, for example `MiniLM (BERT's shape), 6 layers, hidden size 384, …`."""
    name = encoder_name(family, names)
    shape = "" if family in ("deberta-v2", "bert") and name != "MiniLM" else " (BERT's shape)"
    return (
        f"{name}{shape}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {_positions(family, config)}"
    )


def _positions(family: str, config: EmoDebertaConfig) -> str:
    if config.relative_attention:
        return "disentangled attention" + (" of DeBERTa, added to it" if family != "deberta-v2" else "")
    if config.position_bias_buckets:
        return "absolute positions and MPNet's relative position bias"
    return "absolute positions"


def pooling_in_words(config: EmoDebertaConfig) -> str:
    """Return what the head reads."""
    return "mean of the token states" if config.pooling == "mean" else "state of the first token, [CLS]"


def head_in_words(config: EmoDebertaConfig) -> str:
    """Return the layers of the classification head."""
    width = f" to {config.classifier_hidden_size} ({config.classifier_activation})"
    hidden = "" if config.classifier_hidden_size is None else width
    return f"{config.hidden_size}{hidden} to {config.num_labels} labels, dropout {config.classifier_dropout:g}"


# ---- Training: settings, log and versions of packages -------------------------------------------------------------
_LOG_ROWS = 20  # at most, in the table of the training log


def hyperparameters(args: TrainingArguments, further: Mapping[str, Any]) -> list[list[str]]:
    """Return table rows, name and value, of the settings that a training is known by.

    Args:
        args: Arguments of the trainer.
        further: More settings by name. Those that are `None` are left out.
    """
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    parts = [f"{args.train_batch_size} per device"]
    parts += [f"{args.gradient_accumulation_steps} steps accumulated"] * (args.gradient_accumulation_steps > 1)
    parts += [f"{args.world_size} processes"] * (args.world_size > 1)
    warmup = "no warm-up"
    if args.warmup_steps:
        first = f"{args.warmup_steps:.0%} of the" if args.warmup_steps < 1 else f"{args.warmup_steps:g}"
        warmup = f"warm-up in the first {first} steps"
    steps = args.max_steps > 0
    values = {
        "learning rate": f"{args.learning_rate:g}",
        "learning rate, schedule": f"{SchedulerType(args.lr_scheduler_type).value}, {warmup}",
        "batch size": f"{batch}" + (f" ({', '.join(parts)})" if len(parts) > 1 else ""),
        "steps" if steps else "epochs": f"{args.max_steps if steps else args.num_train_epochs:g}",
        "optimizer": f"{OptimizerNames(args.optim).value}, betas {args.adam_beta1:g} and {args.adam_beta2:g}, epsilon "
        f"{args.adam_epsilon:g}",
        "weight decay": f"{args.weight_decay:g}",
        "gradient norm, at most": f"{args.max_grad_norm:g}" if args.max_grad_norm else None,
        "seed": args.seed,
    }
    if args.child_tuning != "none":
        values["Child-Tuning"] = (
            f"{args.child_tuning}, p = {args.child_tuning_p:g}, masks the {args.child_tuning_target}"
        )
    return [[name, str(value)] for name, value in {**values, **further}.items() if value is not None]


def versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's provenance names."""
    return {"Python": platform.python_version(), **provenance["versions"]}


def training_log(history: Iterable[dict], columns: dict[str, str]) -> list[list[str]]:
    """Return the table of a training log, header first, with one line per evaluation, or per logged loss without one.

    Args:
        history: `trainer.state.log_history`.
        columns: Heading by name of a figure of an evaluation.
    """
    losses, evaluated, loss = {}, {}, None
    for entry in history:
        if "loss" in entry:
            loss = losses[entry["step"]] = entry | {"training loss": entry["loss"]}
        elif any(name in entry for name in columns):
            of_entry = {heading: entry[name] for name, heading in columns.items() if name in entry}
            evaluated[entry["step"]] = entry | of_entry | {"training loss": loss and loss["loss"]}
    lines = list((evaluated or losses).values())
    if len(lines) > _LOG_ROWS:
        lines = [lines[round(i * (len(lines) - 1) / (_LOG_ROWS - 1))] for i in range(_LOG_ROWS)]
    shown = [name for name in ("training loss", *columns.values()) if any(line.get(name) is not None for line in lines)]
    rows = [[f"{line['epoch']:.3g}", str(line["step"]), *(_figure(line.get(name)) for name in shown)] for line in lines]
    return [["epoch", "step", *shown], *rows] if rows else []


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"


# ---- How sure the model is: calibration, when it does not answer, thresholds --------------------------------------
def confidence_sections(folder: Path, fit: ValidationFit, labels: list[str]) -> list[Section]:
    """Return the sections for what was measured and fitted; none for what was not.

    Args:
        folder: The run's folder, with reliability.json if calibration was measured.
        fit: What was fitted on the validation rows.
        labels: The label set, in the order of the thresholds.
    """
    sections = [_calibration(folder, fit), _coverage(fit), _thresholds(fit, labels)]
    return [section for section in sections if section is not None]


def _calibration(folder: Path, fit: ValidationFit) -> Section | None:
    tempered = "" if fit.temperature is None else (
        f"The logits are divided by a temperature of {fit.temperature:.2f}, fitted on validation. "
    )  # fmt: skip
    if not (folder / "reliability.json").exists():
        return Section("Calibration", tempered.strip()) if tempered else None
    measured = json.loads((folder / "reliability.json").read_text(encoding="utf-8"))
    rows = [
        [
            name if name == measured["split"] else f"{measured['split']}, {name} the temperature",
            f"{figures['expected_calibration_error']:.3f}",
            f"{figures['brier_score']:.3f}",
        ]
        for name, figures in measured["calibration"].items()
    ]
    explained = "The table shows how far the scores are from the share of right answers. 0 is best for both figures."
    header = ("split", "expected calibration error", "Brier score (0 to 2)")
    return Section("Calibration", tempered + explained, header, rows, "reliability.png")


def _coverage(fit: ValidationFit) -> Section | None:
    accuracies = fit.coverage.get("accuracies", ())
    if not accuracies:
        return None
    splits = list(dict.fromkeys(split for row in accuracies for split in row["measured"]))
    rows = [
        [
            f"{row['accuracy']:.0%}",
            "cannot be reached" if row["abstain_below"] is None else f"{row['abstain_below']:.3f}",
            *(in_words(row["measured"][split]) if row["measured"] else "" for split in splits),
        ]
        for row in accuracies
    ]
    own = "" if fit.abstain_below is None else f" It is {fit.abstain_below:.3f} unless you set another."
    explained = (
        "The model can leave texts unanswered. The pipeline's abstain_below is the probability below which it is "
        f"not sure.{own} What the table says of validation comes from rows that the probability was not chosen on."
    )
    return Section("Not sure", explained, ["wanted accuracy", "not sure below", *splits], rows, "coverage.png")


def _thresholds(fit: ValidationFit, labels: list[str]) -> Section | None:
    if not fit.thresholds:
        return None
    rows = [[name, f"{value:.3f}"] for name, value in zip(labels, fit.thresholds, strict=True)]
    explained = (
        "A text has every label that reaches its threshold, chosen on validation for the highest F1. Rare labels share "
        "one."
    )
    return Section("Thresholds", explained, ["label", "threshold"], rows)
