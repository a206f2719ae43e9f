"""Measure masked-language training: its time and memory against the library's, and the memory of a streamed run.

The time is that of base size with DeBERTa-v3's vocabulary and 8 texts of 128 tokens: the library's
`DebertaV2ForMaskedLM` and `EmoDebertaForMaskedLM`, both with plain `Trainer`. Both start from the same weights and see
the same masks. Their losses are compared before anything is timed. Memory is that of a step beyond weights, gradients
and optimizer state. For it, each side runs in a process of its own: `python -m benchmarks.bench_mlm SIDE DEVICE`.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.measure import (
    DEBERTA,
    ROOT,
    SIZES,
    Results,
    machine,
    measures_memory,
    memory_of_sides,
    peak_bytes,
    ratio,
)
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM
from trainer_ext.files import RESULTS
from trainer_ext.precision import timed

SHAPE = DEBERTA | SIZES["base"] | {"vocab_size": 128_100}
SIDES = {
    "library": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**SHAPE, legacy=False)),
    "ours": lambda: EmoDebertaForMaskedLM(EmoDebertaConfig(**SHAPE)),
}
MASK = 4
TIMED = 2  # steps of each `train()` after the first, which makes the optimizer's state


def masked_rows(count: int, length: int = 128, vocabulary: int = SHAPE["vocab_size"]) -> list[dict[str, torch.Tensor]]:
    """Return random tokens, 15% of them to predict."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (count, length), generator=generator)
    chosen = torch.rand(ids.shape, generator=generator) < 0.15
    labels = ids.where(chosen, -100)
    ids = ids.masked_fill(chosen, MASK)
    return [{"input_ids": a, "attention_mask": torch.ones_like(a), "labels": b} for a, b in zip(ids, labels)]  # noqa: B905


class Clock(TrainerCallback):
    """Times at which each step began and ended."""

    def __init__(self):
        self.began: list[float] = []
        self.spent: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._synchronise()
        self.began.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._synchronise()
        self.spent.append(time.perf_counter() - self.began[-1])

    @staticmethod
    def _synchronise() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def timed_training(folder: str, device: torch.device, **flags: Any) -> TrainingArguments:
    """Return the settings of a training of which only the steps are timed: nothing is saved, logged or evaluated."""
    return TrainingArguments(
        folder,
        learning_rate=1e-5,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        **flags,
    )


def train(model: torch.nn.Module, bf16: bool, device: torch.device) -> list[float]:
    """Return the seconds of `TIMED` steps with `Trainer`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = timed_training(folder, device, max_steps=1 + TIMED, per_device_train_batch_size=8, bf16=bf16)
        Trainer(model, args, train_dataset=masked_rows(8 * (1 + TIMED)), callbacks=[clock]).train()
    return clock.spent[1:]


def one_side(side: str, device: torch.device) -> dict:
    """Return the peak bytes of one step, after a small step that makes gradients and optimizer state."""
    torch.manual_seed(0)
    model = SIDES[side]().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step(count: int, length: int) -> None:
        rows = masked_rows(count, length)
        batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step(1, 16)
    return {"bytes": peak_bytes(lambda: step(8, 128), device)}


def measure(results: Results, rounds: int, device: torch.device) -> None:
    """Measure and print the library's time over ours, and our memory as a share of the library's."""

    def speed() -> dict:
        torch.manual_seed(0)
        models = {side: make().to(device) for side, make in SIDES.items()}
        models["ours"].load_state_dict(models["library"].state_dict())
        batch = {name: torch.stack([row[name] for row in masked_rows(8)]).to(device) for name in masked_rows(1)[0]}
        with torch.no_grad():
            losses = {side: model.eval()(**batch).loss.item() for side, model in models.items()}
        difference = abs(losses["ours"] / losses["library"] - 1)
        assert difference < 1e-5, f"losses differ: {losses}"
        found = {"relative_difference_of_losses": difference}
        for name, bf16 in (("float32", False), ("bf16", True)):
            if bf16 and not timed(device).bf16_is_faster:
                continue  # slower than float32, and never chosen
            times: dict[str, list[float]] = {side: [] for side in models}
            for _ in range(rounds):
                for side, model in models.items():
                    times[side] += train(model, bf16, device)
            tokens = {side: round(8 * 128 / min(spent)) for side, spent in times.items()}
            found[name] = ratio(times["library"], times["ours"]) | {"tokens_per_second": tokens}
        return found

    settings = {"batch": "8 x 128", "vocabulary": SHAPE["vocab_size"], "machine": machine(device)}
    row = results.part("mlm", settings | {"rounds": rounds}, speed)
    print("\nmasked-language training under Trainer, library's time / ours:", flush=True)
    for name in ("float32", "bf16"):
        if name in row:
            print(f"  {name}: {row[name]['ratio']:.2f}", flush=True)
    if measures_memory(device):
        row = results.part("mlm memory", settings, lambda: memory_of_sides("benchmarks.bench_mlm", device))
        print(f"  memory of a step: {row['share']:.0%} of the library's", flush=True)


# ---- `run_mlm.py --streaming` over millions of generated rows: memory in each tenth of the run -----------------------
BATCH = 1000
WORDS = [f"w{number}" for number in range(500)]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def make_checkpoint(folder: Path) -> None:
    """Save a model with one layer of 16 units, and a tokenizer of 500 words."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    DebertaV2ForMaskedLM(DebertaV2Config(**DEBERTA, **shape, vocab_size=505, legacy=False)).save_pretrained(folder)


