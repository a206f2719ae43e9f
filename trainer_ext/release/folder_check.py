"""Check a folder before it is published: files, licence, and secrets in any text, escaped or encoded."""

import base64
import binascii
import html
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

from ..data.emotion_corpora import normalised
from .contents import Passage, WrongKind, passages, plain_text
from .licence import NOT_PUBLISHED

# ---- Secrets ---------------------------------------------------------------------------------------------------------
# Detectors of detect-secrets that mistake words or numbers for secrets.
_LEFT_OUT = {"ArtifactoryDetector", "IPPublicDetector", "TelegramBotTokenDetector"}
_NAMED = (
    r"(?:api|access|auth|hub|hf|bot|refresh|session|bearer|secret|private|account)[_-]?(?:key|token|secret)|\w+_api_key"
    r"|passw(?:or)?d|secret|token"
)
# Secrets that detect-secrets 1.5 does not know, or finds only alone in a line.
_MORE = {
    "Hugging Face token": r"(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "GitHub Token": r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}",
    "AWS secret key": r"(?i:aws\w{0,20}(?:secret|key)\w{0,20})\W{1,6}[A-Za-z0-9/+]{40}\b",
    "Google key": r"AIza[\w-]{35}|GOCSPX-[\w-]{20,}|\bya29\.[\w-]{30,}",
    "GitLab Token": r"gl(?:pat|dt|rt|cbt|ptt|ft|agent|oas|soat|imt)-[\w-]{20,}",
    "NPM token": r"npm_[A-Za-z0-9]{36}",
    "OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "Weights & Biases key": r"wandb_v1_\w{30,}|(?i:wandb)\w*\W{1,6}(?:\w+\W{1,3}){0,4}[0-9a-f]{40}\b",
    "key of a service": r"\b(?:dop_v1_[0-9a-f]{64}|r8_[A-Za-z0-9]{37}|nvapi-[\w-]{40,}|shpat_[0-9a-f]{32}"
    r"|xapp-\d-[\w-]{30,}|gsk_[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{40,}|AGE-SECRET-KEY-1[0-9A-Z]{50,}|lin_api_\w{30,}"
    r"|\d{8,10}:AA[\w-]{33}|dapi[0-9a-f]{32}|dckr_pat_[\w-]{27}|glsa_\w{32,}|PMAK-[\w-]{50,}|figd_[\w-]{40}|hvs\.[\w-]{24,}"
    r"|ATATT3x[\w-]{50,}|xai-\w{60,}|rubygems_[0-9a-f]{48}|ntn_\w{40,}|EAA\w{80,})"
    r"|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{30,}|[?&]sig=[\w%+/]{40,}",
    "Authorization header": r"(?i:authorization\W{1,4}(?:bearer|basic|token)\s+)[\w.~+/-]{12,}=*",
    "PGP or SSH key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|PuTTY-User-Key-File-\d",
    # A telling name, and a value with a letter and a digit.
    "password or key": rf"(?i:\b(?:{_NAMED}))[\"']?\s*[:=]\s*[\"']?(?=[^\s\"']*\d)(?=[^\s\"']*[A-Za-z])"
    r"[\w.~+/@#$%^&*!-]{12,}",
    "password in an address": r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>{}\[\]]+:[^\s/@\"'<>{}\[\]]+@[\w.-]+",
}

_ROOTS = (
    "home|root|Users|users|tmp|var|mnt|scratch|work|workspace|content|private|data|opt|srv|media|gpfs|lustre|beegfs|nfs"
    "|Volumes|kaggle|dbfs|storage|cluster|export|projects"
)
_PATHS = (
    rf"(?<![\w/.:~-])/(?:{_ROOTS})/[\w.-]+[\w./\\-]*",
    r"\bfile:/+[^\s\"'<>()]+",
    r"\b(?:smb|nfs|afp|sftp|scp|cifs|hdfs)://[^\s\"'<>()]+",
    rf"\b(?:ssh|rsync|ftp)://[^\s/]+/(?:{_ROOTS})/[\w.-]+",
    rf"\b[\w.-]+:/(?:{_ROOTS})/[\w.-]+[\w./\\-]*",  # host:/export/data
    r"\b[A-Za-z]:(?!\\[nrt][A-Z\\\s])(?:\\{1,2}|/)(?:[\w.~$-][\w .~$-]*(?:\\{1,2}|/))+[\w.~$-]+",
    r"\b[A-Z]:(?!\\[nrt])\\{1,2}[\w.-]{3,}",
    r"(?<![\w\\])\\{2,4}[\w.$-]{3,}\\{1,2}[\w$.-]{2,}[\w$.\\-]*",  # \\server\share
    r"(?<![\w:/.])//[\w-]{3,}(?:\.[\w-]+)*/[\w$.-]{2,}(?:/[\w$.-]+)+",  # //server/share/folder
)
_PATH = re.compile("|".join(f"(?:{pattern})" for pattern in _PATHS))
# For vocabularies, whose entries may look like short paths.
_DEEP_PATH = re.compile(rf"(?<![\w/.:~-])/(?:{_ROOTS})(?:/[\w.-]+){{2,}}")


