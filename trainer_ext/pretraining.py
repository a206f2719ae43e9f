"""Continued pre-training on texts without labels: what is read, what is left out, and how tokens are masked."""

import ctypes
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import torch
from datasets import Dataset, IterableDataset, load_dataset
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, TrainerCallback

from .arguments import PretrainingArguments
from .corpora import read_texts
from .emotion_corpora import BUILT_IN, normalised, read_emotion_corpus
from .errors import InputError
from .leakage import LeakageGuard, guard_of_target

logger = logging.getLogger(__name__)

STREAM_VALIDATION_ROWS = 1000
SHUFFLE_BUFFER = 10_000
_M_ARENA_MAX = -8  # malloc.h
_STREAMED = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass
class PretrainingCorpus:
    """Texts to train on and to measure perplexity on.

    Attributes:
        train, validation: With a column `text`; `validation` may be `None`.
        source: What was read, for the card.
        licences: By source, where one is known.
        left_out: Rows that are not in here, by reason. Of a stream it fills as the stream is read.
        guard: Its `found` names the texts that copy one of the target's.
        target_licence: Terms of a target whose training texts are in `train`.
    """

    train: Dataset | IterableDataset
    validation: Dataset | None
    source: str
    licences: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    guard: LeakageGuard | None = None
    target_licence: str | None = None

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def load_pretraining_corpus(data: PretrainingArguments, cache_dir: str | None, token: str | None, seed: int):
    """The [`PretrainingCorpus`] of the flags.

    Raises:
        InputError: for what cannot be read, or flags that exclude each other.
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
    names = data.dataset_name or [Path(path).name for path in data.train_file]
    guard, target_texts, licence = _target(data)
    corpus = PretrainingCorpus(None, None, ", ".join(names), guard=guard)
    if data.streaming:
        _stream(corpus, data, cache_dir, token, seed)
        return corpus

    rows: list[tuple[str, str]] = []  # row id and text
    for name in built_in:
        part = read_emotion_corpus(name, data.data_dir, cache_dir, token)
        rows += zip((f"{name}, {row_id}" for row_id in part.ids), part.texts, strict=True)
        corpus.licences[name] = part.licence
        for reason, count in part.left_out.items():
            corpus.leave_out(f"{name}: {reason}", count)
    if data.dataset_name and not built_in:
        rows += _hub_texts(data, cache_dir, token)
    for path in data.train_file:
        rows += _file_texts(path, data.text_column_name, corpus)
    if data.include_target_train:
        rows += target_texts
        corpus.target_licence = licence
    kept, seen = [], set()
    for row_id, text in rows:
        key = normalised(text) or text.strip()
        if not key:
            corpus.leave_out("empty")
        elif key in seen:
            corpus.leave_out("a second time, letters and digits compared")
        elif guard is None or guard.keeps(row_id, text):
            seen.add(key)
            kept.append(text)
    if not kept:
        raise InputError(f"{corpus.source}: no texts are left; left out: {corpus.left_out}")
    if data.validation_file:
        held_out = [text for path in data.validation_file for _, text in _file_texts(path, data.text_column_name)]
        held_out = [text for text in held_out if text.strip()]
    else:
        order = np.random.default_rng(seed).permutation(len(kept))
        count = round(len(kept) * data.validation_split_percentage / 100)
        held_out = [kept[i] for i in sorted(order[:count])]
        kept = [kept[i] for i in sorted(order[count:])]
    corpus.train = Dataset.from_dict({"text": kept[: data.max_train_samples]})
    if held_out:
        corpus.validation = Dataset.from_dict({"text": held_out[: data.max_eval_samples]})
    return corpus


def _target(data: PretrainingArguments) -> tuple[LeakageGuard | None, list[tuple[str, str]], str | None]:
    """A guard over the target's texts, but not over training texts that are to be read; those, and their terms."""
    guard, target = guard_of_target(data, data.data_dir, train=not data.include_target_train)
    if target is None:
        if data.include_target_train:
            raise InputError("--include_target_train needs --target_dataset_name")
        return guard, [], None
    ids, texts = target.splits["train"]["id"][:], target.splits["train"]["text"][:]
    train = [(f"{data.target_dataset_name} train, {i}", text) for i, text in zip(ids, texts, strict=True)]
    return guard, train, target.licence


def _hub_texts(data: PretrainingArguments, cache_dir: str | None, token: str | None) -> list[tuple[str, str]]:
    name = data.dataset_name[0]
    try:
        rows = load_dataset(name, data.dataset_config_name, split="train", cache_dir=cache_dir, token=token)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(f"dataset {name}: {str(error).strip().splitlines()[0]}") from error
    if data.text_column_name not in rows.column_names:
        raise InputError(f"dataset {name}: no column {data.text_column_name!r}; it has {', '.join(rows.column_names)}")
    return [(f"{name}, row {i}", text or "") for i, text in enumerate(rows[data.text_column_name], start=1)]


