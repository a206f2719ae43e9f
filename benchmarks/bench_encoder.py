"""Time the encoder's attention against the library's own, on padded mixed batches, both sides in one run.

    python benchmarks/bench_encoder.py --output results/bench-encoder.json

Same weights, same batches, same precision; hidden states and gradients are compared first. Rounds alternate between
the two, and the figure is the median of the rounds' ratios (library / ours: above 1 is faster). The share of the
machine's peak is that of a large matrix product, measured here too; the products counted are those that the library's
algorithm cannot avoid: projections, scores, context and feed-forward.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch

from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaModel

BASE = {  # DeBERTa-v3-base without its vocabulary, which no timing here touches
    "vocab_size": 1000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def models(device: torch.device, dtype: torch.dtype) -> dict[str, EmoDebertaModel]:
    """The library's attention and ours, with the same weights."""
    made = {}
    for name in ("eager", "sdpa"):
        config = EmoDebertaConfig(**BASE)
        config._attn_implementation = name
        torch.manual_seed(0)
        made[name] = EmoDebertaModel(config).to(device, dtype)
    made["sdpa"].load_state_dict(made["eager"].state_dict())
    return made


def batch(length: int, tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows between half and full length, padded to `length`; about `tokens` tokens with padding."""
    rows = max(2, tokens // length)
    ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.linspace(length / 2, length, rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def flops(length: int, rows: int) -> float:
    """Of the unavoidable matrix products of one forward pass."""
    width, inner, layers = BASE["hidden_size"], BASE["intermediate_size"], BASE["num_hidden_layers"]
    tokens = rows * length
    return layers * 2 * tokens * (4 * width * width + 2 * width * inner + 2 * length * width)


def seconds(run, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of a product as large as the feed-forward's."""
    a, b = torch.randn(4096, 768, device=device, dtype=dtype), torch.randn(768, 3072, device=device, dtype=dtype)
    best = min(seconds(lambda: a @ b, device) for _ in range(12))
    return 2 * 4096 * 768 * 3072 / best / 1e9


def check_equal(pair: dict[str, EmoDebertaModel], inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict:
    """Largest difference of hidden states and of gradients; asserted in float32."""
    states, gradients = {}, {}
    for name, model in pair.items():
        model.eval().zero_grad()
        output = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]  # padding counts for nothing
        # Weighted at random: a symmetric loss of normalised states has next to no gradient to compare.
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device)
        (output.float() * weights).sum().backward()
        states[name] = output.detach().float()
        gradients[name] = {key: p.grad.float() for key, p in model.named_parameters() if p.grad is not None}
    state = (states["eager"] - states["sdpa"]).abs().max().item()
    largest = max(want.abs().max() for want in gradients["eager"].values())
    gradient = max(
        ((gradients["sdpa"][key] - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()
        for key, want in gradients["eager"].items()
        if want.abs().max() > 1e-5 * largest  # below, rounding is all there is
    )
    if dtype == torch.float32:
        assert state < 1e-5, f"hidden states differ by {state}"
        assert gradient < 1e-5, f"a gradient differs by {gradient} of its largest entry"
    return {"hidden_state_difference": state, "relative_gradient_difference": gradient}


def measure(length: int, tokens: int, rounds: int, device: torch.device, dtype: torch.dtype, peak: float) -> dict:
    """Forward in evaluation, and forward with backward in training."""
    pair = models(device, dtype)
    inputs = batch(length, tokens, device)
    row = {"length": length, "rows": len(inputs["input_ids"]), **check_equal(pair, inputs, dtype)}

    def forward(model):
        with torch.inference_mode():
            model(**inputs)

    def forward_backward(model):
        model.zero_grad()
        model(**inputs).pooler_output.float().sum().backward()

    for name, run, training, passes in (
        ("forward", forward, False, 1),
        ("forward_backward", forward_backward, True, 3),
    ):
        times: dict[str, list[float]] = {"eager": [], "sdpa": []}
        for round_number in range(rounds + 1):  # the first is the warm-up
            for side, model in pair.items():
                model.train(training)
                spent = seconds(lambda model=model, run=run: run(model), device)
                if round_number:
                    times[side].append(spent)
        ratios = [a / b for a, b in zip(times["eager"], times["sdpa"], strict=True)]
        best = min(times["sdpa"])
        row[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "share_of_peak": round(passes * flops(length, row["rows"]) / best / 1e9 / peak, 3),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--tokens", type=int, default=1024, help="tokens in a batch, padding included")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "encoder": "12 x 768, DeBERTa-v3 options",
        "tables": {},
    }
    for name in args.dtypes:
        dtype = getattr(torch, name)
        peak = peak_gflops(device, dtype)
        rows = []
        print(f"\n{name}: ratio library / ours (share of the matrix-product peak)")
        for length in args.lengths:
            rows.append(measure(length, args.tokens, args.rounds, device, dtype, peak))
            parts = [
                f"{k} {rows[-1][k]['ratio']:.2f} ({rows[-1][k]['share_of_peak']:.0%})"
                for k in ("forward", "forward_backward")
            ]
            print(f"  length {length:4d}, {rows[-1]['rows']:3d} rows: {', '.join(parts)}", flush=True)
        result["tables"][name] = {"peak_gflops": round(peak, 1), "rows": rows}
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