def make_rows(path: Path, rows: int) -> None:
    """Write texts of 4 to 11 words, all different, piece by piece."""
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            texts = [
                " ".join(WORDS[(row * 7 + place * (row % 491 + 1)) % 500] for place in range(4 + row % 8))
                for row in range(start, min(start + 50_000, rows))
            ]
            writer.write_table(pyarrow.table({"text": texts}, schema))


def resident(pid: int) -> int | None:
    """Return a process's own bytes, including swapped ones, or `None` if it has ended.

    Pages of files do not count. The system frees them at any time, which would hide growth.
    """
    try:
        found = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return None
    return sum(map(int, found)) * 1024 if found else None


def measure_streaming(results: Results, rows: int, device) -> None:
    """Measure and print the mean memory in each tenth of the training."""

    def run() -> dict:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_checkpoint(folder / "model")
            make_rows(folder / "rows.parquet", rows)
            flags = (
                "--streaming --train_file rows.parquet --model_name_or_path model --output_dir out --max_seq_length 16 "
                f"--max_steps {rows // BATCH - 1} --per_device_train_batch_size {BATCH} --max_eval_samples {BATCH} "
                "--save_strategy no --eval_strategy no --use_cpu --bf16 false"
            )
            command = [sys.executable, str(ROOT / "run_mlm.py"), *flags.split()]
            sizes: list[tuple[float, int]] = []
            with open(folder / "log", "wb") as log:
                process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
                while process.poll() is None:
                    size = resident(process.pid)
                    if size:
                        sizes.append((time.time(), size))
                    time.sleep(0.1)
            if process.returncode:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            assert (folder / "out" / RESULTS).exists()
            # Training begins once the model is loaded.
            first = next(at for at, size in sizes if size > 0.9 * statistics.median(size for _, size in sizes))
            during = [size for at, size in sizes if at >= first]
            tenth = len(during) // 10
            tenths = [statistics.mean(during[i * tenth : (i + 1) * tenth]) / 1e6 for i in range(10)]
        return {"megabytes": [round(size, 1) for size in tenths], "last_over_first": round(tenths[-1] / tenths[0], 4)}

    row = results.part("streaming", {"rows": rows, "machine": machine(device)}, run)
    print(f"\nstreaming {rows:,} rows: memory of the last tenth of the run / the first {row['last_over_first']:.3f}")


if __name__ == "__main__":
    print(json.dumps(one_side(sys.argv[1], torch.device(sys.argv[2]))))
