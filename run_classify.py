"""Fine-tune an EmoDeBERTa on texts with emotions, evaluate it, predict, and leave a Hub-ready folder.

One stage, one Trainer. Examples:

    python run_classify.py recipes/quickstart.yaml
    python run_classify.py recipes/plain.yaml --data_dir ../shared/data --seed 2
    python run_classify.py --model_name_or_path microsoft/deberta-v3-base --train_file train.csv \\
        --validation_file dev.csv --text_column_name text --label_column_name emotion --output_dir outputs/mine
    python run_classify.py recipes/transfer.yaml --data_dir ../shared/data --class_weights balanced \\
        --output_dir outputs/transfer-balanced
    python run_classify.py recipes/wassa2022.yaml --data_dir ../shared/data       # starts from there
    python run_classify.py recipes/plain.yaml --augmentation BA --transfer_datasets go_emotions xed
    accelerate launch run_classify.py recipes/plain.yaml --child_tuning F --child_tuning_p 0.3

The output folder holds the model, its code, tokenizer and card, all_results.json, predictions.tsv (probabilities)
and two plots. A run that was killed goes on from its last checkpoint when it is started again in the same way.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit, softmax
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from baselines.tfidf import fit_tfidf
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.data.augmentation import add_rows, as_corpus, check_transfer, choose_rows, rows_by_label
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.folds import bootstrap_groups, check_trainable, hold_out_folds, limit_rows, split_off_validation
from trainer_ext.data.label_maps import TransferArguments, TransferRows, load_transfer_rows
from trainer_ext.data.leakage import LeakageGuard, guard_of_target, left_out_rows, report_left_out
from trainer_ext.data.load import (
    DataArguments,
    corpus_arguments,
    extra_test_name,
    load_corpus,
    load_extra_test,
    read_texts,
)
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.metrics import EmotionMetric
from trainer_ext.evaluation.predictions import (
    evaluated,
    interval,
    is_labelled,
    prefix_of,
    print_results,
    write_plots,
    write_predictions,
)
from trainer_ext.files import CHECKPOINTS, digest, shown, write_json
from trainer_ext.recipes import RecipeParser
from trainer_ext.release import hub
from trainer_ext.release.licence import restricted_upstream
from trainer_ext.release.model_card import TRY, write_model_card
from trainer_ext.runs.checkpoints import (
    average_weights,
    checkpoint_digest,
    checkpoints,
    is_complete,
    mix_weights,
)
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS, Run, RunArguments, training_settings
from trainer_ext.training.distillation import soften_labels
from trainer_ext.training.lora import add_lora, merge_lora
from trainer_ext.training.sharding import CheckpointsWithoutCode, check_sharding, is_sharded, join_shards
from trainer_ext.training.token_budget import TokenBudgetTrainer
from trainer_ext.training.tokenizer import load_tokenizer
from trainer_ext.training.warm_start import ModelArguments, warm_start

logger = logging.getLogger("run_classify")


def main() -> None:
    # ---- Flags and recipe -----------------------------------------------------------------------------------------
    parser = RecipeParser(CLASSIFY_ARGUMENTS, description=__doc__)
    model_args, data_args, transfer_args, run_args, args = parser.parse()
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    logger.info(parser.precision)
    output_dir = complete_arguments(model_args, run_args, args)
    if args.hub_model_id:
        args.hub_model_id = hub.check_login(args.hub_model_id, args.hub_token)

    # ---- Data -----------------------------------------------------------------------------------------------------
    corpus, transferred, guard = read_corpus(data_args, model_args, transfer_args, args.seed, run_args.extra_tests)
    corpus.licence = corpus.licence or restricted_upstream(model_args.model_name_or_path, transfer_args.distill_from)
    if args.hub_model_id and corpus.licence and not run_args.publish_restricted:
        raise InputError(
            f"--push_to_hub: {corpus.source} is for {corpus.licence}; if its terms let you publish what saw it, "
            "give --publish_restricted"
        )
    has_validation = "validation" in corpus.splits and is_labelled(corpus, "validation")
    if run_args.select == "best_on_dev" and not has_validation:
        raise InputError("--select best_on_dev needs labelled validation rows; give some, or --select last")
    if run_args.tfidf_baseline and corpus.problem_type == "multi_label_classification":
        raise InputError("--tfidf_baseline compares single-label classifiers; leave it out for several classes a row")
    if not has_validation:
        args.eval_strategy = IntervalStrategy.NO
    for name, rows in corpus.splits.items():
        logger.info(f"{name}: {len(rows)} rows{'' if 'labels' in rows.column_names else ', unlabelled'}")
    if transferred is not None:
        for name, counts in transferred.counts().items():
            shown = ", ".join(f"{label} {count}" for label, count in counts.items())
            logger.info(f"of {name}: {sum(counts.values())} rows ({shown})")
    left_out = {} if transferred is None else transferred.left_out
    report_left_out(left_out, guard)

    # ---- Output folder --------------------------------------------------------------------------------------------
    settings = training_settings(model_args, data_args, transfer_args, run_args, args) | {
        "model_name_or_path": checkpoint_digest(model_args.model_name_or_path),
        "training data": digest(corpus.splits["train"].remove_columns("id").to_list()),
        "number of processes": args.world_size,
    }
    if is_sharded(args):
        settings["sharded"] = True
    run = Run(output_dir, settings, args, parser.precision, run_args.overwrite_output_dir)

    # ---- Model and tokenizer --------------------------------------------------------------------------------------
    set_seed(args.seed)
    hub_access = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir, "token": model_args.token}
    model = warm_start(
        model_args.model_name_or_path,
        from_scratch=model_args.from_scratch,
        **hub_access,
        **config_overrides(model_args, args, corpus),
    )
    pretrained = {}  # the checkpoint's encoder weights
    if run_args.pretrained_share:
        pretrained = {name: weight.detach().cpu().clone() for name, weight in model.base_model.named_parameters()}
    if model_args.lora_rank is not None:
        add_lora(model, model_args.lora_rank)
    tokenizer_name = model_args.tokenizer_name or model_args.model_name_or_path
    access = hub_access | ({"revision": None} if model_args.tokenizer_name else {})
    tokenizer = load_tokenizer(tokenizer_name, data_args.max_seq_length, model.config, **access)
    encoded, truncated = {}, {}
    for name, rows in corpus.splits.items():
        encoded[name], truncated[name] = encode(rows, tokenizer, data_args.max_seq_length)
        if truncated[name]:
            limit = data_args.max_seq_length
            logger.info(f"{name}: {truncated[name]} of {len(rows)} texts are longer than {limit} tokens and are cut")

    # ---- Train ----------------------------------------------------------------------------------------------------
    metric = EmotionMetric(corpus.label_names, multi_label=corpus.problem_type == "multi_label_classification")
    resume = run.begin()
    trainer = TokenBudgetTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"] if has_validation else None,
        processing_class=tokenizer,
        tokens_per_batch=run_args.tokens_per_batch,
        head_learning_rate=run_args.head_learning_rate,
        layerwise_decay=run_args.layerwise_lr_decay,
        callbacks=[CheckpointsWithoutCode()],
        compute_metrics=lambda prediction: metric.compute(
            predictions=decide(prediction.predictions, corpus), references=as_classes(prediction.label_ids, corpus)
        ),
    )
    tfidf = tfidf_results(corpus, metric, args.seed) if run_args.tfidf_baseline and args.process_index == 0 else {}
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    clipped = (args.max_grad_norm or 0.0) / weights**0.5
    if 0 < clipped < args.adam_epsilon:
        logger.warning(
            f"--max_grad_norm {args.max_grad_norm:g} over {weights:,} weights: a gradient is about {clipped:.0e}, "
            f"under --adam_epsilon {args.adam_epsilon:g}; steps of Adam shrink by as much"
        )
    trained = run.train(trainer, resume)
    if is_sharded(args):
        join_shards(trainer)
    if run_args.select == "average":
        trainer.accelerator.wait_for_everyone()  # the last checkpoint may still be written
        paths = checkpoints(output_dir)[-run_args.average_epochs :]
        logger.info(f"weights: mean of {', '.join(path.name for path in paths)}")
        trainer.model.load_state_dict(average_weights(paths))
    if model_args.lora_rank is not None:
        merge_lora(trainer.model)
    if run_args.pretrained_share:
        logger.info(f"weights: {run_args.pretrained_share:.0%} of the encoder's are the checkpoint's")
        mix_weights(trainer.model.base_model, pretrained, run_args.pretrained_share)

    # ---- Evaluate and predict -------------------------------------------------------------------------------------
    # In float32, as the saved weights compute when they are loaded again, whatever the precision of training.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    args.dataloader_drop_last = False  # means the training rows; every row is predicted
    results: dict[str, float] = {}
    probabilities: dict[str, np.ndarray] = {}
    for split in evaluated(corpus):
        prediction = trainer.predict(encoded[split], metric_key_prefix=prefix_of(split))
        probabilities[split] = to_probabilities(prediction.predictions, corpus)
        if is_labelled(corpus, split):
            results |= prediction.metrics | interval(corpus, split, decide(prediction.predictions, corpus))
    if args.process_index == 0:
        results |= tfidf | {f"{split}_rows": len(rows) for split, rows in corpus.splits.items()}
        results |= {f"{split}_truncated_texts": count for split, count in truncated.items()}
        results |= trained.metrics | {"seed": args.seed}
        if transferred is not None:
            results["transfer_rows"] = len(transferred)
        with run.results(results) as folder:
            save_model(folder, trainer, tokenizer)
            write_predictions(folder, corpus, probabilities)
            write_plots(folder, corpus, probabilities, trainer.state.log_history)
            if guard is not None or transferred is not None:
                write_json(folder / "left_out.json", left_out_rows(left_out, guard))
            sources = {
                "answers": answers(trainer, tokenizer),
                "transferred": transferred,
                "augmentation": transfer_args,
                "guard": guard,
            }
            write_card(
                folder, output_dir, corpus, results, model_args, data_args, run_args, args, sources, run.provenance
            )
        print_results(results, evaluated(corpus), {"EmoDeBERTa": "", "TF-IDF + logistic regression": "tfidf_"})
        print(f"\nsaved to {output_dir}/")
        if args.hub_model_id:
            texts = (text for rows in corpus.splits.values() for text in rows["text"])
            hub.push_run(output_dir, args, publish_restricted=run_args.publish_restricted, texts=texts)


def complete_arguments(model_args: ModelArguments, run_args: RunArguments, args: ChildTuningArguments) -> Path:
    """Check what the dataclasses cannot and give `Trainer` a subfolder for checkpoints; returns the output folder."""
    if not model_args.model_name_or_path:
        raise InputError("give --model_name_or_path, a folder or a Hub id, for example microsoft/deberta-v3-base")
    if not args.output_dir:
        raise InputError("give --output_dir")
    if not 0 <= run_args.pretrained_share < 1:
        raise InputError(f"--pretrained_share is {run_args.pretrained_share}; want 0 or more, and less than 1")
    if run_args.pretrained_share and model_args.from_scratch:
        raise InputError("--pretrained_share mixes the checkpoint's weights in; --from_scratch takes none")
    if run_args.head_learning_rate is not None and run_args.head_learning_rate <= 0:
        raise InputError(f"--head_learning_rate is {run_args.head_learning_rate}; want more than 0")
    if not 0 < run_args.layerwise_lr_decay <= 1:
        raise InputError(f"--layerwise_lr_decay is {run_args.layerwise_lr_decay}; want more than 0, and at most 1")
    if run_args.average_epochs < 1:
        raise InputError(f"--average_epochs is {run_args.average_epochs}; want at least 1")
    output_dir = Path(args.output_dir)
    args.output_dir = str(output_dir / CHECKPOINTS)
    args.hub_model_id = (args.hub_model_id or output_dir.name) if args.push_to_hub else None
    args.push_to_hub = False  # `Trainer` would upload its pickled arguments too; `hub.push_folder` does not
    if run_args.tokens_per_batch is not None:
        if run_args.tokens_per_batch < 1:
            raise InputError(f"--tokens_per_batch is {run_args.tokens_per_batch}; want at least 1")
        if args.train_sampling_strategy != "random":
            raise InputError(
                f"--tokens_per_batch and --train_sampling_strategy {args.train_sampling_strategy} exclude each other"
            )
    if args.train_sampling_strategy == "group_by_length":
        raise InputError(
            "--train_sampling_strategy group_by_length draws from the global random state: processes would not share "
            "the rows out, and a resumed run would see other batches; use --tokens_per_batch"
        )
    if args.load_best_model_at_end:
        raise InputError("--load_best_model_at_end chooses the epoch on validation; say so with --select best_on_dev")
    if not args.do_train and (args.do_predict or (args.do_eval and args.eval_strategy == IntervalStrategy.NO)):
        raise InputError(
            "this script always trains, then evaluates and predicts; to predict alone, load the folder with "
            'pipeline("text-classification", …)'
        )
    if is_sharded(args):
        check_sharding(args)
        if model_args.lora_rank is not None:
            raise InputError("--lora_rank under FSDP is not supported; its gradients and moments fit one GPU")
        if run_args.pretrained_share:
            raise InputError("--pretrained_share under FSDP is not supported; leave it out, or use DDP")
    if run_args.select == "average" and model_args.lora_rank is not None:
        raise InputError("--select average is of weights; the mean of low-rank factors is another model's")
    if run_args.select == "average" and args.save_only_model:
        raise InputError("--select average needs whole checkpoints; leave out --save_only_model")
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if not is_complete(checkpoint):
            raise InputError(f"--resume_from_checkpoint {checkpoint}: no complete checkpoint there")
        if run_args.overwrite_output_dir and output_dir.resolve() in checkpoint.resolve().parents:
            raise InputError(f"--overwrite_output_dir would remove {checkpoint}; leave one of the two out")
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False
    if run_args.select != "last":
        args.save_strategy = SaveStrategy.EPOCH
    if run_args.select == "average":
        args.save_total_limit = max(run_args.average_epochs, args.save_total_limit or 0)
    if run_args.select == "best_on_dev":
        args.eval_strategy = IntervalStrategy.EPOCH
        args.load_best_model_at_end = True
        args.metric_for_best_model, args.greater_is_better = "eval_macro_f1", True
        logger.info("the epoch is chosen on validation: its eval_ figures are selection scores")
    return output_dir


def read_corpus(
    data_args: DataArguments,
    model_args: ModelArguments,
    transfer_args: TransferArguments,
    seed: int,
    extra_tests: Sequence[str] = (),
) -> tuple[Corpus, TransferRows | None, LeakageGuard | None]:
    """The corpus of the flags, with splits carved out, rows capped and rows of other corpora added where asked for;
    the rows of other corpora; and what kept copies of the target's evaluation texts out."""
    described = corpus_arguments(data_args, model_args.cache_dir, model_args.token)
    is_stage = check_transfer(transfer_args, described)
    reading = {key: described[key] for key in ("data_dir", "cache_dir", "token")} | {"seed": seed}
    guard, _ = guard_of_target(transfer_args, data_args.data_dir, train=is_stage)
    guard = guard_of_extra_tests(extra_tests, data_args, guard)
    transferred = None
    if is_stage:
        rows = load_transfer_rows(transfer_args, label_names=described["label_names"], guard=guard, **reading)
        transferred = choose_rows(rows, transfer_args, seed)
        corpus = as_corpus(transferred)
    else:
        corpus = load_corpus(**described)
        if guard is not None:
            guard.filter_train(corpus)
    check_trainable(corpus)
    adds_rows = transfer_args.augmentation != "none" and not is_stage
    if adds_rows and guard is None:
        guard = LeakageGuard(corpus.source)
        guard.protect_splits(corpus)
    if data_args.cv_folds is not None:
        hold_out_folds(corpus, data_args.cv_folds, data_args.cv_fold)
    if not 0 <= data_args.validation_split_percentage <= 50:
        raise InputError(f"--validation_split_percentage is {data_args.validation_split_percentage}; want 0 to 50")
    if data_args.validation_split_percentage and "validation" not in corpus.splits:
        split_off_validation(corpus, data_args.validation_split_percentage, seed)
    limit_rows(corpus, data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples)
    if data_args.bagging:
        bootstrap_groups(corpus, seed)
    check_trainable(corpus)
    if adds_rows:
        guard.protect_splits(corpus)  # the fold too
        rows = load_transfer_rows(transfer_args, label_names=corpus.label_names, guard=guard, **reading)
        transferred = choose_rows(rows, transfer_args, seed, present=rows_by_label(corpus))
        add_rows(corpus, transferred)
    add_extra_tests(corpus, extra_tests, data_args)
    if transfer_args.distill_from:
        soften_labels(corpus, Path(transfer_args.distill_from), transferred)
    return corpus, transferred, guard


