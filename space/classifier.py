"""A model behind its own pipeline. Texts that wait together are read in one batch, whoever sent them."""

import re
import sys
import unicodedata
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import torch
import yaml
from huggingface_hub.repocard import metadata_load
from language import Languages
from precision import choose
from transformers import pipeline
from transformers.utils import cached_file

MAX_CHARACTERS = 20_000
# A batch holds about this many characters. Then the next texts have their turn.
TURN_CHARACTERS = 10_000
# Batches that are read at the same time, each by its share of the cores.
READERS = 2
# Tokens that an explanation by words may read. A longer text is explained by its sentences.
EXPLANATION_TOKENS = 8_000
LONGEST_SENTENCE = 60  # words; a text without full stops is cut here
MOST_SENTENCES = 200
ENDS, QUOTES = (".", "!", "?", "…", "。", "！", "？", "؟", "।"), "\"'”’»)]*_"
NO_TEXT = "There is no text here. Please write a sentence or two."


class Classifier:
    """A model and the texts that wait for it.

    Attributes:
        name: Its id on the Hub, or its folder's name.
        labels: In the model's order.
        members: Names of an ensemble's members, else empty.
        several: Whether a text may have several labels.
        thresholds: By label, the probability from which it counts, if a text may have several.
        abstain_below: The probability under which an answer is not sure: the argument, else the model's own, else 0.4.
        languages: ISO 639 codes of the texts that it was made for; empty if its card does not say.
    """

    def __init__(self, name: str, revision: str | None = None, abstain_below: float | None = None):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        # On two cores, a batch has one thread: threads that wait for one another on a busy machine cost a hundredfold.
        torch.set_num_threads(max(1, torch.get_num_threads() // READERS))
        chosen = choose(device)
        self._pipeline = pipeline(
            "text-classification",
            model=name,
            revision=revision,
            trust_remote_code=True,
            device=device,
            dtype=chosen.dtype,
        )
        if not hasattr(self._pipeline, "tokenizers"):
            raise ValueError("it lacks the code of this project; want a model of run_classify.py or run_fuse.py")
        config = self._pipeline.model.config
        # Visitors must not learn where a folder is on this machine.
        self.name = Path(name).name if Path(name).is_dir() else name
        self.labels = [config.id2label[label] for label in range(config.num_labels)]
        # An ensemble has neither of the two. A label that reaches its threshold is sure enough.
        own, thresholds = (getattr(config, name, None) for name in ("abstain_below", "label_thresholds"))
        own = min(0.4, *thresholds or [0.4]) if own is None else own
        self.abstain_below = own if abstain_below is None else abstain_below
        self.thresholds = dict(zip(self.labels, thresholds or [0.5] * len(self.labels), strict=True))
        self.members = list(getattr(config, "member_names", None) or [])
        self.several = config.problem_type == "multi_label_classification"
        if config.num_labels < 2 or config.problem_type == "regression":
            raise ValueError("it gives a number; this page shows probabilities of two labels or more")
        self.languages = languages_of(name, revision)
        self._language = Languages(self.languages)
        self._options = {"return_members": True} if self.members else {"top_k": None}
        # Windows need one tokenizer: several would cut a text at different places.
        self._has_windows = len(self._pipeline.tokenizers) == 1 and self._pipeline.tokenizer.is_fast
        self._callers: deque[deque[tuple[str, Future]]] = deque()
        self._changed = Condition()
        for _ in range(READERS):
            Thread(target=self._work, daemon=True).start()
        print(f"{name}: {', '.join(self.labels)}; on {device}; {chosen}")

    @property
    def waiting(self) -> int:
        """Return how many callers have texts that wait."""
        return len(self._callers)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """Wait for the answers to texts and return them, one per text; [`submit`] says what is in one."""
        return [future.result() for future in self.submit(texts)]

    def submit(self, texts: list[str]) -> list[Future]:
        """Return the coming answers to one caller's texts.

        An answer has `label` (the best, or all that reach their thresholds joined by commas), `score`, `sure`, `scores`
        by label and the number of `tokens`. An ensemble's has `members` and `disagreement`, a long text's has `note`.
        Of several labels, an answer is sure only if one reaches its threshold, as the model's own pipeline gives it.
        `warning` says that the model does not know most of a text, and then the answer is not sure. An answer to what
        cannot be classified has only `error`.
        """
        futures: list[Future] = [Future() for _ in texts]
        usable: deque[tuple[str, Future]] = deque()
        for text, future in zip(texts, futures, strict=True):
            if wrong := problem(text):
                future.set_result({"error": wrong})
            else:
                usable.append((text, future))
        if usable:
            with self._changed:
                self._callers.append(usable)
                self._changed.notify()
        return futures

    def given(self, answer: dict[str, Any]) -> list[str]:
        """Return the labels that an answer's `scores` give: the best, or of several all that reach their thresholds."""
        scores = answer["scores"]
        above = [name for name, score in scores.items() if score >= self.thresholds[name]] if self.several else []
        return above or [max(scores, key=scores.get)]

    def explain(self, text: str) -> dict[str, Any]:
        """Say what in a text speaks for its best label.

        Returns:
            `label`, `unit` and `pieces`, which together are the text. Of a short text the unit is `word`, and a piece's
            `weight` is how much the probability of the label falls without it. Of a long one it is `sentence`, and a
            piece has the best `label` and its `score` alone. Or only `error`.
        """
        (answer,) = self([text])
        if "error" in answer:
            return answer
        label = max(answer["scores"], key=answer["scores"].get)
        words, without = self._pipeline.without_each_word(text)
        if len(words) * answer["tokens"] * max(1, len(self.members)) > EXPLANATION_TOKENS:
            parts = sentences(words)
            scores = [answer.get("scores") for answer in self(parts)]
            best = [max(each, key=each.get) if each else None for each in scores]
            pieces = [
                {"text": part, "label": name, "score": each and each[name]}
                for part, each, name in zip(parts, scores, best, strict=True)
            ]
            return {"label": label, "unit": "sentence", "pieces": pieces}

        answers = self([text, *without])
        whole, *parts = (answer["scores"][label] if "scores" in answer else 0.0 for answer in answers)
        pieces = [{"text": word, "weight": whole - part} for word, part in zip(words, parts, strict=True)]
        return {"label": label, "unit": "word", "pieces": pieces}

    def _work(self) -> None:
        """Answer forever. Callers take turns, text by text, until a batch is full."""
        while True:
            turn, room = [], TURN_CHARACTERS
            with self._changed:
                while not self._callers:
                    self._changed.wait()
                while self._callers and (room > 0 or not turn):
                    caller = self._callers.popleft()
                    text, future = caller.popleft()
                    if future.set_running_or_notify_cancel():
                        turn.append((text, future))
                        room -= len(text)
                    if caller:
                        self._callers.append(caller)
            if turn:
                self._answer(turn)

    def _answer(self, turn: list[tuple[str, Future]]) -> None:
        try:
            answers = self._classify([text for text, _ in turn])
        except Exception as error:
            if len(turn) > 1:  # one bad text must not take the others with it
                for each in turn:
                    self._answer([each])
                return
            print(f"error: the model failed on a text ({type(error).__name__})", file=sys.stderr)
            answers = [{"error": "The model failed on this text."}]
        for (_, future), answer in zip(turn, answers, strict=True):
            future.set_result(answer)

    @torch.inference_mode()
    def _classify(self, texts: list[str]) -> list[dict[str, Any]]:
        # The pipeline lets one thread tokenize at a time: a tokenizer keeps the last caller's truncation.
        tokenizers = self._pipeline.tokenizers
        options = {"return_offsets_mapping": all(tokenizer.is_fast for tokenizer in tokenizers)}
        encoded = self._pipeline.encode(texts, truncation=False, verbose=False, **options)
        read = [self._read(tokenizer, texts, of_one) for tokenizer, of_one in zip(tokenizers, encoded, strict=True)]
        # By each text: tokens and how many of them are read, of the tokenizer that cuts most.
        lengths = [max(of_text, key=lambda length: length[0] / length[1]) for of_text in zip(*read, strict=True)]
        windowed = [self._has_windows and tokens > room for tokens, room, _ in lengths]
        results: list[Any] = [None] * len(texts)
        for windows in (False, True):
            part = [index for index, is_long in enumerate(windowed) if is_long == windows]
            options = {"stride": lengths[part[0]][1] // 8} if windows and part else {}
            found = self._pipeline([texts[index] for index in part], **self._options, **options) if part else []
            for index, result in zip(part, found, strict=True):
                results[index] = result
        answers = []
        for result, (tokens, room, warning), windows in zip(results, lengths, windowed, strict=True):
            if isinstance(result, list):
                failed = next((entry["error"] for entry in result if "error" in entry), None)
                result = {"scores": {entry["label"]: entry["score"] for entry in sorted(result, key=self._position)}}
            else:
                failed = result.get("error")
                result = {key: result.get(key) for key in ("scores", "members", "disagreement")}
            if failed:
                answers.append({"error": "The model gives no number for this text." if "number" in failed else NO_TEXT})
                continue
            best = max(result["scores"].values())
            reached = not self.several or any(
                score >= self.thresholds[name] for name, score in result["scores"].items()
            )
            sure = reached and best >= self.abstain_below and not warning
            answer = {"label": ", ".join(self.given(result)), "score": best, "sure": sure, **result, "tokens": tokens}
            if windows:
                answer["note"] = f"A long text ({tokens:,} tokens), read in overlapping parts of {room:,}."
            elif tokens > room:
                answer["note"] = f"The text has {tokens:,} tokens; the model read the first {room:,}."
            if warning:
                answer["warning"] = warning
            answers.append(answer)
        return answers

    def _position(self, entry: dict[str, Any]) -> int:
        return self.labels.index(entry["label"]) if entry["label"] in self.labels else 0

    def _read(self, tokenizer: Any, texts: list[str], encoded: Any) -> list[tuple[int, int, str | None]]:
        """Return for each text its tokens, how many of them are read, and a warning if most of it is unknown."""
        spans = encoded.get("offset_mapping") or [None] * len(texts)
        return [
            (len(ids), tokenizer.model_max_length, self._language.warning(text, ids, span, tokenizer.unk_token_id))
            for text, ids, span in zip(texts, encoded["input_ids"], spans, strict=True)
        ]


def languages_of(name: str, revision: str | None) -> list[str]:
    """Return the languages of a model's texts as ISO 639 codes, or none if it has no card, or one that does not say."""
    try:
        told = (metadata_load(cached_file(name, "README.md", revision=revision)) or {}).get("language")
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one of a stranger
        return []
    named = [each for each in (told if isinstance(told, list) else [told]) if isinstance(each, str)]
    codes = [each.strip().lower().split("-")[0] for each in named]
    return codes if all(re.fullmatch("[a-z]{2,3}", code) for code in codes) else []  # as of "multilingual"


def problem(text: object) -> str | None:
    """Return what is wrong with a text, in words."""
    if not isinstance(text, str):
        return f"This is no text but {type(text).__name__}; please send a string."
    if len(text) > MAX_CHARACTERS:
        return f"This text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Please shorten it."
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "This text holds half of a character (a lone surrogate); please send whole Unicode."
    # Controls, blanks and zero-width characters alone are not a text. "Cn" is for characters newer than this Python.
    if not any((kind := unicodedata.category(character))[0] in "LNPS" or kind == "Cn" for character in text):
        return NO_TEXT
    return None


def sentences(words: list[str]) -> list[str]:
    """Join words, which have their blanks, to sentences; in time linear in the text, whatever is in it."""
    found: list[list[str]] = [[]]
    for word in words:
        if len(found[-1]) >= LONGEST_SENTENCE:
            found.append([])
        found[-1].append(word)
        if word.strip().rstrip(QUOTES).endswith(ENDS) or "\n" in word:
            found.append([])
    parts = ["".join(part) for part in found if part]
    size = -(-len(parts) // MOST_SENTENCES)
    return ["".join(parts[start : start + size]) for start in range(0, len(parts), size)]
