"""The Space under many callers at once, before and after it batched them: latency, lost or crossed answers, memory.

A server of its own with a model of MiniLM's size; `gradio_client` callers as threads of this process, on the same
cores. Every answer is compared with what the pipeline says of its text without a Space. The Space of before is read
from git. Alone, with its result in results/bench/: python -m benchmarks.bench_space
"""

import csv
import io
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client
from transformers import AutoTokenizer

from benchmarks.bench_inference import our_model
from benchmarks.bench_streaming import resident
from benchmarks.measure import ROOT, Results, machine, machine_slug
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.precision import choose
from trainer_ext.training.checkpoint_source import resolve_checkpoint

BEFORE = "ffc0351"  # the last commit whose Space answered callers one by one
TOLERANCE = 0.02  # of a probability; texts in one batch or another differ by less, in bf16 too


def serve(folder: Path, log, space: Path = ROOT / "space") -> tuple[subprocess.Popen, str]:
    """Start a Space that shows the model in `folder`, and return its process and address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"EMODEBERTA_MODEL": str(folder), "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen([sys.executable, space / "app.py"], env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return process, url
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError("the Space did not start")


def space_before(folder: Path) -> Path:
    """Unpack the Space of `BEFORE` into a folder."""
    command = ["git", "archive", BEFORE, "space"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")
    return folder / "space"


def load(callers: int, requests: int) -> dict:
    """Return the load of the Space, of the one before, and the times of one long text."""
    with open(ROOT / "examples" / "essays.tsv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")][: callers * requests]
    assert len(set(texts)) == callers * requests
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = our_model("MiniLM", len(tokenizer))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        classify = EmotionPipeline(model=model.to(choose(torch.device("cpu")).dtype), tokenizer=tokenizer)
        expected = [{entry["label"]: entry["score"] for entry in result} for result in classify(texts, top_k=None)]
        before = under_load(folder, space_before(folder), texts, expected, callers)
        now = under_load(folder, ROOT / "space", texts, expected, callers)
        long = one_long_text(folder, " ".join(texts), tokenizer)
    ratio = round(now["answers_per_second"] / before["answers_per_second"], 2)
    return now | {"before": before, "before_commit": BEFORE, "answers_over_before": ratio, "long_text": long}


def one_long_text(folder: Path, text: str, tokenizer) -> dict:
    """Return the seconds until the answer to a text of 1,000 tokens, and until its explanation is there as well."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    text = text[: encoded["offset_mapping"][999][1]]
    with open(folder / "log", "w") as log:
        process, url = serve(folder / "model", log)
        try:
            client = Client(url, verbose=False)
            client.predict("A first text.", api_name="/classify")
            start = time.perf_counter()
            client.predict(text, api_name="/classify")
            answered = time.perf_counter() - start
            explained = client.predict(text, api_name="/explain")
            seconds = time.perf_counter() - start
        finally:
            process.terminate()
            process.wait(30)
    pieces = len(explained["pieces"])
    return {"answer_seconds": round(answered, 2), "explanation_seconds": round(seconds, 2), "pieces": pieces}


def under_load(folder: Path, space: Path, texts: list[str], expected: list[dict], callers: int) -> dict:
    """Return seconds from a request to its answer, and resident size from the first answer to the last."""
    requests = len(texts) // callers
    with open(folder / "log", "w") as log:
        process, url = serve(folder / "model", log, space)
        try:
            clients = [Client(url, verbose=False) for _ in range(callers)]
            seconds, sizes, over = np.zeros((callers, requests)), [], threading.Event()

            def watch() -> None:
                while not over.wait(0.1):
                    sizes.append(resident(process.pid))

            def call(caller: int) -> int:
                wrong = 0
                for turn in range(requests):
                    row = caller * requests + turn
                    start = time.perf_counter()
                    scores = clients[caller].predict(texts[row], api_name="/classify")["scores"]
                    seconds[caller, turn] = time.perf_counter() - start
                    wrong += any(abs(scores[label] - value) > TOLERANCE for label, value in expected[row].items())
                return wrong

            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(lambda client: client.predict(texts[0], api_name="/classify"), clients))
                watcher = threading.Thread(target=watch)
                watcher.start()
                start = time.perf_counter()
                wrong = sum(pool.map(call, range(callers)))
                spent = time.perf_counter() - start
                over.set()
                watcher.join()
        finally:
            process.terminate()
            process.wait(30)
    assert wrong == 0, f"{wrong} answers belong to other texts"
    assert (seconds > 0).all()
    tenths = [float(np.mean(part)) / 1e6 for part in np.array_split(sizes, 10)]
    return {
        "median_seconds": round(float(np.median(seconds)), 3),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 3),
        "answers_per_second": round(callers * requests / spent, 1),
        "megabytes": [round(size, 1) for size in tenths],
        "last_over_first": round(tenths[-1] / tenths[0], 4),
    }


def measure(results: Results, callers: int, requests: int, device) -> None:
    settings = {"callers": callers, "requests": requests, "model": "MiniLM's size", "machine": machine(device)}
    row = results.part("space", settings, lambda: load(callers, requests))
    print(
        f"\nSpace, {callers} callers × {requests}: none lost or crossed, median {row['median_seconds']:.2f} s, "
        f"95% within {row['p95_seconds']:.2f} s, {row['answers_over_before']} times the answers a second of "
        f"before, memory of the last tenth / the first {row['last_over_first']:.3f}; 1,000 tokens: {row['long_text']}"
    )


def main() -> None:
    device = torch.device("cpu")
    target = ROOT / "results" / "bench" / f"space-{machine_slug(device)}.json"
    target.parent.mkdir(exist_ok=True)
    measure(Results(target), 32, 20, device)


if __name__ == "__main__":
    main()
