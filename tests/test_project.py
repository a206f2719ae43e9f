"""The project as a whole: its import rules, its wheel, its pages."""

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.evaluation.pages import score_cells

SCRIPTS = {"baselines", *(path.stem for path in ROOT.glob("run_*.py"))}
TRAINER_EXT = sorted((ROOT / "trainer_ext").rglob("*.py"))
MODULES = {path.relative_to(ROOT / "trainer_ext").with_suffix("").parts for path in TRAINER_EXT}
OURS = SCRIPTS | {"benchmarks", "docs", "trainer_ext", *(path.stem for path in ROOT.glob("*_emodeberta.py"))}


def imports_of(path) -> set[str]:
    """Top-level names of the project that a file imports, `.x` for a relative import."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(f".{node.module}" if node.level else node.module.partition(".")[0])
    return {name for name in names if name in OURS or name.startswith(".")}


# What each wing of trainer_ext may import. The ground: escape, errors, files, precision and child_tuning.
GROUND = {"escape", "errors", "files", "precision"}
RECIPES = GROUND | {"child_tuning", "recipe_file", "recipes"}
ARROWS = {
    "escape": set(),
    "errors": {"escape"},
    "recipe_file": {"errors"},
    "child_tuning": {"child_tuning"},
    "precision": set(),
    "files": GROUND,
    "recipes": RECIPES,
    "data": RECIPES | {"data"},
    "training": RECIPES | {"data", "training"},
    "evaluation": RECIPES | {"data", "evaluation"},
    "runs": RECIPES | {"data", "training", "evaluation", "runs"},
    "scoring": RECIPES | {"data", "training", "evaluation", "scoring"},
    "release": RECIPES | {"data", "training", "evaluation", "release"},
    "hub": set(),  # the old spelling of run_publish.py
    "__init__": {"child_tuning"},
}


def package_imports(path: Path) -> set[tuple[str, ...]]:
    """What a module of trainer_ext imports from it, as paths from its root, wherever in the file it does so."""
    package = path.relative_to(ROOT / "trainer_ext").with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = (*package[: -node.level], *filter(None, (node.module or "").split(".")))
            names = [(*start, alias.name) for alias in node.names]
            found |= {start} if start in MODULES else set(names)
    return found


def test_arrows_point_one_way():
    for path in ROOT.glob("*_emodeberta.py"):
        assert not imports_of(path) & (SCRIPTS | {"benchmarks", "docs", "trainer_ext"}), path
    for path in TRAINER_EXT:
        assert not imports_of(path) & (SCRIPTS | {"benchmarks", "docs", "trainer_ext"}), path
        assert "import_module" not in path.read_text(encoding="utf-8"), path  # would hide an arrow
        wing = path.relative_to(ROOT / "trainer_ext").with_suffix("").parts[0]
        assert {imported[0] for imported in package_imports(path)} <= ARROWS[wing], path
    for path in (*ROOT.glob("run_*.py"), *(ROOT / "baselines").glob("*.py")):
        assert not imports_of(path) & {"benchmarks", "docs"}, path
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert "docs" not in imports_of(path), path


def test_no_module_imports_itself_by_way_of_others():
    of = {path.relative_to(ROOT / "trainer_ext").with_suffix("").parts: package_imports(path) for path in TRAINER_EXT}
    assert list(TopologicalSorter(of).static_order())  # raises CycleError


def test_everything_installed_is_pinned():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    for line in filter(None, wanted.splitlines()):
        assert re.split(r"[ <>=]", line)[0].replace("_", "-") in pinned


def test_the_wheel_imports_away_from_the_clone(tmp_path):
    """The imports of the README's usage sections, from the wheel alone. (Its dependencies are this environment's.)"""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, clone], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = f"""
from trainer_ext import ChildTuningArguments, ChildTuningTrainer
import modeling_emodeberta
import run_classify, run_compare, run_export, run_fuse, run_mlm, run_publish, run_reproduce, run_score
from trainer_ext.data import label_maps
from trainer_ext.release import model_card
scripts = (run_classify, run_compare, run_export, run_fuse, run_mlm, run_publish, run_reproduce, run_score)
for module in (modeling_emodeberta, *scripts, model_card):
    assert module.__file__.startswith({str(tmp_path / "site")!r}), module.__file__
assert model_card.TEMPLATE.is_file() and model_card.PRETRAINING_TEMPLATE.is_file()
assert model_card.ENSEMBLE_TEMPLATE.is_file()
assert len(list(label_maps.LABEL_MAPS.glob("*.yaml"))) == 2
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)


def test_the_readmes_code_runs(finished, fused, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "quickstart").symlink_to(finished[0])
    (tmp_path / "outputs" / "ensemble").symlink_to(fused[0] / "all")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
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
    for target in ("run", "test", "check", "demo", "bench", "docs", "help"):
        assert re.search(rf"^{target} ", done.stdout, re.MULTILINE)


