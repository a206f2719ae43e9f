"""A demo of one EmoDeBERTa classifier or ensemble: one text in detail, or a file of many.

Stands alone: a Space has no checkout of the project. Settings come from the environment:

    EMODEBERTA_MODEL            folder, or id on the Hub, whose code (*_emodeberta.py) is run: name one you trust
    EMODEBERTA_REVISION         branch, tag or commit of a model on the Hub
    EMODEBERTA_ABSTAIN_BELOW    probability under which the answer is "not sure", 0.4 unless given
    GRADIO_SERVER_PORT          7860 unless given

Texts are not logged. A session's last text and answer are in memory while it is among the last hundred; uploads and
results of the batch tab are removed within two hours.
"""

import html
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import pandas as pd
import torch
from captum.attr import FeatureAblation
from delimited import UnreadableTable, broken, delimited_rows
from precision import choose
from transformers import pipeline

MAX_CHARACTERS = 20_000
MAX_ROWS = 5_000
MAX_COLUMNS = 200
MAX_FILE_SIZE = "10mb"
# Tokens that the search for the words that count may read: long texts are taken several words at a time.
EXPLANATION_TOKENS = 20_000
# The model takes so many at a time; then it is the next caller's turn.
TURN_CHARACTERS = 10_000
EXAMPLES = [
    "I am so happy today!",
    "They lied to us again, and I am furious.",
    "I keep thinking of my grandmother, and I miss her so much.",
    "The bridge reopens on Tuesday at nine.",
    "I'm scared, there is somebody outside the door.",
]  # written for this project
# What a spreadsheet takes for a formula, in any width, unless it is a number.
FORMULA, NUMBER = tuple("=+-@＝＋－＠"), re.compile(r"\s*[-+]?[0-9]+([.,][0-9]+)*(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
PROGRESS = gr.Progress()
CSS = """
.gradio-container {max-width: 1100px !important; width: 100%; margin: auto}
#essay textarea {font-size: 1.05rem}
#verdict p {font-size: 1.2rem; min-height: 1.6em}
#verdict, #why, #summary, #words {overflow-wrap: anywhere}
#results {max-width: 100%; overflow-x: auto}
"""
# Screen readers say what changes in an element that was marked before it did.
MARK_LIVE = """(...inputs) => {
    for (const id of ["verdict", "why", "summary"]) document.getElementById(id)?.setAttribute("aria-live", "polite");
    return inputs;
}"""


class Classifier:
    """A model behind its own pipeline. Callers take turns, in the order they came.

    Attributes:
        name: Its id on the Hub, or its folder's name.
        labels: In the model's order.
        members: Names of an ensemble's members, else empty.
        several: Whether a text may have several labels.
    """

    def __init__(self, name: str, revision: str | None = None, abstain_below: float = 0.4):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        chosen = choose(device)
        self._pipeline = pipeline(
            "text-classification",
            model=name,
            revision=revision,
            trust_remote_code=True,
            device=device,
            dtype=chosen.dtype,
        )
        config = self._pipeline.model.config
        # Where a folder lies on this machine is nobody's business.
        self.name, self.abstain_below = Path(name).name if Path(name).is_dir() else name, abstain_below
        self.labels = [config.id2label[label] for label in range(config.num_labels)]
        self.members = list(getattr(config, "member_names", None) or [])
        self.several = config.problem_type == "multi_label_classification"
        if config.num_labels < 2 or config.problem_type == "regression":
            raise ValueError("it gives a number; this page shows probabilities of two labels or more")
        self._worker = ThreadPoolExecutor(1)
        print(f"{name}: {', '.join(self.labels)}; on {device}; {chosen}")

    def __call__(self, texts: list[str], abstain_below: float | None = None) -> list[dict[str, Any]]:
        """One answer a text: `label` (best, or all above a half joined by commas), `score`, `sure`, `scores` by label,
        of an ensemble `members` and `disagreement`, and `note` where the text was cut; or only `error`."""
        bar = self.abstain_below if abstain_below is None else abstain_below
        answers = [{"error": wrong} if (wrong := self.problem(text)) else {} for text in texts]
        usable = [index for index, answer in enumerate(answers) if not answer]
        for index, result in zip(usable, self._run([texts[index] for index in usable]), strict=True):
            scores = result["scores"]
            best = max(scores.values())
            lengths = result.pop("lengths")
            answers[index] = {"label": ", ".join(self.given(result)), "score": best, "sure": best >= bar} | result
            tokens, room = max(lengths, key=lambda length: length[0] / length[1])
            if tokens > room:
                answers[index]["note"] = f"The text has {tokens:,} tokens; the model read the first {room:,}."
        return answers

    def given(self, answer: dict[str, Any]) -> list[str]:
        """The labels that an answer's `scores` give: the best, or of several all above a half."""
        scores = answer["scores"]
        above = [name for name, score in scores.items() if score >= 0.5] if self.several else []
        return above or [max(scores, key=scores.get)]

    def problem(self, text: object) -> str | None:
        """What is wrong with a text, in words."""
        if not isinstance(text, str):
            return f"This is no text but {type(text).__name__}; please send a string."
        if len(text) > MAX_CHARACTERS:
            return f"This text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Please shorten it."
        if not text.strip():
            return "There is no text here. Please write a sentence or two."
        try:
            text.encode()
        except UnicodeEncodeError:
            return "This text holds half of a character (a lone surrogate); please send whole Unicode."
        return None

    def explain(self, text: str, label: str) -> list[tuple[str, float]]:
        """The text in pieces (words; of a long text several words), each with how much the probability of `label`
        falls when the piece is left out (Captum's feature ablation)."""
        words = re.findall(r"\s*\S+\s*", text)
        read = max(min(length) for length in self._run([text])[0]["lengths"]) * max(1, len(self.members))
        allowed = min(150, max(16, EXPLANATION_TOKENS // read))
        size = -(-len(words) // allowed)
        pieces = ["".join(words[start : start + size]) for start in range(0, len(words), size)]

        def probability(kept: torch.Tensor) -> torch.Tensor:
            texts = ["".join(piece for piece, keep in zip(pieces, row, strict=True) if keep) for row in kept.tolist()]
            # Nothing at all is no text: it gets the answer of the shortest one.
            results = self._run([text if text.strip() else "." for text in texts])
            return torch.tensor([result["scores"][label] for result in results])

        ablation = FeatureAblation(probability)
        drops = ablation.attribute(torch.ones(1, len(pieces)), perturbations_per_eval=len(pieces))
        return list(zip(pieces, drops[0].tolist(), strict=True))

    def _run(self, texts: list[str]) -> list[dict[str, Any]]:
        """Scores of each text, turn by turn."""
        results: list[dict[str, Any]] = []
        while len(results) < len(texts):
            turn, room = [], TURN_CHARACTERS
            for text in texts[len(results) :]:
                room -= len(text)
                if turn and room < 0:
                    break
                turn.append(text)
            results += self._worker.submit(self._turn, turn).result()
        return results

    @torch.inference_mode()
    def _turn(self, texts: list[str]) -> list[dict[str, Any]]:
        """`scores` by label and `lengths` of each text, by each tokenizer: how many tokens, and how many are read."""
        if self.members:
            results = self._pipeline(texts, return_members=True)
            results = [{key: result[key] for key in ("scores", "members", "disagreement")} for result in results]
        else:
            results = [
                {"scores": {entry["label"]: entry["score"] for entry in sorted(result, key=self._position)}}
                for result in self._pipeline(texts, top_k=None)
            ]
        lengths = []
        for tokenizer in self._pipeline.tokenizers:
            encoded = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
            lengths.append([(len(ids), tokenizer.model_max_length) for ids in encoded])
        return [
            result | {"lengths": list(of_text)}
            for result, of_text in zip(results, zip(*lengths, strict=True), strict=True)
        ]

    def _position(self, entry: dict[str, Any]) -> int:
        return self.labels.index(entry["label"])


def _wrong(message: str) -> gr.Error:
    """An error for the user alone: no traceback in the log."""
    return gr.Error(message, print_exception=False)


# ---- A file of texts ----------------------------------------------------------------------------------------------


def read_table(path: str | None, column: str) -> tuple[pd.DataFrame, str]:
    """Read a csv or tsv, every cell as it is written, and the name of its column of texts.

    Raises:
        gr.Error: in words, if it cannot be read or has no such column.
    """
    if not path:
        raise _wrong("Please choose a csv or tsv file first.")
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".tsv"):
        raise _wrong(f"Please upload a .csv or .tsv file; this one is {html.escape(kind) or 'without an ending'}.")
    header: list[str] = []

    def check(names: list[str]) -> None:
        if len(names) > MAX_COLUMNS:
            raise _wrong(f"The file has {len(names):,} columns; at most {MAX_COLUMNS} are read.")
        header.extend(names)

    rows = []
    try:
        with open(path, "rb") as file:
            for record in delimited_rows(file, kind, check=check):
                if wrong := record.problem or broken(record.values):
                    raise _wrong(html.escape(f"{record.place.capitalize()}: {wrong}.", quote=False))
                rows.append(record.values)
                if len(rows) > MAX_ROWS:
                    raise _wrong(f"The file has more than {MAX_ROWS:,} rows. run_score.py takes any number.")
    except UnreadableTable as error:
        raise _wrong(html.escape(f"The file cannot be read: {error}.", quote=False)) from None
    if not rows:
        raise _wrong("The file has no rows below its header.")
    column = column.strip() or ("text" if "text" in header else header[0] if len(header) == 1 else "")
    if column not in header:
        wanted = f"no column {_names([column])}" if column else 'no column "text"'
        raise _wrong(f"The file has {wanted}; its columns are {_names(header)}.")
    return pd.DataFrame(rows, columns=header), column


def _plain(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula: with an apostrophe before what begins like one."""
    formula = isinstance(cell, str) and cell.lstrip()[:1] in FORMULA and not NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell


def _names(columns: list[str]) -> str:
    """Of a file that anybody may have made, for a message that is shown as HTML."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in columns[:20]]
    return html.escape(", ".join(shown) + (" and more" if len(columns) > 20 else ""), quote=False)


def classify_table(
    classifier: Classifier, path: str | None, column: str, progress: gr.Progress | None = None
) -> tuple[str, pd.DataFrame, dict[str, float], str]:
    """Classify every row of a file.

    Returns:
        Path of a csv with the file's columns and after them `predicted_label`, `predicted_score`, `sure`, a
        `probability_<label>` each, `note` and `error`; cells that a spreadsheet would take for a formula begin with an
        apostrophe there. The same table without these; of the classified rows, the share that has each label; and a
        summary in words.
    """
    table, column = read_table(path, column)
    probabilities = [f"probability_{name}" for name in classifier.labels]
    added = ["predicted_label", "predicted_score", "sure", *probabilities, "note", "error"]
    if taken := [name for name in added if name in table]:
        raise _wrong(f"The file has a column {taken[0]!r} already, which is one of the results'; please rename it.")
    texts, answers = table[column].tolist(), []
    for start in range(0, len(texts), 64):
        if progress is not None:
            progress((start, len(texts)), unit="rows")
        answers += classifier(texts[start : start + 64])
    columns: dict[str, list] = {name: [] for name in added}
    for answer in answers:
        scores = answer.get("scores", {})
        values = [answer.get("label", ""), answer.get("score"), {True: "yes", False: "no"}.get(answer.get("sure"), "")]
        values += [*(scores.get(name) for name in classifier.labels), answer.get("note", ""), answer.get("error", "")]
        for name, value in zip(added, values, strict=True):
            columns[name].append(round(value, 6) if isinstance(value, float) else value)
    table = table.assign(**columns)
    target = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "emotions.csv"
    table.map(_plain).rename(columns=_plain).to_csv(target, index=False)
    classified = [answer for answer in answers if "error" not in answer]
    bad, cut = len(answers) - len(classified), sum("note" in answer for answer in classified)
    unsure = sum(not answer["sure"] for answer in classified)
    summary = f"{len(classified):,} of {len(texts):,} rows classified"
    summary += f", {unsure:,} of them below {classifier.abstain_below:.0%} (not sure)" if unsure else ""
    summary += f"; {cut:,} were cut, see the column note" if cut else ""
    summary += f"; {bad:,} had no text to classify, see the column error" if bad else ""
    count = max(1, len(classified))
    shares = {
        name: sum(name in classifier.given(answer) for answer in classified) / count for name in classifier.labels
    }
    if classified:
        by_share = sorted(shares, key=lambda name: -shares[name])
        summary += ". " + ", ".join(f"{name} {shares[name]:.0%}" for name in by_share)
    return str(target), table, shares, f"{summary}."


# ---- The page -----------------------------------------------------------------------------------------------------


def verdict(answer: dict[str, Any]) -> str:
    """The answer in a sentence, for eyes and screen readers."""
    if "error" in answer:
        return f"<p>{html.escape(answer['error'])}</p>"
    best = f"<strong>{html.escape(answer['label'])}</strong>, {answer['score']:.0%}"
    said = best if answer["sure"] else f"<strong>not sure</strong>; most likely {best}"
    if "disagreement" in answer:
        against = round(answer["disagreement"] * len(answer["members"]))
        count = len(answer["members"])
        said += f". All {count} members agree" if not against else f". {against} of {count} members say otherwise"
    return f"<p>{said}. {html.escape(answer.get('note', ''))}</p>"


def reasons(label: str, pieces: list[tuple[str, float]]) -> str:
    """The words of most weight for and against a label, in a sentence: colours alone tell some readers nothing."""

    def listed(sign: int) -> str:
        strongest = sorted((piece for piece in pieces if sign * piece[1] > 0.005), key=lambda piece: -sign * piece[1])
        return ", ".join(f"“{html.escape(piece.strip())}” ({abs(drop):.0%})" for piece, drop in strongest[:3])

    best = f"<strong>{html.escape(label)}</strong>"
    towards, away = listed(1), listed(-1)
    told = f"Most for {best}, by what its probability loses when they are left out: {towards}. " if towards else ""
    told += f"Most against it, by what it gains: {away}." if away else ""
    return f"<p>{told or f'No single piece carries {best}: leaving one out changes almost nothing.'}</p>"


def build(classifier: Classifier) -> gr.Blocks:
    """The page and its two endpoints, /classify and /classify_batch."""

    def show(text: str, bar: float) -> Iterator[dict]:
        """The answer, and as soon as they are found the words that count."""
        said = classifier([text], bar)[0]
        votes = [[name, vote["label"], vote["score"]] for name, vote in said.get("members", {}).items()]
        yield {answer: verdict(said), bars: said.get("scores"), members: votes, words: [], why: ""}
        if "error" not in said:
            label = max(said["scores"], key=said["scores"].get)
            pieces = classifier.explain(text, label)
            largest = max(abs(drop) for _, drop in pieces) or 1.0
            yield {words: [(piece, drop / largest) for piece, drop in pieces], why: reasons(label, pieces)}

    def classify_many(path: str | None, column: str, progress: gr.Progress = PROGRESS) -> Iterator[tuple]:
        # An old result is not that of a file that fails. (A chart without rows is an error of Gradio's in the browser.)
        none = pd.DataFrame({"label": classifier.labels, "share": 0.0})
        yield gr.DownloadButton(visible=False), None, none, ""
        target, table, shares, told = classify_table(classifier, path, column, progress)
        shown = pd.DataFrame({"label": shares.keys(), "share": shares.values()})
        yield gr.DownloadButton(value=target, visible=True), table, shown, f"<p>{html.escape(told)}</p>"

    def classify(text: str) -> dict:
        """Classify one text.

        Args:
            text: Up to 20,000 characters.

        Returns:
            label, score, sure (score is not under the Space's threshold), scores by label; of an ensemble members and
            disagreement; note if the text was cut. A text that cannot be classified: error, in words, alone.
        """
        return classifier([text])[0]

    def classify_batch(file: gr.FileData, column: str = "") -> gr.FileData:
        """Classify every row of a csv or tsv file.

        Args:
            file: Up to 10 MB and 5,000 rows, with a header.
            column: Of the texts; "text" or the only one unless given.

        Returns:
            A csv with the file's columns, predicted_label, predicted_score, sure, a probability for each label, note
            (of a text that was cut) and error.
        """
        # Gradio does not look at the path of an endpoint without components: only what was uploaded here is read.
        path = Path(str(file.get("path"))) if isinstance(file, dict) else None
        if path is None or not path.resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
            raise _wrong("Please upload a csv or tsv file.")
        if not path.is_file() or not isinstance(column, str | None):
            raise _wrong("Please upload a csv or tsv file, and give the column's name as text.")
        return gr.FileData(path=classify_table(classifier, str(path), column or "")[0])

    with gr.Blocks(title="EmoDeBERTa", delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# EmoDeBERTa\n"
            f"Which emotion does a short English text show? This model (`{classifier.name}`) chooses among "
            f"{', '.join(classifier.labels)}. It is often wrong: do not judge anyone by it. Your texts are not logged."
        )
        with gr.Tab("One text"):
            with gr.Row():
                with gr.Column():
                    essay = gr.Textbox(
                        label="Your text", info="Shift+Enter classifies it", lines=7, max_lines=16, elem_id="essay",
                        placeholder="A sentence or two about something that happened",
                    )  # fmt: skip
                    with gr.Row():
                        clear = gr.Button("Clear")
                        go = gr.Button("Classify", variant="primary")
                    bar = gr.Slider(
                        0, 1, value=classifier.abstain_below, step=0.05, label="Not sure below",
                        info="A best label less probable than this is not given out as the answer",
                    )  # fmt: skip
                    gr.Examples([[text] for text in EXAMPLES], [essay], label="Examples")
                with gr.Column():
                    answer = gr.HTML(elem_id="verdict", padding=True)
                    bars = gr.Label(label="Probability of each label", elem_id="bars", show_heading=False)
                    members = gr.Dataframe(
                        headers=["member", "label", "probability"], datatype=["str", "str", "number"],
                        label="What each member says", visible=bool(classifier.members), interactive=False,
                        elem_id="members",
                    )  # fmt: skip
                    words = gr.HighlightedText(
                        label="Words that moved it: red towards the label, violet away from it", show_legend=True,
                        elem_id="words",
                    )  # fmt: skip
                    why = gr.HTML(elem_id="why")
            outputs = [answer, bars, members, words, why]
            running = gr.on(
                [go.click, essay.submit], show, [essay, bar], outputs,
                concurrency_limit=4, api_visibility="private", js=MARK_LIVE,
            )  # fmt: skip
            clear.click(
                lambda: ("", "", None, [], [], ""), None, [essay, *outputs],
                cancels=[running], api_visibility="private",
            )  # fmt: skip
        with gr.Tab("Many texts"):
            with gr.Row():
                with gr.Column():
                    upload = gr.File(
                        label=f"csv or tsv, at most {MAX_ROWS:,} rows", file_types=[".csv", ".tsv"], elem_id="upload"
                    )
                    column = gr.Textbox(label="Column of the texts", placeholder="text")
                    many = gr.Button("Classify the file", variant="primary")
                    download = gr.DownloadButton("Download the results", visible=False, elem_id="download")
                with gr.Column():
                    summary = gr.HTML(elem_id="summary")
                    chart = gr.BarPlot(
                        x="label", y="share", y_lim=[0, None], label="Share of the rows", elem_id="chart"
                    )
            preview = gr.Dataframe(label="Results", interactive=False, elem_id="results", max_height=420)

            results = [download, preview, chart, summary]
            many.click(
                classify_many, [upload, column], results,
                concurrency_id="file", concurrency_limit=2, api_visibility="private", js=MARK_LIVE,
            )  # fmt: skip
        gr.api(classify, concurrency_limit=4)
        gr.api(classify_batch, concurrency_id="file", concurrency_limit=2)
    return page.queue(max_size=256)


def main() -> None:
    name = os.environ.get("EMODEBERTA_MODEL")
    if not name:
        sys.exit("error: set EMODEBERTA_MODEL to a model's folder or to its id on the Hub")
    bar = os.environ.get("EMODEBERTA_ABSTAIN_BELOW", "0.4")
    if not re.fullmatch(r"[01]|0?\.\d+|1\.0+", bar):
        sys.exit(f"error: EMODEBERTA_ABSTAIN_BELOW is {bar}; want a probability, 0 to 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is removed
    # Of this process alone, so that cleaning up takes no other demo's files.
    with tempfile.TemporaryDirectory(prefix="emodeberta-space-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            classifier = Classifier(name, os.environ.get("EMODEBERTA_REVISION"), float(bar))
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            sys.exit(f"error: {name}: not a model to load ({first})")
        build(classifier).launch(
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            max_file_size=MAX_FILE_SIZE,
            run_history=False,
            state_session_capacity=100,
            ssr_mode=False,
            footer_links=["api", "settings"],
        )


if __name__ == "__main__":
    main()
