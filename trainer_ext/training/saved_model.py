"""Load a saved model and its tokenizer safely, encode a corpus, and save a classifier as a whole folder.

Damaged files give a one-line error.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from texts_emodeberta import beginning

from ..data.corpus import Corpus
from ..errors import InputError, first_line
from ..files import open_to_readers
from ..recipes import DEFAULT_ACCESS, HubAccess
from .checkpoint_source import resolve_checkpoint

# ---- Tokenizer -------------------------------------------------------------------------------------------------------
logger = logging.getLogger(__name__)


def load_tokenizer(
    name: str,
    max_seq_length: int,
    config: PretrainedConfig,
    *,
    access: HubAccess = DEFAULT_ACCESS,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a checkpoint's tokenizer, set to truncate at `max_seq_length` where truncation is asked for.

    Args:
        name: Folder or Hub id.
        max_seq_length: Longest text, in tokens.
        config: Configuration of the model.
        access: How to reach the Hub, if the name is a Hub id.
        trust_remote_code: As in `from_pretrained`.

    Raises:
        InputError: if there is no tokenizer, it does not fit the model's configuration, or `max_seq_length` is too
            small or too large.
    """
    tokenizer = read_tokenizer(name, access, trust_remote_code=trust_remote_code)
    least = tokenizer.num_special_tokens_to_add() + 1
    if max_seq_length < least:
        raise InputError(f"--max_seq_length is {max_seq_length}; want at least {least}, since {least - 1} are not text")
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
    access: HubAccess = DEFAULT_ACCESS,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a checkpoint's tokenizer, which cuts and pads texts only where that is asked for.

    Args:
        name, access, trust_remote_code: As in [`load_tokenizer`].

    Raises:
        InputError: if there is no tokenizer.
    """
    path = resolve_checkpoint(name, access)
    if path != name:
        access = replace(access, revision=None)
    try:
        with library_quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **access.arguments())
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


# ---- Model -----------------------------------------------------------------------------------------------------------
@contextmanager
def reading(name: str | Path, problem: str) -> Iterator[None]:
    """Turn any exception that the library raises while reading a file into an [`InputError`].

    A damaged or crafted file can raise almost anything (`TypeError`, `KeyError`, `ZeroDivisionError`, `RecursionError`,
    exceptions from Rust), so this is the one place that catches every exception.

    Args:
        name: Folder or Hub id, for the message.
        problem: What failed and what would be right, for the message.
    """
    try:
        with library_quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise InputError(f"{name}: {problem} ({type(told).__name__}: {first_line(told)})") from error


def load_whole(kind: type, name: str | Path, **options: Any) -> PreTrainedModel:
    """Return `kind.from_pretrained(name, **options)`, read from safetensors.

    Raises:
        InputError: if the weights cannot be read or do not fit the configuration, or some are missing or not finite (as
            after a training that diverged).
    """
    with reading(name, "its weights cannot be loaded; want safetensors that fit its config.json"):
        options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        # First without memory: a configuration may ask for any size of what the files lack.
        _, loaded = kind.from_pretrained(name, device_map="meta", **options)
    lacking = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(
            f"{name}: its weights lack {lacking[0]}{more} (or have another shape), and would be drawn at random"
        )
    with reading(name, "its weights cannot be loaded; want safetensors that fit its config.json"):
        model, _ = kind.from_pretrained(name, **options)
    if broken := next((key for key, weight in model.state_dict().items() if not weight.isfinite().all()), None):
        raise InputError(f"{name}: {broken} is not finite; its training diverged")
    return model


def check_config(name: str | Path, config: PretrainedConfig) -> None:
    """Check parts of a configuration that the library does not: `id2label` and `architectures`.

    Raises:
        InputError: if the labels are not different names numbered from 0, or `architectures` is not a list of names.
    """
    labels, architectures = config.id2label, config.architectures
    names = list(labels.values()) if isinstance(labels, dict) else []
    texts = all(isinstance(label, str) for label in names)
    if not names or not texts or sorted(labels) != list(range(len(names))) or len(set(names)) < len(names):
        raise InputError(
            f"{name}: id2label in its config.json is {labels!r:.80}; want a name for each number from 0 on"
        )
    if not isinstance(architectures or [], list) or not all(isinstance(one, str) for one in architectures or []):
        raise InputError(f"{name}: architectures in its config.json is {architectures!r:.80}; want a list of names")


# ---- Save a classifier as a whole folder ----
HANDLER = Path(__file__).parents[1] / "release" / "handler.py"
# Endpoints install these first; the transformers on their image may be too old for the code in the folder.
REQUIREMENTS = "transformers>=5.4,<6\n"


def save_classifier(folder: Path, model: PreTrainedModel, *tokenizers: PreTrainedTokenizerBase) -> None:
    """Save a classifier into a folder, which may exist.

    Args:
        tokenizers: Those of an ensemble, in the order of its `tokenizer_of_member`, else one. The first is next to the
            weights, number n in the subfolder `tokenizer_n`.
    """
    model.save_pretrained(folder)
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(folder / f"tokenizer_{number}" if number else folder)
    shutil.copyfile(HANDLER, folder / "handler.py")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        open_to_readers(weights)