def guard_of_extra_tests(
    extra_tests: Sequence[str], data_args: DataArguments, guard: LeakageGuard | None
) -> LeakageGuard | None:
    """The guard, or a new one, that also keeps copies of the extra tests' texts out of training."""
    for source in extra_tests:
        guard = guard or LeakageGuard("")
        guard.source = ", ".join(filter(None, [guard.source, source]))
        if source == "wassa2022":
            rows = load_corpus(dataset_name=source, data_dir=data_args.data_dir).splits["train"]
            ids, texts = rows["id"], rows["text"]
        else:
            texts = read_texts(source, data_args.text_column_name or "text")
            ids = [f"{Path(source).name}, text {number}" for number in range(1, len(texts) + 1)]
        guard.protect(ids, texts)
    return guard


def add_extra_tests(corpus: Corpus, extra_tests: Sequence[str], data_args: DataArguments) -> None:
    """Read the extra tests into splits of their own, in place."""
    for source in extra_tests:
        name = extra_test_name(source)
        if name in ("train", "validation", "test", "eval") or name in corpus.splits:
            raise InputError(
                f"--extra_tests {source}: its figures would be called {name}, like another's; rename the file"
            )
        corpus.splits[name] = load_extra_test(
            source,
            corpus,
            data_dir=data_args.data_dir,
            text_column=data_args.text_column_name,
            label_column=data_args.label_column_name,
            group_column=data_args.group_column_name,
            id_column=data_args.id_column_name,
            quoting=data_args.quoting,
        )
        if data_args.max_predict_samples is not None:
            rows = corpus.splits[name]
            corpus.splits[name] = rows.select(range(min(data_args.max_predict_samples, len(rows))))


