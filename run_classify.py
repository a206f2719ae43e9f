"""Fine-tune an EmoDeBERTa on texts with emotions, evaluate it, predict, and write a Hub-ready folder.

One stage, one Trainer. Examples:

    python run_classify.py recipes/quickstart.yaml
    python run_classify.py recipes/plain.yaml --data_dir FOLDER --seed 2
    python run_classify.py --train_file mine.csv --output_dir outputs/mine            # chooses the rest, and says how
    python run_classify.py recipes/transfer.yaml --class_weights balanced --output_dir outputs/transfer-balanced
    python run_classify.py recipes/wassa2022.yaml --data_dir FOLDER       # starts from there
    python run_classify.py recipes/plain.yaml --augmentation BA --transfer_datasets go_emotions xed
    accelerate launch run_classify.py recipes/plain.yaml --child_tuning F --child_tuning_p 0.3
    python run_classify.py --do_predict --model_name_or_path outputs/mine --test_file more.csv --output_dir outputs/more

The output folder has the model with its code, tokenizer and card, all_results.json, predictions.tsv (probabilities) and
two plots. If a run is killed, the same command resumes it from its last checkpoint.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_classify")  # --help and wrong flags end here; the imports below take seconds

import logging
import shlex
from pathlib import Path

from transformers import DataCollatorWithPadding, set_seed

from trainer_ext.baselines.probe import tfidf_figures
from trainer_ext.child_tuning import ChildTuningTrainer
from trainer_ext.data.augmentation import as_corpus, check_transfer, choose_rows, report_rows, with_rows
from trainer_ext.data.checks import check_data
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.folds import bootstrap_groups, check_trainable, hold_out_folds, limit_rows, split_off_validation
from trainer_ext.data.label_maps import TransferArguments, TransferRows, load_transfer_rows
from trainer_ext.data.leakage import LeakageGuard, LeftOut, guard_of_target, protect_extra_tests, with_extra_tests
from trainer_ext.data.load import DataArguments, corpus_arguments, load_labelled_as
from trainer_ext.errors import run_command
from trainer_ext.evaluation.metrics import metrics_of_logits
from trainer_ext.evaluation.predictions import evaluated, predict_splits, print_results, write_plots, write_predictions
from trainer_ext.files import digest
from trainer_ext.recipes import RecipeParser
from trainer_ext.release import hub
from trainer_ext.release.licence import with_upstream_licence
from trainer_ext.release.run_card import unshown_texts, write_run_card
from trainer_ext.runs.after_training import add_to_config, calibrate, keep_weights, weights_to_mix_in
from trainer_ext.runs.checkpoints import checkpoint_digest
from trainer_ext.runs.defaults import Defaults
from trainer_ext.runs.flags import asked_for, check_corpus, complete_arguments, trains, warn_of_clipping
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS, Run, RunArguments, training_settings
from trainer_ext.scoring.scorer import evaluate, labels_of
from trainer_ext.training.callbacks import watch_epochs
from trainer_ext.training.distillation import soften_labels
from trainer_ext.training.head import ModelArguments, head_settings
from trainer_ext.training.large_models import CheckpointsWithoutCode, add_lora, is_sharded
from trainer_ext.training.saved_model import encode_splits, load_tokenizer, save_classifier
from trainer_ext.training.trainer import LearningRatesMixin, ResumableTrainer, TokenBudgetMixin
from trainer_ext.training.warm_start import warm_start

logger = logging.getLogger("run_classify")


class EmotionTrainer(TokenBudgetMixin, LearningRatesMixin, ChildTuningTrainer, ResumableTrainer):
    """The library's `Trainer` with Child-Tuning (paper, 2.3.2), rates by depth, token budgets and exact resuming."""


