"""Classify many texts without wasted work: sorted by length, in batches of about equally many tokens.

Shipped inside every saved model, where `pipeline("text-classification", model=…, trust_remote_code=True)` finds it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from transformers import TextClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Texts that are sorted together. A stream is read this far ahead, no further.
WINDOW = 2048


def token_budget_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Positions of the texts, longest first, so that no batch has more than `tokens_per_batch` tokens with padding.

    A text longer than that is a batch of its own. Longest first: what does not fit in memory fails at once.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


class EmotionPipeline(TextClassificationPipeline):
    """`TextClassificationPipeline` whose batches follow the texts' lengths; results come in the order of the texts.

    `EmotionPipeline(model=model, tokenizer=tokenizer, device=device)`, or `pipeline(...)` as above. Takes a text, a
    list or any other iterable of texts (a generator, a dataset's column); gives what the library's pipeline gives:
    a list for a list, a generator for another iterable. Texts beyond the tokenizer's `model_max_length` are cut, and
    how many is said.

    Args:
        tokens_per_batch: Tokens in a batch, padding included: 2,048 in float32 and 4,096 in half precision on CPU,
            where larger ones leave the cache, and 65,536 on an accelerator, unless given. `batch_size` is not used.

    Raises:
        ValueError: if an input is not a text; says which.
    """

    def check_model_type(self, supported_models) -> None:
        """The library's list has no models that ship with their own code."""

    def _sanitize_parameters(self, tokens_per_batch=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        preprocess.setdefault("truncation", True)
        if tokens_per_batch is not None:
            if tokens_per_batch < 1:
                raise ValueError(f"tokens_per_batch is {tokens_per_batch}; want at least 1")
            forward["tokens_per_batch"] = tokens_per_batch
        return preprocess, forward, postprocess

    def _forward(self, model_inputs, tokens_per_batch=None):
        return super()._forward(model_inputs)

    def __call__(self, inputs: str | dict | Iterable[str], **kwargs: Any) -> Any:
        """Classify; see the class for what goes in and comes out."""
        if isinstance(inputs, str | dict):
            return super().__call__(inputs, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("batch_size", "num_workers")}
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        results = self._classify(
            inputs,
            self._preprocess_params | preprocess,
            (self._forward_params | forward).get("tokens_per_batch"),
            self._postprocess_params | postprocess,
        )
        return list(results) if isinstance(inputs, list | tuple) else results

    def _classify(
        self, texts: Iterable[str], preprocess: dict, tokens_per_batch: int | None, postprocess: dict
    ) -> Iterator[Any]:
        if tokens_per_batch is None:
            tokens_per_batch = 8192 // self.model.dtype.itemsize if self.device.type == "cpu" else 65536
        texts, seen, cut = iter(texts), 0, 0
        while window := list(islice(texts, WINDOW)):
            for position, text in enumerate(window):
                if not isinstance(text, str):
                    raise ValueError(f"input {seen + position}: {text!r:.60}; want a text")
            encoded = self.tokenizer(window, **preprocess)
            cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings or ())
            yield from self._classify_window(encoded, tokens_per_batch, postprocess)
            seen += len(window)
        if cut:
            logger.warning(
                f"{cut} of {seen} texts are longer than {self.tokenizer.model_max_length} tokens and were cut"
            )

    def _classify_window(self, encoded: dict, tokens_per_batch: int, postprocess: dict) -> list[Any]:
        lengths = [len(ids) for ids in encoded["input_ids"]]
        results: list[Any] = [None] * len(lengths)
        for batch in token_budget_batches(lengths, tokens_per_batch):
            rows = {name: [values[position] for position in batch] for name, values in encoded.items()}
            logits = self.forward(dict(self.tokenizer.pad(rows, return_tensors="pt")))["logits"]
            for position, row in zip(batch, logits, strict=True):
                results[position] = self.postprocess(SequenceClassifierOutput(logits=row[None]), **postprocess)
        return results
