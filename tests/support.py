"""What several tests share and is no fixture: where things are, small shapes, calling a script, rendered Markdown."""

import ast
import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from filelock import FileLock
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trainer_ext import precision

ROOT = Path(__file__).parents[1]
ESSAYS = ROOT / "examples" / "essays.tsv"
# A label map: the project's own essays as a corpus to transfer from.
EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
ESSAYS_AS_A_CORPUS = yaml.safe_dump({"train_file": str(ESSAYS), "labels": {name: name for name in EMOTIONS}})

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


def note_of_times(home: Path, float32_ms: float, bf16_ms: float) -> dict[str, str]:
    """Write what this machine's measurement of both precisions would leave in a cache folder, and return who reads it.

    A test that compares two processes digit by digit must not depend on which precision is faster where it runs.
    """
    note = home / "emodeberta" / "precision.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    machine = precision.machine(torch.device("cpu"))
    note.write_text(json.dumps({machine: {"float32_ms": float32_ms, "bf16_ms": bf16_ms}}))
    return {"XDG_CACHE_HOME": str(home)}


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


# ---- Markdown as a reader sees it ------------------------------------------------------------------------------------
def read(text: str) -> SimpleNamespace:
    """Tables as lists of rows of shown texts, headings, fenced code, prose; and what may not be there."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    found = SimpleNamespace(tables=[], headings=[], code=[], prose=[], strange=[], pictures=[], links=[])
    for before, token in pairwise([SimpleNamespace(type=""), *tokens]):
        if token.type == "table_open":
            found.tables.append([])
        elif token.type == "tr_open":
            found.tables[-1].append([])
        elif token.type == "fence":
            found.code.append((token.info, token.content))
        elif token.type == "html_block":
            found.strange.append(token.content)
        elif token.type == "inline":
            shown = ""
            for part in token.children:
                if part.type in ("text", "text_special", "code_inline"):
                    shown += part.content
                elif part.type == "softbreak":
                    shown += " "
                elif part.type == "image":
                    found.pictures.append(part.attrs["src"])
                elif part.type == "link_open":
                    found.links.append(part.attrs["href"])
                elif part.type not in ("link_close", *(["strong_open", "strong_close"] * (before.type != "td_open"))):
                    found.strange.append((part.type, token.content))
            if before.type in ("th_open", "td_open"):
                found.tables[-1][-1].append(shown)
            else:
                (found.headings if before.type == "heading_open" else found.prose).append(shown)
    return found


def check_page(text: str) -> SimpleNamespace:
    """What [`read`] finds, after a look at what no page may have."""
    found = read(text)
    assert not found.strange
    bare = re.sub(r"^```.*?^```", "code", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r".*(?:\n\n\n|[ \t]\n|\{%|\{\{ card).*", bare)
    written = [block.strip().split("\n") for block in re.findall(r"(?:^\|.*\n)+", bare, re.MULTILINE)]
    assert [len(table) for table in found.tables] == [len(lines) - 1 for lines in written]  # without the separator
    for table, lines in zip(found.tables, written, strict=True):
        assert re.fullmatch(r"\|(---\|)+", lines[1])
        assert len(table) > 1
        assert len({len(row) for row in table}) == 1
    for line in re.finditer(r"^#+ .*", bare, re.MULTILINE):
        assert bare[: line.start()].endswith("\n\n") or not bare[: line.start()].strip(), line[0]
        assert bare[line.end() :].startswith("\n\n"), line[0]
    assert not any("|--" in prose or prose.lstrip().startswith("| ") for prose in found.prose)
    assert all(picture.endswith(".png") and "/" not in picture and picture != "y.png" for picture in found.pictures)
    for language, code in found.code:
        if language in ("python", "py"):
            ast.parse(code)
    return found


def check_card(card: Path, pictures: bool = True) -> SimpleNamespace:
    """What [`check_page`] finds in a card, and its metadata as `data`, after a look at what any card must have.

    With `pictures`, these are looked for beside the card.
    """
    text = card.read_text(encoding="utf-8")
    front, page = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    metadata = yaml.safe_load(front)
    data = ModelCard.load(card).data
    assert json.loads(json.dumps(data.to_dict())) == metadata  # nothing is lost or changed by the Hub's client
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"][0] == "emodeberta"
    found = check_page(page)
    assert all(link.startswith(("https://aclanthology.org/", "https://huggingface.co/")) for link in found.links)
    if pictures:
        assert all((card.parent / picture).is_file() for picture in found.pictures)
    assert found.code[0][0] == "python"
    (bibtex,) = (code for language, code in found.code if language == "bibtex")
    assert bibtex.count("@") == bibtex.count("\n}") >= 2
    found.data = data
    return found