@cache
def _detectors() -> list[tuple[str, RegexBasedDetector | re.Pattern[str]]]:
    known = get_mapping_from_secret_type_to_class().values()
    theirs = [kind() for kind in known if issubclass(kind, RegexBasedDetector) and kind.__name__ not in _LEFT_OUT]
    return [
        *((kind, re.compile(pattern)) for kind, pattern in _MORE.items()),
        *((detector.secret_type, detector) for detector in theirs),
    ]


def secrets_in(text: str) -> Iterator[tuple[str, int]]:
    """Yield the kind and the line number of everything that looks like a secret."""
    for kind, detector in _detectors():
        if isinstance(detector, re.Pattern):
            starts = [found.start() for found in detector.finditer(text)]
        else:
            starts = [max(text.find(str(value)), 0) for value in detector.analyze_string(text)]
        yield from dict.fromkeys((kind, text.count("\n", 0, start) + 1) for start in starts)


def paths_in(text: str, deep: bool = False) -> Iterator[tuple[str, int]]:
    """Yield each absolute path of some machine and its line number; if `deep`, only paths of three parts or more."""
    for found in (_DEEP_PATH if deep else _PATH).finditer(text):
        yield found.group(), text.count("\n", 0, found.start()) + 1


def spellings(text: str) -> list[str]:
    """Return the text and its decoded versions that differ: URL escapes, HTML entities, JSON escapes and base64."""
    found = [text]
    for read in (unquote, unquote, html.unescape, html.unescape, _without_backslashes, _without_base64):
        found += [other for each in found[:4] if (other := read(each)) not in found]
    return found


def _without_backslashes(text: str) -> str:
    text = re.sub(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})", lambda m: chr(int(m.group(1) or m.group(2), 16)), text)
    return re.sub(r"\\[nrt]", " ", text.replace("\\/", "/"))


def _without_base64(text: str) -> str:
    """Return the text with every long word that is base64 of a text decoded."""

    def read(found: re.Match) -> str:
        word = found.group()
        try:
            decoded = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError):
            return word
        return decoded if decoded.isprintable() else word

    return re.sub(r"(?<![\w+/])[A-Za-z0-9+/]{20,4000}={0,2}(?![\w+/=])", read, text)


# ---- The folder ------------------------------------------------------------------------------------------------------
# A text of a corpus counts as found if WORDS_IN_A_ROW of its words occur in a row. If it has fewer words, but at least
# FEWEST_IN_A_ROW, all of them must occur in a row. A text with at least SOME_WORDS words also counts if it is a whole
# sentence, and one with at least FEWEST_WORDS words if it is a whole line, cell or quotation.
WORDS_IN_A_ROW, FEWEST_IN_A_ROW, SOME_WORDS, FEWEST_WORDS = 8, 5, 4, 2
_TIMEOUT = 900  # seconds, for each snippet of the card
# Hide the project's own modules, since the folder must contain all code it needs.
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


def check_folder(
    folder: Path, *, texts: Iterable[str] = (), run: bool = True, links_to: Path | None = None
) -> list[str]:
    """Return the problems that keep a model's folder from being published: file and line, what is wrong, what would be
    right.

    In addition to [`check_files`], the configuration, card and weights must exist. If `run` is true, a new process
    without access to this project loads the model with its code, and runs the card's snippets that begin with
    ```python. Those that need this project begin with ```py. This executes code from the folder, so only check folders
    that you trust.

    Args:
        folder: A folder that `save_pretrained` wrote, with a card.
        texts, links_to: As in [`check_files`].
        run: Whether to load the model and run the card's snippets.
    """
    findings = check_files(folder, texts, links_to)
    for wanted in ("config.json", "README.md"):
        if not (folder / wanted).is_file():
            findings.append(f"{wanted}: missing")
    if not any(folder.glob("*.safetensors")):
        findings.append("model.safetensors: missing; there are no weights to load")
    if run and not findings:
        findings += _of_run(folder)
    return findings


