"""Classify many texts without wasted work: sorted by length, in batches with about the same number of tokens.

Shipped inside every saved model, where `pipeline("text-classification", model=…, trust_remote_code=True)` finds it.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import AutoTokenizer, TextClassificationPipeline
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Number of texts that are sorted together. A stream is read this far ahead and no further.
WINDOW = 2048
# Characters in which the first tokens are looked for: almost all of a longer one would be blanks or one word.
LONGEST_TEXT = 2**20


def token_budget_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield batches of positions, longest texts first, with at most `tokens_per_batch` tokens, padding included.

    A longer text is a batch of its own. Since the longest come first, what does not fit in memory fails at once.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _is_text(value: object) -> bool:
    """Return whether a value is a string, not blank, and valid Unicode (half of a surrogate pair is not)."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def beginnings(texts: list[str], tokenizer: Any, room: int | None = None) -> list[str]:
    """Return as much of each text as gives more than `room` tokens (`None`: the tokenizer's `model_max_length`).

    A tokenizer reads a text whole before it cuts it, and takes some 200 bytes for each character that it reads.
    """
    room, cut = room or tokenizer.model_max_length, []
    for text in texts:
        characters, part = 8 * room, text
        while len(text) > characters:
            whole_words = text[:characters].rsplit(None, 1)[:-1]  # half a word may have other tokens
            part = whole_words[0] if whole_words else text[:characters]
            tokens = tokenizer(part, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
            if (whole_words and len(tokens) > room) or characters >= LONGEST_TEXT:
                break
            characters, part = 4 * characters, text
        cut.append(part)
    return cut


def truncated(encoded: list[Any]) -> list[bool]:
    """Return for each text that [`EmotionPipeline.encode`] encoded whether a tokenizer cut it.

    A tokenizer without a Rust part does not say, and counts as one that did not cut.
    """
    cut = [False] * len(encoded[0]["input_ids"])
    for of_tokenizer in encoded:
        for text, encoding in enumerate(of_tokenizer.encodings or ()):
            cut[text] |= bool(encoding.overflowing)
    return cut


class EmotionPipeline(TextClassificationPipeline):
    """`TextClassificationPipeline` whose batches follow the texts' lengths; results keep the order of the texts.

    Made by `EmotionPipeline(model=model, tokenizer=tokenizer, device=device)`, or by `pipeline(...)` as above. It takes
    a text, a list or any other iterable of texts (a generator, a column of a dataset). It returns what the library's
    pipeline does: a list for a list, a generator for another iterable. Texts beyond the tokenizer's `model_max_length`
    are cut. In a list or stream, an input that is empty or not a text gets `{"label": None, "score": None,
    "error": …}`, so that one bad row does not lose the others. Warnings say how many of each there were.

    An ensemble's texts are tokenized once per tokenizer and sorted once.

    Args:
        stride: Read a text beyond the tokenizer's `model_max_length` in windows that share this many tokens, and
            average their probabilities, instead of cutting it.
        tokens_per_batch: Tokens in a batch, padding included. By default 2,048 in float32 and 4,096 in half precision
            on CPU, where larger batches leave the cache, and 65,536 on an accelerator. `batch_size` is not used.
        abstain_below: A result whose best label is less probable than this has the label `None`.
        thresholds: For a model with several classes per text: by label, the probability from which it counts (0.5 for
            labels not named). A result is then the list of labels that count, most probable first.
        return_members: For an ensemble: each result is one dictionary with `label` and `score`, `scores` of all
            labels, `members` (label and score of each, by name) and `disagreement`, the share of the members that
            have another label.
        revision, token: For an ensemble on the Hub that `pipeline(…)` did not load: where its other tokenizers are.
    """

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
        """Accept every model: the library's list has none that ship with their own code."""

    def _sanitize_parameters(
        self,
        tokens_per_batch=None,
        stride=None,
        abstain_below=None,
        thresholds=None,
        return_members=None,
        **kwargs,
    ):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        preprocess.setdefault("truncation", True)
        if stride is not None:
            room = self.tokenizer.model_max_length - self.tokenizer.num_special_tokens_to_add()
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
            if abstain_below is not None:
                raise ValueError("thresholds and abstain_below exclude each other")
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

    def preprocess(self, inputs, **options):
        """Return the tokens of one text, or of what else the library's pipeline takes."""
        if isinstance(inputs, str) and options.get("truncation"):
            inputs = beginnings([inputs], self.tokenizer, options.get("max_length"))[0]
        return super().preprocess(inputs, **options)

    def _forward(self, model_inputs, tokens_per_batch=None):
        return super()._forward(model_inputs)

    def postprocess(self, model_outputs, abstain_below=None, thresholds=None, return_members=False, **kwargs):
        """Return the library's result, with members or without a label if the parameters say so."""
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

    def __call__(self, inputs: str | dict | Iterable[str], **kwargs: Any) -> Any:
        """Classify texts; the class says what goes in and what comes out."""
        own_way = isinstance(inputs, str) and (hasattr(self.model, "members") or kwargs.get("stride") is not None)
        if isinstance(inputs, str | dict) and not own_way:
            return super().__call__(inputs, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("batch_size", "num_workers")}
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        results = self._classify(
            [inputs] if own_way else inputs,
            self._preprocess_params | preprocess,
            (self._forward_params | forward).get("tokens_per_batch"),
            self._postprocess_params | postprocess,
        )
        if own_way:  # in the form of the library's result for one text
            result = next(results)
            return result if isinstance(result, list) else [result]
        return list(results) if isinstance(inputs, list | tuple) else results

    def encode(self, texts: list[str], **options: Any) -> list[Any]:
        """Return the texts' tokens from each tokenizer, without padding; `options` override the pipeline's."""
        options = self._preprocess_params | options
        cuts = options.get("truncation") and "stride" not in options
        return [
            tokenizer(beginnings(texts, tokenizer, options.get("max_length")) if cuts else texts, **options)
            for tokenizer in self.tokenizers
        ]

    def batches(
        self, encoded: list[Any], tokens_per_batch: int | None = None, members: bool = False
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yield batches, longest texts first: positions among the rows that [`encode`] returned, and their outputs.

        Outputs are on CPU: `logits` `(rows, labels)` and, if `members`, `member_logits` `(rows, members, labels)`.
        """
        if tokens_per_batch is None:
            tokens_per_batch = 8192 // self.model.dtype.itemsize if self.device.type == "cpu" else 65536
        names = ("logits", "member_logits") if members else ("logits",)
        by_tokenizer = [[len(ids) for ids in of_tokenizer["input_ids"]] for of_tokenizer in encoded]
        for batch in token_budget_batches(list(map(max, *by_tokenizer, by_tokenizer[0])), tokens_per_batch):
            inputs: dict[str, Any] = {"output_member_logits": True} if members else {}
            for number, (tokenizer, values_of) in enumerate(zip(self.tokenizers, encoded, strict=True)):
                rows = {name: [values[position] for position in batch] for name, values in values_of.items()}
                for name, values in tokenizer.pad(rows, return_tensors="pt").items():
                    inputs[f"{name}_{number}" if number else name] = values
            outputs = self.forward(inputs)
            yield batch, {name: outputs[name] for name in names}

    def _classify(
        self, texts: Iterable[str], preprocess: dict, tokens_per_batch: int | None, postprocess: dict
    ) -> Iterator[Any]:
        texts, seen, cut, bad = iter(texts), 0, 0, 0
        while window := list(islice(texts, WINDOW)):
            results: list[Any] = [None] * len(window)
            usable = []
            for position, text in enumerate(window):
                if _is_text(text):
                    usable.append(position)
                else:
                    problem = f"input {seen + position}: {text!r:.60}; want a text"
                    results[position] = {"label": None, "score": None, "error": problem}
            if usable:
                encoded = self.encode([window[position] for position in usable], **preprocess)
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
                    results[position] = self.postprocess(self._joined(of_one), **postprocess)
            yield from results
            seen += len(window)
            bad += len(window) - len(usable)
        if cut:
            logger.warning(
                f"{cut} of {seen} texts are longer than {self.tokenizer.model_max_length} tokens and were cut"
            )
        if bad:
            logger.warning(f"{bad} of {seen} inputs are empty or not texts, and have an error instead of a label")

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
