"""`run_score.py`: its rate against a loop over the library's pipeline, its memory and time per row over a million rows,
and what each further member of an ensemble costs.

The rate is of rows read, scored and written, after the models are loaded, on mixed real texts. Growth is measured on
generated rows with a tiny model, where reading, tokenising and writing weigh most; time per row from one shard's record
to the next, so that starting Python does not count.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, pipeline

from benchmarks.bench_encoder import LABELS, library_model, our_model
from benchmarks.bench_mlm import make_checkpoint, make_rows, resident
from benchmarks.measure import DEBERTA, ROOT, SIZES, Results, alternate, machine, mixed_texts, ratio
from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import score
from trainer_ext.scoring.text_stream import open_source
from trainer_ext.training.checkpoint_source import resolve_checkpoint

ROWS_PER_SHARD = 1000


def rate(texts: list[str], rounds: int, device: torch.device) -> dict:
    """Return both sides, in float32, of MiniLM's size, with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = our_model("MiniLM", len(tokenizer)).to(device)
    ours = EmotionPipeline(model=model, tokenizer=tokenizer, device=device)
    # The library's class pools another token, so what is compared is its attention under our head.
    sample = texts[:40]
    found = np.array([sorted((x["label"], x["score"]) for x in row) for row in ours(sample, top_k=None)])[..., 1]
    model.config._attn_implementation = "eager"
    wanted = np.array([sorted((x["label"], x["score"]) for x in row) for row in ours(sample, top_k=None)])[..., 1]
    model.config._attn_implementation = "sdpa"
    assert np.abs(found.astype(float) - wanted.astype(float)).max() < 1e-4
    library = pipeline("text-classification", library_model(model).to(device), tokenizer=tokenizer, device=device)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "texts.jsonl")
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        labels = [model.config.id2label[label] for label in range(LABELS)]

        def run() -> None:
            with tempfile.TemporaryDirectory() as output:
                settings = {"rows_per_shard": 10_000, "format": "parquet"}
                folder = ScoreFolder(Path(output, "s"), open_source(str(path)), {"version": ""}, labels, settings, {})
                for number, rows in folder.shards(0, 1):
                    folder.write(number, rows, score(ours, rows, None))

        sides = {"library": lambda: library(texts, batch_size=32, truncation=True), "ours": run}
        times = alternate(sides, rounds, device, warm_ups=0)
    per_second = {side: round(len(texts) / statistics.median(spent), 1) for side, spent in times.items()}
    return ratio(times["library"], times["ours"]) | {"rows_per_second": per_second}


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_model(folder: Path, shape: dict = TINY) -> None:
    """Make a classifier of 500 words with random weights, in the folder `model`."""
    make_checkpoint(folder / "words")
    tokenizer = AutoTokenizer.from_pretrained(folder / "words")
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder / "model")
    config = EmoDebertaConfig(**DEBERTA, **shape, vocab_size=505, classifier_hidden_size=None, num_labels=LABELS)
    EmoDebertaForSequenceClassification(config).save_pretrained(folder / "model")


def growth(rows: int) -> dict:
    """Return the seconds per row, and the mean resident size in each tenth of the run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        make_rows(folder / "rows.parquet", rows)
        flags = f"--model model --input rows.parquet --output scores --rows_per_shard {ROWS_PER_SHARD}"
        command = [sys.executable, str(ROOT / "run_score.py"), *flags.split(), "--dtype", "float32"]
        sizes: list[tuple[float, int]] = []
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            while process.poll() is None:
                if size := resident(process.pid):
                    sizes.append((time.time(), size))
                time.sleep(0.02)
        if process.returncode:
            raise RuntimeError((folder / "log").read_text()[-2000:])
        manifest = json.loads((folder / "scores" / "manifest.json").read_text())
        assert manifest["complete"]
        assert manifest["rows"] == rows
        written = sorted(path.stat().st_mtime for path in (folder / "scores" / ".shards").glob("*.json"))
    during = [size for at, size in sizes if written[0] <= at <= written[-1]]
    tenths = [float(np.mean(part)) / 1e6 for part in np.array_split(during, 10)]
    return {
        "microseconds_a_row": round(1e6 * (written[-1] - written[0]) / (rows - ROWS_PER_SHARD), 2),
        "megabytes": [round(size, 1) for size in tenths],
        "last_over_first": round(tenths[-1] / tenths[0], 4),
    }


def members(texts: list[str], counts: list[int], rounds: int, device: torch.device) -> dict:
    """Return an ensemble's time over that of as many single models, each of MiniLM's size."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    values = our_model("MiniLM", len(tokenizer)).config.to_dict()
    values = {key: values[key] for key in (*DEBERTA, *SIZES["MiniLM"], "vocab_size", "classifier_hidden_size")}
    sides = {}
    for count in counts:
        config = EmoDebertaEnsembleConfig(
            members=[values | {"num_labels": LABELS}] * count,
            member_names=[str(number) for number in range(count)],
            tokenizer_of_member=[0] * count,
            num_labels=LABELS,
            problem_type="single_label_classification",
        )
        model = EmoDebertaEnsembleForSequenceClassification(config).eval().to(device)
        classify = EmotionPipeline(model=model, tokenizer=tokenizer, device=device)
        sides[str(count)] = lambda classify=classify: classify(texts)
    single = EmotionPipeline(
        model=EmoDebertaForSequenceClassification(EmoDebertaConfig(**values, num_labels=LABELS)).eval().to(device),
        tokenizer=tokenizer,
        device=device,
    )
    sides["alone"] = lambda: single(texts)
    times = alternate(sides, rounds, device, warm_ups=0)
    return {
        count: ratio(times[count], [spent * int(count) for spent in times["alone"]])
        for count in sides
        if count != "alone"
    }


def measure(results: Results, data_dir: str | None, full: bool, device: torch.device) -> None:
    """Measure the rate, how memory and time grow with the rows, and ensembles by number of members."""
    shown, count, rounds = machine(device), 300 if full else 40, 3 if full else 1
    texts, source = mixed_texts(data_dir, count)
    settings = {"texts": source, "count": count, "rounds": rounds, "machine": shown}
    row = results.part("scoring", settings, lambda: rate(texts, rounds, device))
    print(f"\nscoring, library's time / ours: {row['ratio']:.2f}, rows a second {row['rows_per_second']}", flush=True)
    for rows in (10_000, 100_000, 1_000_000) if full else (10_000, 50_000):
        part = results.part(f"scoring, {rows:,} rows", {"rows": rows, "machine": shown}, lambda rows=rows: growth(rows))
        print(
            f"  {rows:,} rows: {part['microseconds_a_row']} µs a row, memory of the last tenth / the first "
            f"{part['last_over_first']:.3f}",
            flush=True,
        )
    counts = [1, 2, 4, 8] if full else [1, 2]
    settings |= {"count": min(count, 100)}
    part = results.part("scoring, members", settings, lambda: members(texts[:100], counts, rounds, device))
    for number in map(str, counts):
        print(f"  {number} members / {number} × one model: {part[number]['ratio']:.3f}", flush=True)
