"""Load a trained classifier, score rows with it, write the table, or evaluate it on labelled rows."""

import hashlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import hf_hub_download
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import TOO_LONG, WINDOW, EmotionPipeline
from texts_emodeberta import truncated

from ..data.corpus import Corpus
from ..errors import InputError, first_line
from ..escape import probability_column
from ..evaluation.decisions import decide
from ..precision import choose
from ..recipes import HubAccess
from ..training.checkpoint_source import resolve_checkpoint
from ..training.saved_model import check_config, load_whole, reading
from .score_folder import ScoreFolder
from .text_stream import Row, TextSource

# ---- Predictions, and the table that is written from them ------------------------------------------------------------


@dataclass
class Scores:
    """The predictions of a model for rows.

    Attributes:
        probabilities: `(rows, labels)`, float32; NaN for rows with an error.
        several: Whether a row may have several labels.
        truncated: `(rows,)`, whether the text was longer than the model reads.
        disagreement: `(rows,)`, for an ensemble the share of members with another label; else `None`.
        thresholds: If a row may have several labels: the probability from which each counts; see [`decide`].
        abstain_below: If a row has one label: below this probability the row gets none.
    """

    probabilities: np.ndarray
    several: bool
    truncated: np.ndarray
    disagreement: np.ndarray | None
    thresholds: list[float] | None = None
    abstain_below: float | None = None

    def labels(self, names: list[str]) -> list[str | list[str] | None]:
        """Return each row's label, or the list of its labels; `None` for an error, or if none is probable enough."""
        missing = np.isnan(self.probabilities).any(axis=1)
        values = np.nan_to_num(self.probabilities, nan=-1.0)
        decided = decide(values, self.several, self.thresholds)
        if self.several:
            named = [[name for name, counts in zip(names, row, strict=True) if counts] for row in decided.tolist()]
        else:
            named = [names[label] for label in decided.tolist()]
            if self.abstain_below is not None:
                missing |= values.max(axis=1) < self.abstain_below
        return [None if gone else label for label, gone in zip(named, missing.tolist(), strict=True)]

    def table(self, rows: list[Row], names: list[str], first: int, ids: bool, kind: str) -> pa.Table:
        """Return the table of a shard with these rows.

        Args:
            names: Of the labels, in the model's order.
            first: Number of the first row.
            ids: Whether the rows have ids.
            kind: One of [`trainer_ext.scoring.score_folder.FORMATS`]. In csv, several labels are one text with commas.
        """
        labels = self.labels(names)
        columns: dict[str, pa.Array] = {"row": pa.array(range(first, first + len(rows)), pa.int64())}
        if ids:
            columns["id"] = pa.array([row.id for row in rows], pa.string())
        listed = self.several and kind != "csv"
        columns["label"] = (
            pa.array(labels, pa.list_(pa.string()))
            if listed
            else pa.array([",".join(label) if isinstance(label, list) else label for label in labels], pa.string())
        )
        missing = np.isnan(self.probabilities).any(axis=1)
        for name, values in zip(names, self.probabilities.T, strict=True):
            columns[probability_column(name)] = pa.array(values, pa.float32(), mask=missing)
        if self.disagreement is not None:
            columns["disagreement"] = pa.array(self.disagreement, pa.float32(), mask=missing)
        columns["truncated"] = pa.array(self.truncated, pa.bool_(), mask=missing)
        columns["error"] = pa.array([row.error for row in rows], pa.string())
        return pa.table(columns)


# ---- Scoring ---------------------------------------------------------------------------------------------------------
_CLASSIFIERS = {
    EmoDebertaConfig.model_type: (EmoDebertaConfig, EmoDebertaForSequenceClassification),
    EmoDebertaEnsembleConfig.model_type: (EmoDebertaEnsembleConfig, EmoDebertaEnsembleForSequenceClassification),
}
# Of a model's folder, the files that decide what it says.
_DECIDING_FILES = ("config.json", "*.safetensors*", "*token*", "tokenizer_*/*", "vocab*", "merges.txt", "spm.model")