def test_the_readmes_quickstart_is_that_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "results" / "quickstart.json").read_text(encoding="utf-8"))
    run, with_wassa, in_float32 = content["runs"]
    assert in_float32["precision"] == "float32"
    assert run["command"] == "python run_classify.py recipes/quickstart.yaml"
    assert with_wassa["command"].startswith("python run_classify.py recipes/quickstart.yaml --data_dir ")
    held_out = run["figures"] | {"tfidf_macro_f1": run["tfidf"]["macro_f1"]}
    for row in (held_out, run["extra_tests"]["plain_sentences"], run["extra_tests"]["essays"]):
        cells = [f"{row['accuracy']:.1%}", f"{row['macro_f1']:.3f}"]
        cells += [f"{row['macro_f1_low']:.3f} to {row['macro_f1_high']:.3f}", f"{row['tfidf_macro_f1']:.3f}"]
        assert f"| {' | '.join(cells)} |" in readme
    assert f"macro F1 {with_wassa['extra_tests']['wassa2022']['macro_f1']:.3f}" in " ".join(readme.split())


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


def test_the_readmes_figures_are_those_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "results/wassa2022-minilm.json" in readme
    for run in json.loads((ROOT / "results" / "wassa2022-minilm.json").read_text(encoding="utf-8"))["runs"]:
        assert run["command"].startswith("python run_classify.py recipes/")
        row = " | ".join(f"{run['figures'][figure]:.3f}" for figure in SEVEN_FIGURES)
        assert f"| {row} |" in readme


def test_the_readmes_pretraining_speeds_are_those_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "results" / "bench-amd-epyc-2-cores.json").read_text(encoding="utf-8"))
    low, high = content["mlm"]["float32"]["range"]
    assert f"{content['mlm']['float32']['ratio']:.2f} ({low:.2f} to {high:.2f}) times as fast" in readme
    assert f"in {content['mlm memory']['share']:.0%} of its memory" in readme
    assert f"{content['streaming']['last_over_first'] - 1:+.1%} between the first and the last tenth" in readme


def test_the_readmes_child_tuning_costs_are_those_in_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    content = json.loads((ROOT / "results" / "bench-amd-epyc-2-cores.json").read_text(encoding="utf-8"))
    alone = content["child tuning"]["masking_alone"]
    assert f"masking alone takes {alone['F']:.1%} of a plain step for F, {alone['D']:.1%} for D" in readme
    assert f"and {alone['published']:.0%} as published" in readme


@pytest.mark.parametrize(
    "name", ["pooling", "child_tuning", "child_tuning_seeds", "transfer", "transfer_seeds", "baselines"]
)
def test_the_readmes_tables_are_those_in_results(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "results" / "compare" / name / "comparison.json").read_text(encoding="utf-8"))
    assert content["command"].split(" --data_dir ")[0] in readme
    for row in content["variants"]:
        of_seeds = row["macro_f1_by_seed"]
        seeds = [f"{min(of_seeds):.3f} to {max(of_seeds):.3f}"] if len(of_seeds) > 1 else []
        assert table_row([*score_cells(row), *seeds]) in readme


def table_row(cells) -> str:
    """As the README has it, with one space in an empty cell."""
    return " ".join(f"| {' | '.join(cells)} |".split())


def test_what_the_readme_says_of_fusion_is_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "results" / "fuse" / "wassa2022" / "fusion.json").read_text(encoding="utf-8"))
    table = {row["name"]: row for row in content["variants"]}
    against = {row["name"]: row for row in content["against_the_ensemble"]}
    for name in ("GoEmotions and XED", "class-balanced stage", "hard vote", "soft vote", "weighted", "selected"):
        assert table_row(score_cells(table[name])) in readme
    for row in against.values():
        assert table_row(score_cells(row)) in readme
    readme = " ".join(readme.split())
    candidates = json.loads((ROOT / "results" / "fuse" / "wassa2022_candidates" / "fusion.json").read_text())[
        "variants"
    ]
    tried = {row["name"]: f"{row['macro_f1']:.3f}" for row in candidates}
    assert f"`selected` has {tried['selected']} and the hard vote {tried['hard vote']} (" in readme
    said = f"two bagged members' soft vote has {tried['soft vote, 2 bagged']}, the same two without bagging "
    assert f"{said}{tried['soft vote, the same 2, not bagged']}." in readme
    apart = [share for row, shares in enumerate(content["disagreement"]) for share in shares[:row]]
    assert f"Any two members put {min(apart):.0%} to {max(apart):.0%} of the essays" in readme
    before, after = content["calibration"]["before"], content["calibration"]["after"]
    errors = (figures["expected_calibration_error"] for figures in (before, after))
    assert "Calibration error is {:.3f}, and {:.3f} with".format(*errors) in readme
    assert f"(Brier score {before['brier_score']:.3f} and {after['brier_score']:.3f};" in readme
    ensemble, teachers, student = (
        against[name]["macro_f1"] for name in ("the ensemble", "the student's teachers", "student")
    )
    assert f"It stands {student - ensemble:+.3f} from the ensemble and {student - teachers:+.3f} from the two" in readme
    submitted = json.loads((ROOT / "results" / "wassa2022" / "submission.json").read_text(encoding="utf-8"))["files"]
    fused, taught, single = (
        "{macro_f1:.3f} ({macro_f1_low:.3f} to {macro_f1_high:.3f})".format(**submitted[name]["validation"])
        for name in ("predictions_EMO.tsv", "predictions_EMO_student.tsv", "predictions_EMO_single.tsv")
    )
    assert f"the ensemble has {fused}, the student that it taught {taught}, the single model {single}" in readme


