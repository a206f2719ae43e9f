"""Predict emotion, empathy and distress together, after Fornaciari et al. 2021 ("MilaNLP @ WASSA").

    python -m trainer_ext.baselines.mtl recipes/baselines/mtl2.yaml --data_dir FOLDER        # from the text alone
    python -m trainer_ext.baselines.mtl recipes/baselines/mi3_mtl2.yaml --data_dir FOLDER    # and gender, income, IRI

One encoder has two linear layers on top: one for the emotion (cross-entropy), one for the numbers (mean squared error,
in units of the training rows' standard deviation). Additional inputs are standardised in the same way and appended to
the text vector. For a missing value, the training mean is used instead, and the number of missing values is logged.

The output folder contains the weights, all_results.json (with the Pearson correlation of each number), predictions.tsv,
predictions_EMO.tsv, predictions_EMP.tsv (the numbers of the test rows) and plots.
"""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from scipy.special import softmax
from scipy.stats import pearsonr
from torch import nn
from torch.nn import functional as F
from transformers import TrainingArguments, set_seed

from modeling_emodeberta import EmoDebertaModel

from ..data.corpus import Corpus
from ..data.load import DataArguments
from ..errors import InputError, run_command
from ..evaluation.metrics import EmotionMetric
from ..files import write_json
from ..recipes import KEEP_CHECKPOINTS, RecipeParser, flag
from ..training.saved_model import load_tokenizer
from ..training.trainer import ResumableTrainer
from ..training.warm_start import CheckpointArguments, warm_start
from .training import begin, train_and_report, trainer_arguments

logger = logging.getLogger("baselines.mtl")

MISSING = ("", "NA", "nan", "None", "unknown")


