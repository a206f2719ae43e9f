"""What a model card knows, and how it becomes README.md: metadata for the Hub, and Markdown from a template.

`run_card.py` and `ensemble_folder.py` fill in the facts.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data.corpus import Corpus
from ..data.emotion_corpora import GO_EMOTIONS_HUB, WASSA_LABELS, XED_HUB, XED_LABELS
from ..data.label_maps import TransferRows
from ..data.leakage import LeakageGuard
from ..escape import in_code, in_markdown, table
from .licence import Upstream

logger = logging.getLogger(__name__)
_HERE = Path(__file__).parent
# Example texts for the card, written for this project.
TRY = (
    "I am so happy today!",
    "They lied to us again, and I am furious.",
    "I keep thinking of my grandmother, and I miss her so much.",
    "The bridge reopens on Tuesday at nine.",
)
_HUB_DATASETS = {"go_emotions": GO_EMOTIONS_HUB, "xed": XED_HUB}
_EMOTIONS = {*WASSA_LABELS, *XED_LABELS}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


# ---- Facts ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Section:
    """A further section of a card, between the results and the training.

    Attributes:
        title: Its heading.
        sentences: Text, one paragraph.
        header, rows: Cells of a table after the text; no rows, no table.
        plot: Name of a picture in the folder.
    """

    title: str
    sentences: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plot: str = ""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that any card knows of its model.

    Attributes:
        name, repo_id: Names for the title and for the usage snippets.
        command: The command line that made it.
        languages: ISO 639 codes of its texts; empty if not known.
        licence: As the Hub writes it; `other` if what it saw restricts its use; `None` if not known.
        terms: The terms of what it saw, if they restrict its use.
        bases: What it started from, once each.
        labels: The label set; a model for masked words has none.
        tags: Tags for the Hub, besides `emodeberta`, and `emotion` if some labels are emotions.
        datasets: Hub ids of the datasets that it was trained on.
        citations: Keys in citations.bib, besides this project and the paper.
        sections: Further sections.
    """

    template: ClassVar[str]
    pipeline_tag: ClassVar[str] = "text-classification"

    name: str
    repo_id: str
    command: str
    languages: Sequence[str]
    licence: str | None
    terms: str | None
    bases: Sequence[Upstream]
    labels: Sequence[str] = ()
    tags: Sequence[str]
    datasets: Sequence[str] = ()
    citations: Sequence[str] = ()
    sections: Sequence[Section] = ()
    evaluations: Sequence[EvalResult] = ()

    @property
    def licence_words(self) -> str:
        """Return the licence with where it comes from."""
        if self.terms:
            return f"other; what it saw is for {self.terms}"
        if self.licence is None:
            return "not stated"
        if self.licence in {base.licence for base in self.bases}:
            return f"{self.licence}, that of the base model"
        return self.licence

    @property
    def texts(self) -> Sequence[str]:
        """Return texts to try the model on."""
        return texts_to_try(self.languages)

    @property
    def bibtex(self) -> str:
        """Return the citations as BibTeX, each once."""
        entries = (_HERE / "citations.bib").read_text(encoding="utf-8").strip().split("\n\n")
        by_key = {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}
        keys = dict.fromkeys(("emodeberta", "lingjing", *self.citations))
        return "\n\n".join(by_key[key] for key in keys if key in by_key)

    def metadata(self) -> ModelCardData:
        """Return the metadata for the Hub."""
        hub_ids = list(dict.fromkeys(hub_id for base in self.bases for hub_id in base.hub_ids))
        languages = list(self.languages)
        return ModelCardData(
            language=languages[0] if len(languages) == 1 else languages or None,
            license=self.licence,
            library_name="transformers",
            pipeline_tag=self.pipeline_tag,
            tags=["emodeberta", *["emotion"] * (len(_EMOTIONS & set(map(str.lower, self.labels))) > 1), *self.tags],
            datasets=list(dict.fromkeys(self.datasets)) or None,
            base_model=hub_ids[0] if len(hub_ids) == 1 else hub_ids or None,
            base_model_relation="finetune" if hub_ids else None,
            metrics=sorted({result.metric_type for result in self.evaluations}) or None,
            model_name=self.name if self.evaluations else None,
            widget=[{"text": text} for text in self.texts] or None if self.pipeline_tag != "fill-mask" else None,
            eval_results=list(self.evaluations) or None,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingFacts(CardFacts):
    """What the card of a training knows besides.

    Attributes:
        encoder: Kind and size of the encoder, in words.
        parameters: Number of weights.
        max_seq_length: In tokens.
        source: Where its rows come from.
        guard: The guard that kept copies of test texts out.
        hyperparameters: Rows of a table: name and value.
        log: The table of the training log, header first; empty if nothing was logged.
        precision, hardware, minutes, versions: How it was trained.
        from_scratch: Whether only the configuration of the checkpoint was used.
    """

    encoder: str
    parameters: int
    max_seq_length: int
    source: str
    guard: LeakageGuard
    hyperparameters: Sequence[Sequence[str]]
    log: Sequence[Sequence[str]]
    precision: str
    hardware: str
    minutes: float
    versions: dict[str, str]
    from_scratch: bool = False

    @property
    def size(self) -> str:
        """Return the number of weights with its unit."""
        of = 1e6 if self.parameters >= 1e6 else 1e3
        return f"{self.parameters / of:.1f} {'million' if of == 1e6 else 'thousand'}"


@dataclass(frozen=True, kw_only=True)
class RunFacts(TrainingFacts):
    """What the card of a classifier knows besides.

    Attributes:
        multi_label: Whether a text may have several labels.
        pooling, head: The head, in words.
        scores: Table with one line per labelled split, header first; empty if there is none.
        selection: Whether the weights were chosen by the validation score.
        unseen: Whether there are further test sets, whose texts were kept out of training.
        resampled: What intervals were resampled over: writers or rows.
        classes_of: Split of the next table.
        classes: Table with one line per label, header first.
        confusion_matrix: Whether the folder has its plot.
        answers: The model's answers to `texts`: `text`, and `given`, its labels with scores.
        examples: Training rows to show: label and text.
        rows: Number of rows by split.
        attribution: Whom to credit for the rows.
        transferred, augmentation: Rows of other corpora, and what chose them.
        distill_from: The ensemble that it learned from.
    """

    template: ClassVar[str] = "model_card_template.md"

    multi_label: bool
    pooling: str
    head: str
    scores: Sequence[Sequence[str]]
    selection: bool
    unseen: bool
    resampled: str
    classes_of: str
    classes: Sequence[Sequence[str]]
    confusion_matrix: bool
    answers: Sequence[dict]
    examples: Sequence[Sequence[str]]
    rows: dict[str, int]
    attribution: str | None
    transferred: TransferRows | None
    augmentation: str
    distill_from: str

    @property
    def answer_rows(self) -> list[list[str]]:
        """Return table rows of the answers."""
        rows = []
        for answer in self.answers:
            labels = "; ".join(f"{each['label'] or 'not sure'}, {each['score']:.0%}" for each in answer["given"])
            rows.append([answer["text"], labels or "none of its labels"])
        return rows

    @property
    def transfer_rows(self) -> list[list[str]]:
        """Return table rows of the added corpora: name, licence, and number of rows per label."""
        return [
            [name, str(self.transferred.licences[name]), *map(str, counts.values())]
            for name, counts in self.transferred.counts().items()
        ]


@dataclass(frozen=True, kw_only=True)
class PretrainingFacts(TrainingFacts):
    """What the card of a continued pre-training knows besides.

    Attributes:
        mask_token: Of its tokenizer.
        masking: What is masked, in words.
        rows: Number of training rows; `None` for a stream.
        licences: Licence by source of texts, where known.
        target_licence: Licence of the target, if its training texts were among them.
        left_out: Number of texts left out, by reason.
        scores: Figures on held-out texts, in words; empty if there were none.
    """

    template: ClassVar[str] = "pretraining_card_template.md"
    pipeline_tag: ClassVar[str] = "fill-mask"

    mask_token: str
    masking: str
    rows: int | None
    licences: dict[str, str]
    target_licence: str | None
    left_out: dict[str, int]
    scores: str


@dataclass(frozen=True, kw_only=True)
class EnsembleFacts(CardFacts):
    """What the card of an ensemble knows besides.

    Attributes:
        fusion: As in fusion.json.
        weights: Weight by member that votes; `None` if all are equal.
        members: Table of the members that vote, header first.
        scored_on: What was scored: number and kind of rows; empty if nothing was.
        scores, against: Tables of systems, header first; `against` may be empty.
        disagreement: Table of members by members, header first.
    """

    template: ClassVar[str] = "ensemble_card_template.md"

    fusion: str
    weights: dict[str, float | None]
    members: Sequence[Sequence[str]]
    scored_on: str
    scores: Sequence[Sequence[str]]
    against: Sequence[Sequence[str]]
    disagreement: Sequence[Sequence[str]]


# ---- Where facts come from ------------------------------------------------------------------------------------------
def texts_to_try(languages: Sequence[str]) -> Sequence[str]:
    """Return texts to try a model on. They are English, so there are none for other languages."""
    return TRY if not languages or "en" in languages else ()


def hub_datasets(names: Iterable[str]) -> list[str]:
    """Return the Hub ids of corpora, without those that are not on the Hub."""
    ids = (_HUB_DATASETS.get(name, name) for name in names)
    return [name for name in ids if _HUB_ID.fullmatch(name)]


def evaluations(results: dict[str, float], splits: Iterable[str], corpus: Corpus) -> list[EvalResult]:
    """Return the figures of validation and test for the Hub's `model-index`."""
    figures = {"macro_f1": ("f1", "macro F1"), "accuracy": ("accuracy", "accuracy")}
    if corpus.multi_label:
        figures["micro_f1"] = ("f1", "micro F1")
    dataset = hub_datasets([corpus.source])
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset[0] if dataset else re.sub(r"[^\w.-]+", "-", corpus.source).strip("-") or "dataset",
            dataset_name=corpus.source,
            dataset_split=split,
            metric_type=metric,
            metric_name=name,
            metric_value=round(results[f"{prefix}_{figure}"], 4),
        )
        for split, prefix in (("validation", "eval"), ("test", "test"))
        if split in splits and f"{prefix}_macro_f1" in results
        for figure, (metric, name) in figures.items()
    ]


