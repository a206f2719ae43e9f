"""What larger backbones need: activation memory of a layer measured at small sizes, the rest by arithmetic.

Each measurement is a process of its own, `python -m benchmarks.bench_scaling WIDTH LAYERS LENGTH`: the peak of a
training step of 1,024 tokens in float32, beyond weights, gradients and optimizer state. Two depths give a layer's part,
two widths and two lengths divide it into what grows with the width and what grows with heads times length.

On a GPU the models themselves take steps, whole, with random weights, as their recipes say.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.bench_step_parts import XXLARGE
from benchmarks.measure import DEBERTA, ROOT, Results, machine, measures_memory, peak_bytes
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from run_classify import EmotionTrainer
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS
from trainer_ext.training.large_models import add_lora

TOKENS = 1024
WARM_UP_STEPS, TIMED_STEPS = 3, 10
VOCABULARY = 128_100
WIDTHS, DEPTHS, LENGTHS = (384, 768), (2, 4), (128, 512)
HEAD_WIDTH = 64
# Recipe, its sizes, texts a step, length, LoRA's rank, activation checkpointing.
MODELS = {
    "DeBERTa-v3-base": ("deberta_v3_base", {"hidden_size": 768, "num_hidden_layers": 12}, 16, 256, None, False),
    "DeBERTa-v3-large": ("deberta_v3_large", {"hidden_size": 1024, "num_hidden_layers": 24}, 8, 256, None, False),
    "DeBERTa-v2-xxlarge": ("paper_xxlarge", XXLARGE, 1, 512, None, True),
    "DeBERTa-v2-xxlarge, LoRA": ("xxlarge_lora", XXLARGE, 16, 256, 16, True),
}
ESSAYS, ESSAY_TOKENS = 1860, 99  # WASSA's training set, MiniLM's tokens
GPU_TERAFLOPS = 40  # what a GPU of 24 GB may reach in bf16, about a quarter of its peak: an assumption


def config(sizes: dict, vocabulary: int) -> EmoDebertaConfig:
    """Return a configuration with DeBERTa's options, heads of 64, and feed-forward layers of four times the width."""
    width = sizes["hidden_size"]
    shape = {"num_attention_heads": width // HEAD_WIDTH, "intermediate_size": 4 * width, "vocab_size": vocabulary}
    return EmoDebertaConfig(**DEBERTA | shape | sizes, num_labels=7)


def one_step(width: int, layers: int, length: int) -> int:
    """Return the peak bytes of one step, after a small one that makes gradients and optimizer state."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers}
    model = EmoDebertaForSequenceClassification(config(sizes, 1000)).train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step(rows: int, length: int) -> None:
        ids = torch.randint(5, 1000, (rows, length))
        model(ids, torch.ones_like(ids), labels=torch.zeros(rows, dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(1, 8)
    return peak_bytes(lambda: step(TOKENS // length, length), torch.device("cpu"))


class StepTimes(TrainerCallback):
    """When each optimizer step was over, the device's queue emptied."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def real_steps(name: str) -> dict:
    """Time optimizer steps of one of [`MODELS`] on the GPU, under its recipe's flags, on texts of full length.

    Returns:
        The highest memory that tensors took, weights and all; what the allocator held; the median step's seconds, and
        tokens a second; the mean loss.
    """
    recipe, sizes, texts, length, rank, _ = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        steps = WARM_UP_STEPS + TIMED_STEPS
        flags = f"--max_steps {steps} --logging_steps {steps} --eval_strategy no --save_strategy no --disable_tqdm true"
        flags = ["--output_dir", folder, *flags.split()]
        model_args, *_, args = RecipeParser(CLASSIFY_ARGUMENTS).parse([str(ROOT / f"recipes/{recipe}.yaml"), *flags])
        assert (args.per_device_train_batch_size, model_args.lora_rank) == (texts, rank), f"{recipe}.yaml has changed"
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = EmoDebertaForSequenceClassification(config(sizes, VOCABULARY))
        if rank is not None:
            add_lora(model, rank)
        count = texts * args.gradient_accumulation_steps * args.max_steps
        rows = [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": number % 7}
            for number, ids in enumerate(torch.randint(5, VOCABULARY, (count, length)))
        ]
        times = StepTimes()
        trainer = EmotionTrainer(model, args, train_dataset=rows, callbacks=[times])
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    spent = statistics.median(np.diff(times.ends)[WARM_UP_STEPS - 1 :])
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(loss), f"{name}: loss {loss}"
    tokens = texts * args.gradient_accumulation_steps * length
    return {
        "batch": f"{texts} x {args.gradient_accumulation_steps} x {length}",
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "reserved_gigabytes": round(torch.cuda.max_memory_reserved() / 1e9, 1),
        "seconds_a_step": round(float(spent), 4),
        "tokens_a_second": round(tokens / float(spent)),
        "mean_loss": round(loss, 3),
    }


def measure(results: Results, device: torch.device) -> None:
    """Measure bytes per token and layer, with their two coefficients, on a CPU, or the models' own steps on a GPU."""
    if device.type == "cuda":
        for name in MODELS:
            settings = {"steps": TIMED_STEPS, "machine": machine(device)}
            row = results.part(f"steps, {name}", settings, lambda name=name: _in_a_process(name))
            print(f"\n{name}: {row['peak_gigabytes']} GB, {row['tokens_a_second']:,} tokens a second", flush=True)
        return
    if not measures_memory(device):
        print("\nscaling: only measured on Linux and CUDA")
        return

    def run() -> dict:
        layers = []
        for width in WIDTHS:
            for length in LENGTHS:
                peaks = [_in_a_process(width, depth, length) for depth in DEPTHS]
                of_layer = (peaks[1] - peaks[0]) / (DEPTHS[1] - DEPTHS[0]) / TOKENS
                layers.append({"width": width, "length": length, "bytes_a_token_and_layer": round(of_layer)})
        design = np.array([[row["width"], row["width"] // HEAD_WIDTH * row["length"]] for row in layers], dtype=float)
        want = np.array([row["bytes_a_token_and_layer"] for row in layers], dtype=float)
        # Relative errors: a small width counts as much as a large one.
        found, *_ = np.linalg.lstsq(design / want[:, None], np.ones(len(want)), rcond=None)
        error = float(np.abs(design @ found / want - 1).max())
        return {
            "layers": layers,
            "bytes_of_width": round(float(found[0]), 2),
            "bytes_of_heads_and_length": round(float(found[1]), 2),
            "largest_relative_error": round(error, 3),
        }

    row = results.part("scaling", {"tokens": TOKENS, "machine": machine(device)}, run)
    print(f"\nscaling: {row['bytes_of_width']} bytes x width + {row['bytes_of_heads_and_length']} x heads x length")


def _in_a_process(*arguments: int | str) -> int | dict:
    command = [sys.executable, "-m", "benchmarks.bench_scaling", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plan(name: str, coefficients: dict) -> dict[str, float]:
    """Return parameters, gigabytes and seconds of one of [`MODELS`], by arithmetic."""
    _, sizes, texts, length, rank, checkpointing = MODELS[name]
    of_model = config(sizes, VOCABULARY)
    with torch.device("meta"):
        model = EmoDebertaForSequenceClassification(of_model)
        if rank is not None:
            add_lora(model, rank)
    everything = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    encoder = sum(weight.numel() for name, weight in model.named_parameters() if ".layer." in name)
    width, layers, tokens = of_model.hidden_size, of_model.num_hidden_layers, texts * length
    pairs = of_model.num_attention_heads * length * coefficients["bytes_of_heads_and_length"]
    of_layer = (width * coefficients["bytes_of_width"] + pairs) / 2  # bf16
    kept = (2 * width * layers + of_layer) if checkpointing else of_layer * layers
    flop = ESSAYS * ESSAY_TOKENS * encoder * (8 if checkpointing else 6)
    return {
        "parameters": everything,
        "of_layers": encoder,
        "trained": trained,
        "weights": 4 * everything / 1e9,
        "bf16_weights": 2 * everything / 1e9,
        "gradients_and_optimizer": 12 * trained / 1e9,
        "activations": tokens * kept / 1e9,
        "seconds_an_epoch": flop / (GPU_TERAFLOPS * 1e12),
    }


if __name__ == "__main__":
    print(json.dumps(real_steps(sys.argv[1]) if sys.argv[1] in MODELS else one_step(*map(int, sys.argv[1:4]))))
