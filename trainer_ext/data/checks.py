"""Check a corpus before training: labels, rows per class and split, copies, lengths, scripts and languages."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from .columns import names_groups
from .corpus import Corpus
from .emotion_corpora import BUILT_IN
from .findings import Finding, counted
from .folds import check_trainable
from .label_checks import label_findings
from .load import DataArguments
from .rows import read_rows
from .text_checks import text_findings

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
