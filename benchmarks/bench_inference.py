"""Time strings to labels: `EmotionPipeline` against `pipeline("text-classification")` on the library's DeBERTa at the
best of several batch sizes, on mixed real texts.

Weights are random except for the last layer, which is fitted to arbitrary labels of the texts, so that there are
decisions to compare: ours in float32 with the library's attention, and bf16 with float32.
"""

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
    mixed_texts,
    peak_gflops,
    ratio,
)
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.training.checkpoint_source import resolve_checkpoint

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


def measure(results: Results, data_dir: str | None, count: int, rounds: int, device: torch.device) -> None:
    """Return the ratios of both sizes in float32 and bf16 to the library in float32."""
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
