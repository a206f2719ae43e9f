"""Time the encoder against the library's eager one, with the same weights, padded mixed batches and precision.

Hidden states of tokens and gradients are compared first. Ratios are library / ours. `products` is the share of our
time that the matrix products alone would need at the machine's peak, counted over tokens without padding.
"""

import torch

from benchmarks.measure import DEBERTA, SIZES, Results, alternate, encoder_gflop, machine, peak_gflops, ratio
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaModel

LENGTHS = [32, 64, 128, 256, 512]
ROWS = [1, 2, 4, 8, 16, 32]
SIDES = {"library": "eager", "ours": "sdpa"}


def models(device: torch.device, dtype: torch.dtype) -> dict[str, EmoDebertaModel]:
    """Return two models with the same weights: the library's attention and ours.

    The vocabulary is small, because nothing here times it.
    """
    made = {}
    for side, implementation in SIDES.items():
        config = EmoDebertaConfig(**DEBERTA, **SIZES["base"], vocab_size=1000)
        config._attn_implementation = implementation
        torch.manual_seed(0)
        made[side] = EmoDebertaModel(config).to(device, dtype)
    made["ours"].load_state_dict(made["library"].state_dict())
    return made


def batch(length: int, rows: int, device: torch.device) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return texts of half to full length, padded to `length`, and their lengths."""
    ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.linspace(length, length / 2, rows).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, lengths.tolist()


def check_equal(pair: dict[str, EmoDebertaModel], inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict:
    """Return the largest difference of hidden states, and of gradients relative to a parameter's largest."""
    states, gradients = {}, {}
    kept = inputs["attention_mask"].bool()
    for side, model in pair.items():
        model.eval().zero_grad()
        output = model(**inputs).last_hidden_state[kept]
        # Weighted at random: a symmetric loss of normalised states has next to no gradient to compare.
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.device)
        (output.float() * weights).sum().backward()
        with torch.no_grad():  # inference takes another way than training
            states[side] = (output.detach().float(), model(**inputs).last_hidden_state[kept].float())
        gradients[side] = {key: p.grad.float() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    state = max((a - b).abs().max().item() for a, b in zip(*states.values(), strict=True))
    largest = max(want.abs().max() for want in gradients["library"].values())
    gradient = max(
        ((gradients["ours"][key] - want).abs().max() / want.abs().max()).item()
        for key, want in gradients["library"].items()
        if want.abs().max() > 1e-5 * largest  # below, rounding is all there is
    )
    if dtype == torch.float32:
        assert state < 1e-5, f"hidden states differ by {state}"
        assert gradient < 1e-5, f"a gradient differs by {gradient} of its parameter's largest"
    return {"hidden_state_difference": state, "relative_gradient_difference": gradient}


def measure_row(pair, length: int, rows: int, rounds: int, device, dtype, peak: float) -> dict:
    """Time the forward pass in evaluation, and forward and backward in training."""
    inputs, lengths = batch(length, rows, device)
    row = {"length": length, "rows": rows, "tokens": sum(lengths), **check_equal(pair, inputs, dtype)}

    def forward(model):
        with torch.inference_mode():
            model(**inputs)

    def forward_backward(model):
        model.zero_grad()
        model(**inputs).pooler_output.float().sum().backward()

    gflop = encoder_gflop(lengths, SIZES["base"])
    for name, run, training, passes in (
        ("forward", forward, False, 1),
        ("forward_backward", forward_backward, True, 3),
    ):
        for model in pair.values():
            model.train(training)
        sides = {side: lambda model=model, run=run: run(model) for side, model in pair.items()}
        times = alternate(sides, rounds, device)
        best = {side: min(spent) for side, spent in times.items()}
        row[name] = ratio(times["library"], times["ours"])
        row[name]["products"] = round(passes * gflop / peak / best["ours"], 3)
        # Compared with nothing across machines; for the plots of growth.
        row[name]["microseconds_a_token"] = {side: round(1e6 * best[side] / sum(lengths), 1) for side in pair}
    return row


def measure(results: Results, tokens: int, rounds: int, dtypes: list[str], device: torch.device) -> None:
    """Return tables by length, and in float32 by batch size at length 128."""
    for name in dtypes:
        dtype = getattr(torch, name)
        peak = peak_gflops(device, dtype)
        print(f"\nencoder, {name}: library / ours (share of the time that matrix products alone need)", flush=True)
        pair = None
        shapes = [(length, max(2, tokens // length)) for length in LENGTHS]
        shapes += [(128, rows) for rows in ROWS] if name == "float32" else []
        for length, rows in shapes:

            def row(length=length, rows=rows, dtype=dtype, peak=peak):
                nonlocal pair
                pair = pair or models(device, dtype)
                return measure_row(pair, length, rows, rounds, device, dtype, peak)

            settings = {"rounds": rounds, "machine": machine(device)}
            found = results.part(f"encoder, {name}, {rows} x {length}", settings, row)
            shown = ", ".join(
                f"{label} {found[key]['ratio']:.2f} ({found[key]['products']:.0%})"
                for label, key in (("forward", "forward"), ("with backward", "forward_backward"))
            )
            print(f"  {rows:3d} x {length:3d}: {shown}", flush=True)
        results.part(f"peak, {name}", {"machine": machine(device)}, lambda peak=peak: {"gflops": round(peak, 1)})
