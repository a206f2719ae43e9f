"""Continue masked-language-model pre-training on texts about emotions, and write a folder for run_classify.py to start
from.

As in section 2.1 of the paper (LingJing, WASSA 2022), 15% of the tokens of GoEmotions and XED are predicted. Of these,
80% become [MASK], 10% a random token, and 10% stay. Examples:

    python run_mlm.py recipes/mlm.yaml --data_dir FOLDER
    python run_mlm.py --model_name_or_path microsoft/deberta-v2-xlarge --train_file texts.txt --output_dir outputs/mlm
    python run_mlm.py --model_name_or_path outputs/mlm --train_file more.parquet --streaming --max_steps 20000 \\
        --output_dir outputs/mlm-more
    accelerate launch run_mlm.py recipes/mlm.yaml
    python run_classify.py recipes/plain.yaml --model_name_or_path outputs/mlm

The output folder loads in AutoModelForMaskedLM, AutoModel and pipeline("fill-mask"), with trust_remote_code=True. It
contains perplexity and masked accuracy (all_results.json), their curve, and what was left out of the corpus and why. If
a run is killed, the same command resumes it from its last checkpoint.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_mlm")  # --help and wrong flags end here; the imports below take seconds

import logging
from copy import copy
from pathlib import Path

from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from modeling_emodeberta import EmoDebertaForMaskedLM
from trainer_ext.child_tuning import ChildTuningArguments, ChildTuningTrainer
from trainer_ext.data.leakage import LeftOut
from trainer_ext.data.pretraining_texts import PretrainingArguments, PretrainingCorpus, load_pretraining_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.plots import plot_pretraining
from trainer_ext.files import digest, write_json
from trainer_ext.recipes import RecipeParser
from trainer_ext.release import hub
from trainer_ext.release.licence import restricted_upstream
from trainer_ext.release.run_card import write_pretraining_card
from trainer_ext.runs.checkpoints import checkpoint_digest
from trainer_ext.runs.flags import check_whole_batch, complete_folders, trains
from trainer_ext.runs.run import Run, training_settings
from trainer_ext.training.callbacks import PERPLEXITY, ReturnMemory, watch_epochs
from trainer_ext.training.large_models import is_sharded
from trainer_ext.training.masking import (
    MaskAnew,
    MaskedStream,
    MaskedTexts,
    Masking,
    PaddingCollator,
    Tokenising,
    masked_metrics,
    masked_scores,
)
from trainer_ext.training.saved_model import load_tokenizer
from trainer_ext.training.trainer import ResumableTrainer, TokenBudgetMixin
from trainer_ext.training.warm_start import CheckpointArguments, warm_start

logger = logging.getLogger("run_mlm")


class PretrainingTrainer(TokenBudgetMixin, ChildTuningTrainer, ResumableTrainer):
    """The library's `Trainer` with Child-Tuning, batches by token budget, and exact resuming."""


