"""What tests run in two connected processes, as torchrun starts them: `two_processes.py JOB ...`, jobs at the end."""

import hashlib
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from trainer_ext import ChildTuningArguments, ChildTuningTrainer
from trainer_ext.child_tuning import ChildNetwork
from trainer_ext.training.trainer import ResumableTrainer
from trainer_ext.training.warm_start import warm_start

STEPS = 20
P = 0.3


# ---- ChildTuningTrainer under DDP: replicas, and a run resumed from a checkpoint -------------------------------------
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


def replicas_agree(checkpoint: str, folder: str) -> None:
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


# ---- Child-Tuning on parameters sharded by FSDP2 over gloo -----------------------------------------------------------
def sharded_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(2)]
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), *layers, torch.nn.Linear(64, 3))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())  # every process has rows of its own
    return model(torch.randn(4, 5, 16, generator=generator)).float().pow(2).mean()


def check(variant: str, target: str) -> None:
    model = sharded_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    child = ChildNetwork(optimizer, variant, P, target, scope="all", seed=3)
    if variant == "D":
        child.find(model, (loss(model, step) for step in range(3)))
        counts = torch.tensor([sum(int(m.sum()) for m in child.masks), sum(m.numel() for m in child.masks)])
        dist.all_reduce(counts)
        assert abs(counts[0] / counts[1] - P) < 1e-3, counts  # over all shards, not in each
    for step in range(3):
        loss(model, step).backward()
        assert all(isinstance(p.grad, DTensor) for p in model.parameters())
        gradients = [p.grad.to_local().clone() for p in model.parameters()]
        weights = [p.to_local().detach().clone() for p in model.parameters()]
        child.measure = True
        optimizer.step()
        kept, seen = child.kept
        assert seen == sum(gradient.numel() for gradient in gradients)
        if variant == "F":
            assert abs(kept / seen - P) < 4 * (P * (1 - P) / seen) ** 0.5, kept / seen
        bits = []
        for p, gradient, old in zip(model.parameters(), gradients, weights, strict=True):
            if target == "gradient":
                now, scale = p.grad.to_local(), P if variant == "F" else 1
                mask = now != 0
                torch.testing.assert_close(now[mask] * scale, gradient[mask], rtol=1e-4, atol=1e-7)
            else:
                mask = p.to_local() != old
            bits.append(mask.flatten())
        if variant == "D":
            assert not (torch.cat(bits) & ~torch.cat([mask.flatten() for mask in child.masks])).any()
        else:  # independent streams; a matrix of 3 rows is not cut in equal shards
            everyones: list[list[torch.Tensor] | None] = [None, None]
            dist.all_gather_object(everyones, bits)
            pairs = [(one, other) for one, other in zip(*everyones, strict=True) if one.shape == other.shape]
            one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
            assert len(pairs) > 20
            expected = one.float().mean() * other.float().mean()
            assert abs((one & other).float().mean() - expected) < 0.01
        optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"{variant}, {target}: sharded gradients masked on {dist.get_world_size()} processes")


def sharded_gradients_are_masked() -> None:
    dist.init_process_group("gloo")
    for variant in ("F", "D"):
        for target in ("gradient", "update"):
            check(variant, target)


# ---- run_classify.py with its model sharded by FSDP2 on the CPU ------------------------------------------------------
def sharded_classify(*flags: str) -> None:
    """Accelerate shards only beside an accelerator: it is told that these processes are of that kind, and all the rest,
    gloo's collectives included, is real."""
    plain = PartialState.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    import run_classify

    sys.argv = ["run_classify.py", *flags]
    run_classify.main()


# ---- Two processes save a checkpoint, the second slowly: when the state is there, is its random state? ---------------
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


def save_slowly(folder: str) -> None:
    options = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "remove_unused_columns": False}
    args = TrainingArguments(folder, max_steps=1, save_steps=1, **options)
    Slow(Model(4, 2), args, train_dataset=[{"values": torch.ones(4)}] * 32, callbacks=[Look()]).train()


JOBS = {job.__name__: job for job in (replicas_agree, sharded_gradients_are_masked, sharded_classify, save_slowly)}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
    if sys.argv[1] != "sharded_classify":  # which ends its processes itself
        dist.barrier()  # else one process may leave while gloo still talks to it
        dist.destroy_process_group()