def config_overrides(model_args: ModelArguments, args: ChildTuningArguments, corpus: Corpus) -> dict:
    """Fields of `EmoDebertaConfig` that the flags and the corpus decide."""
    overrides = {
        "id2label": dict(enumerate(corpus.label_names)),
        "label2id": {name: index for index, name in enumerate(corpus.label_names)},
        "problem_type": corpus.problem_type,
        "label_smoothing": args.label_smoothing_factor,
    }
    if model_args.pooling is not None:
        overrides["pooling"] = model_args.pooling
    if model_args.classifier_hidden_size is not None:
        overrides["classifier_hidden_size"] = model_args.classifier_hidden_size or None
    if model_args.classifier_dropout is not None:
        overrides["classifier_dropout"] = model_args.classifier_dropout
    args.label_smoothing_factor = 0.0  # `Trainer`'s own would leave out class weights and soft labels
    if model_args.relative_attention:
        overrides["relative_attention"] = True
    if model_args.class_weights == "balanced":
        classes = corpus.classes("train")
        counts = classes.sum(axis=0) if classes.ndim == 2 else np.bincount(classes, minlength=len(corpus.label_names))
        present = counts > 0
        overrides["class_weights"] = np.where(
            present, counts.sum() / (present.sum() * counts.clip(min=1)), 0.0
        ).tolist()
    return overrides


