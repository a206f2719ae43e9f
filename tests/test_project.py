"""The project as a whole: its import rules, its wheel, its pages, its notebook and its benchmarks."""

import ast
import configparser
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch
from support import ROOT, call

from attention_emodeberta import EmoDebertaSelfAttention
from benchmarks import __main__ as benchmarks
from benchmarks import bench_gpu, sides
from docs.generate.performance import on_gpus, side_of_cell

SCRIPTS = {"emodeberta", *(path.stem for path in ROOT.glob("run_*.py"))}
FOLDERS = ("benchmarks", "docs/generate", "space", "trainer_ext")
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
MODULES = {path.relative_to(ROOT).with_suffix("").parts: path for path in FILES}


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """Return the project's modules that a file imports, wherever in the file it does so, as paths from the root."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            start += tuple(filter(None, (node.module or "").split(".")))
            found |= {start, *((*start, alias.name) for alias in node.names)}
    found |= {(*name, "__init__") for name in found}
    if package == ("space",):  # a script finds the files beside it
        found |= {("space", *name) for name in found}
    return found & MODULES.keys() - {path.relative_to(ROOT).with_suffix("").parts}


# What each wing of trainer_ext may import. The ground: escape, errors, files, precision and child_tuning.
GROUND = {"escape", "errors", "files", "precision"}
FLAGS = {"errors", "flag_parser", "recipe_file"}
RECIPES = GROUND | FLAGS | {"child_tuning", "recipes"}
ARROWS = {
    "escape": set(),
    "errors": {"escape"},
    "recipe_file": {"errors"},
    "flag_parser": FLAGS,
    "front_door": FLAGS,
    "child_tuning": {"child_tuning"},
    "precision": set(),
    "files": GROUND,
    "recipes": RECIPES,
    "data": RECIPES | {"data"},
    "training": RECIPES | {"data", "training"},
    "evaluation": RECIPES | {"data", "evaluation"},
    "runs": RECIPES | {"data", "training", "evaluation", "runs"},
    "baselines": RECIPES | {"baselines", "data", "training", "evaluation", "runs"},
    "scoring": RECIPES | {"data", "training", "evaluation", "scoring"},
    "release": RECIPES | {"data", "training", "evaluation", "release"},
    "hub": set(),  # the old spelling of run_publish.py
    "__init__": {"child_tuning"},
}


def test_arrows_point_one_way():
    for module, path in MODULES.items():
        imported = imports_of(path)
        tops = {name[0] for name in imported}
        if module[0] == "trainer_ext":
            assert "import_module" not in path.read_text(encoding="utf-8"), path  # would hide an arrow
            assert not tops & (SCRIPTS | {"benchmarks", "docs"}), path
            assert {name[1] for name in imported if name[0] == "trainer_ext"} <= ARROWS[module[1]], path
        elif module[0].endswith("_emodeberta"):
            assert all(top.endswith("_emodeberta") for top in tops), path
        elif module[0] == "space":
            assert tops <= {"space"}, path
        else:
            assert not tops & ({"docs"} if module[0] == "benchmarks" else {"space"}), path
            assert module[0] not in SCRIPTS or not tops & {"benchmarks", "docs"}, path


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count, too."""
    of = {module: imports_of(path) for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(of).static_order())) == len(FILES) > 100  # raises CycleError


def test_everything_installed_is_pinned():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = config["options"]["install_requires"] + "".join(extras.values())
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    for line in filter(None, wanted.splitlines()):
        assert re.split(r"[ <>=[]", line)[0].replace("_", "-") in pinned


def test_the_wheel_imports_away_from_the_clone(tmp_path):
    """The imports of the README's usage sections and the commands, from the wheel alone.

    (Its dependencies are this environment's.)
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, clone]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel], check=True)
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.name for pattern in ("run_*.py", "*emodeberta.py") for path in ROOT.glob(pattern)}
    top = {name.partition("/")[0] for name in names}
    assert top == {"trainer_ext", "emodeberta-0.1.0.dist-info", *modules}  # nothing with a name that others use
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {f"trainer_ext/shipped/{name}" for name in recipes} <= set(names)
    scripts = ", ".join(sorted(path.stem for path in ROOT.glob("run_*.py")))
    code = f"""
