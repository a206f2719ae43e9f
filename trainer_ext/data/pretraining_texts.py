"""Read unlabelled texts for continued pre-training, without duplicates and copies of evaluation texts."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset, IterableDataset

from texts_emodeberta import is_text

from ..errors import InputError, first_line
from ..recipes import DEFAULT_ACCESS, KEEP_CHECKPOINTS, CardArguments, HubAccess, flag
from .delimited import QUOTING_HELP, UnreadableTable, broken
from .emotion_corpora import BUILT_IN, normalised, read_emotion_corpus
from .leakage import LeakageGuard, TargetArguments, guard_of_target
from .load import TEXT_DELIMITER_HELP, read_texts
from .rows import format_of, read_rows, readable, text_columns, text_of
from .tables import hub_dataset, read_file


@dataclass
class PretrainingArguments(CardArguments, TargetArguments):
    """Flags of `run_mlm.py` for the texts to read, their masking and the training."""

    _argument_group_name = "Pre-training"
    _refused_flags = (
        *("fsdp", "fsdp_config", "label_smoothing_factor", "train_sampling_strategy", "length_column_name"),
        "dataloader_persistent_workers",
    )

    dataset_name: list[str] = field(
        default_factory=list,
        metadata={
            "help": "go_emotions and xed (built in: from --data_dir, else from the Hub), or one dataset on the Hub."
        },
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub dataset.")
    data_dir: str | None = field(
        default_factory=lambda: os.environ.get("EMODEBERTA_DATA"),
        metadata={
            "help": "Folder with goemotions/, xed/ and wassa2022/. Default: the environment variable EMODEBERTA_DATA."
        },
    )
    train_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Files of texts: .txt (one per line), .csv, .tsv, .json, .jsonl or .parquet; also as .gz."},
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "Files of texts to measure perplexity on. Default: see the next flag."}
    )
    validation_split_percentage: float = flag(
        5.0, "Without --validation_file, hold out about this percentage of the texts for perplexity; 0 for none."
    )
    text_column_name: str = flag(
        "text",
        "Column with the text. Several, separated by commas, are joined; empty cells are left out.",
        aliases=["--text_column_names"],
    )
    text_column_delimiter: str = flag(" ", TEXT_DELIMITER_HELP)
    quoting: Literal["auto", "minimal", "none"] = flag("auto", QUOTING_HELP)
    streaming: bool = flag(
        False,
        "Read --train_file or the Hub dataset during training, for corpora larger than memory. Requires --max_steps. "
        "Texts are not deduplicated, and --tokens_per_batch cannot be used.",
    )
    line_by_line: bool = flag(
        True,
        "true: each text is one row, cut at --max_seq_length. false: a longer text becomes several rows, uncut. Either "
        "way, texts never attend to each other.",
    )
    max_seq_length: int = flag(256, "Longest row in tokens.")
    mlm_probability: float = flag(0.15, "Share of tokens to predict (0.15 as in the paper and BERT).")
    whole_word_masking: bool = flag(False, "Mask whole words instead of single tokens. Requires a fast tokenizer.")
    include_target_train: bool = flag(
        False, "Also train on the training essays of --target_dataset_name (the paper does not)."
    )
    max_train_samples: int | None = flag(None, "Use only this many texts, for a quick try.")
    max_eval_samples: int | None = flag(
        None,
        "Measure perplexity on at most this many texts. Default for a stream: 1,000, or the percentage if it is short.",
    )
    preprocessing_num_workers: int | None = flag(None, "Number of processes that tokenise. Default: one.")
    head_warmup_steps: int = flag(
        0,
        "If the checkpoint has no usable masked-language-model head (DeBERTa-v3, MiniLM), first train a new head for "
        "this many steps, but at most --max_steps, with the encoder frozen.",
    )
    head_learning_rate: float = flag(1e-3, "Learning rate of --head_warmup_steps.")
    tokens_per_batch: int | None = flag(
        None,
        "Pack texts of similar length into batches of at most this many tokens, without padding or attention between "
        "texts. Replaces --per_device_train_batch_size. Use it for speed.",
    )
    keep_checkpoints: bool = flag(False, KEEP_CHECKPOINTS)
    overwrite_output_dir: bool = flag(
        False,
        "Replace a finished run in --output_dir, or an unfinished one with other settings. Omit it to resume later.",
    )


logger = logging.getLogger(__name__)
STREAM_VALIDATION_ROWS = 1000
SHUFFLE_BUFFER = 10_000


@dataclass
class PretrainingCorpus:
    """Texts to train on, and texts to measure perplexity on.

    Attributes:
        train, validation: Rows with a column `text`; `validation` may be `None`.
        source: Where the texts come from, for the model card.
        licences: Licence by source, where known.
        left_out: Number of texts left out, by reason. For a stream, it grows while the stream is read.
        guard: Its `found` lists the texts that copy an evaluation text of the target.
        target_licence: Licence of the target, if its training texts are in `train`.
    """

    train: Dataset | IterableDataset
    validation: Dataset | None
    source: str
    licences: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    guard: LeakageGuard = field(default_factory=lambda: LeakageGuard(""))
    target_licence: str | None = None


def load_pretraining_corpus(data: PretrainingArguments, seed: int, access: HubAccess = DEFAULT_ACCESS):
    """Return the [`PretrainingCorpus`] of the flags.

    Raises:
        InputError: if something cannot be read, or flags exclude each other.
    """
    if bool(data.dataset_name) == bool(data.train_file):
        raise InputError("give either --dataset_name (go_emotions xed, or a dataset on the Hub) or --train_file")
    if not 0 <= data.validation_split_percentage <= 50:
        raise InputError(f"--validation_split_percentage is {data.validation_split_percentage}; want 0 to 50")
    built_in = [name for name in data.dataset_name if name in BUILT_IN]
    if built_in and len(built_in) < len(data.dataset_name):
        raise InputError(f"--dataset_name {' '.join(data.dataset_name)}: want {' and '.join(BUILT_IN)}, or one other")
    if len(data.dataset_name) > 1 and not built_in:
        raise InputError(f"--dataset_name {' '.join(data.dataset_name)}: want one dataset of the Hub")
    names = data.dataset_name or [readable(Path(path).name) for path in data.train_file]
    guard, target_texts, licence = _target(data)
    corpus = PretrainingCorpus(None, None, ", ".join(names), guard=guard)
    if data.streaming:
        _stream(corpus, data, access, seed)
        return corpus

    rows: list[tuple[str, str]] = []  # row id and text
    for name in built_in:
        part = read_emotion_corpus(name, data.data_dir, access)
        rows += zip((f"{name}, {row_id}" for row_id in part.ids), part.texts, strict=True)
        corpus.licences[name] = part.licence
        for reason, count in part.left_out.items():
            corpus.left_out[f"{name}: {reason}"] += count
    if data.dataset_name and not built_in:
        rows += _hub_texts(data, access)
    for path in data.train_file:
        rows += _file_texts(path, data, corpus)
    if data.include_target_train:
        rows += target_texts
        corpus.target_licence = licence
    kept, seen = [], set()
    for row_id, text in rows:
        key = normalised(text) or text.strip()
        if not is_text(text):
            corpus.left_out["empty"] += 1
        elif key in seen:
            corpus.left_out["a second time, letters and digits compared"] += 1
        elif guard.keeps(row_id, text):
            seen.add(key)
            kept.append(text)
    if not kept:
        raise InputError(f"{corpus.source}: no texts are left; left out: {dict(corpus.left_out)}")
    if data.validation_file:
        held_out = [text for path in data.validation_file for _, text in _file_texts(path, data)]
        held_out = [text for text in held_out if is_text(text)]
    else:
        order = np.random.default_rng(seed).permutation(len(kept))
        count = round(len(kept) * data.validation_split_percentage / 100)
        held_out = [kept[i] for i in sorted(order[:count])]
        kept = [kept[i] for i in sorted(order[count:])]
    corpus.train = Dataset.from_dict({"text": kept[: data.max_train_samples]})
    if held_out:
        corpus.validation = Dataset.from_dict({"text": held_out[: data.max_eval_samples]})
    return corpus


def _target(data: PretrainingArguments) -> tuple[LeakageGuard, list[tuple[str, str]], str | None]:
    """Return a guard over the target's texts, the target's training texts and its licence.

    With `--include_target_train`, the guard does not protect the training texts.
    """
    guard, target = guard_of_target(data, data.data_dir, train=not data.include_target_train)
    if target is None:
        if data.include_target_train:
            raise InputError("--include_target_train needs --target_dataset_name")
        return guard, [], None
    ids, texts = target.splits["train"]["id"][:], target.splits["train"]["text"][:]
    train = [(f"{data.target_dataset_name} train, {i}", text) for i, text in zip(ids, texts, strict=True)]
    return guard, train, target.licence


def _hub_texts(data: PretrainingArguments, access: HubAccess) -> list[tuple[str, str]]:
    name = data.dataset_name[0]
    rows = hub_dataset(name, access, name=data.dataset_config_name, split="train")
    columns = text_columns(f"dataset {name}", data.text_column_name, rows.column_names)
    texts = (text_of(row, columns, data.text_column_delimiter)[0] for row in rows.select_columns(columns))
    return [(f"{name}, row {i}", text if isinstance(text, str) else "") for i, text in enumerate(texts, start=1)]


def _file_texts(
    path: str, data: PretrainingArguments, corpus: PretrainingCorpus | None = None
) -> list[tuple[str, str]]:
    """Return the row id and text of each row; empty lines of a text file are counted in `corpus`."""
    name = readable(Path(path).name)
    if format_of(Path(path)) != ".txt":
        texts = read_texts(path, data.text_column_name, data.quoting, data.text_column_delimiter)
        return [(f"{name}, text {i}", text) for i, text in enumerate(texts, start=1)]
    table = read_file(path)
    texts = [(f"{name}, {place}", row["text"]) for place, row in zip(table.places, table.rows, strict=True)]
    kept = [(row_id, text) for row_id, text in texts if is_text(text)]
    if corpus is not None and len(kept) < len(texts):
        corpus.left_out[f"{name}: empty line"] += len(texts) - len(kept)
    return kept


# ---- Streams ------------------------------------------------------------------------------------------------------
def _stream(corpus: PretrainingCorpus, data: PretrainingArguments, access: HubAccess, seed: int) -> None:
    """Fill `corpus` from a stream: the first texts for perplexity, the rest shuffled through a buffer."""
    if set(data.dataset_name) & set(BUILT_IN):
        raise InputError("--streaming is for files and Hub datasets; go_emotions and xed fit in memory")
    if data.include_target_train:
        raise InputError("--streaming does not read --include_target_train; write the texts into a --train_file")
    for path in [*data.train_file, *data.validation_file]:
        if not Path(path).is_file():
            raise InputError(f"{readable(path)}: no such file")
    if data.train_file:
        rows = IterableDataset.from_generator(_streamed, gen_kwargs={"paths": data.train_file, "data": data})
    else:
        rows = _hub_stream(data, access)
    if next(iter(rows), None) is None:
        raise InputError(f"{corpus.source}: no rows")

    def keep(row: dict, number: int) -> bool:
        text = row["text"]
        if not is_text(text):
            corpus.left_out["empty, or no text"] += 1
            return False
        return corpus.guard.keeps(f"{corpus.source}, row {number + 1}", text)

    rows = rows.select_columns(["text"]).filter(keep, with_indices=True)
    if data.validation_file:
        held_out = [text for path in data.validation_file for _, text in _file_texts(path, data)]
        count = 0
    else:
        count = data.max_eval_samples or (STREAM_VALIDATION_ROWS if data.validation_split_percentage else 0)
        texts = sum(1 for _ in rows.take(count + 1))
        if texts <= count and data.max_eval_samples:
            raise InputError(
                f"{corpus.source}: has {texts} texts; want --max_eval_samples below that, to train on others"
            )
        if texts <= count:  # a short stream: hold out a percentage instead
            count = round(texts * data.validation_split_percentage / 100)
        held_out = [row["text"] for row in rows.take(count)]
    rows = rows.skip(count)  # also if 0: keeps the order of files, and so the guard's row numbers
    if data.max_train_samples is not None:
        rows = rows.take(data.max_train_samples)
    corpus.left_out.clear()  # the texts for perplexity will be read again and counted
    corpus.guard.found.clear()
    corpus.train = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    corpus.validation = Dataset.from_dict({"text": held_out[: data.max_eval_samples]}) if held_out else None


def _streamed(paths: list[str], data: PretrainingArguments) -> Iterator[dict[str, str | None]]:
    """Yield the rows of files, each as a dict with the key `text`.

    Raises:
        InputError: at the first row that cannot be read.
    """
    for path in map(Path, paths):
        name, columns = readable(path), ["text"]

        def check(names: list[str], name: str = name, columns: list[str] = columns) -> list[str]:
            columns[:] = text_columns(name, data.text_column_name, names)
            return columns

        try:
            lines = format_of(path) == ".txt"
            for record in read_rows(path) if lines else read_rows(path, quoting=data.quoting, check=check):
                text, _ = text_of(record.values or {}, columns, data.text_column_delimiter)
                if wrong := record.problem or broken(text):
                    raise InputError(f"{name}, {record.place}: {wrong}")
                yield {"text": text if isinstance(text, str) else None}
        except UnreadableTable as error:
            raise InputError(f"{name}: {error}") from error


def _hub_stream(data: PretrainingArguments, access: HubAccess) -> IterableDataset:
    name = data.dataset_name[0]
    rows = hub_dataset(name, access, name=data.dataset_config_name, split="train", streaming=True)
    try:
        first = next(iter(rows), None)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(f"dataset {name}: {first_line(error)}") from error
    columns = text_columns(f"dataset {name}", data.text_column_name, list(first or [data.text_column_name]))
    joined = partial(_joined, columns=columns, delimiter=data.text_column_delimiter)
    return rows.map(joined, remove_columns=[column for column in first or () if column != "text"])


def _joined(row: dict, columns: list[str], delimiter: str) -> dict:
    return {"text": text_of(row, columns, delimiter)[0]}
