"""Load the tokenizer of a checkpoint and encode a corpus with it."""

import logging
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from texts_emodeberta import beginning

from ..data.corpus import Corpus
from ..errors import InputError, first_line
from .checkpoint_source import resolve_checkpoint

logger = logging.getLogger(__name__)


def load_tokenizer(name: str, max_seq_length: int, config: PretrainedConfig, **access: Any) -> PreTrainedTokenizerBase:
    """Return a checkpoint's tokenizer, set to truncate at `max_seq_length` where truncation is asked for.

    Args:
        name: Folder or Hub id.
        max_seq_length: Longest text, in tokens.
        config: Configuration of the model.
        access: `revision`, `cache_dir`, `token` and `trust_remote_code`, as in [`read_tokenizer`].

    Raises:
        InputError: if there is no tokenizer, it does not fit the model's configuration, or `max_seq_length` is too
            small or too large.
    """
    tokenizer = read_tokenizer(name, **access)
    least = tokenizer.num_special_tokens_to_add() + 1
    if max_seq_length < least:
        raise InputError(f"--max_seq_length is {max_seq_length}; want at least {least}, for {least - 1} are no text")
    if config.position_biased_input and max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"--max_seq_length is {max_seq_length}; {name} has positions for {config.max_position_embeddings}"
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, the model's vocabulary {config.vocab_size}"
        )
    tokenizer.model_max_length = max_seq_length
    return tokenizer


def read_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a checkpoint's tokenizer, which cuts and pads texts only where that is asked for.

    Args:
        name: Folder or Hub id.
        revision, cache_dir, token, trust_remote_code: As in `from_pretrained`.

    Raises:
        InputError: if there is no tokenizer.
    """
    path = resolve_checkpoint(name, revision=revision, cache_dir=cache_dir, token=token)
    access = {"cache_dir": cache_dir, "token": token}
    if path == name:
        access["revision"] = revision
    try:
        with library_quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code, **{k: v for k, v in access.items() if v}
            )
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{name}: no tokenizer there ({first_line(error)}); give --tokenizer_name") from error
    if tokenizer.is_fast:  # sentence-transformers checkpoints carry a fixed length of 128 in tokenizer.json
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, processes: int | None = None
) -> tuple[Dataset, int]:
    """Return the encoded texts (and labels) of a split, and how many texts were cut at `max_seq_length` tokens."""

    def begun(texts: list[str]) -> list[str]:
        return [beginning(text, tokenizer, max_seq_length) for text in texts]

    whole = tokenizer(begun(rows["text"]), truncation=False, verbose=False)["input_ids"]
    encoded = rows.map(
        lambda batch: tokenizer(begun(batch["text"]), truncation=True, max_length=max_seq_length),
        batched=True,
        remove_columns=[name for name in rows.column_names if name != "labels"],
        num_proc=processes,
        desc="tokenising",
    )
    return encoded, sum(len(ids) > max_seq_length for ids in whole)


def encode_splits(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, processes: int | None = None
) -> tuple[dict[str, Dataset], dict[str, int]]:
    """Return [`encode`]'s two results for each split, as two dicts by split, and log how many texts were cut."""
    encoded, truncated = {}, {}
    for split, rows in corpus.splits.items():
        encoded[split], truncated[split] = encode(rows, tokenizer, max_seq_length, processes)
        if truncated[split]:
            cut = f"{truncated[split]} of {len(rows)} texts are longer than {max_seq_length} tokens"
            logger.info(f"{split}: {cut} and are cut")
    return encoded, truncated


@contextmanager
def library_quiet():
    """Silence the library's warnings inside a `with` block.

    They list every key of a checkpoint, where `_check_loaded` logs what matters in two lines.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
