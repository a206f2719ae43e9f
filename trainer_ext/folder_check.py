"""Look at a model's folder as a stranger will who downloads it; tells what is wrong and changes nothing."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .emotion_corpora import normalised

# Files that Python unpickles, by ending and by how they begin (a pickle's protocol, torch.save's zip).
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_PICKLE_STARTS = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
# Absolute paths of somebody's machine. Not in a vocabulary, where anything may stand.
_PATH = re.compile(
    r"(?<![\w/.:~-])(?:/(?:home|root|Users|tmp|var|mnt|scratch|work|workspace|content|private|data|opt|srv)/|"
    r"[A-Z]:\\\\?)[\w.-]+[\w./\\-]*"
)
_VOCABULARIES = re.compile(r"(tokenizer|vocab|added_tokens).*\.(json|txt)|merges\.txt")
_TEXT_ENDINGS = {".json", ".md", ".py", ".tsv", ".csv", ".txt", ".yaml", ".yml", ".jsonl", ".cfg", ".toml"}
WORDS_IN_A_ROW = 8  # of a corpus, from which a text counts as taken from it

_LOAD = """
import sys, warnings
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
AutoModel.from_pretrained(folder, trust_remote_code=True)
for name, where in getattr(config, "auto_map", {}).items():
    if where.split(".")[-1] in (config.architectures or []):
        getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
"""


def check_folder(folder: Path, *, texts: Iterable[str] = (), run: bool = True) -> list[str]:
    """What must not be published, one finding a line: file and line, what it is, what would be right.

    Pickles and other weights than safetensors, absolute paths, secrets, texts of a corpus; and, if `run`, whether a new
    process that cannot import this project loads the folder, with its code, and runs the card's Python snippets. That
    runs the folder's code: give one that you trust.

    Args:
        folder: As `save_pretrained` leaves it, with its card.
        texts: None of which may occur in the folder, not even `WORDS_IN_A_ROW` words in a row of one.
        run: Load it and run the card.
    """
    findings = []
    taken = {run_of_words for text in texts for run_of_words in _runs(normalised(text).split())}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        name = str(path.relative_to(folder))
        with open(path, "rb") as file:
            start = file.read(8)
        if path.suffix in _PICKLE_ENDINGS or start.startswith(_PICKLE_STARTS):
            findings.append(f"{name}: a pickle or other weights that run code when read; want safetensors")
        elif path.suffix in _TEXT_ENDINGS:
            findings += (f"{name}, {problem}" for problem in _of_text(path, taken))
    for wanted in ("config.json", "README.md"):
        if not (folder / wanted).is_file():
            findings.append(f"{wanted}: missing")
    if not any(path.suffix == ".safetensors" for path in files):
        findings.append("model.safetensors: missing; there are no weights to load")
    if run and not findings:
        findings += _of_run(folder)
    return findings


def _runs(words: list[str]) -> Iterator[str]:
    for start in range(len(words) - WORDS_IN_A_ROW + 1):
        yield " ".join(words[start : start + WORDS_IN_A_ROW])


def _of_text(path: Path, taken: set[str]) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        yield "line 1: not UTF-8"
        return
    for number, line in enumerate(lines, 1):
        for kind, pattern in _SECRETS.items():
            if re.search(pattern, line):  # not shown: this is printed, perhaps logged
                yield f"line {number}: looks like {kind}; take it out, and revoke it"
        if _VOCABULARIES.fullmatch(path.name) and path.name != "tokenizer_config.json":
            continue
        if found := _PATH.search(line):
            yield f"line {number}: a path of one machine, {found.group()}; want a name or a relative path"
        if taken and any(run in taken for run in _runs(normalised(line).split())):
            yield f"line {number}: {WORDS_IN_A_ROW} words or more in a row of a text that it was trained on"


def _of_run(folder: Path) -> Iterator[str]:
    """Load, then run each ```python block of the card where the name that it gives to the model is this folder."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    if not snippets:
        yield "README.md: no ```python block that shows how to use the model"
    with tempfile.TemporaryDirectory() as elsewhere:
        # Where the names in the card lead. Nothing else of the folder's surroundings can be read from there by name.
        for name in {name for snippet in snippets for name in re.findall(r"model=\"([^\"/][^\"]*)\"", snippet)}:
            link = Path(elsewhere, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder.resolve())
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(elsewhere, ".modules"))}
        for what, code in (("does not load", _LOAD), *(("README.md: its snippet fails", code) for code in snippets)):
            done = subprocess.run(
                [sys.executable, "-I", "-c", code, str(folder.resolve())],
                cwd=elsewhere, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                yield f"{what}: {last[:300]}"