def main(plots: bool = True) -> None:
    # ---- Flags and recipe -----------------------------------------------------------------------------------------
    parser = RecipeParser(CLASSIFY_ARGUMENTS, description=__doc__)
    model_args, data_args, transfer_args, run_args, args = parser.parse()
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    logger.info(parser.precision)
    defaults = Defaults.begin(parser, model_args, data_args, trains(args))
    output_dir = complete_arguments(model_args, data_args, transfer_args, run_args, args)
    if args.hub_model_id:
        args.hub_model_id = hub.check_login(args.hub_model_id, args.hub_token)

    if not trains(args):
        evaluate_finished(model_args, data_args, run_args, Run(output_dir, {}, args, parser.precision, run_args))
        return

    # ---- Rows of the target and of other corpora: supervised transfer (paper, section 2.3.1) ----------------------
    # Label maps are in trainer_ext/data/label_maps.yaml. Which rows are drawn is in trainer_ext/data/augmentation.py.
    corpus, transferred, guard = read_rows(data_args, model_args, transfer_args, run_args, args.seed, defaults)
    defaults.complete(corpus, model_args, run_args, args)
    corpus = with_upstream_licence(corpus, model_args.model_name_or_path, transfer_args.distill_from)
    check_corpus(corpus, data_args, run_args, args)
    left_out = LeftOut({} if transferred is None else transferred.left_out, guard)
    report_rows(corpus, transferred, left_out)
    settings = training_settings(model_args, data_args, transfer_args, run_args, args) | {
        "model_name_or_path": checkpoint_digest(model_args.model_name_or_path),
        "training data": digest(corpus.splits["train"].remove_columns("id").to_list()),
        **({"sharded": True} if is_sharded(args) else {}),
    }
    run = Run(output_dir, settings, args, parser.precision, run_args, defaults.chosen)

    # ---- Encoder, mean pooling and head (section 2.2; modeling_emodeberta.py) ---------------------------------------
    set_seed(args.seed)
    head = head_settings(model_args, corpus, args.label_smoothing_factor)
    args.label_smoothing_factor = 0.0
    name, access = model_args.model_name_or_path, model_args.model_access()
    model = warm_start(name, from_scratch=model_args.from_scratch, access=access, **head)
    pretrained = weights_to_mix_in(model, run_args)
    if model_args.lora_rank is not None:
        add_lora(model, model_args.lora_rank)
    tokenizer_name, access = model_args.tokenizer_source()
    tokenizer = load_tokenizer(tokenizer_name, data_args.max_seq_length, model.config, **access)
    encoded, truncated = encode_splits(corpus, tokenizer, data_args.max_seq_length, data_args.preprocessing_num_workers)

    # ---- Fine-tuning with Child-Tuning (section 2.3.2; masks: trainer_ext/child_tuning/network.py) ------------------
    resume = run.begin()
    trainer = EmotionTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"] if corpus.is_labelled("validation") else None,
        processing_class=tokenizer,
        tokens_per_batch=run_args.tokens_per_batch,
        head_learning_rate=run_args.head_learning_rate,
        layerwise_decay=run_args.layerwise_lr_decay,
        callbacks=[CheckpointsWithoutCode()],
        compute_metrics=metrics_of_logits(corpus),
    )
    watch_epochs(trainer, run_args.early_stopping_patience)
    warn_of_clipping(model, args)
    trained = run.train(trainer, resume)
    keep_weights(trainer, output_dir, run_args, model_args.lora_rank is not None, pretrained)

    # ---- Save, then evaluate and predict --------------------------------------------------------------------------
    # In float32, so that the results are those of the saved weights, whatever the precision of training.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if args.process_index == 0:
        with run.model() as folder:
            save_classifier(folder, trainer.model, tokenizer)
    results, probabilities, _ = predict_splits(trainer, encoded, corpus)
    if args.process_index != 0:
        return
    fit, probabilities = calibrate(trainer.model, corpus, probabilities, run_args)
    if run_args.tfidf_baseline:
        with run.part("the TF-IDF baseline"):
            results |= tfidf_figures(corpus, args.seed)
    results |= {f"{split}_rows": len(rows) for split, rows in corpus.splits.items()}
    results |= {f"{split}_truncated_texts": count for split, count in truncated.items()}
    results |= trained.metrics | {"seed": args.seed} | fit.figures
    results |= {} if transferred is None else {"transfer_rows": len(transferred)}
    with run.results(results) as folder:
        add_to_config(output_dir, folder, fit)
        write_predictions(folder, corpus, probabilities, fit.thresholds)
        if plots:
            with run.part("the plots"):
                write_plots(folder, corpus, probabilities, trainer.state.log_history, fit.reliability, fit.coverage)
        if len(guard) or transferred is not None:
            left_out.write(folder)
        with run.part("the card"):
            write_run_card(
                folder,
                corpus,
                results,
                name=output_dir.resolve().name,
                trainer=trainer,
                provenance=run.provenance,
                flags=(model_args, data_args, transfer_args, run_args),
                transferred=transferred,
                guard=guard,
                fit=fit,
            )
    print_results(results, evaluated(corpus))
    column = data_args.text_column_name or "text"
    asked = ["--model", str(output_dir), *(["--text_column_name", column] if column != "text" else [])]
    print(f"\nsaved to {output_dir}/\nuse it: python run_score.py {shlex.join(asked)} --input TEXTS --output SCORES")
    if args.hub_model_id:
        texts = unshown_texts(corpus, run_args.card_examples)
        hub.push_run(output_dir, args, publish_restricted=run_args.publish_restricted, texts=texts)


