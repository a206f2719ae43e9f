"""T5 that generates the emotion's name, after Butala et al. 2021 ("Team Phoenix at WASSA 2021").

    python -m trainer_ext.baselines.t5 recipes/baselines/t5.yaml --data_dir FOLDER
    python -m trainer_ext.baselines.t5 recipes/baselines/t5.yaml --data_dir FOLDER --model_name_or_path outputs/small-t5

The encoder reads the essay, and the decoder is trained to write the name of the label. For a prediction, the decoder
scores the name of every label, log p(name, end | essay), so that only labels can be predicted. A row's probabilities
are these likelihoods divided by their sum. The output folder contains model and tokenizer, all_results.json,
predictions.tsv, predictions_EMO.tsv and plots, like that of run_classify.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from ..data.load import DataArguments
from ..errors import InputError, run_command
from ..evaluation.metrics import EmotionMetric
from ..recipes import KEEP_CHECKPOINTS, HubAccess, RecipeParser, flag
from ..training.checkpoint_source import resolve_checkpoint
from ..training.trainer import ResumableTrainer
from .training import begin, train_and_report, trainer_arguments


@dataclass
class T5Arguments:
    """Flags for the checkpoint to start from, and how classes are weighted."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "T5 checkpoint, a folder or a Hub id, for example t5-base."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for downloads from the Hub. Default: the Hub client's cache."}
    )
    token: str | None = field(default=None, metadata={"help": "Hub token, if not the one of `hf auth login`."})
    prefix: str = field(default="emotion: ", metadata={"help": "Prefix of every text, as in T5's own tasks."})
    balance_classes: bool = field(
        default=False, metadata={"help": "Weight each row's loss by the inverse frequency of its class."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace a finished run in --output_dir."})
    keep_checkpoints: bool = flag(False, KEEP_CHECKPOINTS)


def label_log_likelihoods(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, names: torch.Tensor
) -> torch.Tensor:
    """Return how probable the decoder finds the full name of each label.

    Args:
        input_ids, attention_mask: `(batch, length)`.
        names: `(labels, name length)`, token ids of the names with the end token, padded with -100.

    Returns:
        `(batch, labels)` in float32: log p(name | text), among all texts that the decoder could write.
    """
    states = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    batch, labels = len(input_ids), len(names)
    logits = model(
        encoder_outputs=(states.repeat_interleave(labels, dim=0),),
        attention_mask=attention_mask.repeat_interleave(labels, dim=0),
        labels=names.repeat(batch, 1),
    ).logits
    return -_token_losses(logits, names.repeat(batch, 1)).sum(dim=1).view(batch, labels)


def _token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each token, `(rows, length)`, 0 where the target is -100."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")


class LabelNameTrainer(ResumableTrainer, Seq2SeqTrainer):
    """A `Seq2SeqTrainer` on class ids: its targets are the names of the labels, its predictions their log-likelihoods.

    Args:
        names: As in [`label_log_likelihoods`].
        class_weights: `(labels,)`, or `None` for equal weights.
    """

    def __init__(self, *args: Any, names: torch.Tensor, class_weights: torch.Tensor | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        device = self.args.device
        self.names = names.to(device)
        self.class_weights = None if class_weights is None else class_weights.to(device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the mean over rows of the mean token loss of the label's name, weighted by class."""
        classes = inputs["labels"]
        targets = self.names[classes]
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=targets)
        losses = _token_losses(outputs.logits, targets).sum(dim=1) / (targets != -100).sum(dim=1)
        if self.class_weights is not None:
            losses = losses * self.class_weights[classes]
        loss = losses.sum() / (len(classes) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        """Return log-likelihoods `(batch, labels)` instead of logits over the vocabulary."""
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs) if "labels" in inputs else None
        with self.compute_loss_context_manager():
            scores = label_log_likelihoods(model, inputs["input_ids"], inputs["attention_mask"], self.names)
        return loss, scores, inputs.get("labels")


def name_tokens(tokenizer: PreTrainedTokenizerBase, label_names: list[str]) -> torch.Tensor:
    """Return the token ids of the label names, as [`label_log_likelihoods`] needs them.

    Raises:
        InputError: if the tokenizer encodes two names in the same way.
    """
    ids = tokenizer(label_names)["input_ids"]
    for index, of_name in enumerate(ids):
        if of_name in ids[:index]:
            same = label_names[ids.index(of_name)]
            raise InputError(f"the labels {same!r} and {label_names[index]!r} are the same to this tokenizer")
    longest = max(map(len, ids))
    return torch.tensor([of_name + [-100] * (longest - len(of_name)) for of_name in ids])


def main() -> None:
    parser = RecipeParser((T5Arguments, DataArguments, Seq2SeqTrainingArguments), description=__doc__)
    model_args, data_args, args = parser.parse()
    corpus, run = begin(model_args, data_args, args, parser.precision)
    set_seed(args.seed)
    tokenizer, model = load(model_args)

    def encode(batch: dict) -> dict:
        texts = [model_args.prefix + text for text in batch["text"]]
        return tokenizer(texts, truncation=True, max_length=data_args.max_seq_length, return_token_type_ids=False)

    encoded = {
        split: rows.map(encode, batched=True, remove_columns=[c for c in rows.column_names if c != "labels"])
        for split, rows in corpus.splits.items()
    }
    weights = None
    if model_args.balance_classes:
        counts = np.bincount(corpus.classes("train"), minlength=len(corpus.label_names)).clip(min=1)
        weights = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    metric = EmotionMetric(corpus.label_names)
    trainer = LabelNameTrainer(
        **trainer_arguments(args, model, tokenizer, encoded),
        names=name_tokens(tokenizer, corpus.label_names),
        class_weights=weights,
        compute_metrics=lambda prediction: metric.compute(
            predictions=prediction.predictions.argmax(axis=1), references=prediction.label_ids
        ),
    )

    def save(folder: Path, _: dict) -> None:
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    train_and_report(
        trainer, encoded, corpus, run, system="T5",
        probabilities_of=lambda scores: softmax(scores.astype(np.float64), axis=1), save=save,
    )  # fmt: skip


def load(model_args: T5Arguments) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return the tokenizer and the model, in float32.

    Raises:
        InputError: if there is no sequence-to-sequence model in safetensors format, or no tokenizer.
    """
    name = model_args.model_name_or_path
    access = {"cache_dir": model_args.cache_dir, "token": model_args.token, "trust_remote_code": False}
    path = resolve_checkpoint(name, HubAccess(cache_dir=model_args.cache_dir, token=model_args.token))
    try:
        if not AutoConfig.from_pretrained(path, **access).is_encoder_decoder:
            raise InputError(f"{name}: no encoder and decoder; want a T5, for example t5-base")
        tokenizer = AutoTokenizer.from_pretrained(path, **access)
        return tokenizer, AutoModelForSeq2SeqLM.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, **access
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a checkpoint to start from ({' '.join(str(error).split())[:200]})") from error


if __name__ == "__main__":
    run_command(main)
