"""README, guides and pages: figures are those in results/, links and commands are real, and sizes stay small."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import forked
import pytest
from support import ROOT

from benchmarks.bench_scaling import plan
from docs.generate.__main__ import files
from docs.generate.blocks import fill
from docs.generate.collect import FIGURES, collect
from trainer_ext.errors import InputError

README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
WRITTEN = [
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.md", "results/*.md", "examples/*.md", "space/*.md")
    for path in sorted(ROOT.glob(pattern))
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAGE = "# Title\n\n<!-- begin: one -->\nold\n<!-- end: one -->\n\nProse.\n"


@pytest.fixture
def clone(tmp_path):
    """A copy of what git tracks here, as it is now, without the large files that no page is made from."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        if name.endswith((".py", ".md", ".json", ".svg", ".yaml")) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def pages_of(folder) -> list[Path]:
    """Return every page that people read, and the plots of the performance page."""
    return sorted([*folder.glob("*.md"), *folder.glob("docs/**/*.[ms][dv]*"), *folder.glob("recipes/*.md")])


def generate(folder) -> subprocess.CompletedProcess:
    """Run `python -m docs.generate` in a clone."""
    return subprocess.run([sys.executable, "-m", "docs.generate"], cwd=folder, capture_output=True, text=True)


def test_make_docs_leaves_no_difference(clone):
    pages = pages_of(clone)
    before = {path: path.read_text(encoding="utf-8") for path in pages}
    for path in clone.glob("docs/pictures/*.svg"):
        path.unlink()
    done = generate(clone)
    assert done.returncode == 0, done.stderr
    different = [path.name for path in pages if path.read_text(encoding="utf-8") != before[path]]
    assert not different, "`make docs` changes these pages"
    assert pages_of(clone) == pages


@pytest.mark.parametrize(
    ("file", "keys", "pages"),
    [
        ("quickstart.json", ("runs", 0, "figures", "macro_f1"), {"README.md", "recipes/README.md"}),
        ("quickstart.json", ("runs", 0, "answers", 0, "score"), {"README.md"}),
        (
            "compare/baselines/comparison.json",
            ("variants", 2, "macro_f1"),
            {"docs/results.md", "docs/comparisons.md"},
        ),
        ("fuse/wassa2022/fusion.json", ("calibration", "before", "brier_score"), {"docs/results.md"}),
        ("probe.json", ("models", 1, "macro_f1"), {"docs/results.md"}),
    ],
)
def test_a_figure_changes_the_pages_that_show_it_and_no_other(clone, file, keys, pages):
    before = {path: path.read_text(encoding="utf-8") for path in pages_of(clone)}
    source = clone / "results" / file
    content = json.loads(source.read_text(encoding="utf-8"))
    *path, last = keys
    place = content
    for key in path:
        place = place[key]
    place[last] = 0.123
    source.write_text(json.dumps(content), encoding="utf-8")
    filled = files(clone)
    assert {str(path.relative_to(clone)) for path, text in filled.items() if text != before[path]} == pages


def test_figures_follow_the_json_and_prose_stays(clone):
    source = clone / "results" / "compare" / "pooling" / "comparison.json"
    content = json.loads(source.read_text(encoding="utf-8"))
    content["variants"][0]["macro_f1"] = 0.123
    source.write_text(json.dumps(content), encoding="utf-8")
    page = clone / "docs" / "comparisons.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nA conclusion.\n", encoding="utf-8")
    assert generate(clone).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert f"| {content['variants'][0]['name']} | 0.123 (" in text
    assert text.endswith("\nA conclusion.\n")


def test_the_benchmark_is_shown_once_it_was_run(clone):
    """Collected from a run's own files, at one half and at tuned thresholds, next to the published score."""
    run, page = clone / "run", clone / "docs" / "results.md"
    run.mkdir()
    wanted = (*FIGURES, "macro_f1_low", "macro_f1_high", "official_macro_precision")
    results = {f"test_{name}": 0.4 for name in wanted} | {f"test_tuned_{name}": 0.5123 for name in wanted}
    (run / "all_results.json").write_text(json.dumps(results | {"train_runtime": 1800.0, "test_rows": 5427}))
    (run / "run.json").write_text(json.dumps({"seed": 1, "command": "python run_classify.py x", "hardware": "a core"}))
    (clone / "results" / "go_emotions.json").write_text(json.dumps(collect([run], "test")))
    made = files(clone)[page].partition("<!-- begin: go_emotions -->")[2]
    assert "| BERT, Demszky et al. 2020 | 0.46 |  |  | 0.40 | 0.63 |" in made
    assert "| MiniLM, seed 1, threshold 0.5 | 0.400 | 0.400 to 0.400 | 0.400 | 0.400 | 0.400 |" in made
    assert "| MiniLM, seed 1, tuned thresholds | 0.512 |" in made
    assert "`python run_classify.py x`, 5,427 test rows, 30 minutes on a core" in made


