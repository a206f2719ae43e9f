"""The GPU comparison: the library's eager code, ours and two packages with fused attention, all in one run.

    python -m benchmarks --parts gpu                 # at most 6 minutes on one GPU
    python -m benchmarks --parts gpu --device cpu    # the same code at tiny sizes; its times mean nothing

Every cell first compares each side with the library's eager code (benchmarks/sides.py has the tolerances). A side that
differs, or that fails, is shown as failed, without a time. Each cell is written to results/bench/ when it is done, and
the most wanted come first. No cell starts after 5 minutes: the same command again measures what was left.
"""

import tempfile
import time
from collections.abc import Callable
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
from tokenizers.implementations import BertWordPieceTokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, pipeline

import gpu_emodeberta
from benchmarks import bench_step_parts, bench_training
from benchmarks.bench_mlm import Clock, masked_rows, timed_training
from benchmarks.measure import SIZES, Results, alternate, machine, mixed_texts, peak_bytes, ratio
from benchmarks.sides import (
    BF16_TOLERANCE,
    FLOAT32_TOLERANCE,
    LABELS,
    LIBRARY,
    NO_DROPOUT,
    attempt,
    available,
    check,
    make,
)
from pipeline_emodeberta import EmotionPipeline

# Deciles of the lengths of WASSA 2022's training essays, in MiniLM's tokens: 1,860 essays, 99 on average.
ESSAY_DECILES = [57, 70, 74, 77, 82, 88, 96, 106, 123, 150, 201]
SHAPES = {
    "base": SIZES["base"],
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
CELLS = {"base": 8192, "large": 8192, "tiny": 48}  # texts times length of a batch
FLOAT32_LENGTHS = (24, 256, 1024)  # where float32 is compared, too; flashdeberta has another kernel from 1,024 on
ROUNDS, TIMED_STEPS = {"cuda": 5, "cpu": 1}, {"cuda": 6, "cpu": 1}
START_WITHIN = 300  # seconds, on a GPU
VOCABULARY = {"base": 128_100, "large": 128_100, "tiny": 600}
BATCHES = {"base": (16, 256), "large": (8, 256), "tiny": (2, 24)}  # texts and longest text of a training step


def essay_lengths(rows: int, longest: int) -> list[int]:
    """Return the lengths of `rows` texts with the spread of real essays, the longest first and of `longest` tokens."""
    places = np.linspace(1, 0, rows) if rows > 1 else np.ones(1)
    lengths = np.interp(places, np.linspace(0, 1, len(ESSAY_DECILES)), ESSAY_DECILES) / ESSAY_DECILES[-1]
    return [max(1, round(float(share) * longest)) for share in lengths]


def random_batch(lengths: list[int], vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random ids of these lengths, padded to the longest, with their mask."""
    ids = torch.randint(5, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


# ---- The encoder ----------------------------------------------------------------------------------------------------
@cache
def encoder(side: str, size: str, inference: bool, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a side's encoder with the weights that all sides of this size have; each is made once."""
    return make(side, "encoder", encoder_shape(size), device, dtype, inference, library_state(size, device))


@cache
def library_state(size: str, device: torch.device) -> dict[str, torch.Tensor]:
    return make(LIBRARY, "encoder", encoder_shape(size), device).state_dict()


def encoder_shape(size: str) -> dict:
    return SHAPES[size] | NO_DROPOUT | {"vocab_size": 1000}


def lower_precision(device: torch.device) -> torch.dtype:
    """Return bf16; on a CPU float16, because Triton's interpreter has no bf16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float16


def encoder_cell(size: str, mix: str, length: int, device: torch.device, sides: list[str]) -> dict:
    """Check, then time every side's forward pass and its forward and backward pass, without dropout.

    Two layers of this size are checked on the batch that is timed. Dropout is off, because flashdeberta has none.
    """
    rows = max(2, CELLS[size] // length)
    lengths = essay_lengths(rows, length) if mix == "essays" else [length] * rows
    batch = random_batch(lengths, 1000, device)
    dtype = lower_precision(device)
    dtypes = [torch.float32, dtype] if length in FLOAT32_LENGTHS else [dtype]
    found = {side: {"check": seen} for side, seen in check(sides, encoder_shape(size), batch, device, dtypes).items()}
    direction = torch.randn((rows, length, SHAPES[size]["hidden_size"]), device=device, dtype=dtype)

    def forward(side: str) -> None:
        with torch.inference_mode():
            encoder(side, size, True, device, dtype)(**batch)

    def forward_backward(side: str) -> None:
        model = encoder(side, size, False, device, dtype)
        model.zero_grad()
        model(**batch).last_hidden_state.backward(direction)

    exact = [side for side in sides if str(dtype).removeprefix("torch.") not in found[side]["check"].get("failed", {})]
    for name, run in (("forward", forward), ("forward_backward", forward_backward)):
        for side, timing in timings({side: lambda side=side, run=run: run(side) for side in exact}, device).items():
            found[side][name] = timing
    return {"texts": rows, "tokens": sum(lengths), "precision": str(dtype).removeprefix("torch."), "sides": found}


def timings(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, dict]:
    """Return each side's milliseconds, peak memory, and ratio to the library; or why it failed."""
    found, memory = {}, {}
    for side, run in calls.items():
        _, failure = attempt(run)  # compiles, too, so that no other call is needed before the clock starts
        if failure is None and device.type == "cuda":
            memory[side] = round(peak_bytes(run, device) / 1e6)
        if failure is not None:
            found[side] = {"failed": failure}
    times = alternate(
        {side: run for side, run in calls.items() if side not in found}, ROUNDS[device.type], device, warm_ups=0
    )
    for side, spent in times.items():
        found[side] = {"milliseconds": round(1e3 * float(np.median(spent)), 3)}
        found[side] |= {"peak_megabytes": memory[side]} if side in memory else {}
        found[side] |= ratio(times[LIBRARY], spent) if LIBRARY in times else {}
    return found


# ---- Under Trainer --------------------------------------------------------------------------------------------------
def trainer_cell(kind: str, size: str, device: torch.device, sides: list[str]) -> dict:
    """Train steps of a classifier or a masked-language model under plain `Trainer`, bf16 on a GPU, dropout 0.1.

    Losses of one batch in float32, without dropout, are compared first.
    """
    texts, longest = (8, 128) if (kind, size) == ("mlm", "base") else BATCHES[size]
    vocabulary = VOCABULARY[size]
    shape = SHAPES[size] | {"vocab_size": vocabulary}
    count = texts * (2 + TIMED_STEPS[device.type])
    if kind == "mlm":
        rows, lengths = masked_rows(count, longest, vocabulary), [longest] * texts
    else:
        lengths = essay_lengths(texts, longest)
        whole = [random_batch(lengths, vocabulary, torch.device("cpu")) for _ in range(count // texts)]
        rows = [
            {"input_ids": ids[mask.bool()], "attention_mask": mask[mask.bool()], "labels": torch.tensor(place % LABELS)}
            for batch in whole
            for place, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True))
        ]
    weights = make(LIBRARY, kind, shape, device).state_dict()
    losses, found = {}, {}
    for side in sides:

        def run(side: str = side) -> dict:
            model = make(side, kind, shape, device, inference=True, weights=weights)
            with torch.no_grad():
                batch = {name: value.to(device) for name, value in collate(rows[:texts]).items()}
                losses[side] = model(**batch).loss.item()
            apart = abs(losses[side] / losses[LIBRARY] - 1)
            assert apart < FLOAT32_TOLERANCE, f"the loss differs by {apart:.1e} of the library's"
            del model
            return {"loss_difference": apart} | train(
                make(side, kind, shape, device, weights=weights), rows, texts, device
            )

        timing, failure = attempt(run)
        found[side] = timing if failure is None else {"failed": failure}
    first = found[LIBRARY].get("milliseconds")
    for timing in found.values():
        if first and "milliseconds" in timing:
            timing["ratio"] = round(first / timing["milliseconds"], 3)
    return {"texts": texts, "tokens": sum(lengths), "sides": found}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return rows as one batch, padded to the longest."""
    batch = {
        name: nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
        for name in ("input_ids", "attention_mask")
    }
    return batch | {"labels": torch.stack([row["labels"] for row in rows])}


def train(model: nn.Module, rows: list[dict], texts: int, device: torch.device) -> dict:
    """Return the median milliseconds of [`TIMED_STEPS`] after two others, and the highest memory."""
    clock = Clock()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        args = timed_training(
            folder,
            device,
            max_steps=2 + TIMED_STEPS[device.type],
            per_device_train_batch_size=texts,
            train_sampling_strategy="sequential",
            bf16=device.type == "cuda",
        )
        trainer = Trainer(model, args, collate, rows, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    assert np.isfinite(loss), f"the loss of training is {loss}"
    found = {"milliseconds": round(1e3 * float(np.median(clock.spent[2:])), 2)}
    if device.type == "cuda":
        found["peak_megabytes"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return found


# ---- Strings to labels ----------------------------------------------------------------------------------------------
def labels_cell(size: str, device: torch.device, sides: list[str]) -> dict:
    """Classify strings: `EmotionPipeline` for our sides, the library's pipeline in batches of 32 for the others."""
    texts, source = mixed_texts(None, 300 if size != "tiny" else 12)
    inner = BertWordPieceTokenizer()
    inner.train_from_iterator(texts, vocab_size=2000, show_progress=False)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=512, **special)
    shape, dtype = SHAPES[size] | {"vocab_size": len(tokenizer)}, lower_precision(device)
    weights = make(LIBRARY, "classifier", shape, device).state_dict()

    def classify(side: str, dtype: torch.dtype) -> Callable[..., list]:
        model = make(side, "classifier", shape, device, dtype, inference=True, weights=weights)
        if side.startswith("ours"):
            return EmotionPipeline(model=model, tokenizer=tokenizer, device=device)
        call = pipeline("text-classification", model, tokenizer=tokenizer, device=device)
        return lambda texts, **options: call(texts, batch_size=32, truncation=True, **options)

    def logits(call: Callable[..., list]) -> np.ndarray:
        rows = call(texts, top_k=None, function_to_apply="none")
        return np.array([[x["score"] for x in sorted(row, key=lambda x: x["label"])] for row in rows])

    def apart(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    wanted = logits(classify(LIBRARY, torch.float32))
    limit = BF16_TOLERANCE * apart(logits(classify(LIBRARY, dtype)))
    found, calls = {}, {}
    for side in sides:
        call, failure = attempt(lambda side=side: classify(side, dtype))
        if failure is None:
            seen, failure = attempt(lambda call=call: apart(logits(call)))
        if failure is None and not seen <= limit:
            failure = f"logits differ by {seen:.1e}, the limit is {limit:.1e}"
        if failure is None:
            calls[side] = lambda call=call: call(texts)
        else:
            found[side] = {"failed": failure}
    found |= timings(calls, device)
    for side in calls:
        if "milliseconds" in found[side]:
            found[side]["texts_a_second"] = round(1e3 * len(texts) / found[side]["milliseconds"], 1)
    return {"texts": len(texts), "source": source, "sides": found}


# ---- All of it ------------------------------------------------------------------------------------------------------
Cell = tuple[str, Callable[[], dict], Callable[[str, dict], None]]  # its name, how to measure it, how to show it


def plan(device: torch.device, sides: list[str]) -> list[Cell]:
    """Return all cells, the most wanted first."""
    # flashdeberta drops no attention probabilities, so it would train another function.
    trained = [side for side in sides if side != "flashdeberta"]

    def encoders(size: str, mix: str, *lengths: int) -> list[Cell]:
        return [
            (f"encoder, {size}, {mix}, {n}", lambda n=n: encoder_cell(size, mix, n, device, sides), show)
            for n in lengths
        ]

    def steps(kind: str, size: str) -> Cell:
        return f"training step, {kind}, {size}", lambda: trainer_cell(kind, size, device, trained), show

    def parts(size: str, texts: int) -> Cell:
        name = f"parts of a step, {size}, {texts}"
        return name, lambda: bench_step_parts.measure_step(size, texts, device), bench_step_parts.show

    def labels(size: str) -> Cell:
        return f"strings to labels, {size}", lambda: labels_cell(size, device, sides), show

    def masking(size: str) -> Cell:
        shape, rounds = SHAPES[size] | {"vocab_size": VOCABULARY[size]}, ROUNDS[device.type]
        return (
            f"Child-Tuning, {size}",
            lambda: bench_training.masking_costs(shape, rounds, device),
            bench_training.show_masking,
        )

    if device.type == "cpu":
        cells = [*encoders("tiny", "essays", 24), *encoders("tiny", "full", 24), steps("classifier", "tiny")]
        return [*cells, parts("tiny", 2), steps("mlm", "tiny"), labels("tiny"), masking("tiny")]
    return [
        *encoders("base", "essays", 256, 128, 512, 1024, 2048),
        *(steps("classifier", "base"), parts("xxlarge", 1), steps("classifier", "large"), steps("mlm", "base")),
        *(labels("base"), masking("base")),
        *encoders("base", "essays", 64),
        *encoders("base", "full", 512, 128, 256),
        *encoders("large", "essays", 256, 512, 128),
        parts("xxlarge", 8),
        *encoders("base", "full", 1024, 2048, 64),
        *encoders("large", "full", 512, 256, 128),
        *encoders("large", "essays", 1024, 2048, 64),
        *encoders("large", "full", 1024, 2048, 64),
        *(labels("large"), masking("large")),
    ]


def show(name: str, cell: dict) -> None:
    """Print a cell, one line for each side."""
    tokens = f", {cell['tokens']:,} tokens" if "tokens" in cell else ""
    print(f"\n{name}: {cell['texts']} texts{tokens}", flush=True)
    for side, found in cell["sides"].items():
        said = [f"{kind} failed: {why}" for kind, why in found.get("check", {}).get("failed", {}).items()]
        said += [f"{way}: {describe(found[way])}" for way in ("forward", "forward_backward") if way in found]
        said += [describe(found)] if "failed" in found or "milliseconds" in found else []
        print(f"  {side:20} {'; '.join(said)}", flush=True)


def describe(found: dict) -> str:
    """Return a side's time, its ratio to the library's (above 1 is faster) and its memory; or why it failed."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    more = f", {found['ratio']:.2f}x" if "ratio" in found else ""
    more += f", {found['peak_megabytes']:,} MB" if "peak_megabytes" in found else ""
    return f"{found['milliseconds']:.1f} ms{more}"


def measure(results: Results, device: torch.device) -> None:
    """Measure the cells one after another, and write each to `results` as soon as it is done.

    On a GPU no cell is started after `START_WITHIN` seconds. A line names those that are left.
    """
    began = time.monotonic()
    sides, left_out = available(device)
    for side, reason in left_out.items():
        print(f"left out: {side}: {reason}", flush=True)
    settings = {"sides": sides, "left_out": left_out, "machine": machine(device)}
    later = []
    for name, run, say in plan(device, sides):
        if device.type == "cuda" and time.monotonic() - began > START_WITHIN:
            later.append(name)
            continue
        # The package's kernels are measured where they are not taken by themselves, too.
        with patch.object(gpu_emodeberta, "FLASH_FROM", 0):
            cell, failure = attempt(lambda name=name, run=run: results.part(name, settings, run))
        if failure is None:
            say(name, cell)
        else:
            print(f"\n{name}: failed: {failure}", flush=True)
    if later:
        print(f"\nnot measured in time; run it again for: {'; '.join(later)}", flush=True)
