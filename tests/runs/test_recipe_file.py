"""Recipes that people get wrong, or make to do harm: one line that names file and place, whatever is in them."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT

import run_compare
import run_fuse
import run_reproduce
from trainer_ext.data.label_maps import read_label_map
from trainer_ext.errors import InputError
from trainer_ext.recipe_file import read_recipe
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS

STAGE = {"command": "run_classify.py recipes/quickstart.yaml", "output_dir": "out", "minutes": 1}
# By kind: how it is read, and the least that it may hold.
KINDS = {
    "comparison": (run_compare.read_comparison, {"variants": {"a": {}, "b": {}}}),
    "fusion": (lambda path: run_fuse.read_fusion_recipe(path, {}), {"members": {"a": {}, "b": {}}}),
    "labels": (lambda path: read_label_map(str(path)), {"train_file": "x.csv", "labels": {"joy": ["glad"]}}),
    "stages": (run_reproduce.read_stages, {"stages": {"a": STAGE}}),
}


def bomb(first: str = "[x, x, x]") -> str:
    """Ten lines that stand for nine to the power of ten values."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mean: {}\nother: {}\nmean: {}", "line 3: not a YAML file that can be read ('mean' is listed twice)"),
        ("variants:\n  1: {}\n  '1': {}", "line 3: .* ('1' is listed twice)"),
        ("a: 1\n? [x]\n: 2", "line 2: .* (a name is not text)"),
        (bomb(), "more than 1,000,000 characters, aliases written out"),
        (f'long: &l "{"x" * 20_000}"\nmany: [{"*l, " * 60}]', "more than 1,000,000 characters, aliases written out"),
        ("a: &a [*a]", "nested more than 40 deep"),
        ("a: " + "[" * 100_000, "nested more than 40 deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 40 deep"),
        ("a: !!python/object/apply:os.system [true]", "line 1: .*could not determine a constructor"),
        ("a: !!bool maybe", "not a YAML file that can be read"),
        ("a: !!set {x}", "could not determine a constructor"),
        (f"a: {'9' * 5000}", "not a YAML file that can be read"),
        ('a: "\\0"', "line 1: .*NUL"),
        ('a: "\\ud83d"', "line 1: .*lone surrogate"),
        (f"a: {'x' * 1_000_001}", "has 1,000,004 bytes; a recipe has at most 1,000,000"),
        ("- a\n- b", "holds a list; want `flag: value` lines"),
        (b"a: \xff", "not a YAML file in UTF-8 (invalid start byte at byte 3)"),
        ("a: *b", "line 1: .*undefined alias"),
    ],
    ids=range(18),
)
def test_what_a_file_can_do_wrong_is_one_line(text, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert re.fullmatch(f"{re.escape(str(path))}.*{'.*'.join(map(re.escape, says.split('.*')))}.*", str(error.value))


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "bomb.yaml").write_text(f"{bomb()}\nvariants: {{a: {{train_file: *a10}}, b: {{}}}}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "run_compare.py", tmp_path / "bomb.yaml"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/bomb.yaml, line ")
    assert len(done.stderr.splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "gone.yaml", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"no such recipe|cannot be read"):
            read_recipe(path)


