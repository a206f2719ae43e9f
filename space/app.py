"""A demo of one EmoDeBERTa classifier or ensemble: one text in detail, or a file of many.

Stands alone: a Space has no checkout of the project. Settings come from the environment:

    EMODEBERTA_MODEL            folder, or id on the Hub, whose code (*_emodeberta.py) is run: name one you trust
    EMODEBERTA_REVISION         branch, tag or commit of a model on the Hub
    EMODEBERTA_ABSTAIN_BELOW    probability under which the answer is "not sure", the model's own or 0.4 unless given
    GRADIO_SERVER_PORT          7860 unless given

The page is page.html and what is in page/. It calls the endpoints below, as anybody may. Texts are not logged and not
kept. Uploads, whole or broken off, and results are removed an hour after they were written.
"""

import asyncio
import functools
import html
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Thread

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # calls whose times Gradio remembers; 10,000 by default
# PyTorch and oneDNN remember the last 1,024 shapes, a megabyte each. Batches of texts rarely have the same shape twice,
# but the layers of a batch have, and two batches are read at the same time.
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

import gradio as gr
from classifier import MAX_CHARACTERS, Classifier
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from language import UNKNOWN
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from table import MAX_ROWS, classify_table, describe, wrong

HERE = Path(__file__).parent
MAX_FILE_SIZE = "10mb"
MAX_CALL = 2**20  # bytes of a call; 20,000 characters have fewer, however they are written
MAX_WAITING = 256  # callers of /classify
DIRECT = "classify"  # may be called without Gradio's queue, because the classifier has its own
KEPT = 3600  # seconds that a file stays
EXAMPLES = [
    "I am so happy today!",
    "They lied to us again, and I am furious.",
    "I keep thinking of my grandmother, and I miss her so much.",
    "The bridge reopens on Tuesday at nine.",
    "I'm scared, there is somebody outside the door.",
]  # written for this project
# Nothing is loaded from elsewhere, and no script runs that is not a file of ours, whatever a text holds.
SECURITY = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; object-src 'none'"}