# ---- The card -------------------------------------------------------------------------------------------------------
class _Markdown(str):
    """Text that is already Markdown, so it is not escaped."""


def write_card(target: Path, facts: CardFacts) -> None:
    """Write a model card: the template of the facts, filled in.

    Values are escaped unless a filter or function of the template made them Markdown.
    """

    for value, what, flag in ((facts.languages, "language", "language"), (facts.licence, "licence", "license")):
        if not value:
            logger.info(f"the card names no {what}, because that of the base model is not known; --{flag} sets it")

    def as_text(value: object) -> object:
        return in_markdown(value) if isinstance(value, str) and not isinstance(value, _Markdown) else value

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        finalize=as_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = lambda text: _Markdown(in_code(text))
    environment.filters["python"] = lambda text: _Markdown(json.dumps(text, ensure_ascii=False))
    environment.filters["repr"] = lambda text: _Markdown(repr(text))
    environment.filters["verbatim"] = _Markdown
    environment.filters["link"] = _link
    environment.globals["as_table"] = lambda header, rows: _Markdown("\n".join(table(header, rows)))
    text = environment.get_template(facts.template).render(card=facts, metadata=_Markdown(facts.metadata().to_yaml()))
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    target.write_text(text, encoding="utf-8", errors="replace")


def _link(base: Upstream) -> _Markdown:
    """Return a checkpoint's name as a link to the Hub, with its revision, or in plain text if it is a folder."""
    if base.hub_ids != (base.name,) or not _HUB_ID.fullmatch(base.name):
        origin = f" (made from {', '.join(base.hub_ids)})" if base.hub_ids else ""
        return _Markdown(in_markdown(base.name + origin))
    page = f"https://huggingface.co/{base.name}"
    at = f", revision [{base.revision[:8]}]({page}/tree/{base.revision})" if base.revision else ""
    return _Markdown(f"[{in_markdown(base.name)}]({page}){at}")
