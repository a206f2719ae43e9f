"""Check a corpus before a training: its texts here, its labels in label_checks.py."""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from ..errors import InputError
from .columns import names_groups
from .corpus import Corpus
from .emotion_corpora import BUILT_IN, normalised
from .findings import EXAMPLES, Finding, counted, examples, row_names
from .folds import check_trainable
from .label_checks import label_findings
from .leakage import copies
from .load import DataArguments
from .rows import read_rows

_NOTABLE = 0.01  # share of the rows, from which on copies within a split are a warning
_CUT = 0.01  # share of texts that are cut, from which on that is a warning
_OTHER = 0.2  # share of rows in a script or language, up to which they may be there by mistake
_SURE = 0.99  # probability of a language
_LONGEST_WORD = 20  # characters; a longer text without spaces may be of a language that has none
READABLE = 6  # words that tell the language of a text
_FEW_COMMON = 0.15  # share of such words in a text, under which its language is detected
_COMMON = 100  # most frequent words of the corpus
_SAMPLE = 300  # texts whose language is detected in any case
_PLACEHOLDERS = {"nan", "null", "none", "n/a", "na", "#n/a", "#ref!", "<na>", "[deleted]", "[removed]", "undefined"}
_MARKUP = re.compile(
    r"</?(a|b|blockquote|body|br|div|em|font|h[1-6]|html|i|img|li|ol|p|script|span|strong|style|table|td|tr|u|ul)"
    r"(\s[^<>]*)?/?>|&(amp|nbsp|lt|gt|quot|apos|#[0-9]+|#x[0-9a-f]+);",
    re.IGNORECASE,
)
_FAR_LONGER = 20  # times the length of 99% of the texts; such a text may be several
_PIECES = re.compile(r"\w+|[^\w\s]")
# Scripts that one language mixes.
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "HANGUL": "HANGUL"}
_NO_SCRIPT = {"FULLWIDTH", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE", "MICRO", "SUPERSCRIPT", "SUBSCRIPT"}


@dataclass(frozen=True)
class _Rows:
    """All rows of a corpus, in the order of its splits.

    Attributes:
        names: As `train row 17`.
        plain: The texts in lower case and without punctuation, see [`normalised`].
    """

    names: list[str]
    splits: list[str]
    texts: list[str]
    plain: list[str]

    def named(self, indices: Iterable[int]) -> list[str]:
        return [self.names[index] for index in indices]


def text_findings(
    corpus: Corpus, max_seq_length: int, count_tokens: Callable[[list[str]], list[int]] | None = None
) -> list[Finding]:
    """Return what is wrong with the texts of a corpus, or may be.

    Args:
        count_tokens: Returns the number of tokens of each text. By default, it is estimated from words and characters.
    """
    texts = [text for rows in corpus.splits.values() for text in rows["text"][:]]
    names = [name for split, rows in corpus.splits.items() for name in row_names(corpus, split, range(len(rows)))]
    splits = [split for split, rows in corpus.splits.items() for _ in range(len(rows))]
    rows = _Rows(names, splits, texts, list(map(normalised, texts)))
    return [
        *_without_words(rows),
        *_markup(rows),
        *_copies(rows, corpus),
        *_contradictions(rows, corpus),
        *_groups(corpus),
        *_lengths(rows, max_seq_length, count_tokens),
        *_scripts(rows),
    ]


def _without_words(rows: _Rows) -> list[Finding]:
    """Return a finding about texts that only stand for a missing one, or have punctuation only."""
    missing = [i for i, text in enumerate(rows.texts) if text.strip().casefold() in _PLACEHOLDERS]
    empty = [
        i
        for i, plain in enumerate(rows.plain)
        if not plain.strip("_") and not any(unicodedata.category(each) == "So" for each in rows.texts[i])
    ]
    found = []
    if missing:
        named = rows.named(missing)
        message = f"{counted(len(named), 'text')} like nan or [deleted]: {examples(named)}; remove the rows"
        found.append(Finding("warning", "missing_texts", message, named))
    if empty:
        named = rows.named(empty)
        level = "warning" if len(empty) >= _NOTABLE * len(rows.texts) else "note"
        message = f"{counted(len(named), 'text')} without a letter or digit: {examples(named)}"
        found.append(Finding(level, "texts_without_words", message, named))
    if np.median([len(text) if " " not in text.strip() else _LONGEST_WORD for text in rows.texts]) < _LONGEST_WORD:
        message = "most texts have one word only; if this is not the text, name another with --text_column_name"
        found.append(Finding("warning", "texts_of_one_word", message))
    return found


def _markup(rows: _Rows) -> list[Finding]:
    """Return a finding about texts with HTML."""
    named = rows.named(i for i, text in enumerate(rows.texts) if _MARKUP.search(text))
    if not named:
        return []
    message = f"{counted(len(named), 'text')} with HTML, as <br> or &amp;: {examples(named)}; remove the markup"
    return [Finding("warning" if len(named) >= _NOTABLE * len(rows.texts) else "note", "markup", message, named)]


# ---- Copies -------------------------------------------------------------------------------------------------------
def _copies(rows: _Rows, corpus: Corpus) -> list[Finding]:
    """Return findings about copies and near-copies, across splits and within them."""
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for copy, original in copies(rows.texts):
        pairs[rows.splits[copy], rows.splits[original]].append((copy, original))
    found = []
    for (split, other), of_splits in sorted(pairs.items(), key=lambda pair: pair[0][0] == pair[0][1]):
        near = sum(rows.plain[copy] != rows.plain[original] for copy, original in of_splits)
        named = [f"{rows.names[copy]} = {rows.names[original]}" for copy, original in of_splits]
        share = len(of_splits) / len(corpus.splits[split])
        count = counted(
            len(of_splits),
            "near-copy" if near == len(of_splits) else "copy",
            "near-copies" if near == len(of_splits) else "copies",
        )
        if 0 < near < len(of_splits):
            count += f" ({near:,} of them nearly)"
        if split != other:
            do = "is one file given for both?" if share > 0.5 else "remove one of each, or figures are too good"
            message = f"{count} across splits, in {split} of rows in {other}: {examples(named)}; {do}"
            found.append(Finding("warning", "copies_across_splits", message, named))
        else:
            level = "warning" if share >= _NOTABLE else "note"
            message = f"{count} within {split}: {examples(named)}"
            found.append(Finding(level, "copies_within_split", message, named))
    return found


def _contradictions(rows: _Rows, corpus: Corpus) -> list[Finding]:
    """Return a finding about equal texts with different labels."""
    labels: list[object] = []
    for split, of_split in corpus.splits.items():
        if corpus.is_labelled(split):
            classes = corpus.classes(split)
            labels += map(tuple, classes.tolist()) if classes.ndim == 2 else classes.tolist()
        else:
            labels += [None] * len(of_split)
    of_text: dict[str, list[int]] = defaultdict(list)
    for index, plain in enumerate(rows.plain):
        if plain and labels[index] is not None:
            of_text[plain].append(index)
    unequal = [same for same in of_text.values() if len(same) > 1 and len({labels[i] for i in same}) > 1]
    if not unequal:
        return []
    named = [" = ".join(rows.named(same[:EXAMPLES])) for same in unequal]
    long = any(len(rows.plain[same[0]].split()) >= READABLE for same in unequal)
    level = "warning" if long or sum(map(len, unequal)) >= _NOTABLE * len(labels) else "note"
    message = f"{counted(len(named), 'text')} with different labels in several rows: {examples(named)}; choose one"
    return [Finding(level, "contradictions", message, named)]


def _groups(corpus: Corpus) -> list[Finding]:
    """Return findings about groups (writers) that have rows in train and in another split."""
    found = []
    if "train" in corpus.splits and "group" in corpus.splits["train"].column_names:
        known = set(corpus.splits["train"]["group"][:])
        for split, of_split in corpus.splits.items():
            if split != "train" and "group" in of_split.column_names:
                groups = of_split["group"][:]
                shared = [i for i, group in enumerate(groups) if group in known]
                if shared:
                    named = row_names(corpus, split, shared)
                    count = counted(len({groups[i] for i in shared}), "group")
                    message = (
                        f"{count} of {split} also in train: {examples(named)}; keep the rows of a writer in one "
                        "split, or figures are too good"
                    )
                    found.append(Finding("warning", "groups_across_splits", message, named))
    return found


# ---- Length -------------------------------------------------------------------------------------------------------
def estimated_tokens(texts: Sequence[str]) -> list[int]:
    """Return about how many tokens each text has, with the special ones, for a vocabulary of word pieces."""
    return [
        2 + round(max(1.15 * len(_PIECES.findall(text)), len(text.encode("utf-8", "replace")) / 6)) for text in texts
    ]


def _lengths(rows: _Rows, max_seq_length: int, count_tokens: Callable[[list[str]], list[int]] | None) -> list[Finding]:
    """Return a note on the lengths of the texts, and a warning if many are cut."""
    counts = np.asarray((count_tokens or estimated_tokens)(rows.texts))
    median, most = np.percentile(counts, [50, 99], method="higher")
    how = "tokens" if count_tokens else "tokens, estimated (run_check.py --model_name_or_path counts them)"
    about = f"half of the texts have up to {median:,}, 99% up to {most:,} {how}"
    cut = np.flatnonzero(counts > max_seq_length)
    if not len(cut):
        return [Finding("note", "lengths", f"{about}; --max_seq_length {max_seq_length} cuts none")]
    named, found = rows.named(cut), []
    if len(far := [i for i in cut if counts[i] > _FAR_LONGER * most]):
        far_longer = rows.named(far)
        message = f"{counted(len(far), 'text')} far longer than all others, with up to {counts[far].max():,} tokens: "
        found.append(Finding("warning", "far_longer", f"{message}{examples(far_longer)}; one text each?", far_longer))
    level = "warning" if len(cut) >= _CUT * len(counts) else "note"
    message = f"--max_seq_length {max_seq_length} cuts {counted(len(cut), 'text')} ({len(cut) / len(counts):.1%}): "
    found.append(Finding(level, "lengths", f"{message}{examples(named)}; {about}", named))
    if level == "warning":
        wanted = min(512, 64 * int(np.ceil(most / 64)))
        whole = (counts <= wanted).mean()
        if wanted > max_seq_length and whole > (counts <= max_seq_length).mean():
            kept = f"--max_seq_length {wanted}: {whole:.1%} of the texts then stay whole"
            found.append(Finding("flag", "max_seq_length", kept))
    return found


# ---- Script and language ------------------------------------------------------------------------------------------
@cache
def _script_of(character: str) -> str | None:
    """Return the script of a letter, as LATIN or CJK, or `None` for other characters."""
    if not character.isalpha():
        return None
    word = unicodedata.name(character, "").partition(" ")[0]
    return None if word in _NO_SCRIPT else _TOGETHER.get(word, word) or None


def script_of(text: str) -> str | None:
    """Return the script of most letters of a text, as LATIN or CJK, or `None` if it has none."""
    if text.isascii():
        return "LATIN" if re.search("[A-Za-z]", text) else None
    scripts = Counter(filter(None, map(_script_of, text)))
    return max(scripts, key=scripts.get) if scripts else None


def _scripts(rows: _Rows) -> list[Finding]:
    """Return findings about texts in another script or language than most."""
    of_text = list(map(script_of, rows.texts))
    counts = Counter(filter(None, of_text))
    if not counts:
        return []
    main = max(counts, key=counts.get)
    other = [i for i, script in enumerate(of_text) if script not in (main, None)]
    found = []
    if other:
        named = rows.named(other)
        listed = ", ".join(f"{script.title()} {count:,}" for script, count in counts.most_common(6) if script != main)
        do = f"most are in {main.title()}" if len(other) <= _OTHER * len(of_text) else "is the model multilingual?"
        message = f"{counted(len(other), 'text')} in another script ({listed}): {examples(named)}; {do}"
        found.append(Finding("warning", "other_script", message, named))
    return [*found, *_languages(rows, [i for i, script in enumerate(of_text) if script == main])]


def _languages(rows: _Rows, indices: list[int]) -> list[Finding]:
    """Return a finding about texts in another language than most.

    The detector sees a sample, and every text with few of the corpus's most frequent words. Short texts are left out.
    """
    words = {i: rows.plain[i].split() for i in indices}
    words = {i: each for i, each in words.items() if len(each) >= READABLE}
    if not words:
        return []
    common = {word for word, _ in Counter(word for each in words.values() for word in each).most_common(_COMMON)}
    sample = list(words)[:: max(1, len(words) // _SAMPLE)]
    seldom = [i for i, each in words.items() if sum(word in common for word in each) < _FEW_COMMON * len(each)]
    try:
        detect = _detector()
    except OSError as error:  # it unpacks its model into a temporary file
        return [Finding("note", "language", f"languages were not checked ({error.strerror})")]
    language = {i: detect(rows.texts[i]) for i in {*sample, *seldom}}
    counts = Counter(language[i] for i in sample if language[i])
    if not counts:
        return []
    main = max(counts, key=counts.get)
    other = sorted(i for i, each in language.items() if each not in (main, None))
    if not other:
        return []
    named = rows.named(other)
    listed = ", ".join(f"{name} {count:,}" for name, count in Counter(language[i] for i in other).most_common(6))
    message = f"{counted(len(other), 'text')} probably in another language than {main} ({listed}): {examples(named)}"
    return [Finding("warning", "other_language", f"{message}; a model of one language cannot read them", named)]


@cache
def _detector() -> Callable[[str], str | None]:
    """Return a function that gives the language of a text as its ISO 639 code, or `None` if that is not sure."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def detect(text: str) -> str | None:
        language, probability = identifier.classify(text)
        return language if probability >= _SURE else None

    return detect


# ---- All checks ------------------------------------------------------------------------------------------------------
logger = logging.getLogger(__name__)


def findings(
    corpus: Corpus,
    data_args: DataArguments,
    class_weights: str = "none",
    count_tokens: Callable[[list[str]], list[int]] | None = None,
) -> list[Finding]:
    """Return what is wrong with a corpus or may be, the worst first.

    Args:
        data_args: The flags that the corpus was read with.
        class_weights: Value of `--class_weights`.
        count_tokens: Returns the number of tokens of each text; by default, it is estimated.
    """
    found = label_findings(corpus, data_args.label_column_name or "label", bool(data_args.label_set), class_weights)
    if not any(finding.level == "wrong" for finding in found):
        found += text_findings(corpus, data_args.max_seq_length, count_tokens)
        found += _writers(data_args)
    levels = ("wrong", "warning", "note", "flag")
    return sorted(found, key=lambda finding: levels.index(finding.level))


def check_data(corpus: Corpus, data_args: DataArguments, class_weights: str = "none") -> None:
    """Check the rows of a training, and log what may be wrong. Built-in corpora are not checked.

    Raises:
        InputError: if a classifier cannot be trained on them, or the labels are surely no labels.
    """
    check_trainable(corpus)
    own = data_args.train_file or (data_args.dataset_name and data_args.dataset_name not in ("wassa2022", *BUILT_IN))
    if not own:
        return
    for finding in findings(corpus, data_args, class_weights):
        if finding.level == "wrong":
            raise InputError(f"{corpus.source}: {finding.message}")
        if finding.level == "warning":
            logger.warning(f"data: {finding.message}")
        if finding.level == "flag":
            logger.info(f"data: try {finding.message}")


def _writers(data_args: DataArguments) -> list[Finding]:
    """Return a finding if no group column was named and a column of the training file looks like one."""
    if data_args.group_column_name or not data_args.train_file:
        return []
    used = {data_args.id_column_name, data_args.split_column_name}
    used |= {*(data_args.text_column_name or "text").split(","), *(data_args.label_column_name or "label").split(",")}
    candidates: list[str] = []

    def choose(names: list[str]) -> list[str]:
        candidates[:] = [name for name in names if name not in used and names_groups(name)]
        return candidates

    values: dict[str, set[str]] = {}
    count = 0
    for record in read_rows(Path(data_args.train_file), quoting=data_args.quoting, check=choose):
        if not candidates:
            return []
        count += 1
        for name in candidates:
            values.setdefault(name, set()).add(str(record.values.get(name)))
    for name, different in values.items():
        if 1 < len(different) <= 0.8 * count:
            message = (
                f"--group_column {name}: it has {counted(len(different), 'value')} in {counted(count, 'row')}; all "
                "rows of a writer then stay in one split"
            )
            return [Finding("flag", "group_column", message)]
    return []
