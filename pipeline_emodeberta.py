"""Classify many texts without wasted work: sorted by length, in batches with about the same number of tokens.

Shipped inside every saved model, where `pipeline("text-classification", model=…, trust_remote_code=True)` finds it.
"""

import math
import operator
import re
import threading
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction
from transformers.utils import logging

try:
    from .texts_emodeberta import as_pair, beginning, in_order, token_budget_batches, truncated, without_each_word
except ImportError:
    from texts_emodeberta import as_pair, beginning, in_order, token_budget_batches, truncated, without_each_word

logger = logging.get_logger(__name__)

# Number of texts that are sorted together. A stream is read this far ahead and no further.
WINDOW = 2048
TOO_LONG = "more tokens than the model reads"
# Options of the tokenizers that a call may also have.
TOKENIZER_OPTIONS = ("add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side")
TOKENIZER_OPTIONS += ("return_token_type_ids", "split_special_tokens", "truncation", "verbose")
_WHOLE = (None, False, "do_not_truncate")  # values of `truncation` with which a text is not cut
# A tokenizer keeps the last caller's length and stride, so threads take turns, whichever pipeline they call.
TOKENIZING = threading.Lock()


class EmotionPipeline(TextClassificationPipeline):
    """A `TextClassificationPipeline` that batches texts of similar length; results keep the order of the texts.

    Make one with `EmotionPipeline(model=model, tokenizer=tokenizer, device=device)`, or with `pipeline(...)` as above.

    The input is a text, a pair `{"text": …, "text_pair": …}`, or several of these. `text_pair=` adds second texts, or
    the same one to all. The output is that of the library's pipeline: a list for texts that are in memory (a list, a
    tuple, an array, a Series, a column of a dataset), a generator for other iterables (a generator, a dataset). A table
    is refused, because its texts are in one of its columns: `classify(df["text"])`. So is a set, which has no order.

    Texts longer than the tokenizer's `model_max_length` are cut. An input that is empty or not a text gets
    `{"label": None, "score": None, "error": …}`. So does a text for which the model returns NaN, and with
    `truncation=False` one that is longer than the model's positions. Warnings give their number. An ensemble's texts
    are tokenized once per tokenizer and sorted once. Threads may share a pipeline.

    Args:
        stride: Read a text longer than the tokenizer's `model_max_length` in windows that overlap by this many tokens,
            and average their probabilities, instead of cutting it.
        tokens_per_batch: Tokens in a batch, padding included. By default 2,048 in float32 and 4,096 in half precision
            on CPU, where larger batches do not fit in the cache, and 65,536 on an accelerator. `batch_size` is not
            used.
        abstain_below: Return the label `None` if the best label is less probable than this. Default: that of the
            configuration, unless `top_k` or another `function_to_apply` is given; 0 always returns a label.
        thresholds: For a model with several classes per text: by label, the probability from which it counts (0.5 for
            labels not named). A result is then the list of labels that count, most probable first. Default: those of
            the configuration, if it has any and none of `top_k`, `abstain_below` and another `function_to_apply` is
            given.
        return_members: For an ensemble: each result is one dictionary with `label` and `score`, `scores` of all
            labels, `members` (label and score of each, by name) and `disagreement`, the share of the members that
            have another label.
        revision, token: For an ensemble on the Hub that `pipeline(…)` did not load: where its other tokenizers are.
    """

    without_each_word = staticmethod(without_each_word)  # for the demo, which loads this file from the model

    def __init__(self, *args, revision: str | None = None, token: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        # The library keeps the code of each commit in a package named after it, and the commit nowhere else.
        commit = re.search(r"\.([0-9a-f]{40})\.", type(self.model).__module__)
        last = max(getattr(self.model.config, "tokenizer_of_member", None) or [0])
        self.tokenizers = [self.tokenizer] + [
            AutoTokenizer.from_pretrained(
                self.model.config.name_or_path,
                subfolder=f"tokenizer_{number}",
                revision=revision or (commit and commit.group(1)),
                token=token,
            )
            for number in range(1, last + 1)
        ]

    def check_model_type(self, supported_models) -> None:
        """Accept every model, because the library's list has no models that ship with their own code."""

    def _sanitize_parameters(
        self,
        tokens_per_batch=None,
        stride=None,
        abstain_below=None,
        thresholds=None,
        return_members=None,
        **kwargs,
    ):
        apply = kwargs.get("function_to_apply")
        if isinstance(apply, str) and apply.upper() not in ClassificationFunction.__members__:
            raise ValueError(f"function_to_apply is {apply!r}; want sigmoid, softmax or none")
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if not hasattr(self, "_preprocess_params"):  # in the constructor, whose options hold for every call
            preprocess.setdefault("truncation", True)
        if unknown := sorted(preprocess.keys() - set(TOKENIZER_OPTIONS)):
            own = ("stride", "tokens_per_batch", "abstain_below", "thresholds", "return_members", "batch_size")
            options = (*own, "function_to_apply", "top_k", "text_pair", "num_workers", *TOKENIZER_OPTIONS)
            meant = get_close_matches(unknown[0], options, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"the options are {', '.join(options)}"
            raise ValueError(f"unknown option {unknown[0]!r}; {hint}")
        top_k = kwargs.get("top_k")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k is {top_k!r}; want at least 1, or None for all labels")
        preprocessed = getattr(self, "_preprocess_params", {}) | preprocess
        limit, most = self._limit(preprocessed), min(self._most())
        if (preprocessed.get("max_length") or 0) > most:
            raise ValueError(f"max_length is {limit}; the model reads at most {most} tokens")
        room = limit - self.tokenizer.num_special_tokens_to_add()
        if room < 1:
            raise ValueError(f"max_length is {limit}; the special tokens alone are {limit - room}")
        if stride is not None:
            if not 0 <= stride < room or not self.tokenizer.is_fast:
                raise ValueError(f"stride is {stride}; want 0 to {room - 1} shared tokens, and a fast tokenizer")
            if max(getattr(self.model.config, "tokenizer_of_member", None) or [0]) > 0:
                raise ValueError("stride: the members' tokenizers cut the windows of a text at different places")
            preprocess |= {"stride": stride, "return_overflowing_tokens": True}
        if thresholds is not None:
            if self.model.config.problem_type != "multi_label_classification":
                raise ValueError("thresholds are for models with several classes per text")
            labels = list(self.model.config.id2label.values())
            if unknown := sorted(set(thresholds) - set(labels)):
                raise ValueError(f"thresholds: {unknown[0]!r} is not a label; the labels are {', '.join(labels)}")
            for other, given in (("abstain_below", abstain_below is not None), ("top_k", "top_k" in kwargs)):
                if given:
                    raise ValueError(f"thresholds and {other} exclude each other")
            postprocess["thresholds"] = thresholds
        if tokens_per_batch is not None:
            if tokens_per_batch < 1:
                raise ValueError(f"tokens_per_batch is {tokens_per_batch}; want at least 1")
            forward["tokens_per_batch"] = tokens_per_batch
        if abstain_below is not None:
            if not 0 <= abstain_below <= 1:
                raise ValueError(f"abstain_below is {abstain_below}; want a probability, 0 to 1")
            postprocess["abstain_below"] = abstain_below
        if return_members is not None:
            if return_members and not hasattr(self.model, "members"):
                raise ValueError("return_members: this model is not an ensemble")
            postprocess["return_members"] = return_members
        return preprocess, forward, postprocess

    def _with_defaults(self, postprocess: dict) -> dict:
        """Return the parameters with the model's own thresholds, where the caller did not ask for something else."""
        config = self.model.config
        thresholds, abstain_below = getattr(config, "label_thresholds", None), getattr(config, "abstain_below", None)
        several = config.problem_type == "multi_label_classification"
        function = "sigmoid" if several else "softmax"
        if postprocess.get("function_to_apply", function) != function:  # the scores are no probabilities
            if given := sorted(postprocess.keys() & {"thresholds", "abstain_below"}):
                raise ValueError(f"{given[0]} is for probabilities; leave out function_to_apply")
            return postprocess
        if postprocess.keys() & {"top_k", "thresholds", "abstain_below"}:
            return postprocess
        if several:
            if thresholds is None:
                return postprocess
            return postprocess | {"thresholds": {config.id2label[i]: value for i, value in enumerate(thresholds)}}
        return postprocess if abstain_below is None else postprocess | {"abstain_below": abstain_below}

    def _limit(self, preprocess: dict) -> int:
        """Return how many tokens of a text are read."""
        return preprocess.get("max_length") or self.tokenizer.model_max_length

    def _most(self) -> list[float]:
        """Return by tokenizer for how many of its tokens the model has positions; infinite if it needs none, or does
        not say."""
        members = getattr(self.model, "members", [self.model])
        tokenizer_of = getattr(self.model.config, "tokenizer_of_member", None) or [0] * len(members)
        most = [math.inf] * (max(tokenizer_of) + 1)
        for number, member in zip(tokenizer_of, members, strict=True):
            if getattr(member.config, "position_biased_input", False):
                most[number] = min(most[number], member.config.max_position_embeddings)
        return most

    def preprocess(self, inputs, **options):
        """Return the tokens of one text, or of another input that the library's pipeline takes."""
        if isinstance(inputs, str) and options.get("truncation") not in _WHOLE:
            inputs = beginning(inputs, self.tokenizer, self._limit(options))
        return super().preprocess(inputs, **options)

    def _forward(self, model_inputs, tokens_per_batch=None):
        return super()._forward(model_inputs)

    def postprocess(self, model_outputs, abstain_below=None, thresholds=None, return_members=False, **kwargs):
        """Return the library's result; depending on the parameters, with members, thresholds or without a label."""
        if thresholds is not None:
            every = super().postprocess(model_outputs, **kwargs | {"top_k": None, "_legacy": False})
            return [entry for entry in every if entry["score"] >= thresholds.get(entry["label"], 0.5)]
        result = self._with_members(model_outputs) if return_members else super().postprocess(model_outputs, **kwargs)
        best = result if isinstance(result, dict) else max(result, key=lambda entry: entry["score"])
        if abstain_below is not None and best["score"] < abstain_below:
            result = best | {"label": None} if isinstance(result, dict) else [best | {"label": None}]
        return result

    def _with_members(self, outputs) -> dict[str, Any]:
        names = [self.model.config.id2label[label] for label in range(outputs["logits"].shape[-1])]
        scores = outputs["logits"][0].float().softmax(dim=-1)
        of_members = outputs["member_logits"][0].float().softmax(dim=-1)
        label = names[int(scores.argmax())]
        members = {
            name: {"label": names[int(row.argmax())], "score": float(row.max())}
            for name, row in zip(self.model.config.member_names, of_members, strict=True)
        }
        return {
            "label": label,
            "score": float(scores.max()),
            "scores": dict(zip(names, scores.tolist(), strict=True)),
            "members": members,
            "disagreement": sum(member["label"] != label for member in members.values()) / len(members),
        }

    def __call__(
        self, inputs: str | dict | Iterable, text_pair: str | Iterable[str] | None = None, **kwargs: Any
    ) -> Any:
        """Return the predictions for a text or several; see the class for inputs and outputs."""
        kwargs = {key: value for key, value in kwargs.items() if key not in ("batch_size", "num_workers")}
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        own = self._postprocess_params
        if "top_k" in kwargs:  # which asks for something else than thresholds given to the constructor
            own = {name: value for name, value in own.items() if name != "thresholds"}
        postprocess = self._with_defaults(own | postprocess)
        if isinstance(inputs, dict) and isinstance(inputs.get("text"), list | tuple):  # a batch of columns
            inputs, text_pair = inputs["text"], inputs.get("text_pair", text_pair)
        iterable = (hasattr(inputs, "__iter__") or hasattr(inputs, "__len__")) and not isinstance(inputs, type)
        is_pair = isinstance(inputs, dict) and not hasattr(inputs, "column_names")
        single = isinstance(inputs, str | bytes) or is_pair or not iterable
        texts = [inputs] if single else in_order(inputs)
        in_memory = isinstance(texts, Collection)
        if isinstance(text_pair, str):
            texts = ({"text": text, "text_pair": text_pair} for text in texts)
        elif text_pair is not None:
            text_pair = in_order(text_pair)
            if in_memory and isinstance(text_pair, Collection) and len(texts) != len(text_pair):
                raise ValueError(f"text_pair: {len(text_pair)} for {len(texts)} texts")
            texts = ({"text": text, "text_pair": pair} for text, pair in zip(texts, text_pair, strict=True))
        results = self._classify(
            texts,
            self._preprocess_params | preprocess,
            (self._forward_params | forward).get("tokens_per_batch"),
            postprocess,
        )
        if single:  # the library's form of the result for one text
            (result,) = results
            bare = isinstance(inputs, dict) or "top_k" in kwargs or "thresholds" in postprocess
            return result if bare else [result]
        return list(results) if in_memory else results

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Save the model and its tokenizers; other tokenizers of an ensemble go into subfolders."""
        super().save_pretrained(save_directory, **kwargs)
        for number, tokenizer in enumerate(self.tokenizers[1:], 1):
            tokenizer.save_pretrained(Path(save_directory) / f"tokenizer_{number}")

    def encode(self, texts: list, **options: Any) -> list[Any]:
        """Return the tokens of the texts from each tokenizer, without padding; `options` override the pipeline's.

        An entry may also be a pair of texts, as a tuple.
        """
        options = self._preprocess_params | options
        encoded = []
        with TOKENIZING:
            for tokenizer in self.tokenizers:
                room = options.get("max_length") or tokenizer.model_max_length
                cuts = options.get("truncation") not in _WHOLE and "stride" not in options
                encoded.append(
                    tokenizer([beginning(text, tokenizer, room) for text in texts] if cuts else texts, **options)
                )
        return encoded

    def batches(
        self, encoded: list[Any], tokens_per_batch: int | None = None, members: bool = False
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yield batches, longest texts first: positions among the rows that [`encode`] returned, and the model's
        outputs.

        Outputs are on CPU: `logits` `(rows, labels)` and, if `members`, `member_logits` `(rows, members, labels)`.
        Rows of more tokens than the model has positions for are in no batch.
        """
        if tokens_per_batch is None:
            tokens_per_batch = 8192 // self.model.dtype.itemsize if self.device.type == "cpu" else 65536
        names = ("logits", "member_logits") if members else ("logits",)
        by_tokenizer = [[len(ids) for ids in of_tokenizer["input_ids"]] for of_tokenizer in encoded]
        lengths, most = list(map(max, *by_tokenizer, by_tokenizer[0])), self._most()
        read = (all(map(operator.le, of_row, most)) for of_row in zip(*by_tokenizer, strict=True))
        fitting = [position for position, fits in enumerate(read) if fits]
        for chosen in token_budget_batches([lengths[position] for position in fitting], tokens_per_batch):
            batch = [fitting[place] for place in chosen]
            inputs: dict[str, Any] = {"output_member_logits": True} if members else {}
            for number, (tokenizer, values_of) in enumerate(zip(self.tokenizers, encoded, strict=True)):
                rows = {name: [values[position] for position in batch] for name, values in values_of.items()}
                for name, values in tokenizer.pad(rows, return_tensors="pt").items():
                    inputs[f"{name}_{number}" if number else name] = values
            outputs = self.forward(inputs)
            yield batch, {name: outputs[name] for name in names}

    def _classify(
        self, texts: Iterable, preprocess: dict, tokens_per_batch: int | None, postprocess: dict
    ) -> Iterator[Any]:
        texts, seen, cut, bad, too_long, undecided = iter(texts), 0, 0, 0, 0, 0
        listed = ("top_k" in postprocess or "thresholds" in postprocess) and not postprocess.get("return_members")

        def error(position: int, problem: str) -> Any:
            result = {"label": None, "score": None, "error": f"input {seen + position}: {problem}"}
            return [result] if listed else result

        while window := list(islice(texts, WINDOW)):
            results: list[Any] = [None] * len(window)
            usable, pairs = [], []
            for position, given in enumerate(window):
                if (pair := as_pair(given)) is None:
                    results[position] = error(position, f"{given!r:.60}; want a text, or text and text_pair")
                else:
                    usable.append(position)
                    pairs.append(pair[0] if pair[1] is None else pair)
            if usable:
                encoded = self.encode(pairs, **preprocess)
                if "stride" not in preprocess:
                    cut += sum(truncated(encoded))
                of_text = encoded[0].pop("overflow_to_sample_mapping", range(len(usable)))
                outputs: list[Any] = [None] * len(encoded[0]["input_ids"])
                for batch, values in self.batches(encoded, tokens_per_batch, bool(postprocess.get("return_members"))):
                    for row, position in enumerate(batch):
                        outputs[position] = {name: tensor[row : row + 1] for name, tensor in values.items()}
                windows: list[list[dict]] = [[] for _ in usable]
                for position, output in zip(of_text, outputs, strict=True):
                    windows[position].append(output)
                for position, of_one in zip(usable, windows, strict=True):
                    if None in of_one:
                        too_long += 1
                        results[position] = error(position, TOO_LONG)
                    elif all(tensor.isfinite().all() for output in of_one for tensor in output.values()):
                        results[position] = self.postprocess(self._joined(of_one), **postprocess)
                    else:
                        undecided += 1
                        results[position] = error(position, "the model gives no number (NaN or infinite)")
            yield from results
            seen += len(window)
            bad += len(window) - len(usable)
        if cut:
            logger.warning(f"{cut} of {seen} texts are longer than {self._limit(preprocess)} tokens and were cut")
        if bad:
            logger.warning(f"{bad} of {seen} inputs are empty or not texts, and have an error instead of a label")
        if too_long:
            logger.warning(
                f"{too_long} of {seen} texts have more tokens than the model reads, and an error instead of a label"
            )
        if undecided:
            logger.warning(f"for {undecided} of {seen} inputs the model gives no number; they have an error instead")

    def _joined(self, windows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return logits whose probabilities are the mean over the windows of one text."""
        if len(windows) == 1:
            return windows[0]
        several = self.model.config.problem_type == "multi_label_classification"
        joined = {}
        for name in windows[0]:
            logits = torch.cat([window[name] for window in windows]).float()
            mean = (logits.sigmoid() if several else logits.softmax(dim=-1)).mean(dim=0, keepdim=True)
            joined[name] = mean.logit() if several else mean.log()
        return joined
