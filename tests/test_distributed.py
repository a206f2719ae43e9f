"""Child-Tuning on two connected processes."""

import os
import subprocess
import sys
import time

from conftest import ROOT


def torchrun(script: str, *arguments) -> str:
    port = str(20000 + time.time_ns() % 20000)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "distributed" / script), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_replicas_and_resumed_runs_are_identical_in_every_variant(v3_folder, tmp_path):
    said = torchrun("ddp_child.py", v3_folder, tmp_path)
    assert said.count("replicas and resumed run identical") == 4


def test_sharded_parameters_draw_streams_of_their_own():
    said = torchrun("fsdp_child.py")
    for variant in ("F, gradient", "F, update", "D, gradient", "D, update"):
        assert f"{variant}: sharded gradients masked on 2 processes" in said
