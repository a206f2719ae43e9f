"""Read the WASSA 2022 essays from the shared task's files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from ..errors import InputError
from .corpus import Corpus
from .labels import read_labels
from .tables import check_column, check_extra_columns, read_common_columns, read_file

# ---- WASSA 2022 ---------------------------------------------------------------------------------------------------
WASSA_LABELS = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
_WASSA_FILES = {
    "train": "messages_train_ready_for_WS.tsv",
    "validation": "messages_dev_features_ready_for_WS_2022.tsv",
    "test": "messages_test_features_ready_for_WS_2022.tsv",
}
_WASSA_DEV_GOLD = "goldstandard_dev_2022.tsv"
_WASSA_DEV_GOLD_COLUMNS = (
    *("empathy", "distress", "emotion", "personality_conscientiousness", "personality_openess"),
    *("personality_extraversion", "personality_agreeableness", "personality_stability"),
    *("iri_perspective_taking", "iri_personal_distress", "iri_fantasy", "iri_empathatic_concern"),
)  # spelled as in the training file


def load_wassa2022(data_dir: str | None, group_column: str, extra_columns: Sequence[str]) -> Corpus:
    """Return the WASSA 2022 corpus from the shared task's files.

    The labels of dev are in a separate file without a header, row by row. Test has no labels.

    Args:
        data_dir: Folder with `wassa2022/`.
        group_column: Column with the writer of an essay.
        extra_columns: Other columns to keep, as strings.

    Raises:
        InputError: if a file is missing or malformed.
    """
    if data_dir is None:
        raise InputError(
            "wassa2022 needs --data_dir (or EMODEBERTA_DATA), the folder that holds wassa2022/ with the "
            "shared task's files, which its organisers give out"
        )
    folder = Path(data_dir) / "wassa2022"
    tables = {split: read_file(folder / name) for split, name in _WASSA_FILES.items()}
    for table in tables.values():
        for column in ("message_id", group_column, "essay"):
            check_column(table, column)
    check_column(tables["train"], "emotion")
    gold = read_file(folder / _WASSA_DEV_GOLD, header=False)
    if len(gold.rows) != len(tables["validation"].rows):
        raise InputError(
            f"{gold.name}: {len(gold.rows)} rows; want {len(tables['validation'].rows)}, one per row of "
            f"{tables['validation'].name}"
        )
    for row, of_gold in zip(tables["validation"].rows, gold.rows, strict=True):
        row |= {name: of_gold.get(f"column_{number}") for number, name in enumerate(_WASSA_DEV_GOLD_COLUMNS, 1)}
    check_extra_columns(tables, extra_columns)
    gold_labels = replace(gold, rows=[{"emotion": row.get("column_3")} for row in gold.rows])
    columns = {
        split: read_common_columns(table, "essay", group_column, "message_id", extra_columns)
        for split, table in tables.items()
    }
    labels, _, problem_type = read_labels(
        {"train": tables["train"], "validation": gold_labels}, ["emotion"], WASSA_LABELS
    )
    for split, values in labels.items():
        columns[split]["labels"] = values
    return Corpus(
        {split: Dataset.from_dict(content) for split, content in columns.items()},
        list(WASSA_LABELS),
        problem_type,
        source="wassa2022",
        licence="research use only, not redistributable",
    )
