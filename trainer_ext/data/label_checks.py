"""Check the labels of a corpus: their names, how many rows each has, and in which splits."""

import re
import unicodedata
from collections.abc import Mapping

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from .corpus import Corpus
from .findings import Finding, counted, examples, row_names, shown_name

FEW = 5  # rows; a class with fewer can hardly be learnt
_MOST = 0.9  # share of one class, from which on accuracy says little
_IMBALANCE = 10  # times as many rows in the largest class as in the smallest
_RARE = 0.1  # of another class's rows, at most, in a misspelt one
_LONG_LABEL = 8  # words of a name that is rather a text

_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]+)? ?%?")
_DATE = re.compile(
    r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}([ T].*)?"
    r"|([0-9]{1,2}\.? )?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?,? ([0-9]{1,2},? )?[0-9]{4}",
    re.IGNORECASE,
)
_LIST = re.compile(r"\[\s*(['\"\d-].*)?\]")  # as Python or JSON writes it
_ACCENTS = frozenset(map(chr, range(0x300, 0x370)))
_MOST_NAMES = 500  # to compare with one another
_MISSING = {"nan", "null", "na", "n/a", "#n/a", "<na>", "?", "-", "--", "undefined", "nil", "missing", "unlabeled"}
_JOINTS = "|;,/+&"  # between the labels of a row that has several
_SEVERAL = 3  # names made of other names; with so many, rows have several labels
_ENOUGH, _SOME = 300, 2000  # rows from which, and on which, a quick model of the words is tried
_TOLD = 0.15  # its agreement beyond chance, in standard deviations of a row
_WORDS = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]"  # a letter each where words are not apart
_MEANT = "list them with --label_set if they are meant"


def label_findings(corpus: Corpus, label_column: str, declared: bool, class_weights: str) -> list[Finding]:
    """Return what is wrong with the labels of a corpus, or may be.

    Args:
        label_column: Name of the column, for messages.
        declared: Whether the user listed the labels (`--label_set`), so that their names are meant.
        class_weights: Value of `--class_weights`.
    """
    counts = {split: corpus.class_counts(split) for split in corpus.splits if corpus.is_labelled(split)}
    total = {name: sum(of_split[name] for of_split in counts.values()) for name in corpus.label_names}
    present = {name: count for name, count in total.items() if count}
    found, misspelt = [], set()
    if not declared:
        found = _kind_of_names(present, label_column)
        if not corpus.multi_label:
            found += _joined_names(present, label_column)
        if any(finding.level == "wrong" for finding in found):
            return found
        misspelt, of_spelling = _spelling(corpus, present)
        found += of_spelling
    own = {
        split: {name: n for name, n in of_split.items() if name not in misspelt} for split, of_split in counts.items()
    }
    return [*found, *_sizes(corpus, own, class_weights), *_not_in_the_words(corpus, label_column)]


# ---- What the names look like -------------------------------------------------------------------------------------
def _kind_of_names(present: Mapping[str, int], column: str) -> list[Finding]:
    """Return findings about names that look like scores, dates, texts or missing values."""
    names, found = list(present), []
    other = f"name another column with --label_column_name, or {_MEANT}"
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    if len(names) > 2 and all(map(_DATE.fullmatch, names)):
        return [Finding("wrong", "labels_are_dates", f"column {column!r} holds dates, not labels; {other}")]
    if len(numbers) == len(names):
        found += _numbers(present, column, other)
    elif numbers:
        listed = ", ".join(f"{name} ({counted(present[name], 'row')})" for name in numbers[:3])
        found.append(
            Finding("warning", "labels_mixed", f"some labels are numbers and others names: {listed}; use one kind")
        )
    if len(names) > 2 and np.median([len(name.split()) for name in names]) >= _LONG_LABEL:
        message = f"column {column!r} looks like texts: {len(names)} values of many words each; {other}"
        return [Finding("wrong", "labels_are_texts", message)]  # nor may their names be shown
    for name in names:
        if name.casefold() in _MISSING or name == column:
            what = "is the name of its column" if name == column else "looks like a missing label"
            message = f"label {name!r} ({counted(present[name], 'row')}) {what}; correct or remove these rows"
            found.append(Finding("warning", "label_missing", message))
    return found


