"""Write trainer_ext/flags.json: the flags of every script, for `--help` and wrong flags (see `trainer_ext.front_door`).

python -m docs.generate.flags
"""

import argparse
import importlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trainer_ext.files import write_text
from trainer_ext.front_door import FLAGS, TYPES
from trainer_ext.recipes import RecipeParser

ROOT = Path(__file__).resolve().parents[2]
_TYPES = {kind: name for name, kind in TYPES.items()}


class _Parsed(Exception):
    """Carries the parser with which a script has begun to read its flags, and whether it hands unknown ones on."""


def parser_of(main: Callable[[], None]) -> tuple[argparse.ArgumentParser, bool]:
    """Return the parser that a script's `main` makes, and whether it hands unknown flags on to the trainings."""

    def strict(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _Parsed(parser, False)

    def lenient(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _Parsed(parser, not isinstance(parser, RecipeParser))

    made = {"parse_args": strict, "parse_known_args": lenient}
    without = {name: value for name, value in os.environ.items() if name != "EMODEBERTA_DATA"}  # it is a default
    with (
        patch.multiple(argparse.ArgumentParser, **made),
        patch("sys.argv", ["script.py"]),
        patch.dict(os.environ, without, clear=True),
    ):
        try:
            main()
        except _Parsed as parsed:
            return parsed.args
    raise ValueError(f"{main.__module__}: main() reads no flags")


def frozen(parser: argparse.ArgumentParser, hands_on: bool) -> dict[str, Any]:
    """Return what `trainer_ext.front_door.parser_of` needs to make the parser anew, as JSON values."""
    sections = {}
    for group in parser._action_groups:
        title = "" if group in (parser._positionals, parser._optionals) else group.title
        flags = [_frozen_flag(parser, action) for action in group._group_actions if action.dest != "help"]
        if flags:
            sections[title] = [*sections.get(title, []), *flags]
    recipes = [each.dest for each in parser._actions if not each.option_strings and ".yaml" in str(each.metavar)]
    return {
        "usage": parser.usage,
        "takes_recipe": isinstance(parser, RecipeParser) and not parser._get_positional_actions(),
        "shows_defaults": isinstance(parser, RecipeParser),
        "recipe": next(iter(recipes), None),
        "hands_on": hands_on,
        # Whether a recipe may come before the flags that are handed on. The parser has no argument for it, because it
        # would take the value of a flag that it does not know.
        "recipe_handed_on": hands_on and not recipes and "[RECIPE.yaml]" in (parser.usage or ""),
        "sections": sections,
    }


def _frozen_flag(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    flag: dict[str, Any] = {"names": action.option_strings or [action.dest]}
    if action.option_strings:
        flag |= {"dest": action.dest} | ({"required": True} if action.required else {})
    if action.help != argparse.SUPPRESS:
        flag["help"] = parser._get_formatter()._expand_help(action).replace("%", "%%")
    if action.nargs == 0:
        return flag | {"action": "store_true" if action.const else "store_false"}
    if action.type in _TYPES:
        flag["type"] = _TYPES[action.type]
    if action.choices is not None:
        flag["choices"] = list(map(str, action.choices))
    return flag | {name: value for name in ("nargs", "metavar") if (value := getattr(action, name)) is not None}


def content() -> str:
    """Return the text of flags.json."""
    scripts = {}
    for path in sorted(ROOT.glob("run_*.py")):
        scripts[path.stem] = frozen(*parser_of(importlib.import_module(path.stem).main))
    flags = {"transformers": version("transformers"), "scripts": scripts}
    return json.dumps(flags, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(FLAGS, content())
    print(f"wrote {FLAGS.relative_to(ROOT)}")