@dataclass
class MultiTaskArguments(CheckpointArguments):
    """Flags for the checkpoint to start from, and the tasks."""

    pooling: str = field(
        default="cls",
        metadata={"help": "Text vector: cls ([CLS]), or mean (of the token states).", "choices": ["cls", "mean"]},
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout before the two linear layers."})
    number_targets: list[str] = field(
        default_factory=lambda: ["empathy", "distress"], metadata={"help": "Columns of numbers to predict."}
    )
    number_inputs: list[str] = field(
        default_factory=list, metadata={"help": "Columns of numbers to use as inputs next to the text."}
    )
    emotion_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy in the loss."})
    number_weight: float = field(default=1.0, metadata={"help": "Weight of each number's squared error in the loss."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace a finished run in --output_dir."})
    keep_checkpoints: bool = flag(False, KEEP_CHECKPOINTS)

    @property
    def extra_columns(self) -> list[str]:
        """Return the columns to read besides text and label."""
        return [*self.number_targets, *self.number_inputs]


ARGUMENTS = (MultiTaskArguments, DataArguments, TrainingArguments)


class MultiTaskModel(nn.Module):
    """An encoder with one linear layer for the emotion and one for the numbers.

    Args:
        encoder: Encoder whose `pooler_output` is `(batch, hidden)`.
        labels: Number of emotions.
        targets: Number of numeric columns to predict.
        inputs: Number of numeric columns to read.
        dropout: Dropout before both layers.
        emotion_weight, number_weight: Weights of the two parts of the loss.
    """

    def __init__(
        self, encoder: EmoDebertaModel, labels: int, targets: int, inputs: int, dropout: float = 0.1,
        emotion_weight: float = 1.0, number_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.emotion_weight, self.number_weight = emotion_weight, number_weight
        width = encoder.config.hidden_size + inputs
        self.emotion, self.numbers = nn.Linear(width, labels), nn.Linear(width, targets)
        for layer in (self.emotion, self.numbers):
            nn.init.normal_(layer.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        inputs: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return `logits` `(batch, labels)`, `numbers` `(batch, targets)` and, if `labels` and `targets` are given,
        `loss`.

        Args:
            input_ids, attention_mask: `(batch, length)`.
            inputs: `(batch, inputs)`, standardised.
            labels: `(batch,)` class ids.
            targets: `(batch, targets)`, standardised; NaN where a value is missing.
        """
        pooled = self.encoder(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        read = self.dropout(pooled if inputs is None else torch.cat([pooled, inputs.to(pooled.dtype)], dim=1))
        outputs = {"logits": self.emotion(read).float(), "numbers": self.numbers(read).float()}
        if labels is None or targets is None:
            return outputs
        present = ~targets.isnan()
        squares = torch.where(present, outputs["numbers"] - targets.nan_to_num(), 0.0) ** 2
        of_numbers = (squares.sum(dim=0) / present.sum(dim=0).clamp(min=1)).sum()
        of_emotion = F.cross_entropy(outputs["logits"], labels)
        return {"loss": self.emotion_weight * of_emotion + self.number_weight * of_numbers} | outputs


def read_numbers(rows: Dataset, name: str, split: str) -> np.ndarray:
    """Return a numeric column of a split, `(rows,)`, with NaN where a value is missing.

    Raises:
        InputError: if a value is not a number.
    """
    values = []
    for row_id, value in zip(rows["id"], rows[f"column_{name}"], strict=True):
        try:
            values.append(math.nan if value.strip() in MISSING else float(value))
        except ValueError:
            raise InputError(f"{split}, the row with id {row_id}: {name} is {value!r}; want a number") from None
    return np.array(values)


def standardise(corpus: Corpus, name: str) -> tuple[dict[str, np.ndarray], float, float]:
    """Return a column standardised by the training rows, by split, and the mean and standard deviation of these rows.

    Raises:
        InputError: if no training row has a value, or one is not a number.
    """
    values = {split: read_numbers(rows, name, split) for split, rows in corpus.splits.items()}
    present = values["train"][~np.isnan(values["train"])]
    if not len(present):
        raise InputError(f"{corpus.source}: no training row has a {name}")
    mean, deviation = float(present.mean()), float(present.std()) or 1.0
    return {split: (column - mean) / deviation for split, column in values.items()}, mean, deviation


def correlations(numbers: np.ndarray, targets: np.ndarray, names: list[str]) -> dict[str, float]:
    """Return Pearson's r of each target over the rows that have it, and their mean as `pearson`, as in the shared task.

    A column without variation gets 0.

    Args:
        numbers, targets: `(rows, targets)`; `targets` is NaN where a value is missing.
    """
    found = {}
    for column, name in enumerate(names):
        present = ~np.isnan(targets[:, column])
        predicted, gold = numbers[present, column], targets[present, column]
        varies = present.sum() > 1 and np.ptp(predicted) > 0 and np.ptp(gold) > 0
        found[f"pearson_{name}"] = float(pearsonr(predicted, gold).statistic) if varies else 0.0
    return found | {"pearson": float(np.mean(list(found.values())))}


def main() -> None:
    parser = RecipeParser(ARGUMENTS, description=__doc__)
    model_args, data_args, args = parser.parse()
    names, inputs = model_args.number_targets, model_args.number_inputs
    if not names:
        raise InputError("--number_targets names no column; run_classify.py is for emotions alone")
    corpus, run = begin(model_args, data_args, args, parser.precision, extra_columns=model_args.extra_columns)
    set_seed(args.seed)
    encoder = warm_start(
        model_args.model_name_or_path, EmoDebertaModel, from_scratch=model_args.from_scratch,
        access=model_args.model_access(), pooling=model_args.pooling,
        **({"relative_attention": True} if model_args.relative_attention else {}),
    )  # fmt: skip
    tokenizer_name, access = model_args.tokenizer_source()
    tokenizer = load_tokenizer(tokenizer_name, data_args.max_seq_length, encoder.config, **access)
    model = MultiTaskModel(
        encoder, len(corpus.label_names), len(names), len(inputs), model_args.dropout,
        model_args.emotion_weight, model_args.number_weight,
    )  # fmt: skip

    scales = {}
    columns: dict[str, dict[str, np.ndarray]] = {split: {} for split in corpus.splits}
    for name in model_args.extra_columns:
        by_split, *scales[name] = standardise(corpus, name)
        for split, values in by_split.items():
            columns[split][name] = values
            if name in inputs and (missing := int(np.isnan(values).sum())):
                logger.info(f"{split}: {missing} of {len(values)} rows lack {name}; the training mean is used instead")

    def encode(split: str) -> Dataset:
        rows = corpus.splits[split]
        of_split = tokenizer(rows["text"][:], truncation=True, return_token_type_ids=False)
        encoded = {name: of_split[name] for name in ("input_ids", "attention_mask")}
        if inputs:
            encoded["inputs"] = np.nan_to_num(np.stack([columns[split][name] for name in inputs], axis=1)).tolist()
        if "labels" in rows.column_names:
            encoded["labels"] = rows["labels"][:]
            encoded["targets"] = np.stack([columns[split][name] for name in names], axis=1).tolist()
        return Dataset.from_dict(encoded)

    encoded = {split: encode(split) for split in corpus.splits}
    metric = EmotionMetric(corpus.label_names)
    args.label_names = ["labels", "targets"]

    def compute_metrics(prediction) -> dict[str, float]:
        (logits, numbers), (labels, targets) = prediction.predictions, prediction.label_ids
        scores = metric.compute(predictions=logits.argmax(axis=1), references=labels)
        return scores | correlations(numbers, targets, names)

    trainer = ResumableTrainer(**trainer_arguments(args, model, tokenizer, encoded), compute_metrics=compute_metrics)

    def save(folder: Path, predictions: dict) -> None:
        save_file(trainer.model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        encoder.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        described = {"labels": corpus.label_names, "targets": names, "inputs": inputs, "mean and deviation": scales}
        write_json(folder / "tasks.json", described)
        if "test" in predictions:
            values = [predictions["test"][1][:, i] * scales[n][1] + scales[n][0] for i, n in enumerate(names)]
            lines = ["\t".join(f"{value:.6f}" for value in row) for row in zip(*values, strict=True)]
            (folder / "predictions_EMP.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    train_and_report(
        trainer, encoded, corpus, run, system="MTL",
        probabilities_of=lambda found: softmax(found[0].astype(np.float64), axis=1), save=save,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