def _file_texts(path: str, column: str, corpus: PretrainingCorpus | None = None) -> list[tuple[str, str]]:
    """Row id and text; the empty lines of a text file are counted in `corpus`."""
    name = Path(path).name
    if Path(path).suffix.lower() != ".txt":
        return [(f"{name}, text {i}", text) for i, text in enumerate(read_texts(path, column), start=1)]
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        lines = Path(path).read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save the file with encoding UTF-8") from error
    empty = sum(not line.strip() for line in lines)
    if corpus is not None:
        corpus.leave_out(f"{name}: empty line", empty)
    return [(f"{name}, line {i}", line) for i, line in enumerate(lines, start=1) if line.strip()]


# ---- Streams ------------------------------------------------------------------------------------------------------


def _stream(
    corpus: PretrainingCorpus, data: PretrainingArguments, cache_dir: str | None, token: str | None, seed: int
) -> None:
    """Fill `corpus` from a stream: its first rows for perplexity, the rest shuffled through a buffer."""
    if set(data.dataset_name) & set(BUILT_IN):
        raise InputError("--streaming is for files and Hub datasets; go_emotions and xed fit in memory")
    if data.include_target_train:
        raise InputError("--streaming does not read --include_target_train; write the texts into a --train_file")
    if data.train_file:
        kinds = {_STREAMED.get(Path(path).suffix.lower()) for path in data.train_file}
        for path in [*data.train_file, *data.validation_file]:
            if not Path(path).is_file():
                raise InputError(f"{path}: no such file")
        if len(kinds) > 1 or None in kinds:
            raise InputError(f"--streaming reads files of one kind, {', '.join(_STREAMED)}; got {corpus.source}")
        options = {"delimiter": "\t"} if data.train_file[0].lower().endswith(".tsv") else {}
        arguments = {"path": kinds.pop(), "data_files": data.train_file, **options}
    else:
        arguments = {"path": data.dataset_name[0], "name": data.dataset_config_name, "token": token}
    try:
        rows = load_dataset(**arguments, split="train", streaming=True, cache_dir=cache_dir)
        if data.train_file:
            # Pyarrow keeps what it reads of a parquet file to the file's end (arrow#39808); so one row group at a time.
            # On the Hub this would fetch something of each file first.
            rows = rows.reshard()
        first = next(iter(rows), None)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(f"{corpus.source}: {str(error).strip().splitlines()[0]}") from error
    if first is None:
        raise InputError(f"{corpus.source}: no rows")
    if data.text_column_name not in first:
        raise InputError(f"{corpus.source}: no column {data.text_column_name!r}; it has {', '.join(first)}")

    def keep(row: dict, number: int) -> bool:
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            corpus.leave_out("empty, or no text")
            return False
        return corpus.guard is None or corpus.guard.keeps(f"{corpus.source}, row {number + 1}", text)

    if data.text_column_name != "text":
        rows = rows.rename_column(data.text_column_name, "text")
    rows = rows.select_columns(["text"]).filter(keep, with_indices=True)
    if data.validation_file:
        held_out = [text for path in data.validation_file for _, text in _file_texts(path, data.text_column_name)]
        count = 0
    else:
        count = data.max_eval_samples or (STREAM_VALIDATION_ROWS if data.validation_split_percentage else 0)
        held_out = [row["text"] for row in rows.take(count)]
    rows = rows.skip(count)  # 0, too: after it only the buffer is shuffled, so that the guard's row numbers are right
    if data.max_train_samples is not None:
        rows = rows.take(data.max_train_samples)
    corpus.left_out.clear()  # the rows for perplexity are read a second time
    if corpus.guard is not None:
        corpus.guard.found.clear()
    corpus.train = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    corpus.validation = Dataset.from_dict({"text": held_out[: data.max_eval_samples]}) if held_out else None


# ---- Tokens -------------------------------------------------------------------------------------------------------


