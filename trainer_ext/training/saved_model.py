"""Load a saved model safely: damaged files give a one-line error, and no weight is left random."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import InputError, first_line
from .tokenizer import library_quiet


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
