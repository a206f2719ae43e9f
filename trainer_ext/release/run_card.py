"""Write the card of what a training leaves: of a classifier, or of a pre-trained encoder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer

from pipeline_emodeberta import EmotionPipeline

from ..data.corpus import Corpus
from ..data.label_maps import TransferArguments, TransferRows
from ..data.leakage import LeakageGuard
from ..data.pretraining_texts import PretrainingArguments, PretrainingCorpus
from ..evaluation.predictions import SYSTEMS, evaluated, prefix_of
from ..evaluation.validation_fit import ValidationFit
from ..files import shown
from ..training.warm_start import CheckpointArguments
from .card_words import (
    confidence_sections,
    encoder_in_words,
    encoder_name,
    family_of,
    head_in_words,
    hyperparameters,
    pooling_in_words,
    training_log,
    versions,
)
from .licence import languages_of, licence_for, upstream_of
from .model_card import PretrainingFacts, RunFacts, evaluations, hub_datasets, texts_to_try, write_card

_LONGEST_EXAMPLE = 200  # characters
_KEPT = {
    "last": "of the last epoch",
    "best_on_dev": "of the epoch with the best validation score",
    "average": "mean of the last epochs",
}
# What a file's attribution calls the built-in corpora.
_CREDITED = {"go_emotions": "GoEmotions", "xed": "XED"}


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
    args, model = trainer.args, trainer.model.eval()
    base = upstream_of(model_args.model_name_or_path, model_args.model_access(), from_scratch=model_args.from_scratch)
    languages = languages_of(run_args.language, corpus.source.split(", "), [base])
    names = (base.name, *base.hub_ids)
    family = family_of(model.source_type, model.config, base)
    sources = [*corpus.source.split(", "), *(transferred.licences if transferred is not None else ())]
    credited = [
        key for key, title in (("go_emotions", "GoEmotions"), ("xed", "XED")) if title in str(corpus.attribution)
    ]
    variants = {
        "child-tuning": args.child_tuning != "none",
        "lora": model_args.lora_rank is not None,
        "multi-label": corpus.multi_label,
    }
    examples = label_examples(corpus, run_args.card_examples)
    labelled = [split for split in evaluated(corpus) if f"{prefix_of(split)}_macro_f1" in results]
    of_classes = next((split for split in ("test", *labelled) if split in labelled), "")
    facts = RunFacts(
        name=name,
        repo_id=args.hub_model_id or name,
        command=provenance["command"],
        languages=languages,
        licence=licence_for(run_args.license, corpus.licence, [base]),
        terms=corpus.licence,
        bases=[base],
        tags=[family, *(tag for tag, holds in variants.items() if holds)],
        datasets=[*hub_datasets([*sources, *credited]), *base.datasets],
        citations=[
            *(tag.replace("-", "_") for tag, holds in variants.items() if holds),
            *sources,
            *credited,
            encoder_name(family, names).lower(),
            family,
        ],
        sections=confidence_sections(folder, fit, corpus.label_names),
        evaluations=evaluations(results, labelled, corpus),
        encoder=encoder_in_words(family, model.config, names),
        parameters=sum(weight.numel() for weight in model.parameters()),
        max_seq_length=data_args.max_seq_length,
        source=corpus.source,
        guard=guard,
        hyperparameters=hyperparameters(
            args,
            {
                "learning rate of the head": run_args.head_learning_rate,
                "learning rate, factor per layer": _unless(1.0, run_args.layerwise_lr_decay),
                "tokens in a batch, at most": run_args.tokens_per_batch,
                "class weights": _unless("none", model_args.class_weights),
                "label smoothing": _unless(0.0, model.config.label_smoothing),
                "LoRA rank": model_args.lora_rank,
                "weights kept": _KEPT[run_args.select],
                "share of the checkpoint's weights mixed in": _unless(0.0, run_args.pretrained_share),
            },
        ),
        log=training_log(trainer.state.log_history, {"eval_loss": "validation loss", "eval_macro_f1": "macro F1"}),
        precision=provenance["precision"],
        hardware=provenance["hardware"],
        minutes=results["train_runtime"] / 60,
        versions=versions(provenance),
        from_scratch=model_args.from_scratch,
        labels=corpus.label_names,
        multi_label=corpus.multi_label,
        pooling=pooling_in_words(model.config),
        head=head_in_words(model.config),
        scores=_scores(results, labelled, corpus),
        selection=run_args.select == "best_on_dev",
        unseen=len(labelled) > len({"validation", "test"} & set(labelled)),
        resampled="writers" if "group" in corpus.splits["train"].column_names else "rows",
        classes_of=of_classes,
        classes=_classes(results, of_classes, corpus) if of_classes else [],
        confusion_matrix=(folder / "confusion_matrix.png").exists(),
        answers=_answers(trainer, languages),
        examples=[[label, text] for label, texts in examples.items() for text in texts],
        rows={split: len(rows) for split, rows in corpus.splits.items()},
        attribution=corpus.attribution,
        transferred=transferred,
        augmentation=_augmentation(transfer_args),
        distill_from=shown(transfer_args.distill_from or ""),
    )
    write_card(folder / "README.md", facts)


def label_examples(corpus: Corpus, count: int) -> dict[str, list[str]]:
    """Return the first training rows of each label that are short enough to show in full, `count` of each."""
    found: dict[str, list[str]] = {label: [] for label in corpus.label_names}
    if not count:
        return {}
    classes = corpus.classes("train")
    for text, of_row in zip(corpus.splits["train"]["text"], classes, strict=True):
        ids = of_row.nonzero()[0] if classes.ndim == 2 else [of_row]
        for label in (corpus.label_names[index] for index in ids):
            if len(found[label]) < count and len(text) <= _LONGEST_EXAMPLE:
                found[label].append(text)
    return found


def unshown_texts(corpus: Corpus, card_examples: int) -> Iterator[str]:
    """Yield the texts of all splits that `--card_examples` does not show, which the published folder may not hold."""
    shown_in_card = {text for texts in label_examples(corpus, card_examples).values() for text in texts}
    return (text for rows in corpus.splits.values() for text in rows["text"] if text not in shown_in_card)


def _unless(default: Any, value: Any) -> Any:
    return None if value == default else value


def _answers(trainer: Trainer, languages: list[str]) -> list[dict]:
    """Return the model's answers to some texts: the text, and the labels that the pipeline gives it, with scores."""
    classify = EmotionPipeline(model=trainer.model, tokenizer=trainer.processing_class, device=trainer.args.device)
    texts = texts_to_try(languages)
    return [{"text": text, "given": classify(text)} for text in texts]