def read_rows(
    data_args: DataArguments,
    model_args: ModelArguments,
    transfer_args: TransferArguments,
    run_args: RunArguments,
    seed: int,
    defaults: Defaults,
) -> tuple[Corpus, TransferRows | None, LeakageGuard]:
    """Return the corpus to train on, its rows from other corpora, and the guard that kept copies of test texts out."""
    described = corpus_arguments(data_args, model_args.hub_access())
    reading = {"data_dir": data_args.data_dir, "access": model_args.hub_access(), "seed": seed}
    is_stage = check_transfer(transfer_args, described)  # train on other corpora only
    guard, _ = guard_of_target(transfer_args, data_args.data_dir, train=is_stage)
    protect_extra_tests(guard, run_args.extra_tests, data_args)
    if is_stage:
        rows = load_transfer_rows(transfer_args, label_names=described["label_names"], guard=guard, **reading)
        transferred = choose_rows(rows, transfer_args, seed)
        corpus = as_corpus(transferred)
    else:
        corpus, transferred = guard.without_copies(defaults.load(described, transfer_args.has_target)), None
    check_data(corpus, data_args, model_args.class_weights)
    target = corpus
    if data_args.cv_folds is not None:
        corpus = hold_out_folds(corpus, data_args.cv_folds, data_args.cv_fold)
    corpus = defaults.with_validation(split_off_validation(corpus, data_args.validation_split_percentage, seed), seed)
    corpus = limit_rows(corpus, data_args.max_train_samples, data_args.max_eval_samples, data_args.max_predict_samples)
    if data_args.bagging:
        corpus = bootstrap_groups(corpus, seed)
    check_trainable(corpus)
    if transfer_args.augmentation != "none" and not is_stage:  # Random or Balanced Augmentation
        for held_out in (target, corpus):  # corpus has the held-out fold
            guard.protect_splits(held_out)
        guard.source = guard.source or corpus.source
        rows = load_transfer_rows(transfer_args, label_names=corpus.label_names, guard=guard, **reading)
        transferred = choose_rows(rows, transfer_args, seed, present=corpus.class_counts("train"))
        corpus = with_rows(corpus, transferred)
    corpus = with_extra_tests(corpus, run_args.extra_tests, data_args)
    if transfer_args.distill_from:
        corpus = soften_labels(corpus, Path(transfer_args.distill_from), transferred)
    return corpus, transferred, guard


def evaluate_finished(model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments, run: Run) -> None:
    """Evaluate a finished model on validation rows (`--do_eval`) and predict test rows (`--do_predict`)."""
    name, access = model_args.model_name_or_path, {"revision": model_args.model_revision, "token": model_args.token}
    labels, multi_label = labels_of(name, **access)
    corpus = load_labelled_as(labels, data_args, model_args.hub_access(), multi_label)
    corpus = limit_rows(corpus, None, data_args.max_eval_samples, data_args.max_predict_samples)
    corpus = with_extra_tests(corpus, run_args.extra_tests, data_args)
    corpus = corpus.only_splits(asked_for(run.args, corpus))
    run.begin()
    results, probabilities, thresholds = evaluate(name, corpus, run.args.device, **access)
    with run.results(results) as folder:
        write_predictions(folder, corpus, probabilities, thresholds)
        with run.part("the plots"):
            write_plots(folder, corpus, probabilities, [])
    print_results(results, evaluated(corpus))
    print(f"\nsaved to {run.folder}/")


if __name__ == "__main__":
    run_command(main)
