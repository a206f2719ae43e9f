"""Two processes save a checkpoint, the second one slowly: when the state is there, is its random state?"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainingArguments

from trainer_ext.training.resuming import ResumableTrainer


class Slow(ResumableTrainer):
    def _save_scaler(self, output_dir: str) -> None:  # what comes before the random state
        super()._save_scaler(output_dir)
        if self.args.process_index == 1:
            time.sleep(2)


class Look(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 0:
            folder = Path(args.output_dir, "checkpoint-1")
            is_there = (folder / "trainer_state.json").exists() and (folder / "rng_state_1.pth").exists()
            print(f"complete when the state was there: {is_there}", flush=True)


class Model(torch.nn.Linear):
    def forward(self, values):
        return {"loss": super().forward(values).square().mean()}


def main(folder: str) -> None:
    options = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "remove_unused_columns": False}
    args = TrainingArguments(folder, max_steps=1, save_steps=1, **options)
    Slow(Model(4, 2), args, train_dataset=[{"values": torch.ones(4)}] * 32, callbacks=[Look()]).train()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
