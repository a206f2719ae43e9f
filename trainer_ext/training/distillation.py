"""Distillation: train one student on an ensemble's predicted distributions (Hinton et al. 2015, arXiv:1503.02531)."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from pipeline_emodeberta import EmotionPipeline

from ..data.corpus import Corpus
from ..data.label_maps import TransferRows
from ..errors import InputError
from ..files import digest
from .saved_model import load_whole, reading

# Fused probabilities for each training row of an ensemble's recipe, from members that did not train on that row.
OUT_OF_FOLD = "out_of_fold.safetensors"


def write_out_of_fold(
    folder: Path, ids: list[str], texts: list[str], probabilities: np.ndarray, label_names: list[str]
) -> None:
    """Write the file that [`soften_labels`] reads: one fused distribution per training row, and the label names.

    Args:
        folder: Folder of the ensemble.
        ids: Row ids.
        texts: Text of each row. Only a hash is written, so that a row id is not confused with another text.
        probabilities: `(rows, labels)`.
        label_names: Names of the columns of `probabilities`.
    """
    described = json.dumps({"rows": list(map(_key, ids, texts)), "labels": label_names})
    # One metadata entry, since the order of several is not fixed, and a student is identified by this file's hash.
    partial = folder / f".{OUT_OF_FOLD}"  # a student that is already training may be reading the file
    save_file({"probabilities": probabilities.astype(np.float32)}, partial, {"emodeberta": described})
    partial.replace(folder / OUT_OF_FOLD)


def _key(row_id: str, text: str) -> str:
    """Return a key of a row's id and text; the same row number in another file may hold another text."""
    return f"{row_id} {digest(text)}"


def soften_labels(corpus: Corpus, teacher: Path, added: TransferRows | None) -> Corpus:
    """Return the corpus with the teacher's distributions as labels of the training rows; other splits keep their
    labels.

    Args:
        teacher: Folder of an ensemble that a `run_fuse.py` recipe made.
        added: Training rows from other corpora, or `None`. The ensemble itself predicts their distributions, since its
            members were not cross-validated on them.

    Raises:
        InputError: if the folder is not such an ensemble, its labels differ, or it has no distribution for a row.
    """
    if not (teacher / OUT_OF_FOLD).is_file():
        raise InputError(
            f"--distill_from {teacher}: no {OUT_OF_FOLD} there; want the folder of a run_fuse.py recipe, whose members "
            "were cross-validated"
        )
    with (
        reading(f"--distill_from {teacher}", f"{OUT_OF_FOLD} cannot be read; make the ensemble again"),
        safe_open(teacher / OUT_OF_FOLD, framework="numpy") as file,
    ):
        described = json.loads(file.metadata()["emodeberta"])
        known = dict(zip(described["rows"], file.get_tensor("probabilities"), strict=True))
        theirs, ours = (", ".join(labels) for labels in (described["labels"], corpus.label_names))
    if described["labels"] != corpus.label_names:
        raise InputError(f"--distill_from {teacher}: its labels are {theirs}; those here {ours}")
    if added is not None:
        model = load_whole(EmoDebertaEnsembleForSequenceClassification, teacher)
        with reading(teacher, "its tokenizers cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(teacher, trust_remote_code=False)
            classify = EmotionPipeline(model=model.eval(), tokenizer=tokenizer)
        model.config.temperature = 1.0  # the out-of-fold probabilities have none either
        for row_id, text, scores in zip(added.ids, added.texts, classify(added.texts, top_k=None), strict=True):
            if "error" in scores[0]:
                raise InputError(f"--distill_from {teacher}: row {row_id} of the added ones: {scores[0]['error']}")
            of_label = {entry["label"]: entry["score"] for entry in scores}
            known[_key(row_id, text)] = np.array([of_label[label] for label in corpus.label_names])
    train = corpus.splits["train"]
    keys = list(map(_key, train["id"], train["text"]))
    if unknown := [row_id for row_id, key in zip(train["id"], keys, strict=True) if key not in known]:
        raise InputError(
            f"--distill_from {teacher}: its members were not cross-validated on row {unknown[0]} and "
            f"{len(unknown) - 1} more, or on another text under these ids"
        )
    softened = [(known[key] / known[key].sum()).tolist() for key in keys]
    return corpus.with_splits(train=train.remove_columns("labels").add_column("labels", softened))