class Tokenising:
    """Rows of token ids from texts, for `datasets`' batched `map`.

    Args:
        max_seq_length: Longest row, special tokens included.
        line_by_line: Cut a longer text; else it becomes several rows.
        words: Also the number of each token's word, -1 for special tokens.

    Raises:
        InputError: if word numbers are wanted of a slow tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, line_by_line: bool, words: bool):
        if not tokenizer.is_fast and (words or not line_by_line):
            raise InputError("--whole_word_masking and --line_by_line false need a fast tokenizer")
        self.tokenizer, self.max_seq_length = tokenizer, max_seq_length
        self.line_by_line, self.words = line_by_line, words

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        options = {} if self.line_by_line else {"return_overflowing_tokens": True}
        encoded = self.tokenizer(
            batch["text"],
            truncation=True,
            max_length=self.max_seq_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            **options,
        )
        rows = {"input_ids": encoded["input_ids"]}
        if self.words:
            rows["words"] = [
                [-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(rows["input_ids"]))
            ]
        return rows


class Masking:
    """Choose tokens to predict: BERT's way (paper, section 2.1), by the library's collator.

    A share `probability` of a row's tokens, special ones never; of these 80% become `[MASK]`, 10% a random token, 10%
    stay. The draw is keyed by seed, stream and the row's key, never by the global random state: it does not depend on
    batch size or number of processes, and a resumed run sees that of the uninterrupted one.

    Args:
        probability: In (0, 1).
        whole_words: Draw words, all of whose tokens are then chosen.
        stream: Keeps draws for training and for evaluation apart.

    Raises:
        InputError: for another probability, or a tokenizer without a mask token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        probability: float = 0.15,
        whole_words: bool = False,
        seed: int = 0,
        stream: str = "train",
    ):
        if tokenizer.mask_token is None:
            raise InputError("the tokenizer has no mask token; masked-language pre-training needs one")
        if not 0 < probability < 1:
            raise InputError(f"--mlm_probability is {probability}; want more than 0 and less than 1")
        self.whole_words, self.probability = whole_words, probability
        self.seed, self.stream = seed, stream
        self._library = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1.0 if whole_words else probability)
        self._special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, row: dict[str, list[int]], key: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, `(length,)`, of a row with `input_ids` and, for whole words, `words`."""
        drawn = hashlib.blake2b(f"{self.seed} {self.stream} {key}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn) % 2**63)
        ids = torch.tensor(row["input_ids"])
        left_alone = torch.isin(ids, self._special)
        if self.whole_words:
            words = torch.tensor(row["words"])
            chosen = torch.rand(int(words.max()) + 2, generator=generator) < self.probability
            left_alone = left_alone | ~chosen[words] | (words < 0)
        self._library.generator = generator
        ids, labels = self._library.torch_mask_tokens(ids[None], left_alone[None])
        return {"input_ids": ids[0], "labels": labels[0]}


class MaskedTexts(torch.utils.data.Dataset):
    """Tokenised rows, masked anew in every epoch; with `set_epoch` never called, the same way each time."""

    def __init__(self, rows: Dataset, masking: Masking):
        self.rows, self.masking, self.epoch = rows, masking, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | str):
        """A masked row; by name, a column as tokenised."""
        if isinstance(position, str):
            return self.rows[position]
        return self.masking(self.rows[position], self.epoch * len(self.rows) + position)


class MaskedStream(torch.utils.data.IterableDataset):
    """A stream of tokenised rows, masked by their number in it; starts again where it ends, in another order."""

    def __init__(self, rows: IterableDataset, masking: Masking):
        self.rows, self.masking = rows, masking

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        number, epoch = 0, 0
        while True:
            self.rows.set_epoch(epoch)
            before = number
            for row in self.rows:
                yield self.masking(row, number)
                number += 1
            if number == before:
                return
            epoch += 1


class MaskAnew(TrainerCallback):
    """Tells a [`MaskedTexts`] which epoch begins."""

    def __init__(self, dataset: MaskedTexts):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.dataset.set_epoch(int(state.epoch or 0))


class ReturnMemory(TrainerCallback):
    """Keeps the memory of a long stream flat.

    Rows come and go by the million, in sizes that fit no gap that others left: without this, the process grows for
    hours. Every five seconds, pages that the allocators (pyarrow's and glibc's) keep and do not use go back to the
    system; and threads share two of glibc's arenas instead of eight a core, so that there are fewer gaps. Where the C
    library is another, only pyarrow's go back. oneDNN keeps code for the last 1,024 shapes that it met, and nearly each
    batch has new ones: it is told to keep 16, and heeds that if it has not begun. So make this before any computing.
    """

    def __init__(self):
        library = ctypes.CDLL(None) if os.name == "posix" else None
        self._trim = getattr(library, "malloc_trim", None)
        if self._trim is not None:
            library.mallopt(_M_ARENA_MAX, 2)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
        self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if time.monotonic() - self._last > 5:
            pyarrow.default_memory_pool().release_unused()
            if self._trim is not None:
                self._trim(0)
            self._last = time.monotonic()


class PaddingCollator:
    """Masked rows as a batch: padded to the longest, labels with -100."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.padding = tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        def padded(name: str, value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        ids = padded("input_ids", self.padding)
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", -100)}


# ---- Figures ------------------------------------------------------------------------------------------------------


def masked_scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each row of a batch: summed negative log-likelihood, right predictions, tokens predicted: `(batch, 3)`.

    Args:
        logits: `(tokens with a label, vocabulary)`, as `EmoDebertaForMaskedLM` gives them.
        labels: `(batch, length)`.
    """
    chosen = labels != -100
    rows = chosen.nonzero()[:, 0]
    wanted = labels[chosen]
    scores = torch.stack(
        [
            F.cross_entropy(logits.float(), wanted, reduction="none"),
            (logits.argmax(-1) == wanted).float(),
            torch.ones(len(wanted), device=logits.device),
        ],
        dim=1,
    )
    return scores.new_zeros((len(labels), 3)).index_add_(0, rows, scores)


def masked_metrics(scores: np.ndarray) -> dict[str, float]:
    """Over all rows of [`masked_scores`]: `perplexity`, `masked_accuracy`, and how many tokens they are about."""
    loss, right, tokens = scores.astype(np.float64).sum(axis=0)
    return {
        "perplexity": float(np.exp(loss / max(tokens, 1))),
        "masked_accuracy": float(right / max(tokens, 1)),
        "masked_tokens": int(tokens),
    }
