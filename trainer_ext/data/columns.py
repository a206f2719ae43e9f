"""Choose the columns of people's own files by usual names, else by content, and ask where two would do."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import ClassLabel

from ..errors import InputError
from ..recipes import DEFAULT_ACCESS, HubAccess
from .emotion_corpora import BUILT_IN
from .load import DataArguments, read_tables
from .tables import Table, split_named

logger = logging.getLogger(__name__)

# Usual names. The first is taken without a look at its values, as where no column is chosen.
TEXT = (
    "text", "sentence", "content", "tweet", "review", "message", "essay", "comment", "post", "body", "utterance",
    "response", "answer", "document", "paragraph", "statement", "headline", "description", "texts", "sentences",
    "tweets",
)  # fmt: skip
LABEL = (
    "label", "emotion", "sentiment", "class", "target", "category", "mood", "feeling", "labels", "emotions",
    "sentiments", "classes", "categories", "feelings", "polarity", "annotation", "y",
)  # fmt: skip
GROUP = re.compile(
    r"group(_id)?|screen_name|(.*_)?(essay|response)_(id|no|nr|number)"
    r"|(.*_)?(author|writer|user|username|speaker|participant|respondent|account|person|patient|client|customer"
    r"|conversation|dialogue?|thread|session)s?(_?(id|name|no|nr|number))?s?"
)
ID = (
    "id", "row_id", "text_id", "tweet_id", "review_id", "message_id", "comment_id", "post_id", "essay_id",
    "sentence_id", "sample_id", "example_id", "uid", "uuid", "guid", "idx",
)  # fmt: skip
SPLIT = ("split", "set", "subset", "partition")
# A name that ends like this describes the text or label, and is neither.
_ABOUT = {"id", "ids", "idx", "length", "len", "count", "date", "time", "url", "link", "source", "lang", "language",
          "type", "score", "confidence", "probability"}  # fmt: skip
_FEWEST_GROUPS = 5  # with fewer groups, a fifth of the rows cannot be held out in whole groups
_FEW_ROWS = 20  # below this, values may all differ by chance
_MOST_CLASSES = 50  # of a label column that is recognised by its values alone
_WORDS = 4  # mean number of words of a text column that is recognised by its values alone


def choose_columns(data_args: DataArguments, access: HubAccess = DEFAULT_ACCESS) -> dict[str, Table] | None:
    """Set the columns of the text, label, group, id and split that no flag names, and log which they are.

    A column is chosen by its name (case and separators do not matter, and `Tweet Text` counts as `text`), if its values
    fit. If no name fits, text and label are recognised by their values, if only one column can be meant. A group
    column must repeat its values in at least five groups, and an id column must identify each row. A split column is
    one that names splits only, of any name.

    Returns:
        The rows that were read, for [`load_corpus`]; `None` for a built-in corpus.

    Raises:
        InputError: if no column, or more than one, can be the text or the label of the training rows; or if the data
            cannot be read.
    """
    if data_args.dataset_name in ("wassa2022", *BUILT_IN):
        return None  # these have their own
    tables = read_tables(data_args, access)
    first = next(iter(tables.values()))
    if not all(table.rows for table in tables.values()):
        return tables  # reading the corpus says which file is empty
    if None in (data_args.text_column_name, data_args.label_column_name):
        _check_header(first)
    names = [name for name in first.columns if isinstance(name, str)]
    shared = [name for name in names if all(name in table.columns for table in tables.values())]
    taken = {
        name
        for given in (data_args.text_column_name, data_args.label_column_name, data_args.group_column_name)
        for name in (given or "").split(",")
    } | {data_args.id_column_name, data_args.split_column_name}
    free = [name for name in names if name not in taken]
    chosen = {}

    def choose(what: str, column: str | None) -> None:
        if column is not None:
            setattr(data_args, f"{what}_column_name", column)
            chosen[what] = column
            free.remove(column)

    if data_args.split_column_name is None and tables.keys() == {"train"}:
        choose("split", next((name for name in free if _names_splits(first, name)), None))
    if data_args.text_column_name is None:
        texts = [name for name in free if name in shared and _is_text(tables, name)]
        by_value = [name for name in texts if _reads_as_text(first, name)]
        try:
            choose("text", _named("text", first, free, TEXT, texts, by_value))
        except InputError as error:
            label = data_args.label_column_name
            if label not in names or not _is_text(tables, label) or not _reads_as_text(first, label):
                raise
            told = f"{first.name}: column {label!r} is named as the label, and holds texts; name another with "
            raise InputError(told + "--label_column_name") from error
    if data_args.label_column_name is None:
        labels = [name for name in free if _is_label(first, name)]
        by_value = [name for name in labels if _is_of_classes(first, name)]
        by_value = by_value or [name for name in labels if _repeats_few_values(first, name)]
        if tables.keys() == {"test"}:  # it may be without labels
            choose("label", _first(labels, LABEL))
        else:
            choose("label", _named("label", first, free, LABEL, labels, by_value))
    if data_args.group_column_name is None:
        groups = [name for name in free if names_groups(name) and name in shared and _is_group(tables, name)]
        choose("group", next(iter(groups), None))
    if data_args.id_column_name is None:
        ids = [name for name in free if name in shared and _identifies(tables, name)]
        others = [name for name in ids if plain_name(name).split("_")[-1] == "id"]
        choose("id", _first(ids, ID) or (others[0] if len(others) == 1 else None))
        if "id" not in chosen and (repeats := _first(free, ID)):
            _report_repeated(first, repeats)
    if chosen:
        source = Path(first.name).name if Path(first.name).is_file() else first.name
        logger.info(f"columns of {source}: " + ", ".join(f"{what} {name!r}" for what, name in chosen.items()))
    return tables


def _check_header(table: Table) -> None:
    """Check that the names of the columns are not those of a row, as in a file without a header.

    Raises:
        InputError: if one of them is also a value of its column, and another one is a sentence, a number or a date.
    """
    values = next((name for name in table.columns if any(row.get(name) == name for row in table.rows)), None)
    if values is not None and any(_is_value(name) for name in table.columns if name != values):
        raise InputError(
            f"{table.name}: its first line is a row and no header, for {values!r:.40} is a value of its column, too; "
            "put a line with the names of the columns first"
        )


def _is_value(name: str) -> bool:
    return len(name.split()) > _WORDS or re.fullmatch(r"[-+0-9.,:/ ]*[0-9][-+0-9.,:/ ]*", name) is not None


def _report_repeated(table: Table, name: str) -> None:
    """Log that a column with the name of an id does not identify the rows, and where it repeats first."""
    seen: dict[str, int] = {}
    for number, row in zip(table.numbers, table.rows, strict=True):
        value = str(row.get(name) or "")
        if value in seen or not value:
            why = f"rows {seen[value]} and {number} have {value!r:.40}" if value else f"row {number} has none"
            logger.info(f"{table.name}: column {name!r} does not identify the rows, for {why}; they go by number")
            return
        seen[value] = number


def _named(
    what: str, table: Table, free: Sequence[str], usual: Sequence[str], fitting: Sequence[str], by_value: Sequence[str]
) -> str:
    """Return the column with a usual name whose values fit, else one whose name contains a usual word, else the one
    that is recognised by its values.

    Raises:
        InputError: if there is none, or more than one on the same footing.
    """
    if standard := [name for name in free if plain_name(name) == usual[0]]:
        return standard[0]
    exact = [name for name in fitting if plain_name(name) in usual]
    contain = [name for name in fitting if _contains(plain_name(name).split("_"), usual)]
    for candidates in (exact, contain, by_value):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(
                f"{table.name}: the {what} may be {_listed(candidates, 'or')}; name it with --{what}_column_name"
                + _joined(what, table, candidates)
            )
    raise InputError(
        f"{table.name}: no column is surely the {what}; it has {_listed(table.columns)}; name it with "
        f"--{what}_column_name" + _joined(what, table, fitting)
    )


def _joined(what: str, table: Table, names: Sequence[str]) -> str:
    """Return a hint to name several columns together: texts that are joined, or one column per label."""
    together = ",".join(names)
    if what == "text":
        return f" (--text_column_name {together} joins them)" if len(names) > 1 else ""
    flags = all(value in (0, 1, "0", "1") for name in names for value in _values(table, name))
    return f" (or one per label: --label_column_name {together})" if flags and len(names) > 1 else ""


def _first(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """Return the first column with a usual name, in the order of the usual names."""
    named = (name for name in names if plain_name(name) in usual)
    return min(named, key=lambda name: usual.index(plain_name(name)), default=None)


def names_groups(name: str) -> bool:
    """Return whether a column's name says that its values are writers, or other groups that belong together."""
    return GROUP.fullmatch(plain_name(name)) is not None


