import json

import forked
import numpy as np
import pytest
import torch
from support import ROOT, TINY, XXLARGE_STYLE, call

import run_export
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from trainer_ext.errors import InputError
from trainer_ext.release.folder_check import check_files

UNSHARED = TINY | {"share_att_key": False, "pos_att_type": ["p2c"]}
ABSOLUTE = TINY | {"relative_attention": False, "position_biased_input": True, "position_buckets": -1}


BIASED = {"position_bias_buckets": 32}
CALIBRATED = ABSOLUTE | {"calibration_temperature": 1.7}


@pytest.mark.parametrize("options", [TINY, XXLARGE_STYLE, UNSHARED, CALIBRATED, ABSOLUTE | BIASED, UNSHARED | BIASED])
def test_the_graph_computes_the_logits_at_any_batch_and_length(options, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    config = EmoDebertaConfig(**options, initializer_range=0.3, num_labels=3)
    model = EmoDebertaForSequenceClassification(config).eval()
    run_export.export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, length in ((1, 3), (1, 20), (4, 41), (2, 400)):
        ids = torch.randint(5, 600, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, (length + 1) // 2 :] = 0
        with torch.no_grad():
            want = model(ids, mask).logits.numpy()
        (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(got - want).max() < 1e-5 * max(1, np.abs(want).max())


def test_a_trained_folder_is_exported_and_checked(finished, tmp_path):
    """In int8 too, which is kept only where it decides alike."""
    folder, _ = finished
    flags = ("--output_dir", tmp_path / "onnx", "--int8")
    done = forked.run(ROOT / "run_export.py", folder, *flags, cwd=tmp_path, check=False)
    written = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"export.json", "model.onnx"} <= written
    assert check_files(tmp_path / "onnx") == []  # no path of this machine, for one
    report = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert report["texts"] == 1008
    assert report["against PyTorch, float32"]["model.onnx"]["equal_decisions"] == 1
    int8 = report["against PyTorch, float32"]["model_int8.onnx"]
    kept = "model_int8.onnx" in written
    assert kept == (int8["equal_decisions"] >= 0.995) == (done.returncode == 0)
    assert kept or "int8 is not written" in done.stderr
    with pytest.raises(InputError, match="exists; give --overwrite_output_dir"):
        call(run_export.main, folder, "--output_dir", tmp_path / "onnx")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere"),
        (["--check_file", "texts.csv", "MODEL"], "texts.csv: no such file"),
        (["--text_column_name", "essay", "MODEL"], "no column 'essay'"),
    ],
)
def test_errors_are_one_line(finished, arguments, says, tmp_path):
    folder, _ = finished
    arguments = [folder if argument == "MODEL" else argument for argument in arguments]
    with pytest.raises(InputError) as error:
        call(run_export.main, *arguments, "--output_dir", tmp_path / "o")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()