def main() -> None:
    # ---- Flags and recipe -----------------------------------------------------------------------------------------
    parser = RecipeParser((CheckpointArguments, PretrainingArguments, ChildTuningArguments), description=__doc__)
    model_args, data_args, args = parser.parse()
    logging.basicConfig(level=logging.INFO if args.process_index == 0 else logging.ERROR, format="%(message)s")
    logger.info(parser.precision)
    output_dir = complete_arguments(model_args, data_args, args)
    if args.hub_model_id:
        args.hub_model_id = hub.check_login(args.hub_model_id, args.hub_token)

    # ---- Texts about emotions (paper, section 2.1) ----------------------------------------------------------------
    corpus = load_pretraining_corpus(data_args, args.seed, model_args.hub_access())
    upstream = restricted_upstream(model_args.model_name_or_path)
    if args.hub_model_id and (corpus.target_licence or upstream) and not data_args.publish_restricted:
        source = corpus.guard.source if corpus.target_licence else model_args.model_name_or_path
        terms = corpus.target_licence or upstream
        raise InputError(
            f"--push_to_hub: {source} is for {terms}; if its terms let you publish what saw it, give "
            "--publish_restricted"
        )
    data_args.check_terms(corpus.source, corpus.target_licence or upstream)
    report_corpus(corpus, data_args)
    if corpus.validation is None:
        never_evaluate(args)

    # ---- Output folder --------------------------------------------------------------------------------------------
    files = [(path, Path(path).stat().st_size) for path in data_args.train_file]
    settings = training_settings(model_args, data_args, args) | {
        "model_name_or_path": checkpoint_digest(model_args.model_name_or_path),
        "training data": files if data_args.streaming else digest(corpus.train["text"][:]),
    }
    run = Run(output_dir, settings, args, parser.precision, data_args)

    # ---- Model and tokenizer --------------------------------------------------------------------------------------
    set_seed(args.seed)
    model = warm_start(
        model_args.model_name_or_path,
        EmoDebertaForMaskedLM,
        from_scratch=model_args.from_scratch,
        access=model_args.model_access(),
        **({"relative_attention": True} if model_args.relative_attention else {}),
    )
    has_new_head = "lm_predictions.lm_head" in model.drawn_anew
    if has_new_head and not trains(args):
        raise InputError(
            f"{model_args.model_name_or_path}: has no trained head for masked words, so its perplexity would be of "
            "random weights; want a model that run_mlm.py made"
        )
    model.full_logits = False  # `masked_scores` needs only the logits of masked tokens
    tokenizer_name, access = model_args.tokenizer_source()
    tokenizer = load_tokenizer(tokenizer_name, data_args.max_seq_length, model.config, **access)

    # ---- Masks: 15% of the tokens (section 2.1; trainer_ext/training/masking.py) ------------------------------------
    whole_words = data_args.whole_word_masking
    tokenising = Tokenising(tokenizer, data_args.max_seq_length, data_args.line_by_line, whole_words)
    masking = Masking(tokenizer, data_args.mlm_probability, whole_words, args.seed)
    with args.main_process_first(desc="tokenising"):
        validation = None
        if corpus.validation is not None:
            fixed = Masking(tokenizer, data_args.mlm_probability, whole_words, args.seed, stream="evaluation")
            validation = masked_validation(MaskedTexts(tokenise(corpus.validation, tokenising, data_args), fixed), args)
        rows = tokenise(corpus.train, tokenising, data_args)
    if trains(args) and not data_args.streaming:
        check_whole_batch(len(rows), data_args.tokens_per_batch, args)
    train = MaskedStream(rows, masking) if data_args.streaming else MaskedTexts(rows, masking)
    callback = ReturnMemory() if data_args.streaming else MaskAnew(train)

    # ---- Train ----------------------------------------------------------------------------------------------------
    resume = run.begin()
    shared = {
        "model": model,
        "data_collator": PaddingCollator(tokenizer),
        "train_dataset": train,
        "processing_class": tokenizer,
        "tokens_per_batch": data_args.tokens_per_batch,
    }
    if trains(args) and not resume and data_args.head_warmup_steps and has_new_head:
        warm_up_head(shared, data_args, args)
    trainer = PretrainingTrainer(
        args=args,
        eval_dataset=validation,
        compute_metrics=lambda prediction: masked_metrics(prediction.predictions),
        preprocess_logits_for_metrics=masked_scores,
        callbacks=[callback],
        **shared,
    )
    watch_epochs(trainer, score=PERPLEXITY)
    if not trains(args):
        evaluate_finished(trainer, run, args)
        return
    trained = run.train(trainer, resume)

    # ---- Save, then evaluate --------------------------------------------------------------------------------------
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if args.process_index == 0:
        with run.model() as folder:
            trainer.model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    results = {} if validation is None else trainer.evaluate()
    if args.process_index == 0:
        results |= trained.metrics | {"seed": args.seed}
        if not data_args.streaming:
            results["train_rows"] = len(train)
        if validation is not None:
            results["validation_rows"] = len(validation)
        with run.results(results) as folder:
            write_json(folder / "learning_curve.json", trainer.state.log_history)
            with run.part("the plot"):
                plot_pretraining(folder / "learning_curve.json", folder / "learning_curve.png")
            LeftOut(corpus.left_out, corpus.guard).write(folder)
            with run.part("the card"):
                write_pretraining_card(
                    folder,
                    corpus,
                    results,
                    name=output_dir.resolve().name,
                    trainer=trainer,
                    provenance=run.provenance,
                    flags=(model_args, data_args),
                    upstream_terms=upstream,
                )
        print_results(results, 0 if validation is None else len(validation), output_dir)
        if args.hub_model_id:
            texts = () if data_args.streaming else corpus.train["text"]
            hub.push_run(output_dir, args, publish_restricted=data_args.publish_restricted, texts=texts)