def check_files(folder: Path, texts: Iterable[str] = (), links_to: Path | None = None) -> list[str]:
    """Return the problems of a folder's files: unsuitable file types, links, absolute paths, secrets and texts of a
    corpus.

    Problems are searched for in names, lines and metadata, also where they are written with URL escapes, HTML entities,
    JSON escapes or base64. Files that [`push_folder`](hub.py) does not upload, such as checkpoints, are skipped.

    Args:
        folder: Any folder.
        texts: Texts that must not be in the folder, in whole or as `WORDS_IN_A_ROW` words in a row. Texts with fewer
            than `FEWEST_WORDS` words are not searched for. They are read once and not kept.
        links_to: A folder to whose files links may point. Any other link is a problem.
    """
    findings: dict[str, None] = {}
    rows = _Rows()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if NOT_PUBLISHED.fullmatch(name):
            continue
        if problem := _of_entry(path, links_to):
            findings[f"{name}: {problem}"] = None
        if problem or path.is_dir():
            continue
        read = [Passage(name, "its name")]
        try:
            read += passages(path)
        except WrongKind as problem:
            findings[f"{name}: {problem}"] = None
            if (text := plain_text(path)) is not None:  # still report secrets in it
                findings |= dict.fromkeys(_secrets(name, Passage(text)))
            continue
        for passage in read:
            findings |= dict.fromkeys((*_secrets(name, passage), *_paths(name, passage)))
            rows.add(name, passage)
    places = sorted(set(filter(None, map(rows.find, texts))))
    return [*findings, *(f"{place}: a text that it was trained on, or part of one" for place in places)]


def _of_entry(path: Path, links_to: Path | None) -> str | None:
    """Return what is wrong with an entry of a folder before it is read, or `None`."""
    if path.is_symlink() and not (links_to and path.is_file() and path.resolve().is_relative_to(links_to.resolve())):
        return "a link; put the file itself here"
    return None if path.is_file() or path.is_dir() else "neither a file nor a folder"


def _place(name: str, passage: Passage, line: int) -> str:
    return f"{name}, {passage.where or f'line {line}'}"


def _secrets(name: str, passage: Passage) -> Iterator[str]:
    """Yield a line for each secret, without the secret itself, because the line is printed and perhaps logged."""
    shown = "its name" if passage.where == "its name" else name
    for text in spellings(passage.text):
        for kind, line in secrets_in(text):
            yield f"{_place(shown, passage, line)}: looks like a secret ({kind}); take it out, and revoke it"


def _paths(name: str, passage: Passage) -> Iterator[str]:
    for text in spellings(passage.text):
        for found, line in paths_in(text, deep=passage.vocabulary):
            where = _place(name, passage, line)
            yield f"{where}: a path of one machine, {found[:80]}; want a name or a relative path"


class _Rows:
    """An index of the word sequences in a folder, to find texts of a corpus."""

    def __init__(self) -> None:
        self._runs: dict[str, str] = {}
        self._wholes: dict[str, str] = {}  # lines, cells and quotations

    def add(self, name: str, passage: Passage) -> None:
        few = (
            SOME_WORDS if passage.vocabulary or name.endswith(".py") else FEWEST_WORDS
        )  # "do what" is in any docstring
        for text in spellings(passage.text):
            if passage.where == "its name":
                text = re.sub(r"[_./-]+", " ", text)
            lines = list(enumerate(text.splitlines(), 1))
            for group in [[each] for each in lines] if passage.vocabulary else [lines]:
                self._add_runs(
                    [(word, number) for number, line in group for word in normalised(line).split()], name, passage
                )
            for number, line in lines:
                wholes = (line, *re.split(r'["“”„«»\t|`]', line))
                sentences = re.split(r"[<>()\[\]{}]|[.:;!?]\s|\s[–—-]\s", line)
                for part, fewest in [(whole, few) for whole in wholes] + [(part, SOME_WORDS) for part in sentences]:
                    words = normalised(part)
                    if words.count(" ") >= fewest - 1:
                        self._wholes.setdefault(words, _place(name, passage, number))

    def _add_runs(self, words: list[tuple[str, int]], name: str, passage: Passage) -> None:
        for length in range(FEWEST_IN_A_ROW, WORDS_IN_A_ROW + 1):
            for start in range(len(words) - length + 1):
                run = words[start : start + length]
                self._runs.setdefault(" ".join(word for word, _ in run), _place(name, passage, run[0][1]))

    def find(self, text: str) -> str | None:
        """Return the place in the folder that contains this text of a corpus, or part of it, or `None`."""
        words = normalised(text).split()
        if len(words) < FEWEST_IN_A_ROW:
            return self._wholes.get(" ".join(words)) if len(words) >= FEWEST_WORDS else None
        length = min(len(words), WORDS_IN_A_ROW)
        every = (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))
        return next((self._runs[run] for run in every if run in self._runs), None)


def _of_run(folder: Path) -> Iterator[str]:
    """Yield the problems from loading the model and running each Python snippet of the card in new processes.

    The snippets run where the model's name in the card links to this folder.
    """
    card = (folder / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    if not snippets:
        yield "README.md: no ```python block that shows how to use the model"
    root = Path(__file__).parents[2]
    alone = _ALONE.format(names=["trainer_ext", *(path.stem for path in root.glob("*_emodeberta.py"))])
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
