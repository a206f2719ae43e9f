"""What several tests share and is no fixture: where things are, small shapes, calling a script in this process."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[1]
ESSAYS = ROOT / "examples" / "essays.tsv"

# The options of DeBERTa-v3, and of v2-xxlarge with its convolution, at a width that a test can train.
TINY = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "position_buckets": 256,
    "type_vocab_size": 0,
}
XXLARGE_STYLE = TINY | {"conv_kernel_size": 3, "conv_act": "gelu"}


ESSAY_FLAGS = [
    *("--train_file", ESSAYS, "--split_column_name", "split", "--group_column_name", "writer"),
    *("--id_column_name", "id", "--max_seq_length", 48, "--classifier_hidden_size", 32, "--use_cpu"),
    *("--learning_rate", "1e-3", "--per_device_train_batch_size", 8, "--save_strategy", "steps", "--logging_steps", 4),
]


BLOCK_PROJECT = """
import sys

class Blocker:
    names = {"emodeberta", "run_classify", "trainer_ext"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names or name.endswith("_emodeberta") and "." not in name:
            raise ImportError(f"{name} is blocked in this process")

sys.meta_path.insert(0, Blocker())
"""


def call(main, *arguments) -> str:
    """A script's main() in this process, which saves the ten seconds that a new one takes to import; what it prints."""
    before, printed = sys.argv, io.StringIO()
    sys.argv = ["script.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = before
    return printed.getvalue()


def once(tmp_path_factory, name: str, make) -> tuple[Path, subprocess.CompletedProcess]:
    """What `make(folder)` started and the folder it left, by whichever of pytest-xdist's workers comes first; the
    others wait for it. The folder is for looking at."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, record = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not record.exists():
            folder.mkdir()
            done = make(folder)
            assert done.returncode == 0, done.stderr[-4000:]
            record.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
    return folder, subprocess.CompletedProcess(*json.loads(record.read_text()))


def write_comparison(folder, v3_folder) -> None:
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        essays = list(csv.DictReader(file, delimiter="\t"))[:90]
    with open(folder / "mine.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "body", "mood", "length", "who"])
        for index, row in enumerate(essays):
            mood = "dark" if row["label"] in ("anger", "fear", "sadness", "disgust") else "light"
            writer.writerow([f"n{index}", row["text"], mood, len(row["text"]), index // 3])
    settings = {
        "model_name_or_path": str(v3_folder),
        "train_file": "mine.csv",
        "text_column_name": "body",
        "label_column_name": "mood",
        "id_column_name": "number",
        "max_seq_length": 48,
        "classifier_hidden_size": 16,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "use_cpu": True,
        "bf16": False,
    }
    variants = {"mean": {}, "first token": {"pooling": "cls"}}
    content = {"settings": settings, "variants": variants, "cv_folds": 2, "columns": ["length"]}
    # What is in the user's folder does not take the place of the project's.
    (folder / "run_classify.py").write_text("raise SystemExit('a file of the user')", encoding="utf-8")
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
