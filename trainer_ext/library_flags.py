"""What the library's own flags do here, for `--help`.

The texts of `transformers.TrainingArguments` describe its `Trainer`. Where our scripts do otherwise, and for the flags
that people set most, the text is here. These flags come first in their section, in this order.
"""

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
