"""What must not change when code moves: help texts, plans, identities of trainings, and the files that runs leave.

    EMODEBERTA_DATA=FOLDER python tests/golden_record.py          compares with tests/reference/golden.json
    EMODEBERTA_DATA=FOLDER python tests/golden_record.py --record writes it anew

Takes about two minutes. What a training computes has a record of its own, tests/model/test_reference.py.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "reference" / "golden.json"
ESSAYS = ROOT / "examples" / "essays.tsv"
MODULES = (
    "trainer_ext.baselines.mtl",
    "trainer_ext.baselines.t5",
    "trainer_ext.baselines.probe",
    "trainer_ext.baselines.small_checkpoint",
    "benchmarks",
)
ESSAY_FLAGS = [
    *("--train_file", str(ESSAYS), "--split_column_name", "split", "--group_column_name", "writer"),
    *("--id_column_name", "id", "--max_seq_length", "48", "--classifier_hidden_size", "32", "--use_cpu"),
    *("--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--bf16", "false"),
]


def run(*command: str, folder: Path = ROOT) -> str:
    """Return what a command prints; stop with its last words if it fails."""
    data = {"EMODEBERTA_DATA": "/the/data/folders"} if command[-1] == "--help" else {}  # its value is in the help
    environment = os.environ | data | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def help_texts() -> dict[str, list[str]]:
    """Return the help of every script, by lines."""
    scripts = {path.name: [str(path)] for path in sorted(ROOT.glob("run_*.py"))}
    modules = {name: ["-m", name] for name in MODULES}
    return {name: run(*start, "--help").splitlines() for name, start in (scripts | modules).items()}


def identities() -> dict[str, dict[str, str]]:
    """Return the folder name of every training of the recipes, a stage standing for itself."""
    # In a process of its own: it replaces a function.
    return json.loads(run(__file__, "--identities"))


def print_identities() -> None:
    sys.path.insert(0, str(ROOT))
    import run_compare
    from trainer_ext.data.load import corpus_arguments, load_corpus
    from trainer_ext.runs import fusion_recipe, trials, variants
    from trainer_ext.runs.trial import one_a_fold

    trials.checkpoint_digest = lambda name: name
    found: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "recipes").glob("compare/*.yaml")) + sorted((ROOT / "recipes").glob("fuse/*.yaml")):
        if path.parent.name == "compare":
            content = run_compare.read_comparison(path)
            settings, of_recipe, seeds = content["settings"], content["variants"], content["seeds"]
        else:
            recipe = fusion_recipe.read_fusion_recipe(path, {})
            settings, of_recipe, seeds = recipe.shared, recipe.members, [1]
        programs = run_compare.PROGRAMS
        first = variants.resolve(settings | next(iter(of_recipe.values())), str(path), programs)
        columns = [
            name
            for flags in of_recipe.values()
            for name in variants.extra_columns(settings | flags, str(path), programs)
        ]
        corpus = load_corpus(
            **corpus_arguments(first[1], first[0].hub_access()), extra_columns=list(dict.fromkeys(columns))
        )
        cache = trials.Trials(Path("-"), settings, corpus, str(path), programs=programs)
        found[path.relative_to(ROOT).as_posix()] = {
            trial.name: cache.path(trial).name
            for name, flags in of_recipe.items()
            for seed in seeds
            for trial in one_a_fold(flags, 5, seed, name)
        }
    print(json.dumps(found))


def folders() -> dict[str, object]:
    """Return what a run, a run on masked words, an ensemble and a score folder hold."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run("-m", "trainer_ext.baselines.small_checkpoint", "electra", str(work / "small"))
        # An ELECTRA is no backbone of ours: the tokenizer is its, the weights are random from its configuration.
        config = json.loads((work / "small" / "config.json").read_text(encoding="utf-8"))
        config |= {"model_type": "bert", "architectures": ["BertModel"]}
        (work / "small" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        start = ["--model_name_or_path", "small", "--from_scratch"]
        for name, pooling in (("model", "mean"), ("second", "cls")):
            flags = [*start, *ESSAY_FLAGS, "--pooling", pooling, "--output_dir", name]
            run(str(ROOT / "run_classify.py"), *flags, folder=work)
        flags = ["--train_file", str(ESSAYS), "--max_steps", "2", "--use_cpu", "--bf16", "false"]
        run(str(ROOT / "run_mlm.py"), "--model_name_or_path", "model", *flags, "--output_dir", "mlm", folder=work)
        run(str(ROOT / "run_fuse.py"), "--members", "model", "second", "--output_dir", "ensemble", folder=work)
        flags = ["--input", str(ESSAYS), "--output", "scores"]
        run(str(ROOT / "run_score.py"), "--model", "model", *flags, folder=work)
        found: dict[str, object] = {}
        for folder in ("model", "mlm", "ensemble", "scores"):
            paths = sorted(path for path in (work / folder).rglob("*") if path.is_file())
            found[folder] = {
                "files": [path.relative_to(work / folder).as_posix() for path in paths],
                "keys": {
                    path.name: sorted(json.loads(path.read_text(encoding="utf-8")))
                    for path in paths
                    if path.suffix == ".json" and path.parent == work / folder and path.name != "learning_curve.json"
                },
                "card": re.findall(r"^#+ .*", (work / folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
                if (work / folder / "README.md").exists()
                else [],
            }
        return found


def golden_record() -> dict[str, object]:
    """Return everything that is recorded."""
    plan = run(str(ROOT / "run_reproduce.py"), "recipes/wassa2022_full.yaml", "--plan")
    return {"help": help_texts(), "plan": plan.splitlines(), "identities": identities(), "folders": folders()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--identities", action="store_true", help="print the identities of the trainings only")
    args = parser.parse_args()
    if args.identities:
        print_identities()
        return
    lines = (json.dumps(golden_record(), indent=1, ensure_ascii=False) + "\n").splitlines(keepends=True)
    if args.record:
        RECORD.write_text("".join(lines), encoding="utf-8")
        return
    before = RECORD.read_text(encoding="utf-8").splitlines(keepends=True)
    different = list(difflib.unified_diff(before, lines, "recorded", "now", n=1))
    sys.stdout.writelines(different)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
