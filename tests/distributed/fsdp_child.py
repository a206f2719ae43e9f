"""Child-Tuning on parameters sharded by FSDP2 over gloo; two processes, started by torchrun."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer_ext.child_tuning import ChildNetwork

P = 0.3


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


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for variant in ("F", "D"):
        for target in ("gradient", "update"):
            check(variant, target)
    dist.barrier()  # else one process may leave while gloo still talks to it
    dist.destroy_process_group()