import pathlib
from trainer_ext import ChildTuningArguments, ChildTuningTrainer
import emodeberta, modeling_emodeberta
import {scripts}
from trainer_ext.data import label_maps
from trainer_ext.release import ensemble_folder, model_card, run_card
scripts = ({scripts})
for module in (emodeberta, modeling_emodeberta, *scripts, model_card):
    assert module.__file__.startswith({str(tmp_path / "site")!r}), module.__file__
release = pathlib.Path(model_card.__file__).parent
for part in ("model_card", "ensemble_card", "pretraining_card", "parts"):
    assert (release / f"{{part}}_template.md").is_file()
assert (release / "citations.bib").is_file()
assert label_maps.read_label_map("go_emotions").targets() == label_maps.read_label_map("xed").targets()
from pathlib import Path
from trainer_ext.recipe_file import read_recipe
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS
_, data, _, run, _ = RecipeParser(CLASSIFY_ARGUMENTS).parse(["recipes/quickstart.yaml", "--output_dir", "o"])
assert all(Path(path).is_file() for path in [data.train_file, *run.extra_tests])
run_compare.read_comparison(Path("recipes/compare/pooling.yaml"))  # its `recipe: ../plain.yaml`
assert run_export.ESSAYS.is_file()
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    (tmp_path / "run_mlm.py").write_text("raise SystemExit('a file of the user')")  # is not the command's
    for command, status, says in (
        (["emodeberta-classify", "--help"], 0, "usage: emodeberta-classify [RECIPE.yaml]"),
        (
            ["emodeberta-mlm", "recipes/quickstart.yaml"],
            2,
            "recipes/quickstart.yaml: not in this folder; using the one that comes with emodeberta\n"
            "error: recipes/quickstart.yaml: unknown key 'split_column_name'",
        ),
    ):
        start = [sys.executable, tmp_path / "site" / "bin" / command[0], *command[1:]]
        done = subprocess.run(start, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, (done.stdout or done.stderr).startswith(says)) == (status, True), done.stderr


def test_the_code_in_readme_and_guides_runs(finished, fused, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "quickstart").symlink_to(finished[0])
    (tmp_path / "outputs" / "my-ensemble").symlink_to(fused[0] / "all")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guide").glob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(blocks) >= 5
    done = subprocess.run(
        [sys.executable, "-c", f"for block in {blocks!r}:\n    exec(block, {{}})"],  # as if each stood alone
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["finished", "fused"])
def test_the_cards_code_runs(kind, request, tmp_path):
    folder, _ = request.getfixturevalue(kind)
    folder = folder if kind == "finished" else folder / "all"
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder.parent,  # the card names the folder as its repository
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "score" in done.stdout


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "-s", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for target in ("run", "test", "check", "demo", "bench", "docs", "docs-site", "help"):
        assert re.search(rf"^{target} ", done.stdout, re.MULTILINE)


def test_the_quickstart_model_answers_plain_sentences():
    """What the recipe's own runs measured; training here would take the tests' time a second time."""
    content = json.loads((ROOT / "results" / "quickstart.json").read_text(encoding="utf-8"))
    for run in content["runs"]:
        sentences = run["extra_tests"]["plain_sentences"]
        assert sentences["rows"] == 140
        assert sentences["accuracy"] >= 0.9
        assert min(sentences["recall"].values()) >= 0.75
        assert run["figures"]["macro_f1"] > run["tfidf"]["macro_f1"]
        assert run["train_minutes"] <= 5
    assert content["runs"][1]["extra_tests"]["wassa2022"]["macro_f1"] >= 0.4


NOTEBOOK = ROOT / "examples" / "emodeberta.ipynb"