def read_classifier_config(name: str, revision: str | None, token: str | None) -> tuple[PretrainedConfig, str]:
    """Return a classifier's configuration and its version: a commit on the Hub, or a hash of the folder's files.

    Raises:
        InputError: if there is no model, or it is not a classifier.
    """
    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or name[0] in "./~" or name.count("/") > 1 or name[:8] == "outputs/"):
        raise InputError(f"{name}: no such folder; want an output folder of run_classify.py, or a Hub id (owner/name)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json there; want an output folder of run_classify.py or run_fuse.py")
    path = resolve_checkpoint(name, HubAccess(revision=revision, token=token))
    with reading(name, "no model there"):
        values, _ = PretrainedConfig.get_config_dict(path, revision=revision, token=token)
        kind = _CLASSIFIERS.get(values.get("model_type"))
        if kind is None:
            config = AutoConfig.from_pretrained(path, revision=revision, token=token, trust_remote_code=False)
        else:
            config = kind[0].from_dict(values)
        check_config(name, config)
    if not any("SequenceClassification" in architecture for architecture in config.architectures or ()):
        raise InputError(f"{name}: {', '.join(config.architectures or ['no architecture'])}; want a text classifier")
    if config.num_labels < 2 or config.problem_type == "regression":
        raise InputError(f"{name}: gives one number a text; want a classifier with two labels or more")
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted({path for pattern in _DECIDING_FILES for path in folder.glob(pattern) if path.is_file()}):
            with open(path, "rb") as file:
                digest.update(str(path.relative_to(folder)).encode() + hashlib.file_digest(file, "sha256").digest())
        return config, digest.hexdigest()
    if path == name:
        path = Path(hf_hub_download(name, "config.json", revision=revision, token=token)).parent
    return config, Path(path).name  # the cache has a folder for each commit


def load_pipeline(
    name: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    token: str | None = None,
) -> EmotionPipeline:
    """Return a pipeline with the model and its tokenizers.

    Args:
        name: Folder or Hub id.
        config: Configuration from [`read_classifier_config`].
        revision, token: As in the library's `from_pretrained`.

    Raises:
        InputError: if a file cannot be read, weights are missing, or texts cannot be padded.
    """
    hub = {"revision": revision, "token": token}
    path = resolve_checkpoint(name, HubAccess(**hub))
    kind = _CLASSIFIERS.get(config.model_type, (None, AutoModelForSequenceClassification))[1]
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # of loading
    model = load_whole(kind, path, dtype=dtype, **hub)
    with reading(name, "cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub)
        if tokenizer.model_max_length > 10**6:  # it does not say; RoBERTa's positions start at 2
            tokenizer.model_max_length = max(getattr(config, "max_position_embeddings", 0) - 2, 0) or 512
        of_model = model.config.get_text_config()
        if tokenizer.pad_token is None:  # as of GPT-2 and Llama
            number = of_model.pad_token_id
            known = number is not None and 0 <= number < len(tokenizer)
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number) if known else tokenizer.eos_token
            tokenizer.padding_side = "right"  # where it moves no other token
            if tokenizer.pad_token is None:
                raise InputError(f"{name}: its tokenizer has no token to pad with, nor one for the end of a text")
        if getattr(of_model, "pad_token_id", 0) is None:  # it classifies by the last token that is another
            of_model.pad_token_id = tokenizer.pad_token_id
        return EmotionPipeline(model=model.eval(), tokenizer=tokenizer, device=device, **hub)


def open_classifier(
    name: str, revision: str | None, token: str | None
) -> tuple[tuple[list[str], str], Callable[..., EmotionPipeline]]:
    """Return a classifier's labels and its version, and what loads it in a `dtype` on a `device`.

    Raises:
        InputError: as [`read_classifier_config`].
    """
    config, version = read_classifier_config(name, revision, token)
    if not Path(name).is_dir():
        revision = version  # that and no later one
    labels = [config.id2label[label] for label in range(config.num_labels)]
    return (labels, version), partial(load_pipeline, name, config, revision=revision, token=token)


