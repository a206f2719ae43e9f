"""Where a training step spends its time: forward, backward, clipping, masking, optimizer.

The step is that of recipes/paper_xxlarge.yaml: bf16 autocast over float32 weights, activation checkpointing, clipping,
Child-Tuning F, fused AdamW, texts of 512 tokens. On a GPU every part has its wall-clock time, the time that its kernels
ran (`busy`), and their number. What is left of the wall-clock time is spent starting them.

Without a GPU the operations of a step are counted, which needs no wide layers: `python -m benchmarks.bench_step_parts`
writes to results/bench/<machine>.json.
"""

import time
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

import attention_emodeberta
import kernels_emodeberta
from benchmarks.measure import DEBERTA, ROOT, Results, machine_slug
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from trainer_ext.child_tuning import ChildNetwork

XXLARGE = {"hidden_size": 1536, "num_hidden_layers": 48, "conv_kernel_size": 3, "conv_act": "gelu"}
SHAPES = {
    "xxlarge": XXLARGE | {"num_attention_heads": 24, "intermediate_size": 6144, "vocab_size": 128_100},
    "tiny": XXLARGE
    | {"hidden_size": 48, "num_hidden_layers": 2}
    | {"num_attention_heads": 24, "intermediate_size": 96, "vocab_size": 100},
}
LENGTH = 512
PARTS = ["forward", "backward", "clipping", "masking", "optimizer"]
P, CLIP = 0.3, 1e-6
# Bytes that a step moves for each weight, float32 weights under bf16 autocast with activation checkpointing: `layers`
# only for weights of the layers, `all` for every one.
BYTES = {
    # Read the weight and write its bf16 copy, read this for the product.
    "forward": {"layers": 4 + 2 + 2, "all": 0},
    # The same for the forward pass that checkpointing repeats; read the copy for the states' gradient, write the
    # weight's in bf16, read it and write it in float32.
    "backward": {"layers": 4 + 2 + 2 + 2 + 2 + 2 + 4, "all": 0},
    # Read for the norm; read and write to scale.
    "clipping": {"layers": 0, "all": 4 + 4 + 4},
    # Draw 16 bits, read them and write a mask of bytes, widen it to integers, multiply by it, divide.
    "masking": {"layers": 0, "all": 2 + 2 + 1 + 1 + 4 + 4 + 4 + 4 + 4 + 4},
    # Read weight, gradient and two moments; write weight and moments.
    "optimizer": {"layers": 0, "all": 16 + 12},
}
# An H200's data sheet: bytes a second, and bf16 operations a second of dense matrix products.
PEAK_BYTES, PEAK_OPERATIONS = 4.8e12, 989e12
WARM_UPS, ROUNDS = {"cuda": 3, "cpu": 0}, {"cuda": 5, "cpu": 1}


class Step:
    """A model and all that a step of it needs."""

    def __init__(self, shape: dict, texts: int, length: int, device: torch.device, checkpointing: bool = True):
        torch.manual_seed(0)
        with device:
            config = EmoDebertaConfig(**DEBERTA | shape, num_labels=7)
            self.model = EmoDebertaForSequenceClassification(config).train()
            self.ids = torch.randint(5, config.vocab_size, (texts, length))
            self.labels = torch.arange(texts) % 7
        if checkpointing:
            self.model.activation_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.network = ChildNetwork(self.optimizer, "F", P)
        self.network.remove()  # its hooks; masking is called here as a part of its own
        self.loss = None

    def run(self, part: str) -> None:
        """Run one of `PARTS`; all of them in order are a step."""
        if part == "forward":
            with torch.autocast(self.ids.device.type, torch.bfloat16):
                self.loss = self.model(self.ids, torch.ones_like(self.ids), labels=self.labels).loss
        elif part == "backward":
            self.loss.backward()
        elif part == "clipping":
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        elif part == "masking":
            self.network._before_step(self.optimizer, (), {})
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.network.step += 1


