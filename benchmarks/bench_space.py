"""The Space under many callers at once, before and after it batched them: latency, lost or crossed answers, memory.

A server of its own with a model of MiniLM's size; callers as threads of this process, on the same cores. They send
what each Space's page sends: `gradio_client` takes 57 ms of processor time for each call, which is more than the Space
needs for an answer. Every answer is compared with what the pipeline says of its text without a Space. The Space of
before is read from git, and the two have the load in turns. Alone, with its result in results/bench/, in about 10
minutes on two cores: python -m benchmarks.bench_space
"""

import csv
import io
import json
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
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client
from transformers import AutoTokenizer

from benchmarks.bench_encoder import our_model
from benchmarks.bench_mlm import resident
from benchmarks.measure import ROOT, Results, machine, machine_slug
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.precision import choose
from trainer_ext.training.checkpoint_source import resolve_checkpoint

BEFORE = "ffc0351"  # the last commit whose Space answered callers one by one
ROUNDS = 3  # of each Space; memory counts from the second on
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
        spaces = {"before": space_before(folder), "now": ROOT / "space"}
        found = under_load(folder, spaces, texts, expected, callers)
        long = one_long_text(folder, " ".join(texts), tokenizer)
    before, now = found["before"], found["now"]
    ratios = [new / old for new, old in zip(now["rounds"], before["rounds"], strict=True)]
    over = {"answers_over_before": round(float(np.median(ratios)), 2), "ratios": [round(each, 2) for each in ratios]}
    return now | {"before": before, "before_commit": BEFORE, **over, "long_text": long}


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


def sent(line: HTTPConnection, path: str, text: str) -> dict:
    """Return the reply to a text that is sent to a path."""
    line.request("POST", f"/gradio_api/{path}", json.dumps({"data": [text]}), {"Content-Type": "application/json"})
    return json.loads(line.getresponse().read())


def ask(line: HTTPConnection, text: str) -> dict:
    """Return the answer to a text, asked for as the page does."""
    return sent(line, "run/classify", text)["data"][0]


def ask_before(line: HTTPConnection, text: str) -> dict:
    """Return the answer of the Space of before, which has a queue: an event, and then what it gave."""
    event = sent(line, "call/classify", text)["event_id"]
    line.request("GET", f"/gradio_api/call/classify/{event}")
    told = line.getresponse().read().decode()
    return json.loads(told.partition("event: complete\ndata: ")[2].partition("\n")[0])[0]


ASK = {"before": ask_before, "now": ask}


def under_load(
    folder: Path, spaces: dict[str, Path], texts: list[str], expected: list[dict], callers: int
) -> dict[str, dict]:
    """Return of each Space seconds from a request to its answer, answers a second, and resident size over the run.

    The Spaces have the load in turns, `ROUNDS` times.
    """
    requests = len(texts) // callers
    seconds = {name: np.zeros((ROUNDS, callers, requests)) for name in spaces}
    spent: dict[str, list[float]] = {name: [] for name in spaces}
    sizes: dict[str, list[list[int]]] = {name: [] for name in spaces}
    started: dict[str, tuple[subprocess.Popen, str]] = {}

    def call(name: str, turn: int, caller: int) -> int:
        line, wrong = HTTPConnection(started[name][1].split("/")[2], timeout=600), 0
        for request in range(requests):
            row = caller * requests + request
            start = time.perf_counter()
            scores = ASK[name](line, texts[row])["scores"]
            seconds[name][turn, caller, request] = time.perf_counter() - start
            wrong += any(abs(scores[label] - value) > TOLERANCE for label, value in expected[row].items())
        return wrong

    def watch(name: str, over: threading.Event) -> None:
        while not over.wait(0.1):
            sizes[name][-1].append(resident(started[name][0].pid))

    try:
        for name, space in spaces.items():
            with open(folder / f"log-{name}", "w") as log:
                started[name] = serve(folder / "model", log, space)
            ASK[name](HTTPConnection(started[name][1].split("/")[2]), texts[0])
        for turn in range(ROUNDS):
            for name in spaces:
                sizes[name].append([])
                over = threading.Event()
                with ThreadPoolExecutor(callers + 1) as pool:
                    pool.submit(watch, name, over)
                    start = time.perf_counter()
                    wrong = sum(pool.map(lambda caller, name=name, turn=turn: call(name, turn, caller), range(callers)))
                    spent[name].append(time.perf_counter() - start)
                    over.set()
                assert wrong == 0, f"{wrong} answers belong to other texts"
    finally:
        for process, _ in started.values():
            process.terminate()
        for process, _ in started.values():
            process.wait(60)
    assert all((values > 0).all() for values in seconds.values())
    return {name: summary(seconds[name], spent[name], sizes[name]) for name in spaces}


def summary(seconds: np.ndarray, spent: list[float], sizes: list[list[int]]) -> dict:
    """Return the figures of one Space: `seconds` are `(rounds, callers, requests)`."""
    rounds = [seconds[0].size / of_round for of_round in spent]
    tenths = [float(np.mean(part)) / 1e6 for part in np.array_split(np.concatenate(sizes[1:]), 10)]
    return {
        "median_seconds": round(float(np.median(seconds)), 3),
        "p95_seconds": round(float(np.percentile(seconds, 95)), 3),
        "answers_per_second": round(float(np.median(rounds)), 1),
        "rounds": [round(each, 1) for each in rounds],
        "megabytes_first_round": round(float(np.max(sizes[0])) / 1e6, 1),
        "megabytes": [round(size, 1) for size in tenths],
        "last_over_first": round(tenths[-1] / tenths[0], 4),
    }


def measure(results: Results, callers: int, requests: int, device) -> None:
    settings = {"callers": callers, "requests": requests, "rounds": ROUNDS, "model": "MiniLM's size"}
    settings["machine"] = machine(device)
    row = results.part("space", settings, lambda: load(callers, requests))
    print(
        f"\nSpace, {callers} callers × {requests}: none lost or crossed, median {row['median_seconds']:.2f} s, "
        f"95% within {row['p95_seconds']:.2f} s, {row['answers_over_before']} times the answers a second of "
        f"before, memory from the second round on, last tenth / first {row['last_over_first']:.3f}; "
        f"1,000 tokens: {row['long_text']}"
    )


def main() -> None:
    device = torch.device("cpu")
    target = ROOT / "results" / "bench" / f"{machine_slug(device)}.json"
    target.parent.mkdir(exist_ok=True)
    measure(Results(target), 32, 20, device)


if __name__ == "__main__":
    main()
