"""Extra test sets: labelled rows to test a finished model on, in addition to its corpus' own test split."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files import shown
from .corpus import SPLITS, Corpus
from .leakage import LeakageGuard
from .load import DataArguments, extra_test_name, load_corpus, load_extra_test, read_texts


def protect_extra_tests(guard: LeakageGuard, sources: Sequence[str], data_args: DataArguments) -> None:
    """Add the texts of the extra test sets to the guard, so that copies of them are kept out of training.

    Args:
        sources: Files, or `wassa2022`, as in [`load_extra_test`].
    """
    for source in sources:
        guard.source = ", ".join(filter(None, [guard.source, shown(source)]))
        if source == "wassa2022":
            rows = load_corpus(dataset_name=source, data_dir=data_args.data_dir).splits["train"]
            ids, texts = rows["id"], rows["text"]
        else:
            texts = read_texts(
                source, data_args.text_column_name or "text", data_args.quoting, data_args.text_column_delimiter
            )
            ids = [f"{Path(source).name}, text {number}" for number in range(1, len(texts) + 1)]
        guard.protect(ids, texts)


def with_extra_tests(corpus: Corpus, sources: Sequence[str], data_args: DataArguments) -> Corpus:
    """Return the corpus with each extra test set as a split of its own.

    Raises:
        InputError: as [`load_extra_test`], or if two test sets have the same name.
    """
    for source in sources:
        name = extra_test_name(source)
        if name in (*SPLITS, "eval") or name in corpus.splits:
            raise InputError(
                f"--extra_tests {source}: its figures would be called {name}, like another's; rename the file"
            )
        rows = load_extra_test(
            source,
            corpus,
            data_dir=data_args.data_dir,
            text_column=data_args.text_column_name,
            text_delimiter=data_args.text_column_delimiter,
            label_column=data_args.label_column_name,
            group_column=data_args.group_column_name,
            id_column=data_args.id_column_name,
            quoting=data_args.quoting,
        )
        if data_args.max_predict_samples is not None:
            rows = rows.select(range(min(data_args.max_predict_samples, len(rows))))
        corpus = corpus.with_splits(**{name: rows})
    return corpus
