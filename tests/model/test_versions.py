"""A saved model under the lowest and the newest transformers that its code supports, and under others."""

import json
import os
import subprocess
import sys

import pytest

# With what the lowest needs in an older version than the project's; the newest fits the rest.
LOWEST = ("transformers==5.4.0", "huggingface_hub==1.33.0", "tokenizers==0.22.2")
NEWEST = ("transformers==5.24.0",)
CODE = """
import sys
sys.path.insert(0, sys.argv[2])
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
import transformers
if len(sys.argv) > 3:
    transformers.__version__ = sys.argv[3]
at = {"pretrained_model_name_or_path": sys.argv[1], "trust_remote_code": True}
model = AutoModelForSequenceClassification.from_pretrained(**at).eval()
texts = ["Nobody told us.", "She laughed, and so did we, until the lights went out."]
inputs = AutoTokenizer.from_pretrained(**at)(texts, padding=True, return_tensors="pt")
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
import json
print(json.dumps({
    "version": transformers.__version__,
    "logits": model(**inputs).logits.tolist(),
    "pooled": AutoModel.from_pretrained(**at).eval()(**inputs).pooler_output.tolist(),
    "labels": [result["label"] for result in classify(texts)],
}))
"""


def run(folder, library, tmp_path, *more) -> subprocess.CompletedProcess:
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-I", "-c", CODE, folder, library, *more]
    return subprocess.run(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_a_saved_model_gives_the_same_under_other_versions(finished, tmp_path):
    said = {}
    for name, packages in (("project", ()), ("lowest", LOWEST), ("newest", NEWEST)):
        if packages:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"]
            subprocess.run([*pip, tmp_path / name, *packages], check=True, capture_output=True)
        done = run(finished[0], tmp_path / name, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        said[name] = json.loads(done.stdout)
        assert f"transformers=={said[name]['version']}" in packages or not packages
    assert len({of_one["version"] for of_one in said.values()}) == 3
    for name in ("lowest", "newest"):
        assert said[name]["labels"] == said["project"]["labels"]
        for what in ("logits", "pooled"):
            for row, wanted in zip(said[name][what], said["project"][what], strict=True):
                assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("version", ["4.57.6", "5.3.0", "6.0.0"])
def test_another_version_is_told_so_in_a_line(version, finished, tmp_path):
    done = run(finished[0], tmp_path, tmp_path, version)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "needs transformers 5.4 or newer, below 6; this is " + version in last
