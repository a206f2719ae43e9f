"""The Space under many callers at once: latency, lost or crossed answers, memory.

A server of its own (space/app.py) with a model of MiniLM's size; `gradio_client` callers as threads of this process, on
the same cores. Every answer is compared with what the pipeline says of its text without a Space.
"""

import csv
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gradio_client import Client
from transformers import AutoTokenizer

from benchmarks.bench_inference import our_model
from benchmarks.bench_streaming import resident
from benchmarks.measure import ROOT, Results, machine
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.training.checkpoint_source import resolve_checkpoint


def serve(folder: Path, log) -> tuple[subprocess.Popen, str]:
    """The process of a Space that shows the model in `folder`, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"EMODEBERTA_MODEL": str(folder), "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen([sys.executable, ROOT / "space" / "app.py"], env=env, stdout=log, stderr=log)
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


def load(callers: int, requests: int) -> dict:
    """Seconds from a request to its answer, and resident size from the first answer to the last."""
    with open(ROOT / "examples" / "essays.tsv", newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")][: callers * requests]
    assert len(set(texts)) == callers * requests
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = our_model("MiniLM", len(tokenizer))
    expected = [
        {entry["label"]: entry["score"] for entry in result}
        for result in EmotionPipeline(model=model, tokenizer=tokenizer)(texts, top_k=None)
    ]
    with tempfile.TemporaryDirectory() as name, open(Path(name, "log"), "w") as log:
        model.save_pretrained(Path(name, "model"))
        tokenizer.save_pretrained(Path(name, "model"))
        process, url = serve(Path(name, "model"), log)
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
                    wrong += any(abs(scores[label] - value) > 1e-3 for label, value in expected[row].items())
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
        f"95% within {row['p95_seconds']:.2f} s, memory of the last tenth / the first {row['last_over_first']:.3f}"
    )