def _numbers(present: Mapping[str, int], column: str, other: str) -> list[Finding]:
    """Return whether labels that are all numbers are rather a score, a count or an id."""
    values = [float(re.sub(r"[ %+]", "", name).replace(",", ".")) for name in present]
    least, most, distinct = min(values), max(values), len(values)
    span = f"{distinct} different numbers from {least:g} to {most:g}"
    if not all(value.is_integer() for value in values):
        message = f"column {column!r} holds numbers with fractions ({span}), a score and not labels; {other}"
        return [Finding("wrong", "labels_are_scores", message)]
    few = float(np.median(list(present.values()))) < FEW
    if (distinct >= 10 and most - least + 1 >= 2 * distinct) or (distinct > 50 and few):
        message = f"column {column!r} holds {span}, an id, a count or a score and not labels; {other}"
        return [Finding("wrong", "labels_are_scores", message)]
    if distinct > 100 or (distinct >= 10 and least not in (0, 1)) or (distinct >= 20 and few):
        message = f"column {column!r} holds {span}, which may be a score and not labels; {other}"
        return [Finding("warning", "labels_are_scores", message)]
    message = (
        f"the labels of column {column!r} are numbers ({', '.join(list(present)[:7])}{',…' * (distinct > 7)}), and the "
        f"model will answer with them; if they stand for names, write these in the file, and if this is a rating, "
        f"{other}"
    )
    return [Finding("note", "labels_are_numbers", message)]


def _joined_names(present: Mapping[str, int], column: str) -> list[Finding]:
    """Return a finding about names that are made of other names, as `joy|anger` or `['joy', 'anger']`."""
    listed = list(filter(_LIST.fullmatch, present))
    if len(listed) > len(present) / 2:
        rows = sum(present[name] for name in listed)
        message = (
            f"{counted(len(listed), 'label')} of column {column!r} ({counted(rows, 'row')}) "
            f"{'is a list' if len(listed) == 1 else 'are lists'} written as text, as {shown_name(listed[0])!r}; if a "
            f"row may have several labels, write the table as JSON lines (in pandas: "
            f'df.to_json("rows.jsonl", orient="records", lines=True)), which keeps lists'
        )
        return [Finding("wrong", "labels_joined", f"{message}; else {_MEANT}")]
    for mark in _JOINTS:
        joined = {name: [part.strip() for part in name.split(mark)] for name in present if mark in name}
        joined = {name: parts for name, parts in joined.items() if all(part in present for part in parts)}
        if not joined or (mark == "," and all(map(_NUMBER.fullmatch, present))):  # decimals
            continue
        rows = sum(present[name] for name in joined)
        apart = sorted({part for parts in joined.values() for part in parts})
        message = (
            f"{counted(len(joined), 'label')} of column {column!r} ({counted(rows, 'row')}) "
            f"{'is' if len(joined) == 1 else 'are'} made of other labels, as {shown_name(next(iter(joined)))!r}; if a "
            f"row may have several, want one column of 0 and 1 per label (in pandas: "
            f"df[{column!r}].str.get_dummies({mark!r})) and --label_column_name {','.join(apart[:3])}"
            + ("" if len(apart) <= 3 else ",…")
        )
        if len(joined) < _SEVERAL:
            return [Finding("warning", "labels_joined", message)]
        return [Finding("wrong", "labels_joined", f"{message}; else {_MEANT}")]
    return []


# ---- Spelling -----------------------------------------------------------------------------------------------------
def _spelling(corpus: Corpus, present: Mapping[str, int]) -> tuple[set[str], list[Finding]]:
    """Return the names that differ from a more frequent one by case, spaces, accents or a letter, and findings on them.

    There is one finding for all names that differ from the same name in the same way.
    """
    names = sorted(present, key=lambda name: (-present[name], name))[:_MOST_NAMES]
    plain = {name: _plain(name) for name in names if not _NUMBER.fullmatch(name)}
    variants: dict[tuple[str, str], list[str]] = {}
    for position, name in enumerate(names):
        for other in names[:position]:
            if name not in plain or other not in plain:
                continue
            if plain[name] == plain[other]:
                how = "differs only in case, spaces, accents or marks from"
            elif _misspelt(plain[name], plain[other], present[name], present[other]):
                how = "is spelt almost like"
            else:
                continue
            variants.setdefault((other, how), []).append(name)
            break
    found = []
    for (other, how), of_other in variants.items():
        rows = {name: _rows_of(corpus, name) for name in of_other}
        listed = [
            f"{shown_name(name)!r} ({counted(present[name], 'row')}: {examples(rows[name])})" for name in of_other
        ]
        if len(of_other) > 1:
            how = how.replace("differs", "differ").replace("is spelt", "are spelt")
        message = (
            f"label{'s' * (len(of_other) > 1)} {' and '.join(listed)} {how} {shown_name(other)!r} "
            f"({counted(present[other], 'row')}); if they are one class, correct the file"
        )
        every = [row for of_name in rows.values() for row in of_name]
        found.append(Finding("warning", "label_spelling", message, every))
    return {name for of_other in variants.values() for name in of_other}, found


