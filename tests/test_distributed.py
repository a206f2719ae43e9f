"""Child-Tuning on two connected processes."""

import forked
from conftest import ROOT

SCRIPTS = ROOT / "tests" / "distributed"


def test_replicas_and_resumed_runs_are_identical_in_every_variant(v3_folder, tmp_path):
    said = forked.run(SCRIPTS / "ddp_child.py", v3_folder, tmp_path, cwd=tmp_path, ranks=2).stdout
    assert said.count("replicas and resumed run identical") == 4


def test_sharded_parameters_draw_streams_of_their_own(tmp_path):
    said = forked.run(SCRIPTS / "fsdp_child.py", cwd=tmp_path, ranks=2).stdout
    for variant in ("F, gradient", "F, update", "D, gradient", "D, update"):
        assert f"{variant}: sharded gradients masked on 2 processes" in said
