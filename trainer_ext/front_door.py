"""Answer `--help` and wrong flags before a script imports torch and transformers, which takes seconds.

`flags.json` holds the flags of every script. `make docs` writes it from the scripts' own parsers, which remain the only
source: a test compares them, and with another version of transformers the file is not used. A run script calls
[`check_flags`] before its imports. A command of the installed package (`emodeberta-classify`) starts with [`start`].
"""

import ast
import json
import re
import runpy
import sys
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import InputError, run_command
from .flag_parser import NO_OUTPUT_DIR, FlagFormatter, FlagParser, UnknownFlag, recipe_arguments, refuse, true_or_false
from .recipe_file import ComparisonFile, FusionFile, VariantsFile, check_recipe, read_recipe

PACKAGE = Path(__file__).parent
FLAGS = PACKAGE / "flags.json"
# Types of values by their names in the file. Any other type is checked by the script itself.
TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "true_or_false": true_or_false}
# Recipes that name many trainings, by script.
_VARIANTS: dict[str, type[VariantsFile]] = {"run_compare": ComparisonFile, "run_fuse": FusionFile}
_OLD_NAMES = {"emodeberta-push": "run_publish"}


def check_flags(script: str) -> None:
    """Answer `--help`, or end with one line if a flag, a value or the recipe is wrong. Otherwise return.

    Args:
        script: Name of the run script without its extension.
    """
    run_command(lambda: check(script, sys.argv[1:]))


def start() -> None:
    """Run the script that a command of the installed package stands for: run_classify for emodeberta-classify."""
    name = Path(sys.argv[0]).stem
    script = _OLD_NAMES.get(name, name.replace("emodeberta-", "run_"))
    check_flags(script)
    runpy.run_module(script, run_name="__main__", alter_sys=True)


def check(script: str, argv: list[str]) -> None:
    """Check a script's arguments, as far as it takes no heavy import.

    Raises:
        InputError: if a flag or a key of the recipe is unknown, a value does not fit, or something is missing.
    """
    content = json.loads(FLAGS.read_text(encoding="utf-8"))
    if script not in content["scripts"] or content["transformers"] != version("transformers"):
        return
    frozen, parser = content["scripts"][script], parser_of(script, content)
    more = parser_of("run_classify", content) if frozen["hands_on"] else parser
    known = [*parser._option_string_actions, *more._option_string_actions]
    try:
        # First of all, because argparse would complain of what is missing instead.
        named = (each for each in argv if each[:2] == "--" and each != "--")
        refuse([each for each in named if each.partition("=")[0] not in known], known)
        if frozen["takes_recipe"]:
            values, _ = parser.read(argv)
            if getattr(values, "output_dir", "-") is None:
                raise InputError(NO_OUTPUT_DIR)
            return
        if frozen["recipe_handed_on"] and argv and not argv[0].startswith("-"):
            read_recipe(Path(argv.pop(0)))
        values, rest = parser.parse_known_args(argv)
        if frozen["recipe"] and (path := getattr(values, frozen["recipe"])):
            content = read_recipe(Path(path))
            if script in _VARIANTS:
                _check_variants(check_recipe(content, _VARIANTS[script], Path(path)), Path(path), more)
        if frozen["hands_on"]:
            _, rest = more.parse_known_args(rest)
        refuse(rest, known)
    except UnknownFlag as error:
        if not _is_defined(error.name):
            raise


def _check_variants(file: VariantsFile, path: Path, parser: FlagParser) -> None:
    """Check the names and values of the flags in a file of variants. Whether they fit together, the script says."""
    if file.recipe:
        read_recipe(path.parent / file.recipe)
    variants = {name: flags or {} for name, flags in getattr(file, file.KEY).items()}
    for name, flags in {"settings": file.settings or {}, **variants}.items():
        if "program" not in {*flags, *(file.settings or {})}:  # which has flags of its own
            recipe_arguments(parser, flags, f"{path}, {name}")


def parser_of(script: str, content: dict[str, Any]) -> FlagParser:
    """Return a parser with a script's flags, as they are in the content of `flags.json`; it gives no defaults.

    Its description is the script's docstring.
    """
    frozen = content["scripts"][script]
    source = (PACKAGE.parent / f"{script}.py").read_text(encoding="utf-8")
    parser = FlagParser(
        description=ast.get_docstring(ast.parse(source), clean=False),
        usage=frozen["usage"],
        formatter_class=FlagFormatter if frozen["shows_defaults"] else RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, flags in frozen["sections"].items():
        section = parser.add_argument_group(title) if title else parser
        for flag in flags:
            options = {key: value for key, value in flag.items() if key not in ("names", "type")}
            if "type" in flag:
                options["type"] = TYPES[flag["type"]]
            section.add_argument(*flag["names"], **{"help": SUPPRESS, **options})
    return parser


def _is_defined(name: str) -> bool:
    """Return whether the code has a flag of this name, which `flags.json` then lacks: somebody is adding one."""
    definition = re.compile(rf'^    {re.escape(name)}: |"--{re.escape(name)}"', re.MULTILINE)
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("run_*.py")]
    return any(definition.search(path.read_text(encoding="utf-8")) for path in files)
