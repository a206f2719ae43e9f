"""Find keys, tokens, passwords and local paths in a text, also in escaped or encoded form."""

import base64
import binascii
import html
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

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
