"""The comparison on a GPU, at tiny sizes on a CPU: every cell runs, and a side that differs is shown without a time."""

import json
from types import SimpleNamespace

import conftest
import pytest
import torch
from support import call

from attention_emodeberta import EmoDebertaSelfAttention
from benchmarks import __main__ as benchmarks
from benchmarks import bench_gpu, sides
from docs.generate.performance import on_gpus, side_of_cell

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