def test_a_page_that_does_not_fit_is_one_line_and_nothing_is_written(clone):
    page = clone / "docs" / "performance.md"
    page.write_text(page.read_text(encoding="utf-8").replace("begin: plan", "begin: plans"), encoding="utf-8")
    (clone / "docs" / "results.md").write_text(
        re.sub(r"\| nothing \|.*", "", (clone / "docs" / "results.md").read_text(encoding="utf-8")), encoding="utf-8"
    )
    done = generate(clone)
    assert done.returncode == 2
    assert re.fullmatch(r"error: docs/performance\.md, line \d+: block 'plans' is not made by .*\n", done.stderr)
    assert "| nothing |" not in (clone / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_figure_names_the_command_that_made_it():
    for folder, script in (("compare/*/comparison.json", "run_compare"), ("fuse/*/fusion.json", "run_fuse")):
        for path in (ROOT / "results").glob(folder):
            command = json.loads(path.read_text(encoding="utf-8"))["command"]
            assert command.startswith(f"python {script}.py "), path


def test_the_plan_of_a_base_size_model_is_near_its_published_size():
    path = ROOT / "results" / "bench" / "amd-epyc-2-cores.json"
    base = plan("DeBERTa-v3-base", json.loads(path.read_text(encoding="utf-8"))["scaling"])
    assert base["trained"] == base["parameters"]
    assert 180e6 < base["parameters"] < 190e6  # published: 184M, with a head of its own


def test_only_the_lines_of_a_block_change():
    filled = fill("page.md", PAGE, {"one": ["| a |", "|---|"]})
    assert filled == (
        "# Title\n\n<!-- begin: one -->\n\n| a |\n|---|\n\n<!-- end: one -->\n\nProse.\n"  # tables need blank lines
    )
    assert fill("page.md", filled, {"one": ["| a |", "|---|"]}) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Title\n", "page.md: block 'one' is missing; write <!-- begin: one --> and <!-- end: one -->"),
        (PAGE.replace("one", "two"), "page.md, line 3: block 'two' is not made by docs/generate; these are: one"),
        (PAGE + PAGE, "page.md, line 10: block 'one' is already on line 3; a name may occur once"),
        ("<!-- begin: one -->\nold\n", "page.md, line 1: block 'one' is not closed; write <!-- end: one --> below"),
        ("<!-- begin: one -->\n" + PAGE, "page.md, line 4: block 'one' begins inside block 'one'; close that first"),
        (PAGE + "<!-- end: one -->\n", "page.md, line 8: block 'one' ends without a beginning; write <!-- begin: one"),
        (PAGE.replace("end: one", "end: two"), "page.md, line 5: block 'two' ends without a beginning"),
    ],
    ids=["missing", "unknown", "twice", "unclosed", "nested", "unopened", "misnamed"],
)
def test_markers_that_do_not_fit_are_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        fill("page.md", text, {"one": ["new"]})


# ---- Links, commands, sizes ---------------------------------------------------------------------------------------
def name_of(path: Path) -> str:
    """Return the name of a page or recipe as a test shows it."""
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_blocks(text: str) -> list[str]:
    """Return the shell code of a page, with continued lines joined and without comments."""
    found = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"\s+# .*", "", block.replace("\\\n", " ")) for block in found]


def heading_comment(recipe: Path) -> str:
    """Return the comment at the head of a recipe as text, with continued lines joined."""
    lines = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return "\n".join(line.lstrip("# ") for line in lines).replace("\\\n", " ")