def measure_step(size: str, texts: int, device: torch.device) -> dict:
    """Return the median milliseconds of a whole step and of each of its parts; on a GPU also memory and kernels.

    Args:
        size: A key of `SHAPES`.
        texts: Texts per step.

    Returns:
        `texts`, `length`, `milliseconds`, and `parts` with `milliseconds` by name. On a GPU also `peak_megabytes`, and
        for each part the number of `kernels` and the `busy_milliseconds` in which one of them ran.
    """
    length = LENGTH if size != "tiny" else 24
    step = Step(SHAPES[size], texts, length, device)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    spent = {part: [] for part in [*PARTS, "all"]}
    for number in range(WARM_UPS[device.type] + ROUNDS[device.type]):
        times = {}
        for part in PARTS:
            synchronise()
            start = time.perf_counter()
            step.run(part)
            synchronise()
            times[part] = time.perf_counter() - start
        start = time.perf_counter()
        for part in PARTS:  # once more without waiting between the parts, as in a training
            step.run(part)
        synchronise()
        times["all"] = time.perf_counter() - start
        if number >= WARM_UPS[device.type]:
            for part, seconds in times.items():
                spent[part].append(1e3 * seconds)
    parts = {part: {"milliseconds": round(float(np.median(spent[part])), 2)} for part in PARTS}
    found = {"texts": texts, "length": length, "milliseconds": round(float(np.median(spent["all"])), 2), "parts": parts}
    if device.type == "cuda":
        found["peak_megabytes"] = round(torch.cuda.max_memory_allocated() / 1e6)
        for part in PARTS:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                step.run(part)
                synchronise()
            kernels = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
            parts[part]["busy_milliseconds"] = round(sum(event.time_range.elapsed_us() for event in kernels) / 1e3, 2)
            parts[part]["kernels"] = len(kernels)
    return found


def show(name: str, found: dict) -> None:
    """Print the parts of a step."""
    print(f"\n{name}: {found['milliseconds']:.1f} ms for {found['texts']} x {found['length']} tokens", flush=True)
    for part, row in found["parts"].items():
        busy = (
            f", kernels busy {row['busy_milliseconds']:.1f} ms, {row['kernels']:,} of them" if "kernels" in row else ""
        )
        print(f"  {part:10} {row['milliseconds']:.1f} ms{busy}", flush=True)


# ---- Without a GPU: arithmetic ---------------------------------------------------------------------------------------
def least_milliseconds(weights: int, of_layers: int, tokens: int) -> dict[str, float]:
    """Return what each part takes at the peak of an H200, if it moved its bytes and then multiplied.

    Args:
        weights, of_layers: Number of all weights, and of those in the layers.
        tokens: Tokens of a step. Each needs 2 operations a weight of the layers in a forward pass, which checkpointing
            repeats, and 4 in the backward pass.
    """
    passes = {"forward": 2, "backward": 2 + 4}
    return {
        part: 1e3 * (moved["layers"] * of_layers + moved["all"] * weights) / PEAK_BYTES
        + 1e3 * passes.get(part, 0) * of_layers * tokens / PEAK_OPERATIONS
        for part, moved in BYTES.items()
    }


# ---- Without a GPU: operations ---------------------------------------------------------------------------------------
class Operations(TorchDispatchMode):
    """A counter of the operations that would start a kernel: all but views and allocations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if not (function.is_view or "empty" in name or name.startswith(("aten::_unsafe_view", "aten::detach"))):
            self.count += 1
        return function(*args, **(kwargs or {}))


def count_operations(texts: int, layers: int, checkpointing: bool) -> dict[str, int]:
    """Return the number of operations of each part of a step of a narrow xxlarge with this many layers, as on a GPU.

    There, dropout is one operation and texts are one group. Masks are drawn by numpy on a CPU; on a GPU each parameter
    has two operations more. Only a single text is worked on in blocks, so for several ones the length does not matter.
    """
    shape, length = SHAPES["tiny"] | {"num_hidden_layers": layers}, LENGTH if texts == 1 else 16
    step, found = Step(shape, texts, length, torch.device("cpu"), checkpointing), {}
    with (
        patch.object(kernels_emodeberta.Dropout, "forward", nn.Dropout.forward),
        patch.object(attention_emodeberta, "GROUP_BYTES", 2**40),
    ):
        for part in PARTS:
            step.run(part)  # the first step makes the optimizer's state
        for part in PARTS:
            with Operations() as counter:
                step.run(part)
            found[part] = counter.count
    found["masking"] += 2 * sum(1 for _ in step.model.parameters())
    return found


def operations(texts: int, checkpointing: bool) -> dict[str, int]:
    """Return the operations of each part of a step of xxlarge: its layers are alike, so two depths tell of all."""
    few, more = (count_operations(texts, layers, checkpointing) for layers in (2, 3))
    return {part: few[part] + (XXLARGE["num_hidden_layers"] - 2) * (more[part] - few[part]) for part in PARTS}


def main() -> None:
    results = Results(ROOT / "results" / "bench" / f"{machine_slug(torch.device('cpu'))}.json")
    for texts in (1, 8):
        for checkpointing in (True, False):
            settings = {"length": LENGTH, "checkpointing": checkpointing, "torch": torch.__version__}
            name = f"operations, xxlarge, {texts} x {LENGTH}" + ("" if checkpointing else ", without checkpointing")
            found = results.part(name, settings, lambda n=texts, c=checkpointing: {"operations": operations(n, c)})
            print(name, found["operations"], flush=True)


if __name__ == "__main__":
    main()
