"""Look at a model's folder as a stranger will who downloads it; tells what is wrong and changes nothing."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.emotion_corpora import normalised

# Files that Python unpickles, by ending and by how they begin (a pickle's protocol, torch.save's zip).
_PICKLE_ENDINGS = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_PICKLE_STARTS = (*(bytes([0x80, protocol]) for protocol in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
_BINARY_ENDINGS = {".safetensors", ".onnx", ".data", ".model", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf"}
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
# Absolute paths of somebody's machine.
_PATH = re.compile(
    r"(?<![\w/.:~-])(?:/(?:home|root|Users|tmp|var|mnt|scratch|work|workspace|content|private|data|opt|srv)/|"
    r"[A-Z]:\\\\?)[\w.-]+[\w./\\-]*"
)
# In a vocabulary anything may stand.
_VOCABULARY = re.compile(r"(tokenizer|vocab|added_tokens|merges)[^/]*\.(json|txt)")
# A text counts as taken from a corpus by so many of its words in a row; a shorter one, down to the second number, if it
# is the whole of a line, a cell or a quotation.
WORDS_IN_A_ROW, FEWEST_WORDS = 8, 4
_TIMEOUT = 900  # seconds, for what the card runs
# The project's own modules are not to be found: the folder must bring what it needs.
_ALONE = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""
_LOAD = """
import sys
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
    """What of a model's folder must not be published: file and line, what it is, what would be right.

    Beside [`check_files`]: its configuration, card and weights are there and, if `run`, a new process that cannot
    import this project loads it, with its code, and runs the card's Python snippets. That runs the folder's code: give
    one that you trust.

    Args:
        folder: As `save_pretrained` leaves it, with its card.
        texts: Of [`check_files`].
        run: Load it and run the card.
    """
    findings = check_files(folder, texts)
    for wanted in ("config.json", "README.md"):
        if not (folder / wanted).is_file():
            findings.append(f"{wanted}: missing")
    if not any(folder.glob("*.safetensors")):
        findings.append("model.safetensors: missing; there are no weights to load")
    if run and not findings:
        findings += _of_run(folder)
    return findings


def check_files(folder: Path, texts: Iterable[str] = ()) -> list[str]:
    """Pickles and other weights than safetensors, unknown binary files, absolute paths, secrets, texts of a corpus.

    Args:
        folder: Any.
        texts: None of which may stand in the folder, not even `WORDS_IN_A_ROW` words in a row of one; texts of less
            than `FEWEST_WORDS` words are not looked for. Read once, not kept.
    """
    findings = []
    runs: dict[str, str] = {}  # where they stand
    parts: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, ending = path.relative_to(folder).as_posix(), path.suffix.lower()
        with open(path, "rb") as file:
            start = file.read(8)
        if ending in _PICKLE_ENDINGS or start.startswith(_PICKLE_STARTS):
            findings.append(f"{name}: a pickle or other weights that run code when read; want safetensors")
            continue
        if ending in _BINARY_ENDINGS:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            findings.append(f"{name}: neither text nor of a kind that belongs into a model's repository")
            continue
        vocabulary = _VOCABULARY.fullmatch(path.name) and path.name != "tokenizer_config.json"
        findings += (f"{name}, {problem}" for problem in _of_lines(lines, paths=not vocabulary))
        if not vocabulary:
            words = [(word, number) for number, line in enumerate(lines, 1) for word in normalised(line).split()]
            for start in range(len(words) - WORDS_IN_A_ROW + 1):
                run = words[start : start + WORDS_IN_A_ROW]
                runs.setdefault(" ".join(word for word, _ in run), f"{name}, line {run[0][1]}")
            for number, line in enumerate(lines, 1):
                for part in (line, *re.split(r'["“”\t|`]', line)):
                    parts.setdefault(normalised(part), f"{name}, line {number}")
    where = set()
    for text in texts:
        words = normalised(text).split()
        if len(words) >= WORDS_IN_A_ROW:
            every = (" ".join(words[i : i + WORDS_IN_A_ROW]) for i in range(len(words) - WORDS_IN_A_ROW + 1))
            where.add(next((runs[run] for run in every if run in runs), None))
        elif len(words) >= FEWEST_WORDS:
            where.add(parts.get(" ".join(words)))
    return findings + [
        f"{place}: a text that it was trained on, or part of one" for place in sorted(filter(None, where))
    ]


def _of_lines(lines: list[str], paths: bool) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        for kind, pattern in _SECRETS.items():
            if re.search(pattern, line):  # not shown: this is printed, perhaps logged
                yield f"line {number}: looks like {kind}; take it out, and revoke it"
        if paths and (found := _PATH.search(line)):
            yield f"line {number}: a path of one machine, {found.group()}; want a name or a relative path"


def _of_run(folder: Path) -> Iterator[str]:
    """Load, then run each ```python block of the card where the name that it gives to the model is this folder."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    if not snippets:
        yield "README.md: no ```python block that shows how to use the model"
    root = Path(__file__).parents[2]
    alone = _ALONE.format(names=["trainer_ext", "baselines", *(path.stem for path in root.glob("*_emodeberta.py"))])
    with tempfile.TemporaryDirectory() as elsewhere:
        for name in {name for snippet in snippets for name in re.findall(r"model=\"([^\"/][^\"]*)\"", snippet)}:
            link = Path(elsewhere, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder.resolve(), target_is_directory=True)
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(elsewhere, ".modules"))}
        env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}  # a training may still hold the GPU
        for what, code in (("does not load", _LOAD), *(("README.md: its snippet fails", code) for code in snippets)):
            try:
                done = subprocess.run(
                    [sys.executable, "-c", alone + code, str(folder.resolve())],
                    cwd=elsewhere, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                yield f"{what}: not done after {_TIMEOUT / 60:.0f} minutes"
                continue
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                yield f"{what}: {last[:300]}"