def score(
    classify: EmotionPipeline,
    rows: list[Row],
    tokens_per_batch: int | None,
    progress: tqdm | None = None,
    step: int = 1,
) -> Scores:
    """Return the scores of the rows. A row for which the model returns NaN gets an error.

    Args:
        classify: Pipeline from [`load_pipeline`].
        rows: Rows with a text or an error.
        tokens_per_batch: Tokens per batch, padding included; `None` for the pipeline's default.
        progress: Progress bar, advanced by `step` for each row.
    """
    config = classify.model.config
    several, ensemble = config.problem_type == "multi_label_classification", hasattr(classify.model, "members")
    probabilities = np.full((len(rows), config.num_labels), np.nan, dtype=np.float32)
    cut, read = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    disagreement = np.zeros(len(rows), dtype=np.float32) if ensemble else None
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        usable = np.array([start + place for place, row in enumerate(window) if row.text is not None], dtype=int)
        if progress is not None:
            progress.update((len(window) - len(usable)) * step)
        if not len(usable):
            continue
        encoded = classify.encode([rows[place].text for place in usable])
        cut[usable] = truncated(encoded) | np.array([rows[place].cut for place in usable])
        for positions, outputs in classify.batches(encoded, tokens_per_batch, ensemble):
            places, logits = usable[positions], outputs["logits"].float()
            read[places] = True
            probabilities[places] = (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()
            if ensemble:
                differs = outputs["member_logits"].argmax(dim=-1) != logits.argmax(dim=-1, keepdim=True)
                disagreement[places] = differs.float().mean(dim=-1).numpy()
            if progress is not None:
                progress.update(len(places) * step)
    for place in np.flatnonzero(np.isnan(probabilities).any(axis=1)):
        if rows[place].error is None:
            problem = "the model gives no number (NaN); try another --dtype" if read[place] else TOO_LONG
            rows[place] = rows[place]._replace(error=problem)
    # The library's own classifiers have neither of the two.
    thresholds, abstain_below = getattr(config, "label_thresholds", None), getattr(config, "abstain_below", None)
    return Scores(probabilities, several, cut, disagreement, thresholds, abstain_below)


def as_they_come(source: TextSource) -> Iterator[list[Row]]:
    """Yield lists of the rows that have arrived, at least one and at most `WINDOW`.

    So a slow stream is scored row by row, and a fast one in large batches.
    """
    ahead: queue.Queue[Row | Exception | None] = queue.Queue(maxsize=WINDOW)

    def read() -> None:
        try:
            for row in source:
                ahead.put(row)
            ahead.put(None)
        except Exception as error:  # raised again where it is waited for
            ahead.put(error)

    threading.Thread(target=read, daemon=True).start()
    last: Row | Exception | None = None
    while True:
        rows: list[Row] = []
        while len(rows) < WINDOW and not (rows and ahead.empty()) and isinstance(last := ahead.get(), Row):
            rows.append(last)
        if rows:
            yield rows
        if isinstance(last, Exception):
            raise last
        if last is None:
            return


# ---- The processes that share the work -------------------------------------------------------------------------------
class Processes:
    """This process and those that accelerate or torchrun started with it. See [`trainer_ext.scoring.cluster.Cluster`].

    Attributes:
        count: How many processes there are.
        first: Whether this is the first one, which prints.
    """

    each = map

    def __init__(self, model: tuple[str, str | None, str | None]):
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        self._state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # they wait for one another at the end only
        self.count, self.first = self._state.num_processes, self._state.is_main_process
        self._model = model

    def classifier(self) -> tuple[list[str], str]:
        """Return the labels and the version of the classifier."""
        described, self._load = open_classifier(*self._model)
        return described

    def faster_precision(self) -> dict[str, Any]:
        """Return the faster precision and why, as a record of a [`Choice`]."""
        return choose(self._state.device).record()

    def load(self, dtype: str) -> EmotionPipeline:
        """Return the pipeline on this process's device."""
        return self._load(dtype=dtype, device=self._state.device)

    def write_shards(
        self, folder: ScoreFolder, dtype: str, tokens_per_batch: int | None, part: tuple[int, int], progress: tqdm
    ) -> Iterator[int]:
        """Score this process's share of the missing shards, and yield the number of every shard."""
        classify, (part, parts) = None, part
        try:
            for number, rows in folder.shards(part + parts * self._state.process_index, parts * self.count):
                if rows:
                    classify = classify or self.load(dtype)
                    folder.write(number, rows, score(classify, rows, tokens_per_batch, progress, self.count))
                yield number
        except torch.OutOfMemoryError as error:
            raise MemoryError(first_line(error)) from error
        self._state.wait_for_everyone()
        self._state.destroy_process_group()


# ---- Evaluation without training -------------------------------------------------------------------------------------
def labels_of(name: str, revision: str | None = None, token: str | None = None) -> tuple[list[str], bool]:
    """Return a finished classifier's labels in the order of its logits, and whether it may give a text several.

    Args:
        name: Output folder of run_classify.py or run_fuse.py, or a Hub id.
        revision, token: As in the library's `from_pretrained`.

    Raises:
        InputError: if there is no classifier.
    """
    config, _ = read_classifier_config(name, revision, token)
    names = [config.id2label[label] for label in range(config.num_labels)]
    return names, config.problem_type == "multi_label_classification"


def evaluate(
    name: str,
    corpus: Corpus,
    device: torch.device,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[float] | None]:
    """Return a finished classifier's figures and probabilities on every split but train, computed in float32.

    Args:
        name, revision, token: As in [`labels_of`].
        corpus: A corpus with the classifier's labels.

    Returns:
        The figures of the labelled splits, as in all_results.json, with the number of rows and of cut texts of each
        split, the probabilities `(rows, labels)` by split, and the thresholds of the labels, if the classifier has any.

    Raises:
        InputError: if the classifier cannot be read, or only one of classifier and corpus has several labels per row.
    """
    from ..evaluation.metrics import EmotionMetric  # these import what scoring does without
    from ..evaluation.predictions import evaluated, interval, prefix_of
    from ..evaluation.validation_fit import tuned_figures

    config, _ = read_classifier_config(name, revision, token)
    several = config.problem_type == "multi_label_classification"
    labelled = [split for split in evaluated(corpus) if corpus.is_labelled(split)]
    if several != corpus.multi_label:
        gives, has = ("several classes", "one") if several else ("one class", "several")
        raise InputError(f"{name}: gives a row {gives}, and the rows of {corpus.source} have {has}")
    classify = load_pipeline(name, config, torch.float32, device, revision, token)
    metric = EmotionMetric(corpus.label_names, multi_label=several)
    thresholds = getattr(config, "label_thresholds", None)  # the library's own classifiers have none
    figures: dict[str, Any] = {}
    probabilities = {}
    for split in evaluated(corpus):
        rows = [Row(text, None, None) for text in corpus.splits[split]["text"]]
        scores: Scores = score(classify, rows, None)
        if wrong := next((number for number, row in enumerate(rows, 1) if row.error), None):
            raise InputError(f"{Path(name).name}, {split}, row {wrong}: {rows[wrong - 1].error}")
        probabilities[split] = scores.probabilities.astype(np.float64)
        figures |= {f"{split}_rows": len(rows), f"{split}_truncated_texts": int(scores.truncated.sum())}
        if split in labelled:
            predicted = decide(probabilities[split], several)
            of_split = metric.compute(predictions=predicted, references=corpus.classes(split))
            figures |= {f"{prefix_of(split)}_{figure}": value for figure, value in of_split.items()}
            figures |= interval(corpus, split, predicted)
            if thresholds is not None:
                figures |= tuned_figures(corpus, split, decide(probabilities[split], several, thresholds))
    return figures, probabilities, thresholds