def test_names_are_as_they_are_written_and_dates_are_text(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "1: {}\nno: {}\n2022-01-01: {}\non: 2022-13-99\nbase: &b {x: 1}\nc: {<<: *b, x: 2}"
    )
    content = read_recipe(tmp_path / "mine.yaml")
    assert list(content) == ["1", "no", "2022-01-01", "on", "base", "c"]
    assert (content["on"], content["c"]) == ("2022-13-99", {"x": 2})


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("comparison", {"seeds": "1"}, "seeds: '1'; want a list"),
        ("comparison", {"seeds": [1, "2"]}, "seeds, 1: '2'; want an integer"),
        ("comparison", {"seeds": [1, 1]}, "seeds: [1, 1]; a value is listed twice"),
        ("comparison", {"seeds": []}, "seeds: []; want at least one"),
        ("comparison", {"cv_folds": 2.5}, "cv_folds: 2.5; want an integer"),
        ("comparison", {"cv_folds": True}, "cv_folds: True; want an integer"),
        ("comparison", {"cv_folds": 1}, "cv_folds: 1 fold leaves no row to train on"),
        ("comparison", {"columns": "age"}, "columns: 'age'; want a list"),
        ("comparison", {"reference": ["a"]}, "reference: ['a']; want text"),
        ("comparison", {"recipe": 3}, "recipe: 3; want text"),
        ("comparison", {"settings": [1]}, "settings: [1]; want lines of `name: value`"),
        ("comparison", {"variants": ["a"]}, "variants: ['a']; want lines of `name: value`"),
        ("comparison", {"variants": {"a": [1]}}, "variants, a: [1]; want lines of `name: value`"),
        ("comparison", {"variants": {"a": {"program": ["x"]}}}, "a: program ['x']; want one of run_classify"),
        ("comparison", {"variants": {"a": {"help": []}}}, "a: unknown key 'help'"),
        ("comparison", {"variants": {"a": {"learning_rate": [1, 2]}}}, "a, learning_rate: [1, 2]; want one value"),
        ("comparison", {"variants": {"a": {"number_targets": [[1]]}}}, "unknown key 'number_targets'"),
        ("comparison", {"variants": {"a": {"report_to": [["x"]]}}}, "report_to: [['x']]; want a list of plain values"),
        ("comparison", {"sums": {"s": {"variants": "ab", "seeds": [1]}}}, "sums, s, variants: 'ab'; want a list"),
        ("comparison", {"sums": {"s": {"variants": ["a", "b"]}}}, "sums, s: no seeds"),
        ("fusion", {"cv_folds": "5"}, "cv_folds: '5'; want an integer"),
        ("fusion", {"tfidf": "yes"}, "tfidf: 'yes'; want true or false"),
        ("fusion", {"teachers": {"a": 1}}, "teachers: {'a': 1}; want a list"),
        ("fusion", {"without": {"x": [1]}}, "without, x, 0: 1; want text"),
        ("fusion", {"members": {"a": {"seed": "1"}, "b": {}}}, "a, seed: '1'; want an integer"),
        ("fusion", {"student": [1]}, "student: [1]; want lines of `name: value`"),
        ("labels", {"labels": ["glad"]}, "labels: ['glad']; want lines of `name: value`"),
        ("labels", {"train_file": 5}, "train_file: 5; want text"),
        ("labels", {"licence": ["mit"]}, "licence: ['mit']; want text"),
        ("stages", {"stages": {"a": STAGE | {"command": ["x"]}}}, "stages, a, command: ['x']; want text"),
        ("stages", {"stages": {"a": STAGE | {"command": "run_mlm.py 'x"}}}, 'command: "run_mlm.py \'x": No closing'),
        (
            "stages",
            {"stages": {"a": STAGE | {"command": "run_reproduce.py"}}},
            "want a command that begins with a run_",
        ),
        ("stages", {"stages": {"a": STAGE | {"minutes": "soon"}}}, "stages, a, minutes: 'soon'; want a number"),
        ("stages", {"stages": {"a": STAGE | {"minutes": float("nan")}}}, "stages, a, minutes: nan; want a finite"),
        ("stages", {"stages": {"a": STAGE, "b": STAGE}}, "stages: two leave out; want a folder for each"),
        ("stages", {"submission": {"../x.tsv": "out"}}, "submission, ../x.tsv: want the name of a file"),
        ("stages", {"submission": ["out"]}, "submission: ['out']; want lines of `name: value`"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_its_place(kind, change, says, tmp_path):
    read, least = KINDS[kind]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(least | change))
    with pytest.raises(InputError) as error:
        read(tmp_path / "mine.yaml")
    assert str(error.value).startswith(f"{tmp_path}/mine.yaml, ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a", "1", "-x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    *("variants", "members", "stages", "seeds", "cv_folds", "columns", "sums", "reference", "recipe", "settings"),
    *("labels", "left_out", "train_file", "tfidf", "student", "teachers", "without", "minutes_on", "learning_rate"),
])  # fmt: skip


@given(st.sampled_from([*KINDS, "flags"]), st.dictionaries(KEYS, VALUES, max_size=3), st.binary(max_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_recipe_gives_a_traceback(tmp_path, kind, change, tail):
    path = tmp_path / "mine.yaml"
    read, least = KINDS.get(kind, (lambda _: RecipeParser(CLASSIFY_ARGUMENTS).parse([str(path)]), {}))
    path.write_bytes(json.dumps(least | change, ensure_ascii=False).encode(errors="surrogatepass") + tail)
    said = None
    try:
        read(path)
    except InputError as error:
        said = str(error)
    assert said is None or ((str(path) in said or kind == "flags") and "\n" not in said)


def test_every_recipe_of_the_project_is_read():
    for path in sorted(Path(ROOT / "recipes").rglob("*.yaml")):
        assert read_recipe(path) == yaml.safe_load(path.read_text(encoding="utf-8"))
