"""Measure what Child-Tuning costs: a training step with F, with D and as published, over the plain step.

There is one model of base size with DeBERTa-v3's vocabulary, one AdamW, and 8 texts of 128 tokens. The sides take
turns, each with its hook on the same optimizer. Masking alone is also timed, on the gradients of such a step.
"""

import math
import statistics

import torch

from benchmarks.measure import DEBERTA, SIZES, Results, alternate, machine, ratio, seconds
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from trainer_ext.child_tuning import ChildNetwork

P = 0.3
VOCABULARY = 128_100


@torch.no_grad()
def publish(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """F as its authors published it: a float mask for each parameter from `torch.distributions`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                mask = torch.distributions.Bernoulli(torch.full_like(parameter.grad, P)).sample()
                parameter.grad.mul_(mask / P)


def compare(shape: dict, rounds: int, device: torch.device) -> dict:
    """Return steps over the plain one, masking alone as a share of it, and the published masking over ours."""
    torch.manual_seed(0)
    config = EmoDebertaConfig(**DEBERTA, **shape, num_labels=7)
    model = EmoDebertaForSequenceClassification(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(5, config.vocab_size, (8, 128), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(8, device=device) % 7

    def loss() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss

    finder = ChildNetwork(optimizer, "D", P)
    finder.remove()
    finder.find(model, [loss()])

    def step(side: str) -> None:
        if side == "published":
            hook = optimizer.register_step_pre_hook(publish)
        else:
            hook = ChildNetwork(optimizer, "none" if side == "plain" else side, P)
            hook.masks = finder.masks if side == "D" else None
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.remove()

    sides = ["plain", "F", "D", "published"]
    times = alternate({side: lambda side=side: step(side) for side in sides}, rounds, device)

    # Masking alone, on gradients of one step; what a mask zeroes is put back, so that all sides see the same.
    loss().backward()
    kept = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    fresh = ChildNetwork(optimizer, "F", P)
    fresh.remove()
    alone: dict[str, list[float]] = {"F": [], "D": [], "published": []}
    masks = {"F": fresh._before_step, "D": finder._before_step, "published": publish}
    for _ in range(rounds):
        for side, mask in masks.items():
            alone[side].append(seconds(lambda mask=mask: mask(optimizer, (), {}), device))
            for p, gradient in zip(model.parameters(), kept, strict=True):
                if gradient is not None:
                    p.grad.copy_(gradient)
    fresh.measure = True
    fresh._before_step(optimizer, (), {})
    share = fresh.kept[0] / fresh.kept[1]
    error = math.sqrt(P * (1 - P) / fresh.kept[1])
    assert abs(share - P) < max(1e-3, 4 * error), f"F keeps {share}"
    zeroed = sum(int((p.grad == 0).sum()) for p in model.parameters() if p.grad is not None)
    assert zeroed > (1 - P) * fresh.kept[1], "the mask did not reach the gradients"
    plain = statistics.median(times["plain"])
    return {
        "step": {side: ratio(times[side], times["plain"]) for side in sides[1:]},
        "masking_alone": {side: round(statistics.median(spent) / plain, 4) for side, spent in alone.items()},
        "published_over_F": ratio(alone["published"], alone["F"]),
        "kept": round(share, 4),
    }


def measure(results: Results, rounds: int, device: torch.device) -> None:
    """Measure the base size, and keep it in `results`."""
    shape = SIZES["base"] | {"vocab_size": VOCABULARY}
    settings = {"batch": "8 x 128", "p": P, "vocabulary": VOCABULARY, "rounds": rounds, "machine": machine(device)}
    show("Child-Tuning", results.part("child tuning", settings, lambda: compare(shape, rounds, device)))


def show(name: str, row: dict) -> None:
    """Print what each variant costs."""
    print(f"\n{name}, cost over the plain step:", flush=True)
    for side, step in row["step"].items():
        alone = row["masking_alone"][side]
        print(f"  {side}: {step['ratio'] - 1:+.1%} of the step; masking alone {alone:.1%}", flush=True)
    print(f"  masking is {row['published_over_F']['ratio']:.1f} times as fast as the published one", flush=True)
