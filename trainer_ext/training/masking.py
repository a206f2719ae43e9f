"""Tokenise texts, mask words, and score a model's predictions of them (masked language modelling; paper, 2.1)."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, TrainerCallback

from texts_emodeberta import beginning

from ..errors import InputError


# ---- Tokens -------------------------------------------------------------------------------------------------------
class Tokenising:
    """A function from texts to rows of token ids, for `Dataset.map(batched=True)`.

    A call returns `input_ids` and, if `words` is set, `words`: for each token the number of its word, -1 for special
    tokens.

    Args:
        max_seq_length: Longest row in tokens, special tokens included.
        line_by_line: If true, a longer text is cut. If false, it is split into several rows.
        words: Also return word numbers, which whole-word masking needs.

    Raises:
        InputError: if the tokenizer is slow and `words` is true or `line_by_line` is false.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, line_by_line: bool, words: bool):
        if not tokenizer.is_fast and (words or not line_by_line):
            raise InputError("--whole_word_masking and --line_by_line false need a fast tokenizer")
        self.tokenizer, self.max_seq_length = tokenizer, max_seq_length
        self.line_by_line, self.words = line_by_line, words

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        options = {} if self.line_by_line else {"return_overflowing_tokens": True}
        texts = batch["text"]
        if self.line_by_line:
            texts = [beginning(text, self.tokenizer, self.max_seq_length) for text in texts]
        encoded = self.tokenizer(
            texts,
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
    """A function that masks one row for masked language modelling, as in BERT (paper, section 2.1).

    It selects a share `probability` of a row's tokens, never special ones. Of these, 80% become `[MASK]`, 10% become a
    random
    token and 10% stay. The random draw depends only on `seed`, `stream` and the row's key. So it does not change with
    the
    batch size, the number of processes or a resume.

    Args:
        probability: Share of tokens (or words) to select, between 0 and 1.
        whole_words: Select whole words instead of single tokens.
        stream: Separates the draws for training from those for evaluation.

    Raises:
        InputError: if the probability is out of range, or the tokenizer has no mask token.
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
        """Return the masked `input_ids` and the `labels` of a row, both `(length,)`; labels are -100 where nothing is
        predicted.

        Args:
            row: `input_ids` and, for whole words, `words`, as [`Tokenising`] returns them.
            key: Number that fixes the random draw.
        """
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
    """A dataset of tokenised rows that are masked anew in each epoch; without `set_epoch`, always in the same way."""

    def __init__(self, rows: Dataset, masking: Masking):
        self.rows, self.masking, self.epoch = rows, masking, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | str):
        """Return a masked row; for a column name, return that column without masking."""
        if isinstance(position, str):
            return self.rows[position]
        return self.masking(self.rows[position], self.epoch * len(self.rows) + position)


class MaskedStream(torch.utils.data.IterableDataset):
    """An endless stream of masked rows, which restarts in another order when it ends.

    The number of a row in the stream is the key of its masking.
    """

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
    """A callback that tells a [`MaskedTexts`] which epoch begins."""

    def __init__(self, dataset: MaskedTexts):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.dataset.set_epoch(int(state.epoch or 0))


class PaddingCollator:
    """A collator that pads masked rows to the longest row of the batch, labels with -100, and adds the padding mask."""

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
    """Return `(batch, 3)`: for each row the summed negative log-likelihood, the correct predictions and the predicted
    tokens.

    Args:
        logits: `(tokens with a label, vocabulary)`, as `EmoDebertaForMaskedLM` returns them.
        labels: `(batch, length)`, -100 where nothing is predicted.
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
    """Return `perplexity`, `masked_accuracy` and `masked_tokens` (their number) over all rows.

    Args:
        scores: `(rows, 3)`, as [`masked_scores`] returns them.
    """
    loss, right, tokens = scores.astype(np.float64).sum(axis=0)
    return {
        "perplexity": float(np.exp(loss / max(tokens, 1))),
        "masked_accuracy": float(right / max(tokens, 1)),
        "masked_tokens": int(tokens),
    }