def complete_arguments(
    model_args: CheckpointArguments, data_args: PretrainingArguments, args: ChildTuningArguments
) -> Path:
    """Check the flags together and return the output folder, as [`complete_folders`] does.

    Raises:
        InputError: if a flag is out of range, or flags exclude each other.
    """
    output_dir = complete_folders(args, model_args, data_args)
    if is_sharded(args):
        raise InputError("FSDP is not supported here, where the word embeddings also make the logits; use DDP")
    if not trains(args):
        if args.do_predict or not data_args.validation_file:
            raise InputError("without --do_train this script measures perplexity: --do_eval and --validation_file")
        data_args.dataset_name, data_args.train_file = [], data_args.validation_file  # these are only evaluated
    if data_args.streaming and args.max_steps <= 0 and trains(args):
        raise InputError("--streaming does not know how long the corpus is; give --max_steps")
    if data_args.streaming and args.dataloader_num_workers:
        raise InputError(
            "--dataloader_num_workers: workers would each skip a part of the held-out texts of a stream, and train on "
            "the rest; leave it out with --streaming"
        )
    if data_args.streaming and data_args.tokens_per_batch is not None:
        raise InputError("--tokens_per_batch sorts texts by length, which a stream does not let it; leave one out")
    for name in ("tokens_per_batch", "max_train_samples", "max_eval_samples"):
        value = getattr(data_args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; want at least 1")
    if data_args.head_warmup_steps < 0:
        raise InputError(f"--head_warmup_steps is {data_args.head_warmup_steps}; want 0 or more")
    if args.train_sampling_strategy != "random":
        raise InputError(f"--train_sampling_strategy {args.train_sampling_strategy}: use --tokens_per_batch")
    if args.dataloader_persistent_workers:
        raise InputError(
            "--dataloader_persistent_workers: workers that stay would mask the same tokens in every epoch; leave it out"
        )
    if args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is for classes; perplexity would be of smoothed words: leave it out")
    chooses = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    if chooses and args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = "eval_perplexity", False
    return output_dir


def masked_validation(rows: MaskedTexts, args: ChildTuningArguments) -> MaskedTexts | None:
    """Return the held-out rows, or `None` if no token of theirs is masked, so that nothing can be measured.

    Raises:
        InputError: if there is no training, which could go on without them.
    """
    if any((row["labels"] != -100).any() for row in rows):
        return rows
    problem = f"none of the tokens in {len(rows)} held-out rows is masked, so perplexity cannot be measured"
    if not trains(args) or args.load_best_model_at_end:
        raise InputError(f"{problem}; give more text, or a higher --mlm_probability")
    logger.warning(problem)
    never_evaluate(args)
    return None


def never_evaluate(args: ChildTuningArguments) -> None:
    """Set the arguments of a training without held-out rows; with `do_eval`, they would ask for no training."""
    args.eval_strategy, args.eval_on_start, args.do_eval = IntervalStrategy.NO, False, False


def evaluate_finished(trainer: PretrainingTrainer, run: Run, args: ChildTuningArguments) -> None:
    """Measure perplexity and masked accuracy of a finished model (`--do_eval` without `--do_train`)."""
    results = trainer.evaluate()
    if args.process_index == 0:
        with run.results(results):
            pass
        print_results(results, len(trainer.eval_dataset), run.folder)


def print_results(results: dict, rows: int, folder: Path) -> None:
    """Print perplexity and masked accuracy, if there are rows to measure them on, and the output folder."""
    if rows:
        print(f"\nperplexity {results['eval_perplexity']:.2f}, ", end="")
        print(f"masked accuracy {results['eval_masked_accuracy']:.1%} on {rows} held-out rows")
    print(f"saved to {folder}/")


def report_corpus(corpus: PretrainingCorpus, data_args: PretrainingArguments) -> None:
    """Log how many texts there are, and how many were left out."""
    if not data_args.streaming:
        logger.info(f"train: {len(corpus.train)} texts of {corpus.source}")
    if corpus.validation is not None:
        logger.info(f"validation: {len(corpus.validation)} texts")
    LeftOut(corpus.left_out, corpus.guard).report()


def tokenise(rows, tokenising: Tokenising, data_args: PretrainingArguments):
    """Return rows of token ids from a dataset or a stream of texts."""
    if not isinstance(rows, Dataset):
        return rows.map(tokenising, batched=True, remove_columns=["text"])
    return rows.map(
        tokenising,
        batched=True,
        remove_columns=["text"],
        num_proc=data_args.preprocessing_num_workers,
        desc="tokenising",
    )


def warm_up_head(shared: dict, data_args: PretrainingArguments, args: ChildTuningArguments) -> None:
    """Train the head alone. This is short, so it saves no checkpoint; a killed run repeats it with the same result."""
    steps = copy(args)
    most = args.max_steps if args.max_steps > 0 else data_args.head_warmup_steps  # a quick try is quick here, too
    steps.max_steps, steps.learning_rate = min(data_args.head_warmup_steps, most), data_args.head_learning_rate
    steps.warmup_steps, steps.child_tuning = 0, "none"
    steps.eval_strategy, steps.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    steps.eval_on_start = steps.load_best_model_at_end = False
    model = shared["model"]
    logger.info(f"the new head alone: {steps.max_steps} steps")
    model.deberta.requires_grad_(False)
    trainer = PretrainingTrainer(args=steps, **shared)
    watch_epochs(trainer, score=PERPLEXITY)
    trainer.train()
    model.deberta.requires_grad_(True)
    set_seed(args.seed)


if __name__ == "__main__":
    run_command(main)