def test_the_notebook_runs_and_prints(tmp_path, monkeypatch):
    """With one epoch instead of six, in an empty folder. Cells share one namespace, as in Jupyter."""
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    namespace, printed = {}, []
    for cell in cells:
        source, said = "".join(cell["source"]).replace("num_train_epochs=6", "num_train_epochs=1"), io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(source, NOTEBOOK.name, "exec"), namespace)
        printed.append(said.getvalue())
    assert len(printed) == 6
    assert all(printed)
    assert "saved to outputs/notebook/" in printed[1]
    assert "right: " in printed[2]
    assert (tmp_path / "outputs" / "scores.csv").read_text(encoding="utf-8").startswith("text,emotion,confidence,anger")


def test_the_notebook_shows_what_it_printed():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert len(NOTEBOOK.read_bytes()) <= 12_000


# ---- The comparison on a GPU, at tiny sizes on a CPU -----------------------------------------------------------------
CPU = torch.device("cpu")


def test_the_comparison_runs_from_start_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    printed = call(benchmarks.main, "--parts", "gpu", "--device", "cpu")
    assert "left out: disentangled-flash: " in printed
    assert "failed" not in printed
    (path,) = tmp_path.glob("outputs/bench/*.json")
    cells = json.loads(path.read_text(encoding="utf-8"))
    assert set(cells) == {name for name, *_ in bench_gpu.plan(CPU, [])}
    encoder = cells["encoder, tiny, essays, 24"]["sides"]["ours, sdpa"]
    assert encoder["check"]["float32"]["gradients"] < encoder["check"]["float32"]["limit"]["gradients"]
    assert encoder["forward_backward"]["milliseconds"] > 0
    for name in ("training step, mlm, tiny", "strings to labels, tiny"):
        assert all(found["milliseconds"] > 0 for found in cells[name]["sides"].values()), name
    shown = "\n".join(on_gpus(path.parent))
    for name, cell in cells.items():
        assert f"| {name} | " in shown or f"{name}: " in shown, name
        assert all("failed" not in side_of_cell(found) for found in cell.get("sides", {}).values())


def test_a_side_that_differs_has_no_time(monkeypatch):
    real = EmoDebertaSelfAttention.project_positions
    monkeypatch.setattr(
        EmoDebertaSelfAttention, "project_positions", lambda *a: tuple(1.01 * part for part in real(*a))
    )
    cell = bench_gpu.encoder_cell("tiny", "essays", 24, CPU, [sides.LIBRARY, "ours, sdpa"])
    assert "gradients differ by" in cell["sides"]["ours, sdpa"]["check"]["failed"]["float32"]
    assert "forward" not in cell["sides"]["ours, sdpa"]
    assert cell["sides"][sides.LIBRARY]["forward"]["milliseconds"] > 0


def test_lengths_are_spread_as_those_of_essays():
    lengths = bench_gpu.essay_lengths(64, 512)
    assert lengths[0] == 512
    assert 0.45 < sum(lengths) / (64 * 512) < 0.55  # 99 tokens on average, 201 at most


def test_without_a_gpu_one_line_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        call(benchmarks.main, "--parts", "gpu")
    assert "torch finds no CUDA device here; --parts gpu --device cpu" in capsys.readouterr().err


def test_tests_for_the_gpu_alone_are_refused_in_one_line_without_one():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(pytest.UsageError, match="no CUDA device here, so no test of the GPU can run"):
        conftest.pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr="gpu")))


def test_no_fixture_of_a_file_hides_one_that_all_tests_share():
    """A file that two were joined in would run half of its tests with the other half's fixture, or skip them."""
    shared = fixtures(ROOT / "tests" / "conftest.py")
    hidden = {path.name: fixtures(path) & shared for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name: names for name, names in hidden.items() if names}


def fixtures(path: Path) -> set[str]:
    """Return the names of the fixtures that a file defines."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if any("fixture" in ast.unparse(d) for d in node.decorator_list)}
