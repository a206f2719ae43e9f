"""Measure the encoder against the library's eager one, with the same weights: time, memory, strings to labels.

Hidden states of tokens and gradients are compared first. Ratios are library / ours. `products` is the share of our
time that the matrix products alone would need at the machine's peak, counted over tokens without padding.

For memory, each side runs in a process of its own: `python -m benchmarks.bench_encoder SIDE DEVICE`. On CPU, the figure
is the process's highest resident size during the step minus that before it (Linux). On CUDA, it is the allocator's.
Weights, gradients and optimizer state do not count.
"""

import json
import sys

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification, pipeline

from benchmarks.measure import (
    DEBERTA,
    SIZES,
    Results,
    alternate,
    encoder_gflop,
    machine,
    measures_memory,
    memory_of_sides,
    mixed_texts,
    peak_bytes,
    peak_gflops,
    ratio,
)
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification, EmoDebertaModel
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.training.checkpoint_source import resolve_checkpoint

# ---- Time ------------------------------------------------------------------------------------------------------------
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
    """Measure the encoder by length, and in float32 also by batch size at length 128; print the ratios."""
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


# ---- Memory of a training step, 8 texts of 512 tokens ----------------------------------------------------------------
def one_side(side: str, device: torch.device) -> dict:
    """Return `{"bytes": ...}`: the peak memory of a training step of one side, `library` or `ours`.

    A small step comes first and is not measured. It allocates gradients and optimizer state.
    """
    pair = models(device, torch.float32)
    model = pair.pop(side).train()
    pair.clear()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step(rows: int, length: int) -> None:
        ids = torch.randint(5, 1000, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
        model(ids, torch.ones_like(ids)).pooler_output.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(1, 8)
    return {"bytes": peak_bytes(lambda: step(8, 512), device)}


def measure_memory(results: Results, device: torch.device) -> None:
    """Measure the memory of a training step of both sides, and print ours as a share of the library's."""
    if not measures_memory(device):
        print("\nmemory: only measured on Linux and CUDA")
        return
    settings = {"batch": "8 x 512", "machine": machine(device)}
    row = results.part("memory", settings, lambda: memory_of_sides("benchmarks.bench_encoder", device))
    print(f"\nmemory of a training step, 8 x 512: ours is {row['share']:.0%} of the library's", flush=True)


# ---- Strings to labels: the library's pipeline against ours ----------------------------------------------------------
LABELS = 7
BATCH_SIZES = [1, 8, 32]
EQUAL = 0.995


def our_model(size: str, vocabulary: int) -> EmoDebertaForSequenceClassification:
    torch.manual_seed(0)
    config = EmoDebertaConfig(
        **DEBERTA,
        **SIZES[size],
        vocab_size=vocabulary,
        initializer_range=0.05,  # of trained weights, about: attention that looks somewhere
        classifier_hidden_size=None,
        num_labels=LABELS,
    )
    return EmoDebertaForSequenceClassification(config).eval()


def library_model(ours: EmoDebertaForSequenceClassification) -> DebertaV2ForSequenceClassification:
    """Return the library's class with the same encoder. Its head pools the first token, at the same cost."""
    options = {key: getattr(ours.config, key) for key in (*DEBERTA, *SIZES["base"], "vocab_size")}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(**options, num_labels=LABELS)).eval()
    model.deberta.load_state_dict(ours.deberta.state_dict())
    return model


def logits(model, tokenizer, texts: list[str], device: torch.device) -> np.ndarray:
    """Return the pipeline's logits `(texts, labels)`."""
    classify = EmotionPipeline(model=model, tokenizer=tokenizer, device=device)
    rows = classify(texts, top_k=None, function_to_apply="none")
    return np.array([[x["score"] for x in sorted(row, key=lambda x: x["label"])] for row in rows])


def fit_last_layer(model, tokenizer, texts: list[str], device: torch.device) -> None:
    """Fit the last layer to an arbitrary label of each text: its length modulo the number of labels."""
    states = []
    hook = model.classifier.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].float().cpu()))
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, return_token_type_ids=False)
        with torch.inference_mode():
            model(**encoded.to(device))
    hook.remove()
    features = torch.cat(states).double()
    mean, scale = features.mean(0), features.std(0)
    targets = np.array([len(text) % LABELS for text in texts])
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit((features - mean) / scale, targets)
    weight = torch.tensor(fitted.coef_) / scale
    with torch.no_grad():
        model.classifier.out_proj.weight.copy_(weight)
        model.classifier.out_proj.bias.copy_(torch.tensor(fitted.intercept_) - weight @ mean)


def measure_inference(results: Results, data_dir: str | None, count: int, rounds: int, device: torch.device) -> None:
    """Measure both sizes in float32 and bf16, and print their ratios to the library in float32."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    texts, source = mixed_texts(data_dir, count)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    settings = {"texts": source, "count": count, "rounds": rounds, "machine": machine(device)}

    def run(size: str) -> dict:
        model = our_model(size, len(tokenizer)).to(device)
        fit_last_layer(model, tokenizer, texts, device)
        wanted = logits(model, tokenizer, texts, device)
        model.config._attn_implementation = "eager"
        difference = float(np.abs(logits(model, tokenizer, texts, device) - wanted).max() / np.abs(wanted).max())
        model.config._attn_implementation = "sdpa"
        assert difference < 1e-4, f"logits differ from the library's attention's by {difference} of the largest"
        library = pipeline("text-classification", library_model(model).to(device), tokenizer=tokenizer, device=device)
        sides = {"ours, float32": EmotionPipeline(model=model, tokenizer=tokenizer, device=device)}
        half = our_model(size, len(tokenizer)).to(device)
        half.load_state_dict(model.state_dict())
        half = half.to(torch.bfloat16)
        agreement = float((logits(half, tokenizer, texts, device).argmax(1) == wanted.argmax(1)).mean())
        sides["ours, bf16"] = EmotionPipeline(model=half, tokenizer=tokenizer, device=device)
        calls = {side: lambda classify=classify: classify(texts) for side, classify in sides.items()}
        for size_of_batch in BATCH_SIZES:
            calls[f"library, {size_of_batch} texts a batch"] = lambda n=size_of_batch: library(
                texts, batch_size=n, truncation=True
            )
        times = alternate(calls, rounds, device, warm_ups=0)
        best = min((side for side in calls if side.startswith("library")), key=lambda side: min(times[side]))
        gflop = encoder_gflop(lengths, SIZES[size])
        row = {"library": best, "logit_difference": difference, "bf16_equal_decisions": agreement}
        for side, name in (("ours, float32", "float32"), ("ours, bf16", "bfloat16")):
            dtype = getattr(torch, name)
            row[name] = ratio(times[best], times[side])
            row[name]["share_of_peak"] = round(gflop / peak_gflops(device, dtype) / min(times[side]), 3)
        return row

    for size in SIZES:
        row = results.part(f"inference, {size}", settings, lambda size=size: run(size))
        print(f"\ninference, {size}, against {row['library']}:", flush=True)
        for name in ("float32", "bfloat16"):
            print(f"  {name}: {row[name]['ratio']:.2f} ({row[name]['share_of_peak']:.0%} of peak)", flush=True)
        print(f"  bf16 decides as float32 in {row['bf16_equal_decisions']:.2%}", flush=True)


if __name__ == "__main__":
    print(json.dumps(one_side(sys.argv[1], torch.device(sys.argv[2]))))
