"""The pages in docs/: their figures are those in results/, and a page that does not fit is refused."""

import json
import re
import subprocess
import sys

import pytest
from support import ROOT

from benchmarks.bench_scaling import plan
from docs.generate.blocks import fill
from trainer_ext.errors import InputError

PAGE = "# Title\n\n<!-- begin: one -->\nold\n<!-- end: one -->\n\nProse.\n"


@pytest.fixture
def clone(tmp_path):
    """A copy of what git tracks here, as it is now, without the large files that no page is made from."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        if name.endswith((".py", ".md", ".json", ".svg")) and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def generate(folder) -> subprocess.CompletedProcess:
    """Run `python -m docs.generate` in a clone."""
    return subprocess.run([sys.executable, "-m", "docs.generate"], cwd=folder, capture_output=True, text=True)


def test_make_docs_leaves_no_difference(clone):
    pages = sorted([*clone.glob("docs/*.md"), *clone.glob("docs/performance/*.svg")])
    before = {path: path.read_text(encoding="utf-8") for path in pages}
    for path in clone.glob("docs/performance/*.svg"):
        path.unlink()
    done = generate(clone)
    assert done.returncode == 0, done.stderr
    different = [path.name for path in pages if path.read_text(encoding="utf-8") != before[path]]
    assert not different, "`make docs` changes these pages"
    assert sorted([*clone.glob("docs/*.md"), *clone.glob("docs/performance/*.svg")]) == pages


def test_figures_follow_the_json_and_prose_stays(clone):
    source = clone / "results" / "compare" / "pooling" / "comparison.json"
    content = json.loads(source.read_text(encoding="utf-8"))
    content["variants"][0]["macro_f1"] = 0.123
    source.write_text(json.dumps(content), encoding="utf-8")
    page = clone / "docs" / "results.md"
    page.write_text(page.read_text(encoding="utf-8") + "\nA conclusion.\n", encoding="utf-8")
    assert generate(clone).returncode == 0
    text = page.read_text(encoding="utf-8")
    assert f"| {content['variants'][0]['name']} | 0.123 (" in text
    assert text.endswith("\nA conclusion.\n")


def test_a_page_that_does_not_fit_is_one_line_and_nothing_is_written(clone):
    page = clone / "docs" / "scaling.md"
    page.write_text(page.read_text(encoding="utf-8").replace("begin: plan", "begin: plans"), encoding="utf-8")
    (clone / "docs" / "results.md").write_text(
        re.sub(r"\| nothing \|.*", "", (clone / "docs" / "results.md").read_text(encoding="utf-8")), encoding="utf-8"
    )
    done = generate(clone)
    assert done.returncode == 2
    assert re.fullmatch(r"error: docs/scaling\.md, line \d+: block 'plans' is not made by .*\n", done.stderr)
    assert "| nothing |" not in (clone / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_figure_names_the_command_that_made_it():
    for folder, script in (("compare/*/comparison.json", "run_compare"), ("fuse/*/fusion.json", "run_fuse")):
        for path in (ROOT / "results").glob(folder):
            command = json.loads(path.read_text(encoding="utf-8"))["command"]
            assert command.startswith(f"python {script}.py "), path


def test_the_plan_of_a_base_size_model_is_near_its_published_size():
    path = ROOT / "results" / "bench-amd-epyc-2-cores.json"
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
