"""The notebook in examples/ runs from its first cell to its last."""

import contextlib
import io
import json

from support import ROOT

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
