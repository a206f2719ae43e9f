"""Train, load and use an emotion classifier from Python.

    from emodeberta import EmotionClassifier

    classifier = EmotionClassifier.from_pretrained("outputs/quickstart")  # or a Hub id
    classifier.predict("I am so happy today!")  # 'joy'
    classifier.predict(table, text_column="text")  # the table with emotion, confidence, a column per label, error

    classifier = EmotionClassifier.train(table, text_column="text", label_column="emotion", output_dir="outputs/mine")
    cross_val_score(EmotionClassifier(num_train_epochs=3), table["text"], table["emotion"])

torch and transformers are imported when a model is loaded or trained, since they take seconds.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from trainer_ext.errors import InputError
from trainer_ext.files import SETTINGS, free_folder, read_object
from trainer_ext.flag_parser import MINILM

if TYPE_CHECKING:
    from trainer_ext.data.in_memory import Texts
    from trainer_ext.scoring.scorer import Scores

_LONG_INPUT = 500  # texts, from which on a progress bar is shown
_ROWS_NAMED = 5  # in a warning
# Flags of run_classify.py that have another name here.
_NAMED_HERE = {
    "model_name_or_path": "model", "train_file": "train", "validation_file": "validation", "test_file": "test",
    "text_column_name": "text_column", "label_column_name": "label_column",
}  # fmt: skip


class EmotionClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier that is trained by `run_classify.py`, and is a scikit-learn estimator.

    Make one that is ready with `from_pretrained` or `train`. The constructor makes one to `fit`, as scikit-learn
    wants it: it works in `cross_val_score`, `GridSearchCV` (with flags as parameters), `Pipeline` and `clone`.

    Args:
        model: Where training starts: a folder or Hub id, as `--model_name_or_path` of run_classify.py.
        device: For example `"cpu"` or `"cuda:1"`. Default: the accelerator if there is one. Training chooses among
            accelerators itself, and uses the CPU only for `"cpu"`.
        dtype: Precision of predictions, for example `"bfloat16"`.
        verbose: Whether `fit` prints what run_classify.py prints.
        flags: Any flag of run_classify.py, without the dashes: `num_train_epochs=3`, `class_weights="balanced"`. `None`
            stands for the default. Flags are checked when training starts.

    Attributes:
        classes_: The labels, `(labels,)`. After `fit` they are sorted and have the type of `y`, else they are in the
            model's order. Integers stay integers.
        pipeline_: The `EmotionPipeline` behind it, for its other options, such as windows over long texts.
    """

    def __init__(
        self,
        *,
        model: str = MINILM,
        device: str | None = None,
        dtype: str = "float32",
        verbose: bool = False,
        **flags: Any,
    ):
        self.model = model
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.flags = flags

    # ---- Load, train and save -------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> "EmotionClassifier":
        """Load a model or an ensemble from a folder or the Hub. No code of the folder is run.

        Args:
            name: Output folder of run_classify.py or run_fuse.py, or a Hub id (owner/name) of such a folder or of any
                other text classifier of the library.
            revision, token: As in the library's `from_pretrained`.
            device, dtype: As for the class.

        Raises:
            InputError: if there is no classifier.
        """
        classifier = cls(model=os.path.expanduser(name), device=device, dtype=dtype)
        classifier._load(classifier.model, revision, token)
        return classifier

    @classmethod
    def train(
        cls,
        train: Any,
        validation: Any = None,
        *,
        test: Any = None,
        text_column: str | list[str] | None = None,
        label_column: str | list[str] | None = None,
        output_dir: str | Path | None = None,
        model: str | Path = MINILM,
        device: str | None = None,
        **flags: Any,
    ) -> "EmotionClassifier":
        """Train a model with run_classify.py, leave its folder, and return the classifier.

        Args:
            train: The training rows: a DataFrame, a `datasets.Dataset`, or a file that `--train_file` takes. `None` if
                a flag names the data, such as `dataset_name="go_emotions"`.
            validation, test: The same for the other splits.
            text_column, label_column: As `--text_column_name` and `--label_column_name`; several in a list.
            output_dir: Folder for the model. Default: `outputs/classifier`, or if that exists `outputs/classifier-2`
                and so on. Name it to resume an interrupted training with the same call.
            model, device, flags: As for the class.

        Raises:
            InputError: as run_classify.py, for example if a row has no label or a flag is unknown.
        """
        from trainer_ext.data.in_memory import column_name, file_of, integer_labels

        classifier = cls(model=os.path.expanduser(model), device=device, **flags)
        folder = Path(os.path.expanduser(output_dir)) if output_dir else free_folder(Path("outputs/classifier"))
        given = {"train": train, "validation": validation, "test": test}
        with tempfile.TemporaryDirectory(prefix="emodeberta-") as tables:
            files = {f"{split}_file": file_of(rows, split, Path(tables)) for split, rows in given.items()}
            named = {"text_column_name": column_name(text_column), "label_column_name": column_name(label_column)}
            classifier._run(folder, files | named, Path(tables))
        classifier._load(str(folder))
        chosen = read_object(folder / SETTINGS).get("defaults", {})
        text, label = (chosen.get(flag) if column is None else column for flag, column in named.items())
        classifier._text_column = text
        classifier.classes_ = np.array(integer_labels(train, label, classifier._names))
        return classifier

    def fit(self, X: Any, y: Any, **other: Any) -> "EmotionClassifier":
        """Train on texts and labels, in a temporary folder that is removed again; `save_pretrained` keeps the model.

        Args:
            X: Texts `(rows,)`: a list, an array, a Series, or a table with one text column or a usual name for it.
            y: One label per row, strings or integers.
            other: Nothing more is supported, such as `sample_weight`; the flag `class_weights` weights classes.

        Returns:
            The classifier itself.

        Raises:
            InputError: as `train`.
        """
        from trainer_ext.data.in_memory import classes_of, file_of, label_name, texts_and_labels
        from trainer_ext.runs.provenance import quiet

        if given := [name for name, value in other.items() if value is not None]:
            raise InputError(f"fit: {given[0]} is not supported; class_weights='balanced' weights classes")
        read, y = texts_and_labels(X, y, "fit")
        classes = classes_of(y)
        if "output_dir" in self.flags:
            raise InputError(
                "output_dir: fit leaves no folder; use save_pretrained after it, or EmotionClassifier.train"
            )
        with tempfile.TemporaryDirectory(prefix="emodeberta-", ignore_cleanup_errors=True) as folder:
            rows = pd.DataFrame({"text": pd.Series(read.values, dtype=object), "label": list(map(label_name, y))})
            named = {"train_file": file_of(rows, "X", Path(folder))}
            named |= {"text_column_name": "text", "label_column_name": "label", "disable_tqdm": not self.verbose}
            with contextlib.nullcontext() if self.verbose else quiet():
                self._run(Path(folder) / "model", named, Path(folder), plots=False)
                self._load(str(Path(folder) / "model"))
        self._text_column = read.column
        names = list(map(label_name, classes.tolist()))
        if other := sorted({*names} ^ {*self._names}):
            raise InputError(f"the model's labels are {', '.join(self._names)}; {other[0]!r} is in one of the two")
        self.classes_, self._columns = np.array(list(classes)), list(map(self._names.index, names))
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the model with its code and tokenizers. The folder of `train` also has a card and results."""
        check_is_fitted(self)
        from trainer_ext.training.saved_model import save_classifier

        folder = Path(os.path.expanduser(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}; want a folder to write to") from error
        save_classifier(folder, self.pipeline_.model, *self.pipeline_.tokenizers)

    def _run(self, folder: Path, named: dict[str, Any], tables: Path, plots: bool = True) -> None:
        """Call run_classify.py's `main` with flags; errors name rows without the folder of temporary tables."""
        for flag in self.flags.keys() & _NAMED_HERE.keys():
            raise InputError(f"{flag}: is called {_NAMED_HERE[flag]} here")
        import run_classify
        from trainer_ext.runs.provenance import as_command
        from trainer_ext.training.saved_model import device_and_dtype

        device_and_dtype(self.device, self.dtype)  # a mistake is found before the training
        flags = {"model_name_or_path": self.model, "output_dir": folder, **named}
        flags |= {"use_cpu": True} if self.device == "cpu" else {}
        try:
            with as_command("run_classify.py", flags | self.flags):
                run_classify.main(plots)
        except InputError as error:
            message = str(error).replace(f"{tables}{os.sep}", "")
            flag = re.compile(r"(?<![\w-])--([a-z]\w+)")  # has no dashes in Python
            raise InputError(flag.sub(lambda found: _NAMED_HERE.get(found[1], found[1]), message)) from error

    def _load(self, name: str, revision: str | None = None, token: str | None = None) -> None:
        from trainer_ext.scoring.scorer import load_pipeline, read_classifier_config
        from trainer_ext.training.saved_model import device_and_dtype

        device, dtype = device_and_dtype(self.device, self.dtype)
        config, _ = read_classifier_config(name, revision, token)
        self.pipeline_ = load_pipeline(name, config, dtype, device, revision, token)
        self._names = [config.id2label[label] for label in range(config.num_labels)]
        self._several = config.problem_type == "multi_label_classification"
        self._text_column: Any = None
        self.classes_, self._columns = np.array(self._names), list(range(len(self._names)))

    # ---- Predict --------------------------------------------------------------------------------------------------
    def predict(
        self, texts: Any, text_column: str | int | list[str] | None = None, progress: bool | None = None
    ) -> Any:
        """Return the label of a text, the labels of several texts, or a table with its labels.

        A text that is empty, missing or not a text has the label `None`, and a warning names its row.

        Args:
            texts: A text; texts in a list, an array, a Series or a column of a dataset; or a table (a DataFrame, a
                `datasets.Dataset`).
            text_column: The table's column with the text; several, in a list, are joined. Default: that of `train` or
                `fit`, else the first with a usual name (text, sentence, content, …), else the only one with texts.
            progress: Whether to show a progress bar. Default: for 500 texts and more, in a terminal or a notebook.

        Returns:
            For a text its label. For texts an array of labels `(rows,)`. For a table a DataFrame with the same index
            and columns, and in addition `emotion`, `confidence` (the probability of the best label), the probability of
            each label under its name, and `error`. A column of the table with such a name is replaced, which a warning
            says. Of a model with several labels per text, each label is a list of labels.

        Raises:
            InputError: if a table has no such column.
        """
        read, scores, errors = self._score(texts, text_column, progress)
        names = scores.labels(self._names)
        own = dict(zip((self._names[column] for column in self._columns), self.classes_.tolist(), strict=True))
        if self._several:
            labels = np.fromiter(names, dtype=object, count=len(names))
        elif None in names:
            labels = np.fromiter(map(own.get, names), dtype=object, count=len(names))
        else:
            labels = np.array([own[name] for name in names], dtype=self.classes_.dtype)
        if isinstance(texts, str):
            return names[0] if self._several else own.get(names[0])
        return labels if read.table is None else self._result(read.table, scores.probabilities, labels, errors)

    def predict_proba(
        self, texts: Any, text_column: str | int | list[str] | None = None, progress: bool | None = None
    ) -> np.ndarray:
        """Return the probabilities of texts, `(rows, labels)` in the order of `classes_`; of one text, `(labels,)`.

        A row without a text is NaN, and a warning names it. Arguments and errors are those of `predict`.
        """
        _, scores, _ = self._score(texts, text_column, progress)
        probabilities = scores.probabilities[:, self._columns].astype(np.float64)
        probabilities = probabilities if self._several else probabilities / probabilities.sum(axis=1, keepdims=True)
        return probabilities[0] if isinstance(texts, str) else probabilities

    def explain(self, text: str, label: Any = None, progress: bool | None = None) -> pd.DataFrame:
        """Return what leaving out each word of a text does, as the demo underlines it.

        Args:
            text: One text.
            label: The label to explain. Default: the most probable one.
            progress: As in `predict`; a text with many words takes as many predictions.

        Returns:
            A row per word, in the text's order: `word`, and under the label's name how much the label's probability
            falls without the word (below 0: it rises).

        Raises:
            InputError: if there is no text, or no such label.
        """
        check_is_fitted(self)
        from texts_emodeberta import is_text, without_each_word

        if not is_text(text):
            raise InputError(f"explain: {text!r:.60}; want one text")
        words, without = without_each_word(text)
        if len(words) > (most := self.pipeline_.tokenizer.model_max_length):
            raise InputError(f"explain: {len(words):,} words; want at most {most:,}, as many as the model reads tokens")
        probabilities = self.predict_proba([text, *without], None, progress)
        classes = self.classes_.tolist()
        if label is None:
            label = classes[probabilities[0].argmax()]
        elif label not in classes:
            raise InputError(f"explain: {label!r} is not a label; want one of {', '.join(map(str, classes))}")
        of_label = probabilities[:, classes.index(label)]
        name = "probability_word" if label == "word" else label
        return pd.DataFrame({"word": [word.strip() for word in words], name: of_label[0] - of_label[1:]})

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of texts whose label is right, 0 to 1. A text without a label counts as wrong.

        Raises:
            InputError: if a label is not one of `classes_`, or the model may give a text several labels.
        """
        from trainer_ext.data.in_memory import label_name, texts_and_labels

        check_is_fitted(self)
        if self._several:
            raise InputError("score: is for one label per text; for several, run_classify.py --do_eval gives figures")
        read, y = texts_and_labels(X, y, "score", self._text_column, self._delimiter())
        known, given = set(map(label_name, self.classes_.tolist())), list(map(label_name, y.tolist()))
        if other := sorted(set(given) - known):
            raise InputError(f"score: label {other[0]!r} is not one of {', '.join(sorted(known))}")
        named = [None if label is None else label_name(label) for label in self.predict(read.values).tolist()]
        right = [label == name for label, name in zip(named, given, strict=True)]
        return float(accuracy_score([True] * len(right), right, sample_weight=sample_weight))

    def _score(
        self, data: Any, text_column: str | int | list[str] | None, progress: bool | None
    ) -> tuple["Texts", "Scores", list[str | None]]:
        """Return the texts, their scores and the error of each row; warn of rows without a text."""
        check_is_fitted(self)
        from tqdm.auto import tqdm

        from texts_emodeberta import is_text
        from trainer_ext.data.in_memory import brief, texts_of
        from trainer_ext.scoring.scorer import score
        from trainer_ext.scoring.text_stream import Row

        texts = [data] if isinstance(data, str) else data
        read = texts_of(texts, text_column, self._text_column, self._delimiter())
        wrong = [None if is_text(text) else f"{brief(text)}; want a text" for text in read.values]
        rows = [Row(None if error else str(text), None, error) for text, error in zip(read.values, wrong, strict=True)]
        if progress is None:
            progress = len(rows) >= _LONG_INPUT and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        with tqdm(total=len(rows), unit="text", disable=not progress) as bar:
            scores = score(self.pipeline_, rows, None, bar)
        errors = [row.error for row in rows]
        if bad := [(row, error) for row, error in zip(read.index, errors, strict=True) if error]:
            named = ", ".join(str(row) for row, _ in bad[:_ROWS_NAMED])
            more = f" and {len(bad) - _ROWS_NAMED} more" if len(bad) > _ROWS_NAMED else ""
            problem = f"{len(bad)} of {len(rows)} texts have no label (row {named}{more}); the first is {bad[0][1]}"
            warnings.warn(problem, stacklevel=3)
        if cut := int(scores.truncated.sum()):
            most = self.pipeline_.tokenizer.model_max_length
            warnings.warn(f"{cut} of {len(rows)} texts are longer than {most} tokens and were cut", stacklevel=3)
        return read, scores, errors

    def _delimiter(self) -> str:
        given = self.flags.get("text_column_delimiter")
        return " " if given is None else str(given)

    def _result(
        self, table: pd.DataFrame, probabilities: np.ndarray, labels: np.ndarray, errors: list[str | None]
    ) -> pd.DataFrame:
        scores = probabilities[:, self._columns]
        columns: dict[Any, Any] = {"emotion": labels, "confidence": scores.max(axis=1)}
        for label, of_label in zip(self.classes_.tolist(), scores.T, strict=True):
            columns[f"probability_{label}" if label in ("emotion", "confidence", "error") else label] = of_label
        columns["error"] = errors
        if replaced := [name for name in table.columns if name in columns]:
            told = ", ".join(map(str, replaced))
            warnings.warn(f"the result has its own {told} instead of the table's; the table is unchanged", stacklevel=3)
        result = pd.DataFrame(columns, index=table.index)
        return pd.concat([table.drop(columns=replaced), result], axis=1)

    # ---- scikit-learn ---------------------------------------------------------------------------------------------
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments, flags included."""
        return super().get_params(deep) | self.flags

    def set_params(self, **params: Any) -> "EmotionClassifier":
        """Set arguments of the constructor, also flags that it did not have."""
        own = self._get_param_names()
        self.flags = self.flags | {name: value for name, value in params.items() if name not in own}
        return super().set_params(**{name: value for name, value in params.items() if name in own})
