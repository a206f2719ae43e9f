"""Write the model card of a finished run of run_classify.py."""

import json
from pathlib import Path
from typing import Any

from transformers import Trainer

from pipeline_emodeberta import EmotionPipeline

from ..data.corpus import Corpus
from ..data.label_maps import TransferRows
from ..data.leakage import LeakageGuard
from ..evaluation.validation_fit import ValidationFit
from ..files import shown
from .confidence import confidence
from .model_card import TRY, write_model_card


def write_run_card(
    folder: Path,
    corpus: Corpus,
    results: dict[str, Any],
    *,
    name: str,
    trainer: Trainer,
    provenance: dict[str, Any],
    flags: tuple[Any, Any, Any, Any],
    transferred: TransferRows | None,
    guard: LeakageGuard,
    fit: ValidationFit,
) -> None:
    """Write README.md into a run's folder, from the figures and settings of the run.

    Args:
        folder: The run's folder, which already has predictions and plots.
        results: Figures by name, as in all_results.json.
        name: Name of the model.
        trainer: Trainer with the finished model, which predicts the card's examples.
        provenance: The content of run.json.
        flags: `ModelArguments`, `DataArguments`, `TransferArguments`, `RunArguments`.
        transferred: The training rows from other corpora, or `None`.
        guard: The guard that kept copies of test texts out of training.
        fit: What was fitted on validation after training.
    """
    model_args, data_args, transfer_args, run_args = flags
    args = trainer.args
    classify = EmotionPipeline(model=trainer.model.eval(), tokenizer=trainer.processing_class, device=args.device)
    answers = [
        {"text": text, "given": [{"label": each["label"], "score": round(each["score"], 2)} for each in given]}
        for text, given in zip(TRY, map(classify, TRY), strict=True)
    ]
    reliability = folder / "reliability.json"
    write_model_card(
        folder / "README.md",
        model_name=name,
        repo_id=args.hub_model_id or name,
        base_model=model_args.model_name_or_path,
        labels=corpus.label_names,
        results=results,
        rows={split: len(rows) for split, rows in corpus.splits.items()},
        grouped="group" in corpus.splits["train"].column_names,
        source=corpus.source,
        licence=corpus.licence,
        attribution=corpus.attribution,
        selected=run_args.select,
        confusion_matrix=(folder / "confusion_matrix.png").exists(),
        reliability=json.loads(reliability.read_text()) if reliability.exists() else {},
        distill_from=shown(transfer_args.distill_from or ""),
        max_seq_length=data_args.max_seq_length,
        child_tuning=args.child_tuning,
        child_tuning_p=args.child_tuning_p,
        epochs=f"{results['epoch']:.3g}",
        minutes=f"{results['train_runtime'] / 60:.1f}",
        answers=answers,
        transferred=transferred,
        augmentation=transfer_args,
        guard=guard,
        confidence=confidence(fit, corpus.label_names),
        **provenance,
    )