def _plain(name: str) -> str:
    """Return a name in lower case, without accents, marks that are not seen, and what joins words."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    letters = "".join(each for each in letters if each not in _ACCENTS and unicodedata.category(each) != "Cf")
    words = re.sub(r"[\s_'’`\"“”.,;:!]+|(?<=\w)-(?=\w)", " ", letters).split()
    return " ".join(words) or letters


def _misspelt(rare: str, frequent: str, rows: int, other_rows: int) -> bool:
    """Return whether a rare name is probably a misspelling of a frequent one.

    Both are plain names. Short names and names with many rows are true classes: joy and boy, class a and class b.
    """
    without_slips = re.sub(r"(?<=[^\W\d])\d(?=[^\W\d])", "", rare)  # as in b0red
    if re.sub(r"\D", "", without_slips) != re.sub(r"\D", "", frequent):
        return False
    if rare.replace(" ", "") == frequent.replace(" ", ""):
        return True
    shorter = min(len(rare), len(frequent))
    if rows > max(_RARE * other_rows, FEW - 1) or 2 * rows > other_rows or shorter < 3:
        return False
    if shorter == 3 and rows > 1 + _RARE * other_rows / 2:
        return False
    one, other = rare.split(), frequent.split()
    if len(one) == len(other) > 1 and any(a != b and min(len(a), len(b)) < 3 for a, b in zip(one, other, strict=True)):
        return False
    twice = shorter >= 8 or (shorter >= 5 and rows <= 2 and 20 * rows <= other_rows)
    return _edits(rare, frequent) <= (2 if twice else 1)


def _edits(one: str, other: str) -> int:
    """Return how many letters are added, left out, replaced or swapped with their neighbour between two names."""
    if abs(len(one) - len(other)) > 2:
        return 3
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        rows.append([i])
        for j, wanted in enumerate(other, 1):
            cost = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, rows[i - 2][j - 2] + 1)
            rows[i].append(cost)
    return rows[-1][-1]


def _rows_of(corpus: Corpus, name: str) -> list[str]:
    """Return all rows with a label, by name of split and row."""
    label, rows = corpus.label_names.index(name), []
    for split in corpus.splits:
        if corpus.is_labelled(split):
            classes = corpus.classes(split)
            has = classes[:, label] > 0 if classes.ndim == 2 else classes == label
            rows += row_names(corpus, split, np.flatnonzero(has))
    return rows


# ---- How many rows ------------------------------------------------------------------------------------------------
def _sizes(corpus: Corpus, counts: Mapping[str, Mapping[str, int]], class_weights: str) -> list[Finding]:
    """Return findings about classes with few rows, classes that some splits lack, and classes with most rows."""
    train, found = counts.get("train", {}), []
    if few := {name: count for name, count in train.items() if 0 < count < FEW}:
        rows = [row for name in few for row in _rows_of(corpus, name) if row.startswith("train ")]
        listed = _listed(f"{shown_name(name)!r} {count}" for name, count in few.items())
        classes = counted(len(few), "class", "classes")
        many = len(few) > 10 and 2 * len(few) > sum(count > 0 for count in train.values())
        do = "is this the column with the label?" if many else "add rows, or merge classes"
        message = f"{classes} with fewer than {FEW} rows in train: {listed}; {do}"
        found.append(Finding("warning", "few_rows", message, rows))
    for split, of_split in counts.items():
        if split == "train" or not train:
            continue
        if lacking := [name for name in train if train[name] and not of_split[name]]:
            message = (
                f"{split} has no row of {_listed(map(repr, map(shown_name, lacking)))}, which train has; its figures "
                "leave these classes out"
            )
            found.append(Finding("warning", "split_lacks_class", message))
        if unknown := [name for name in train if of_split[name] and not train[name]]:
            rows = [row for name in unknown for row in _rows_of(corpus, name) if row.startswith(f"{split} ")]
            message = (
                f"{split} has rows of {_listed(map(repr, map(shown_name, unknown)))}, which train lacks "
                f"({examples(rows)}); they cannot be learnt"
            )
            found.append(Finding("warning", "train_lacks_class", message, rows))
    present = {name: count for name, count in train.items() if count}
    rows = len(corpus.splits["train"]) if train else 0
    if len(present) < 2:
        return found
    largest = max(present, key=present.get)
    if present[largest] > _MOST * rows:
        message = (
            f"{present[largest] / rows:.0%} of train are {shown_name(largest)!r}: a model that always says so is as "
            "accurate; judge by macro F1"
        )
        found.append(Finding("warning", "one_class_dominates", message))
    if corpus.multi_label:
        if without := np.flatnonzero(corpus.classes("train").sum(axis=1) == 0).tolist():
            named = row_names(corpus, "train", without)
            message = f"{counted(len(without), 'row')} of train without any label: {examples(named)}"
            found.append(Finding("note", "rows_without_label", message, named))
    elif class_weights == "none" and present[largest] >= _IMBALANCE * min(present.values()):
        smallest = min(present, key=present.get)
        message = (
            f"--class_weights balanced: {shown_name(largest)!r} has {present[largest] // present[smallest]:,} times "
            f"the rows of {shown_name(smallest)!r}"
        )
        found.append(Finding("flag", "class_weights", message))
    return found


# ---- Whether the texts have to do with the labels -------------------------------------------------------------------
def _not_in_the_words(corpus: Corpus, column: str) -> list[Finding]:
    """Return a finding if the words of a text say nothing about its label, as in a column of cities or weekdays.

    A linear model of the words, fitted on four fifths of some training rows, names the labels of the other fifth. Its
    agreement beyond chance is measured in standard deviations of chance for one row
    ([Fleiss, Cohen and Everitt 1969](https://doi.org/10.1037/h0028106)). On four corpora, real labels of
    emotions scored .16 to 1.3 with 300 rows, and .5 to 1.6 with 1,000. Random labels scored at most .18 with 300 rows,
    and .1 with 1,000.
    """
    if "train" not in corpus.splits or not corpus.is_labelled("train"):
        return []
    labels, texts = corpus.classes("train"), corpus.splits["train"]["text"]
    if labels.ndim != 1 or len(labels) < _ENOUGH:
        return []
    chosen = np.random.default_rng(0).permutation(len(labels))[:_SOME]
    labels = labels[chosen]
    frequent = np.flatnonzero(np.bincount(labels) >= FEW)
    chosen, labels = chosen[np.isin(labels, frequent)], labels[np.isin(labels, frequent)]
    if len(frequent) < 2:
        return []
    words = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True, min_df=2)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    try:
        named = cross_val_predict(
            make_pipeline(words, RidgeClassifier(class_weight="balanced")), [texts[row] for row in chosen.tolist()],
            labels, cv=folds,
        )  # fmt: skip
    except ValueError:  # no word occurs twice
        return []
    of_labels, of_named = (np.bincount(values, minlength=labels.max() + 1) / len(labels) for values in (labels, named))
    right, by_chance = (labels == named).mean(), float(of_labels @ of_named)
    spread = by_chance + by_chance**2 - (of_labels * of_named * (of_labels + of_named)).sum()
    if right - by_chance >= _TOLD * max(spread, 0) ** 0.5:
        return []
    message = (
        f"the words of a text say little about its label: a quick model that reads them gets {right:.0%} of held-out "
        f"labels right, and guessing {by_chance:.0%}; if column {column!r} is the wrong one, name another with "
        "--label_column_name"
    )
    return [Finding("warning", "labels_not_in_the_words", message)]


def _listed(names) -> str:
    """Return names in a list, at most ten."""
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
