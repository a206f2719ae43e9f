"""Write the model card of a finished run of run_mlm.py."""

from pathlib import Path
from typing import Any

from transformers import Trainer

from ..data.pretraining_texts import PretrainingArguments, PretrainingCorpus
from ..training.warm_start import CheckpointArguments
from .card_words import encoder_in_words, encoder_name, family_of, hyperparameters, training_log, versions
from .model_card import PretrainingFacts, hub_datasets, write_card
from .upstream import languages_of, licence_for, upstream_of


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
