"""Markdown as a reader sees it: rendered, and what may not be in a page or a card."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt


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