def commands() -> dict[str, set[str]]:
    """Return the flags that pages and recipes give to each program of this project."""
    flags: dict[str, set[str]] = {}
    texts = [text for page in WRITTEN for text in code_blocks(page.read_text(encoding="utf-8"))]
    texts += [code for page in WRITTEN for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    texts += [line for recipe in RECIPES for line in heading_comment(recipe).splitlines()]
    for line in "\n".join(texts).splitlines():
        for program, rest in re.findall(r"((?:run_|examples/|docs/)\w+\.py|-m [a-z][\w.]+) ?([^|;&)#]*)", line):
            if program.removeprefix("-m ").partition(".")[0] in ("pip", "venv", "pytest"):
                continue
            flags.setdefault(program, set()).update(re.findall(r"(?<!\S)--[a-z]\w*", rest))
    return flags


@cache
def help_of(program: str) -> str:
    """Return what a program says with --help."""
    # A module is not started in ROOT: `forked` looks for it in PYTHONPATH alone, as with -P, and ROOT is there.
    script, cwd = (program.removeprefix("-m "), ROOT.parent) if program.startswith("-m ") else (ROOT / program, ROOT)
    return forked.run(script, "--help", cwd=cwd).stdout


@pytest.mark.parametrize("program", sorted(program for program, flags in commands().items() if flags))
def test_every_flag_in_pages_and_recipes_exists(program):
    texts = help_of(program)
    if program in ("run_compare.py", "run_fuse.py", "run_search.py"):  # hand the other flags on
        texts += help_of("run_classify.py")
    assert not [flag for flag in sorted(commands()[program]) if not re.search(rf"{flag}\b", texts)]


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [*WRITTEN, *RECIPES], ids=name_of)
def test_every_file_of_the_project_that_code_names_exists(page):
    text = page.read_text(encoding="utf-8")
    parts = (
        [heading_comment(page)] if page.suffix == ".yaml" else [*code_blocks(text), *re.findall(r"`([^`\n]+)`", text)]
    )
    folders = "benchmarks|docs|examples|recipes|results|space|tests|trainer_ext"
    for part in parts:
        for name in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./*<>-]*|run_\w+\.py)", part):
            if not re.search(r"[*<>]|[A-Z]{4,}", name):
                assert any((folder / name.rstrip(".")).exists() for folder in (ROOT, page.parent)), name
        for module in re.findall(r"python -m ([a-z][\w.]+)", part):
            if module.partition(".")[0] in ("benchmarks", "docs", "trainer_ext"):
                path = ROOT / module.replace(".", "/")
                assert path.is_dir() or path.with_suffix(".py").is_file(), f"{module}: no such module"
        for target in re.findall(r"(?m)^(?:\w+=\S+ )?make ([a-z-]+)", part):
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}: no such target"


def test_the_readme_is_a_short_front_door():
    text = README.read_text(encoding="utf-8")
    assert len(text.encode("utf-8")) <= 11_264
    assert len(text.splitlines()) <= 200
    prose = re.sub(r"```.*?```|<!-- begin: .*? end: \w+ -->|<picture>.*?</picture>", "", text, flags=re.DOTALL)
    for paragraph in prose.split("\n\n"):
        lines = paragraph.strip().splitlines()
        assert len(lines) <= 4 or lines[0].startswith("|"), f"more than four lines: {lines[0]}"
    assert not re.findall(r"(?<!\d)0?\.\d\d+|\d ?%", prose), "a figure outside the marked blocks"


@pytest.mark.parametrize("guide", GUIDES, ids=name_of)
def test_a_guide_starts_with_a_command_and_says_what_it_needs_and_prints(guide):
    text = guide.read_text(encoding="utf-8")
    assert len(text.encode("utf-8")) <= 5_120
    opening = text.partition("\n## ")[0]
    assert "```bash\n" in opening
    assert "\n**First**: " in opening
    assert "\n**Prints** " in opening


def test_the_index_of_recipes_names_every_recipe():
    index = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    for recipe in RECIPES:
        assert f"({recipe.relative_to(ROOT / 'recipes')})" in index, recipe


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipes_comments_are_short_lines(recipe):
    comments = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert max(map(len, comments)) <= 120


def test_the_site_builds_without_a_warning(tmp_path):
    """As `make docs-site` does, from what git tracks."""
    pages = tmp_path / "pages"
    pages.mkdir()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (copy,) = re.findall(r"(git ls-files.*?\n.*?outputs/site-pages)$", makefile, re.MULTILINE)
    copy = copy.replace("\\\n", "").replace("outputs/site-pages", str(pages))
    subprocess.run(["bash", "-c", copy], cwd=ROOT, check=True)
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("outputs/site-pages", str(pages))
    config = config.replace("paths: [.]", f"paths: [{ROOT}]")
    (tmp_path / "mkdocs.yml").write_text(config, encoding="utf-8")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ChildTuningTrainer" in (tmp_path / "site/docs/reference.html").read_text(encoding="utf-8")


def test_every_function_and_test_that_the_page_of_the_paper_names_exists():
    rows = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    found = re.findall(r"((?:`[\w=\"]+`(?:, )?)+) in \[`[\w.]+`\]\(\.\./([\w./]+)\)", rows)
    assert len(found) > 20
    for names, file in found:
        code = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)", names):
            assert re.search(rf"^ *(?:def|class) {name}\b|^ +{name}: ", code, re.MULTILINE), f"{name} in {file}"