def _scores(results: dict[str, Any], splits: list[str], corpus: Corpus) -> list[list[str]]:
    """Return a table with one line per labelled split, header first; empty if there is none."""
    figures = ["micro F1"] * corpus.multi_label
    others = {
        system: infix
        for system, infix in SYSTEMS.items()
        if infix and any(name.endswith(f"_{infix}macro_f1") for name in results)
    }
    header = ["split", "rows", "accuracy", "macro F1", "95% interval", *figures]
    lines = [[*header, *(f"macro F1, {system}" for system in others)]]
    for split in splits:
        prefix = prefix_of(split)
        low, high = results[f"{prefix}_macro_f1_low"], results[f"{prefix}_macro_f1_high"]
        cells = [split.replace("_", " "), f"{results[f'{split}_rows']:,}", f"{results[f'{prefix}_accuracy']:.1%}"]
        cells += [f"{results[f'{prefix}_macro_f1']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += [f"{results[name.replace(' ', '_')]:.3f}" for name in (f"{prefix}_{f.lower()}" for f in figures)]
        figures_of_others = (results.get(f"{prefix}_{infix}macro_f1") for infix in others.values())
        lines.append(cells + ["" if figure is None else f"{figure:.3f}" for figure in figures_of_others])
    return lines if splits else []


def _classes(results: dict[str, Any], split: str, corpus: Corpus) -> list[list[str]]:
    """Return a table with one line per label that the split's figures know, header first."""
    prefix, counts = prefix_of(split), corpus.class_counts(split)
    figures = ("precision", "recall", "f1")
    rows = [
        [label, f"{counts[label]:,}", *(f"{results[f'{prefix}_{figure}_{label}']:.3f}" for figure in figures)]
        for label in corpus.label_names
        if f"{prefix}_f1_{label}" in results
    ]
    means = [f"{results[f'{prefix}_macro_{figure}']:.3f}" for figure in figures]
    rows.append(["all, macro", f"{results[f'{split}_rows']:,}", *means])
    return [["label", "rows", "precision", "recall", "F1"], *rows]


def _augmentation(args: TransferArguments) -> str:
    """Return in words which rows of other corpora were chosen, and how."""
    names = {"RA": "Random Augmentation", "BA": f"Balanced Augmentation ({args.ba_mode.replace('_', ' ')})"}
    joined = f", joined to about {args.join_to_words} words" if args.join_to_words else ""
    chosen = names.get(args.augmentation, "Supervised transfer")
    return f"{chosen}: rows of other corpora with exactly one of the labels{joined}"


# ---- Continued pre-training ------------------------------------------------------------------------------------------
def write_pretraining_card(
    folder: Path,
    corpus: PretrainingCorpus,
    results: dict[str, Any],
    *,
    name: str,
    trainer: Trainer,
    provenance: dict[str, Any],
    flags: tuple[CheckpointArguments, PretrainingArguments],
    upstream_terms: str | None,
) -> None:
    """Write README.md into a run's folder, from the figures and settings of the run.

    Args:
        folder: The run's folder, which already has the learning curve.
        corpus: The texts.
        results: Figures by name, as in all_results.json.
        name: Name of the model.
        trainer: Trainer with the finished model and its tokenizer.
        provenance: The content of run.json.
        flags: The scripts' flags.
        upstream_terms: Terms of what the checkpoint saw, if they restrict its use.
    """
    model_args, data_args = flags
    args, model, mask = trainer.args, trainer.model, trainer.processing_class.mask_token
    base = upstream_of(model_args.model_name_or_path, model_args.model_access(), from_scratch=model_args.from_scratch)
    names = (base.name, *base.hub_ids)
    family = family_of(model.source_type, model.config, base)
    sources = [*corpus.source.split(", "), *[corpus.guard.source] * bool(corpus.target_licence)]
    terms = corpus.target_licence or upstream_terms
    child_tuned = args.child_tuning != "none"
    of = "words" if data_args.whole_word_masking else "tokens"
    scores = ""
    if "eval_perplexity" in results:
        scores = (
            f"Perplexity {results['eval_perplexity']:.2f} and masked accuracy {results['eval_masked_accuracy']:.1%} on "
            f"{results['validation_rows']:,} held-out rows, with masks fixed by the seed."
        )
    facts = PretrainingFacts(
        name=name,
        repo_id=args.hub_model_id or name,
        command=provenance["command"],
        languages=languages_of(data_args.language, sources, [base]),
        licence=licence_for(data_args.license, terms, [base]),
        terms=terms,
        bases=[base],
        tags=[family, *["child-tuning"] * child_tuned],
        datasets=[*hub_datasets(sources), *base.datasets],
        citations=[*["child_tuning"] * child_tuned, *sources, encoder_name(family, names).lower(), family, "bert"],
        encoder=encoder_in_words(family, model.config, names),
        parameters=sum(weight.numel() for weight in model.parameters()),
        max_seq_length=data_args.max_seq_length,
        source=corpus.source,
        guard=corpus.guard,
        hyperparameters=hyperparameters(
            args,
            {
                "tokens in a batch, at most": data_args.tokens_per_batch,
                "steps of the new head alone": data_args.head_warmup_steps or None,
            },
        ),
        log=training_log(
            trainer.state.log_history,
            {
                "eval_loss": "validation loss",
                "eval_perplexity": "perplexity",
                "eval_masked_accuracy": "masked accuracy",
            },
        ),
        precision=provenance["precision"],
        hardware=provenance["hardware"],
        minutes=results["train_runtime"] / 60,
        versions=versions(provenance),
        from_scratch=model_args.from_scratch,
        mask_token=mask,
        masking=f"{100 * data_args.mlm_probability:g}% of the {of}; of these 80% {mask}, 10% random, 10% unchanged",
        rows=results.get("train_rows"),
        licences=corpus.licences,
        target_licence=corpus.target_licence,
        left_out=corpus.left_out,
        scores=scores,
    )
    write_card(folder / "README.md", facts)