def test_what_the_readme_says_of_child_tunings_training_is_in_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    content = json.loads((ROOT / "results" / "compare" / "child_tuning" / "comparison.json").read_text())
    loss = {row["name"]: f"{row['last_training_loss']:.2f}" for row in content["variants"]}
    said = f"at {loss['none']} without, at {loss['F, p .5']} (F, p .5), {loss['D, p .3']} (D), "
    assert said + f"{loss['F, p .3']} (F, p .3) and {loss['F, p .3, update']} (on updates) with one" in readme
    content = json.loads((ROOT / "results" / "compare" / "ablation" / "comparison.json").read_text(encoding="utf-8"))
    table = {row["name"]: row for row in content["variants"]}
    whole, without = table["all ingredients, one model"], table["without Child-Tuning"]
    said = f"macro F1 {whole['macro_f1']:.3f} with F, p .5, {without['macro_f1']:.3f} without "
    low, high = without["difference"]["interval"]
    assert f"{said}({without['difference']['macro_f1']:+.3f}, {low:+.3f} to {high:+.3f}, p " in readme


def test_what_the_readme_says_of_pretraining_is_in_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    run = json.loads((ROOT / "results" / "mlm.json").read_text(encoding="utf-8"))
    first, last = run["curve"][0]["eval_perplexity"], run["figures"]["eval_perplexity"]
    assert f"MiniLM falls from {first:.0f} to {last:.1f}" in readme
    content = json.loads((ROOT / "results" / "compare" / "mlm" / "comparison.json").read_text(encoding="utf-8"))
    none, trained, slower, shorter = content["variants"]

    def figure(row: dict, sign: str = "") -> str:
        low, high = (f"{end:{sign}.3f}".replace("0.", ".", 1) for end in row["interval"])
        return f"{row['macro_f1']:{sign}.3f}".replace("0.", ".", 1) + f" ({low} to {high})"

    assert f"macro F1 {figure(trained)} against {figure(none)} without" in readme
    of = trained["difference"]
    assert f"difference {figure(of, '+')}, p {of['p_holm']:.3f}".replace("p 0.", "p .") in readme
    losses = [row["last_training_loss"] for row in (trained, none)]
    assert f"training loss stands at {losses[0]:.2f}, without it at {losses[1]:.2f}" in readme
    assert f"a fifth of the rate gives {slower['macro_f1']:.3f}, one epoch of three {shorter['macro_f1']:.3f}" in readme
    content = json.loads((ROOT / "results" / "compare" / "mlm_longer" / "comparison.json").read_text(encoding="utf-8"))
    none, trained = content["variants"]
    said = f"what it loses is gone, {trained['macro_f1']:.3f} against {none['macro_f1']:.3f} "
    assert said + "({macro_f1:+.3f}, p {p_holm:.2f};".format(**trained["difference"]) in readme


def test_the_readmes_probe_is_that_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    content = json.loads((ROOT / "results" / "probe.json").read_text(encoding="utf-8"))
    assert content["command"].split(" --data_dir ")[0] in readme
    names = ["MiniLM", "pre-trained further", "stage on GoEmotions", "stage on GoEmotions and XED"]
    for name, row in zip(names, content["models"], strict=True):
        assert table_row(score_cells(row | {"name": name})) in readme


def test_the_readmes_figures_of_the_space_are_those_in_results():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    space = json.loads((ROOT / "results" / "bench-amd-epyc-2-cores.json").read_text(encoding="utf-8"))["space"]
    callers = f"{space['settings']['callers']} callers at once, {space['settings']['requests']} requests each"
    assert callers in readme
    assert f"median {space['median_seconds']:.1f} s, 95% within {space['p95_seconds']:.1f} s" in readme
    assert f"memory moved by {space['last_over_first'] - 1:+.1%} between" in readme


def test_the_readmes_speeds_are_those_in_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    path = ROOT / "results" / "bench-intel-r-xeon-r-processor-2-cores.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("float32", "bfloat16"):
        parts = [content[f"encoder, {name}, {max(2, 1024 // length)} x {length}"] for length in (32, 64, 128, 256, 512)]
        cells = (f"{part['forward']['ratio']:.2f} / {part['forward_backward']['ratio']:.2f}" for part in parts)
        assert f"| {' | '.join(cells)} |" in readme
    base, small = (content[f"inference, {size}"]["float32"]["ratio"] for size in ("base", "MiniLM"))
    assert f"{base:.2f} at base size and {small:.2f} at MiniLM size" in readme
    training = content["training"]["sides"]["ours, float32"]
    assert f"{training['ratio']:.2f} ({training['range'][0]:.2f} to {training['range'][1]:.2f}" in readme
    assert f"takes {content['memory']['share']:.0%} of the memory" in readme