# ---- The endpoints ------------------------------------------------------------------------------------------------
def quiet(endpoint: Callable[..., Awaitable]) -> Callable[..., Awaitable]:
    """Log of an endpoint's failure where it happened, without the text that an exception's message may hold."""

    @functools.wraps(endpoint)
    async def call(*args, **kwargs):
        try:
            return await endpoint(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            print(f"error: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}", file=sys.stderr)
            raise wrong("Something went wrong here. Please try again.") from None

    return call


def endpoints(classifier: Classifier) -> list[Callable[..., Awaitable]]:
    """Return the functions that can be called by their names; their docstrings are the API's documentation."""

    async def classify(text: str) -> dict:
        """Classify one text.

        Args:
            text: Up to 20,000 characters.

        Returns:
            label, score, sure, scores by label, tokens; of an ensemble members and disagreement; note of a long text;
            warning if the model does not know most of the text. It is sure if the score is not under the Space's
            threshold and there is no warning. A text that cannot be classified: error, in words, alone.
        """
        if classifier.waiting >= MAX_WAITING:
            return {"error": "Too many callers are waiting. Please try again in a minute."}
        return await asyncio.wrap_future(classifier.submit([text])[0])

    async def explain(text: str) -> dict:
        """Say what in a text speaks for its label.

        Args:
            text: Up to 20,000 characters.

        Returns:
            label; unit, "word" or, of a long text, "sentence"; pieces, each with its text and, of a word, weight (how
            much the label's probability falls without it), of a sentence the label and score that it gets alone.
        """
        return await asyncio.to_thread(classifier.explain, text)

    async def columns(file: gr.FileData) -> dict:
        """Read the header of a csv or tsv file.

        Args:
            file: Up to 10 MB and 5,000 rows, with a header.

        Returns:
            columns, the one that is likely the texts', and the number of rows.
        """
        return await asyncio.to_thread(describe, Path(file["path"]))

    async def classify_batch(file: gr.FileData, column: str = "") -> gr.FileData:
        """Classify every row of a csv or tsv file.

        Args:
            file: Up to 10 MB and 5,000 rows, with a header.
            column: Of the texts; "text" or the only one unless given.

        Returns:
            A csv with the file's columns, predicted_label, predicted_score, sure, a probability for each label, note
            (of a text that is long or unknown to the model) and error (of a row that cannot be read or classified). If
            the file has one of these names itself, the new column gets a number, as in note_2.
        """
        return gr.FileData(
            path=str(await asyncio.to_thread(classify_table, classifier, Path(file["path"]), column or ""))
        )

    return [classify, explain, columns, classify_batch]


class Gate:
    """Lets through calls that have an endpoint's form. Others are told so, and nothing of them is logged."""

    def __init__(self, app: ASGIApp, names: list[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        _, _, path = scope["path"].partition("/gradio_api/")
        action, _, name = path.strip("/").partition("/")
        if action in ("upload", "cancel") and not name:
            return await self._app(scope, receive, send)
        direct = (action, name) == ("run", DIRECT)
        if not (direct or (action == "call" and name in self._names)) and (action, name) != ("queue", "join"):
            return await self._refuse(
                404, f"There is no such call; there are {', '.join(self._names)}.", scope, receive, send
            )
        body, more = b"", True
        while more and len(body) <= MAX_CALL:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_CALL:
            told = f"This is too long; at most {MAX_CHARACTERS:,} characters are read. Please shorten it."
            return await self._refuse(413, told, scope, receive, send)
        if bad := self._problem(body, None if action == "queue" else name, direct):
            return await self._refuse(400, bad, scope, receive, send)
        sent = False

        async def again() -> dict:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self._app(scope, again, send)

    def _problem(self, body: bytes, name: str | None, direct: bool) -> str | None:
        """Return what is wrong with a call; one that is `direct` has its arguments alone."""
        try:
            call = json.loads(body)
            if name is None:
                index = call["fn_index"]
                name = self._names[index] if isinstance(index, int) and index >= 0 else None
            given = call["data"]
        except (ValueError, RecursionError, TypeError, LookupError):
            name = given = None
        if name is None or not isinstance(given, list) or (direct and len(call) > 1):
            return 'Please send a JSON object whose "data" is the list of arguments.'
        if name in ("classify", "explain"):
            fits = len(given) == 1 and not isinstance(given[0], dict | list)
            return None if fits else 'Please send one text, as a string: {"data": ["I am so happy today!"]}.'
        if not 1 <= len(given) <= (2 if name == "classify_batch" else 1):
            return f"Please send {name} an uploaded file" + (" and a column." if name == "classify_batch" else ".")
        folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
        path = given[0].get("path") if isinstance(given[0], dict) else None
        try:  # Gradio would read any other file
            is_ours = isinstance(path, str) and Path(path).resolve().is_relative_to(folder) and Path(path).is_file()
        except (OSError, ValueError):
            is_ours = False
        if not is_ours:
            return "Please upload a csv or tsv file first; an upload is removed after an hour."
        return None if isinstance(given[-1], dict | str | None) else "Please give the column's name as text."

    @staticmethod
    async def _refuse(status: int, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"detail": detail}, status)(scope, receive, send)


# ---- The page -----------------------------------------------------------------------------------------------------
def appearance(labels: list[str]) -> list[dict]:
    """Return each label's colours in both themes and its symbol: an emotion's own, else by its position."""
    palette = json.loads((HERE / "palette.json").read_text(encoding="utf-8"))
    emotions, shapes = palette["emotions"], palette["shapes"]
    shown = []
    for number, label in enumerate(labels):
        name = label.strip().lower()
        found = emotions.get(palette["related"].get(name, name))
        look = found or [*emotions.values()][number % len(emotions)] | {"face": shapes[number % len(shapes)]}
        shown.append({"name": label, **look})
    return shown


def page_of(classifier: Classifier) -> str:
    """Return the page as HTML, with what its script must know."""
    is_on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", classifier.name)
    settings = {
        "labels": appearance(classifier.labels),
        "unsure": json.loads((HERE / "palette.json").read_text(encoding="utf-8"))["unsure"],
        "several": classifier.several,
        "abstainBelow": classifier.abstain_below,
        "thresholds": [*classifier.thresholds.values()],
        "examples": EXAMPLES if "en" in classifier.languages or not classifier.languages else [],
        "languages": classifier.languages,
        "unknown": UNKNOWN,
        "maxCharacters": MAX_CHARACTERS,
        "maxRows": MAX_ROWS,
        "card": f"https://huggingface.co/{classifier.name}" if is_on_hub else None,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for place, value in (
        ("model", html.escape(classifier.name)),
        ("choice", "one or more" if classifier.several else "one"),
        ("count", str(len(classifier.labels))),
        ("rows", f"{MAX_ROWS:,}"),
        ("settings", json.dumps(settings).replace("<", "\\u003c")),
    ):
        page = page.replace("{{" + place + "}}", value)
    return page


def build(classifier: Classifier) -> gr.Server:
    """Return the server of the page and its endpoints."""
    server, page = gr.Server(openapi_url=None, docs_url=None, redoc_url=None), page_of(classifier)

    @server.get("/")
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers=SECURITY)

    server.mount("/page", StaticFiles(directory=HERE / "page"))
    functions = endpoints(classifier)
    limits = {"classify": MAX_WAITING, "explain": 2, "columns": 2, "classify_batch": 2}
    for function in functions:
        name = function.__name__
        server.api(quiet(function), name=name, concurrency_limit=limits[name], queue=name != DIRECT)
    server.add_middleware(Gate, names=[function.__name__ for function in functions])
    return server


def clean(folder: Path, older_than: float) -> None:
    """Remove what was written before a time: uploads, broken-off ones too, and results."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folders
        try:
            if path.lstat().st_mtime < older_than:
                path.rmdir() if path.is_dir() else path.unlink()  # a folder only if it is empty
        except OSError:
            continue


def keep_clean(folder: Path) -> None:
    while True:
        time.sleep(20)
        clean(folder, time.time() - KEPT)


def main() -> None:
    name = os.environ.get("EMODEBERTA_MODEL")
    if not name:
        sys.exit("error: set EMODEBERTA_MODEL to a model's folder or to its id on the Hub")
    bar = os.environ.get("EMODEBERTA_ABSTAIN_BELOW")
    if bar is not None and not re.fullmatch(r"[01]|0?\.\d+|1\.0+", bar):
        sys.exit(f"error: EMODEBERTA_ABSTAIN_BELOW is {bar}; want a probability, 0 to 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is removed
    # Of this process alone, so that cleaning up takes no other demo's files.
    with tempfile.TemporaryDirectory(prefix="emodeberta-space-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            classifier = Classifier(name, os.environ.get("EMODEBERTA_REVISION"), bar and float(bar))
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            sys.exit(f"error: {name}: not a model to load ({first})")
        Thread(target=keep_clean, args=[Path(folder)], daemon=True).start()
        build(classifier).launch(
            max_file_size=MAX_FILE_SIZE, run_history=False, ssr_mode=False, state_session_capacity=100
        )


if __name__ == "__main__":
    main()