def plain_name(name: str) -> str:
    """Return a column's name in lower case with `_` between its words: `tweet_text` for `TweetText` or `Tweet text`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", parted).strip("_").lower()


def _contains(words: Sequence[str], usual: Sequence[str]) -> bool:
    return words[-1] not in _ABOUT and any(word in usual for word in words)


def _listed(names: Iterable[str], last: str = "and") -> str:
    names = [str(name) if len(str(name)) <= 40 else f"{str(name)[:40]}…" for name in names]
    if len(names) > 20:
        names = [*names[:20], f"{len(names) - 20} more"]
    return ", ".join(names[:-1]) + f" {last} {names[-1]}" if len(names) > 1 else names[0]


# ---- What the values of a column can be ---------------------------------------------------------------------------
def _values(table: Table, name: str) -> list:
    """Return the values that are there, lists as tuples."""
    values = (row.get(name) for row in table.rows)
    return [tuple(map(str, value)) if isinstance(value, list) else value for value in values if value not in (None, "")]


def _is_text(tables: dict[str, Table], name: str) -> bool:
    """Return whether all values are texts, and not numbers written as texts."""
    every = [value for table in tables.values() for value in _values(table, name)]
    return bool(every) and all(isinstance(value, str) for value in every) and any(_worded(value) for value in every)


def _worded(value: str) -> bool:
    return any(character.isalpha() for character in value)


def _mean_words(table: Table, name: str) -> float:
    values = _values(table, name)
    return sum(len(value.split()) for value in values) / max(len(values), 1)


def _reads_as_text(table: Table, name: str) -> bool:
    return _mean_words(table, name) >= _WORDS and _mostly_differ(table, name)


def _mostly_differ(table: Table, name: str) -> bool:
    return len(set(_values(table, name))) > len(table.rows) / 2


def _is_label(table: Table, name: str) -> bool:
    """Return whether the values are names, integers or lists, and, except in few rows, fewer than half as many as
    rows."""
    values = _values(table, name)
    if "," in name or not all(map(_can_be_label, values)):  # a comma would part the name into two columns
        return False
    different = len(set(values))
    return len(table.rows) < _FEW_ROWS or different <= len(table.rows) / 2


def _can_be_label(value: object) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return True
    return isinstance(value, int | tuple) or (isinstance(value, float) and value.is_integer())


def _is_of_classes(table: Table, name: str) -> bool:
    """Return whether a Hub dataset says that the column holds classes."""
    feature = (table.features or {}).get(name)
    return isinstance(getattr(feature, "feature", feature), ClassLabel)


def _repeats_few_values(table: Table, name: str) -> bool:
    """Return whether every row has one of few values, and the name does not say that they are no labels."""
    plain, values = plain_name(name), _values(table, name)
    different, few = len(set(values)), min(_MOST_CLASSES, len(table.rows) / 4)
    no_label = names_groups(name) or plain in (*ID, *SPLIT) or plain.split("_")[-1] in _ABOUT
    return not no_label and len(values) == len(table.rows) and 1 < different <= few


def _is_group(tables: dict[str, Table], name: str) -> bool:
    values = [str(row.get(name)) for table in tables.values() for row in table.rows]
    whole = all(row.get(name) not in (None, "") for table in tables.values() for row in table.rows)
    return whole and _FEWEST_GROUPS <= len(set(values)) < len(values)


def _identifies(tables: dict[str, Table], name: str) -> bool:
    for table in tables.values():
        values = [str(row.get(name)) for row in table.rows if row.get(name) not in (None, "")]
        if len(set(values)) < len(table.rows):
            return False
    return True


def _names_splits(table: Table, name: str) -> bool:
    splits = {split_named(value) for value in {str(row.get(name)) for row in table.rows}}
    return None not in splits and "train" in splits and (len(splits) > 1 or plain_name(name) in SPLIT)
