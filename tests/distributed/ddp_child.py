"""ChildTuningTrainer under DDP: replicas, and a run resumed from a checkpoint; two processes, started by torchrun."""

import hashlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoTokenizer

from trainer_ext import ChildTuningArguments, ChildTuningTrainer
from trainer_ext.training.warm_start import warm_start

STEPS = 20


def train(folder: Path, checkpoint: str, resume: str | None, **options) -> tuple[str, ChildTuningTrainer]:
    """The hash of this replica's weights after training on texts of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = ["gate " * (1 + 7 * index % 11) + "and the dog" for index in range(96)]
    rows = Dataset.from_dict(
        {**tokenizer(texts, return_token_type_ids=False), "labels": [index % 3 for index in range(96)]}
    )
    args = ChildTuningArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    torch.manual_seed(7)
    trainer = ChildTuningTrainer(
        model=warm_start(checkpoint, num_labels=3), args=args, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=resume)
    values = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
    return hashlib.sha256(values).hexdigest(), trainer


def main(checkpoint: str, folder: str) -> None:
    for variant in ("F", "D"):
        for target in ("gradient", "update"):
            name = f"{variant}-{target}"
            options = {"child_tuning": variant, "child_tuning_target": target, "child_tuning_p": 0.3}
            straight, trainer = train(Path(folder, name), checkpoint, None, **options)
            assert trainer.args.world_size == dist.get_world_size() == 2
            replicas: list[str | None] = [None, None]
            dist.all_gather_object(replicas, straight)
            assert replicas[0] == replicas[1], f"{name}: replicas differ"
            resumed, _ = train(Path(folder, name), checkpoint, str(Path(folder, name, "checkpoint-8")), **options)
            assert resumed == straight, f"{name}: the resumed run differs"
            if dist.get_rank() == 0:
                print(f"{name}: replicas and resumed run identical")
    dist.barrier()  # else one process may leave while gloo still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
