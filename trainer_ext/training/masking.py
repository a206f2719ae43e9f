"""Texts as token ids with words masked, and the scores of a model that fills them in (paper, section 2.1)."""

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