def encode(rows, tokenizer: PreTrainedTokenizerBase, max_seq_length: int):
    """Token ids (and labels) of a split, and how many texts were cut."""
    whole = tokenizer(rows["text"][:], truncation=False, verbose=False)["input_ids"]
    truncated = sum(len(ids) > max_seq_length for ids in whole)
    encoded = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_seq_length),
        batched=True,
        remove_columns=[name for name in rows.column_names if name != "labels"],
        desc="tokenising",
    )
    return encoded, truncated


def as_classes(labels: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Gold as class ids, or 0/1 per label."""
    if labels.ndim == 2 and corpus.problem_type == "single_label_classification":
        return labels.argmax(axis=1)
    return labels.astype(int)


def to_probabilities(logits: np.ndarray, corpus: Corpus) -> np.ndarray:
    """`(rows, labels)`: softmax, or for several classes a row the sigmoid of each logit."""
    logits = logits.astype(np.float64)
    return expit(logits) if corpus.problem_type == "multi_label_classification" else softmax(logits, axis=1)


def decide(logits: np.ndarray, corpus: Corpus) -> np.ndarray:
    """The class with the largest logit, or for several classes a row those with probability over a half."""
    if corpus.problem_type == "multi_label_classification":
        return (logits > 0).astype(int)
    return logits.argmax(axis=1)


def tfidf_results(corpus: Corpus, metric: EmotionMetric, seed: int) -> dict[str, float]:
    """`eval_tfidf_macro_f1` and so on, for each labelled split."""
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else None
    model = fit_tfidf(train["text"], corpus.classes("train"), groups, seed)
    results = {}
    for split in evaluated(corpus):
        if is_labelled(corpus, split):
            predicted = model.predict(corpus.splits[split]["text"])
            scores = metric.compute(predictions=predicted, references=corpus.classes(split))
            results |= {f"{prefix_of(split)}_tfidf_{name}": value for name, value in scores.items()}
    return results


def save_model(folder: Path, trainer: TokenBudgetTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Weights, configuration, code and tokenizer, as `from_pretrained` wants them."""
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answers(trainer: TokenBudgetTrainer, tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """What the finished model says of the card's examples: `text`, `label` and `score` of each."""
    classify = EmotionPipeline(model=trainer.model.eval(), tokenizer=tokenizer, device=trainer.args.device)
    return [{"text": text} | answer for text, answer in zip(TRY, classify(list(TRY)), strict=True)]


def write_card(folder, output_dir, corpus, results, model_args, data_args, run_args, args, sources, provenance) -> None:
    """The model card, from what the run knows."""
    reliability = folder / "reliability.json"
    measured = json.loads(reliability.read_text())["calibration"] if reliability.exists() else {}
    write_model_card(
        folder / "README.md",
        model_name=output_dir.name,
        repo_id=args.hub_model_id or output_dir.name,
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
        calibration=measured,
        distill_from=shown(sources["augmentation"].distill_from or ""),
        max_seq_length=data_args.max_seq_length,
        child_tuning=args.child_tuning,
        child_tuning_p=args.child_tuning_p,
        epochs=f"{results['epoch']:.3g}",
        minutes=f"{results['train_runtime'] / 60:.1f}",
        **sources,
        **provenance,
    )


def command() -> None:
    """Console entry point."""
    run_command(main)


if __name__ == "__main__":
    command()
