"""The tokenizer of a checkpoint."""

from contextlib import contextmanager

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..errors import InputError, first_line
from .checkpoint_source import resolve_checkpoint


def load_tokenizer(
    name: str,
    max_seq_length: int,
    config: PretrainedConfig,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, which from now on cuts at `max_seq_length` where it is asked to cut.

    Raises:
        InputError: if there is none, or it does not fit the model's configuration.
    """
    path = resolve_checkpoint(name, revision=revision, cache_dir=cache_dir, token=token)
    access = {"cache_dir": cache_dir, "token": token}
    if path == name:
        access["revision"] = revision
    try:
        with library_quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, **{k: v for k, v in access.items() if v}
            )
    except Exception as error:  # of a damaged file, the library raises nearly anything
        raise InputError(f"{name}: no tokenizer there ({first_line(error)}); give --tokenizer_name") from error
    if config.position_biased_input and max_seq_length > config.max_position_embeddings:
        raise InputError(
            f"--max_seq_length is {max_seq_length}; {name} has positions for {config.max_position_embeddings}"
        )
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, the model's vocabulary {config.vocab_size}"
        )
    tokenizer.model_max_length = max_seq_length
    if tokenizer.is_fast:  # sentence-transformers checkpoints carry a fixed length of 128 in tokenizer.json
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@contextmanager
def library_quiet():
    """Without the library's warnings: a table of every key, where `_check_loaded` says what matters in two lines, and
    that it does not know the model's type."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
