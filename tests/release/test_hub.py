"""Publishing: what the Hub is sent and gives back, what is found in a folder before, and its handler for endpoints."""

import base64
import html
import io
import json
import os
import pickle
import re
import select
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, Fault, LoopbackHub
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from support import ESSAY_FLAGS, ROOT
from transformers import AutoTokenizer

from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.errors import InputError
from trainer_ext.evaluation.predictions import read_predictions
from trainer_ext.release.folder_check import check_files, check_folder
from trainer_ext.release.handler import EndpointHandler
from trainer_ext.release.hub import name_model, push_folder, push_space
from trainer_ext.training.distillation import write_out_of_fold

TEXTS = ["Nobody told us that the river would come.", "She laughed, and so did we."]


def environment(hub: LoopbackHub, home: Path, **more: str) -> dict[str, str]:
    offline = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return offline | ours | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more


class Client:
    """A process that has started once and does what it is told, one thing after the other."""

    def __init__(self, hub: LoopbackHub, home: Path, **more: str):
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "loopback_hub.py"],
            env=environment(hub, home, **more), cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, code: str, check: bool = True) -> dict:
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        answered, _, _ = select.select([self._process.stdout], [], [], 300)
        line = self._process.stdout.readline() if answered else ""
        assert line, f"the client is gone or stuck ({self._process.poll()})"
        answer = json.loads(line)
        assert not check or answer["error"] is None, answer["trace"]
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as served:
        yield served


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    started = Client(hub, tmp_path_factory.mktemp("home"))
    yield started
    started.close()


def push(client: Client, *arguments: object, check: bool = True) -> dict:
    """`run_publish.py`, without its start; waits between tries cut short."""
    argv = ["run_publish.py", *map(str, arguments)]
    return client(
        f"import sys, run_publish; from trainer_ext.release import hub; hub.time.sleep = lambda _: None; "
        f"sys.argv = {argv!r}; run_publish.main()",
        check,
    )


def files_of(hub: LoopbackHub, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
    repo = hub.repos[kind, name]
    return {path: file.content for path, file in repo.commits[repo.resolve(revision)].items()}


def test_a_model_and_an_ensemble_go_up_and_come_down_the_same(hub, client, finished, fused, tmp_path):
    single, ensemble = finished[0], tmp_path / "ensemble"
    shutil.copytree(fused[0] / "all", ensemble)
    labels = read_predictions(ensemble, one_label=False).label_names
    write_out_of_fold(ensemble, ["e1"], ["a text to train on"], np.full((1, len(labels)), 1 / len(labels)), labels)
    # A busy Hub: one answer of each kind is a failure that passes, one commit is obeyed but its answer is lost.
    hub.faults += [
        Fault("POST", "preupload", 429),
        Fault("POST", "validate-yaml", 503),
        Fault("PUT", "/lfs/", 503),
        Fault("POST", "/commit/", 500),
        Fault("POST", "/commit/", "cut after"),
    ]
    said = push(client, single, "--repo_id", "owner/single", "--tag", "v1.0")["said"]
    assert not any(fault.times for fault in hub.faults)
    assert said.count("trying again in 0 s") == 1
    assert said.count("trying again") == 3
    assert re.search(r"KiB  model\.safetensors", said)
    assert "to owner/single:" in said
    assert f"pushed to {hub.url}/owner/single/commit/" in said
    # Once more, with nothing changed: nothing happens. With something changed, the tag stands in the way. What is
    # public is not written to by mistake. (The folders are not looked at again.)
    client("from trainer_ext.release import hub; looked, hub.check_folder = hub.check_folder, lambda *_, **__: []")
    commits = len(hub.repos["models", "owner/single"].commits)
    push(client, single, "--repo_id", "owner/single", "--tag", "v1.0")
    assert len(hub.repos["models", "owner/single"].commits) == commits
    assert "removed there: " in push(client, ensemble, "--repo_id", "owner/single")["said"]
    again = push(client, ensemble, "--repo_id", "owner/single", "--tag", "v1.0", check=False)
    assert again["error"] == "InputError: owner/single: its tag v1.0 names another commit; give another"
    hub.repos["models", "owner/single"].private = False
    again = push(client, single, "--repo_id", "owner/single", check=False)
    assert again["error"].startswith("InputError: owner/single: is there, and public; give --public")
    hub.repos["models", "owner/single"].private = True
    client("hub.check_folder = looked")
    push(client, ensemble, "--repo_id", "owner/ensemble", "--public", "--revision", "next")

    there = files_of(hub, "models", "owner/single", "v1.0")
    assert hub.repos["models", "owner/single"].private
    assert not hub.repos["models", "owner/ensemble"].private
    assert not [path for path in there if path.startswith(("checkpoints", ".", "predictions"))]
    assert json.loads(there["training_args.json"])["child_tuning"] == "F"
    for path, content in there.items():
        if path != "README.md":
            assert content == (single / path).read_bytes()
    assert b'model="owner/single"' in there["README.md"]
    assert not files_of(hub, "models", "owner/ensemble")  # main is as it was
    of_ensemble = files_of(hub, "models", "owner/ensemble", "next")
    assert "tokenizer_1/tokenizer.json" in of_ensemble
    assert not [path for path in of_ensemble if path.startswith(("predictions", "out_of_fold"))]

    code = """
import json, sys
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
import torch
found = {}
texts = json.loads(sys.argv[1])
for name, revision in (("owner/single", "v1.0"), ("owner/ensemble", "next")):
    at = {"revision": revision, "trust_remote_code": True}
    classify = pipeline("text-classification", model=name, **at)
    model = AutoModelForSequenceClassification.from_pretrained(name, **at).eval()
    found[name] = {
        "scores": [{entry["label"]: entry["score"] for entry in result} for result in classify(texts, top_k=None)],
        "encoder": type(AutoModel.from_pretrained(name, **at)).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if name == "owner/single":
        inputs = AutoTokenizer.from_pretrained(name, **at)(texts, padding=True, return_tensors="pt")
        found[name]["logits"] = model(**inputs).logits.tolist()
print(json.dumps(found))
"""
    # A reader with an empty cache, somewhere where the project cannot be imported.
    reader = tmp_path / "reader"
    reader.mkdir()
    env = environment(hub, reader / "home")
    del env["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TEXTS)],
        cwd=reader, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    model = EmoDebertaForSequenceClassification.from_pretrained(single).eval()
    inputs = AutoTokenizer.from_pretrained(single)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.allclose(torch.tensor(found["owner/single"]["logits"]), logits, atol=1e-5)
    for row, scores in zip(logits.softmax(dim=-1), found["owner/single"]["scores"], strict=True):
        assert scores == pytest.approx({model.config.id2label[i]: float(p) for i, p in enumerate(row)}, abs=1e-5)
    assert found["owner/single"]["encoder"] == "EmoDebertaModel"
    assert found["owner/ensemble"]["encoder"] == "EmoDebertaEnsembleModel"
    local = EmoDebertaEnsembleForSequenceClassification.from_pretrained(ensemble)
    expected = EmotionPipeline(model=local, tokenizer=AutoTokenizer.from_pretrained(ensemble))(TEXTS, top_k=None)
    for scores, result in zip(found["owner/ensemble"]["scores"], expected, strict=True):
        assert scores == pytest.approx({entry["label"]: entry["score"] for entry in result}, abs=1e-5)

    # run_score.py reads an ensemble with two tokenizers from a branch, and notes the commit.
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    argv = ["run_score.py", "--model", "owner/ensemble", "--revision", "next", "--output", str(tmp_path / "scores")]
    client(f"import sys, run_score; sys.argv = {[*argv, '--input', str(tmp_path / 'texts.txt')]!r}; run_score.main()")
    manifest = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    assert manifest["model"] == {
        "name": "owner/ensemble",
        "version": hub.repos["models", "owner/ensemble"].refs["next"],
    }

    hf = [Path(sys.executable).with_name("hf"), "download", "owner/single", "--revision", "v1.0", "--local-dir", "got"]
    subprocess.run(hf, cwd=reader, env=env, check=True, capture_output=True)
    assert (reader / "got" / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([Fault("POST", "/commit/", 500, times=9)], "the Hub answers 500 (injected 500)"),
        ([Fault("POST", "/commit/", 503, times=9)], "the Hub answers 503"),
        ([Fault("POST", "/commit/", "cut", times=9)], "disconnected"),
        ([Fault("POST", "/commit/", 403)], "(injected 403); the token must have write access there"),
        ([Fault("POST", "/commit/", 401)], "it does not accept the token: see `hf auth login`, or give --token"),
        ([Fault("POST", "preupload", 404)], "there is no such repository, or the token may not see it"),
        ([Fault("POST", "/commit/", 429, times=2), Fault("POST", "/commit/", 409)], None),
        ([Fault("POST", "/commit/", "cut after")], None),
    ],
)
def test_a_reader_sees_the_old_revision_or_the_whole_new_one(hub, client, faults, says, tmp_path):
    model = tmp_path / "space"
    model.mkdir()
    for name, content in (("app.py", "old = 1\n"), ("README.md", "---\nsdk: gradio\n---\nold\n"), ("gone.txt", "x")):
        (model / name).write_text(content)
    name = f"owner/{tmp_path.name.replace('_', '-')}"
    code = (
        "from pathlib import Path; from trainer_ext.release import hub; hub.time.sleep = lambda _: None; "
        f"print(hub.push_space(Path({str(model)!r}), {name!r}, 'owner/single', revision='abc'))"
    )
    client(code)
    before = files_of(hub, "spaces", name)
    (model / "app.py").write_text("new = 1\n")
    (model / "gone.txt").unlink()
    hub.faults[:] = faults
    answer = client(code, check=False)
    hub.faults.clear()
    seen = client(
        "from huggingface_hub import snapshot_download; from pathlib import Path\n"
        f"folder = Path(snapshot_download({name!r}, repo_type='space', cache_dir={str(tmp_path / 'cache')!r}))\n"
        "import json; print(json.dumps({p.name: p.read_text() for p in folder.iterdir()}))"
    )["said"]
    seen = json.loads(seen)
    if says is None:
        assert answer["error"] is None
        assert seen["app.py"] == "new = 1\n"
        assert set(seen) == {"app.py", "README.md"}
        assert "models:\n- owner/single" in seen["README.md"]
        assert hub.repos["spaces", name].variables == {
            "EMODEBERTA_MODEL": "owner/single",
            "EMODEBERTA_REVISION": "abc",
        }
    else:
        assert says in answer["error"]
        assert answer["error"].startswith("InputError")
        assert "\n" not in answer["error"]
        assert {path: content.encode() for path, content in seen.items()} == before


@pytest.mark.parametrize(
    ("status", "helps"),
    [
        (401, "see `hf auth login`"),
        (403, "write access"),
        (404, "no such repository"),
        (413, "is larger than it takes"),
    ],
)
def test_a_file_that_the_hub_refuses_is_sent_once_and_the_answer_is_told(hub, client, status, helps, tmp_path):
    """The client wraps the answer to a large file in an error of its own, without the status."""
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    (tmp_path / "app.py").write_text(f"number = {status}\n")
    Image.new("RGB", (2, 2), (status % 256, 0, 0)).save(tmp_path / "shown.png")  # the Hub keeps pictures with LFS
    hub.faults[:] = [Fault("PUT", "/lfs/", status, times=9)]
    answer = client(
        "from pathlib import Path; from trainer_ext.release import hub; hub.time.sleep = lambda _: None; "
        f"print(hub.push_space(Path({str(tmp_path)!r}), 'owner/refused{status}', 'owner/single'))",
        check=False,
    )
    left, hub.faults[:] = hub.faults[0].times, []
    assert left == 8
    assert answer["error"].startswith(
        f"InputError: owner/refused{status}: Error while uploading 'shown.png' to the Hub"
    )
    assert f"the Hub answers {status}" in answer["error"]
    assert helps in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        *(("7", 7), ("²", 1), ("-3", 1), ("", 1), ("1e3", 1), ("soon", 1), ("9" * 40, 300)),
        *(("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2199 07:28:00 GMT", 300)),
    ],
)
def test_whatever_wait_the_hub_asks_for_is_understood_or_passed_over(hub, client, asked, wait, tmp_path):
    (tmp_path / "README.md").write_text(f"---\nsdk: gradio\n---\n{asked}\n")
    hub.faults[:] = [Fault("POST", "/commit/", 429, retry_after=asked)]
    said = client(
        "from pathlib import Path; from trainer_ext.release import hub; slept = []; hub.time.sleep = slept.append; "
        f"hub.push_space(Path({str(tmp_path)!r}), 'owner/waited', 'owner/single'); print([round(s) for s in slept])"
    )["said"]
    assert said.splitlines()[-1] == f"[{wait}]"


def test_a_space_is_pushed_as_one(hub, client, finished):
    said = push(client, finished[0], "--repo_id", "owner/shown", "--space", "owner/demo", "--space_dir", ROOT / "space")
    assert "add it as the secret HF_TOKEN" in said["said"]
    repo = hub.repos["spaces", "owner/demo"]
    assert repo.details["sdk"] == "gradio"
    sha = hub.repos["models", "owner/shown"].refs["main"]
    assert repo.variables == {"EMODEBERTA_MODEL": "owner/shown", "EMODEBERTA_REVISION": sha}
    assert set(files_of(hub, "spaces", "owner/demo")) == {
        path.relative_to(ROOT / "space").as_posix()
        for path in (ROOT / "space").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_run_publishes_itself(hub, client, v3_folder, tmp_path):
    def train(output_dir: Path, *flags: object) -> dict:
        argv = ["run_classify.py", "--model_name_or_path", v3_folder, *ESSAY_FLAGS, "--max_steps", 4, *flags]
        argv = [*map(str, argv), "--output_dir", str(output_dir), "--push_to_hub"]
        return client(f"import sys, run_classify; sys.argv = {argv!r}; run_classify.main()", check=False)

    hub.faults[:] = [Fault("GET", "whoami", 401)]
    refused = train(tmp_path / "early")
    hub.faults.clear()
    assert refused["error"].startswith("InputError")
    assert not (tmp_path / "early").exists()  # before anything is trained

    trained = train(tmp_path / "mine", "--hub_model_id", "owner/mine")
    assert trained["error"] is None, trained["trace"]
    assert f"pushed to {hub.url}/owner/mine/commit/" in trained["said"]
    assert hub.repos["models", "owner/mine"].private
    there = files_of(hub, "models", "owner/mine")
    assert there["model.safetensors"] == (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert not [path for path in there if path.endswith(".bin") or path.startswith(("checkpoints", "predictions"))]

    hub.faults[:] = [Fault("POST", "/commit/", 403)]
    client("from trainer_ext.release import hub; looked, hub.check_folder = hub.check_folder, lambda *_, **__: []")
    trained = train(tmp_path / "kept", "--hub_model_id", "owner/kept")
    client("hub.check_folder = looked")
    hub.faults.clear()
    assert "The model is safe in" in trained["error"]
    assert (tmp_path / "kept" / "model.safetensors").is_file()


def test_every_result_of_the_card_can_be_read(finished):
    folder = finished[0]
    results = json.loads((folder / "all_results.json").read_text())
    read = {
        (r.dataset_split, r.metric_name): r.metric_value for r in ModelCard.load(folder / "README.md").data.eval_results
    }
    assert read == {
        (split, name): round(results[f"{prefix}_{key}"], 4)
        for split, prefix in (("validation", "eval"), ("test", "test"))
        for name, key in (("macro F1", "macro_f1"), ("accuracy", "accuracy"))
    }
    assert ModelCard.load(folder / "README.md").data["widget"]


@pytest.fixture
def model_folder(finished, tmp_path):
    """A copy that may be spoilt."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in finished[0].iterdir():
        if path.is_file() and path.name != "README.md":
            (folder / path.name).hardlink_to(path)
    (folder / "README.md").write_text((finished[0] / "README.md").read_text())
    return folder


def test_what_must_not_be_published_is_found(model_folder):
    assert check_folder(model_folder, run=False) == []
    row = "The ferry left without the nurses, and nobody at the harbour would say who had told it to."
    (model_folder / "training_args.bin").write_bytes(b"x")
    torch.save({"a": 1}, model_folder / "state.dat")
    (model_folder / "rows.arrow").write_bytes(b"ARROW1\xff\xff")
    (model_folder / "train.log").write_text(f"HF_TOKEN=hf_{'a' * 34}\n")
    (model_folder / "notes.md").write_text(
        f"fine\nsee /home/somebody/data.csv\nFor example: {row[:34].upper()}\n{row[35:]}\nhttps://host/home/page\n"
        'and "nobody came at all", which\n'
    )
    texts = [row, "Nobody came at all!", "fine", "This one is not in the folder, however long it may be."]
    assert check_folder(model_folder, texts=texts, run=False) == [
        "notes.md, line 2: a path of one machine, /home/somebody/data.csv; want a name or a relative path",
        "rows.arrow: neither text nor of a kind that belongs into a model's repository",
        "state.dat: a pickle or other weights that run code when read; want safetensors",
        "train.log: neither text nor of a kind that belongs into a model's repository",
        "train.log, line 1: looks like a secret (Hugging Face token); take it out, and revoke it",
        "training_args.bin: a pickle or other weights that run code when read; want safetensors",
        "notes.md, line 3: a text that it was trained on, or part of one",
        "notes.md, line 6: a text that it was trained on, or part of one",
    ]


def test_a_card_whose_code_fails_is_found(model_folder):
    card = model_folder / "README.md"
    card.write_text(card.read_text().replace("print(classify(", "print(clasify("))
    (finding,) = check_folder(model_folder)
    assert (
        finding == "README.md: its snippet fails: NameError: name 'clasify' is not defined. Did you mean: 'classify'?"
    )


def test_a_restricted_model_wants_the_users_word(model_folder):
    card = model_folder / "README.md"
    card.write_text(card.read_text().replace("library_name:", "license: other\nlibrary_name:"))
    with pytest.raises(InputError, match="--publish_restricted if they let you"):
        push_folder(model_folder, "owner/restricted", dry_run=True)


def test_a_long_card_is_rewritten_at_once():
    assert name_model('pipeline(model="a\\"b, c")', "owner/there") == 'pipeline(model="owner/there")'
    snippet = 'classify = pipeline("text-classification", model="{}", trust_remote_code=True)\n'
    for filler in ("pipeline(", "model=", 'pipeline(model="', "x"):
        card = snippet.format("here") + filler * (200_000 // len(filler)) + "\n" + snippet.format("here")
        start = time.monotonic()
        found = name_model(card, "owner/there")
        assert time.monotonic() - start < 2
        assert found.startswith(snippet.format("owner/there"))
        assert found.endswith(snippet.format("owner/there")) or "model=" in filler


def test_the_old_spelling_still_works():
    asked = [[sys.executable, *start, "--help"] for start in (["run_publish.py"], ["-m", "trainer_ext.hub"])]
    new, old = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for command in asked)
    assert old.stdout == new.stdout


# ---- What is found in a folder before it is published ----------------------------------------------------------------
LETTERS, HEX = "Ab3dE6gh9" * 20, "0a1b2c3d4e5f" * 20
HF = f"hf_{LETTERS[:34]}"
JWT = ".".join(
    base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
    for part in ('{"alg":"HS256"}', '{"sub":"17"}', LETTERS)
)
# In parts, so that nobody takes this file for a leak.
SECRETS = {
    "Hugging Face": HF,
    "GitHub": f"ghp_{LETTERS[:36]}",
    "GitHub, fine-grained": f"github_pat_{LETTERS[:22]}_{LETTERS[:59]}",
    "AWS id": f"AKIA{'A2B3C4D5E6F7G8H9'}",
    "AWS secret": f"aws_secret_access_key = {LETTERS[:40]}",
    "Google": f"AIza{LETTERS[:35]}",
    "Slack": f"xoxb-123456789012-1234567890123-{LETTERS[:24]}",
    "GitLab": f"glpat-{LETTERS[:20]}",
    "npm": f"npm_{LETTERS[:36]}",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{LETTERS[:100]}",
    "Stripe": f"sk_live_{LETTERS[:24]}",
    "wandb": f"WANDB_API_KEY={HEX[:40]}",
    "wandb, in words": f"my wandb key is {HEX[:40]}",
    "JWT": JWT,
    "PGP": "-----BEGIN PGP PRIVATE" + " KEY BLOCK-----",
    "SSH": "-----BEGIN OPENSSH PRIVATE" + " KEY-----",
    "password in an address": "postgresql://someone:" + "s3cretly@db.example.org/rows",
    "OpenAI": f"sk-proj-{LETTERS[:48]}",
    "Azure": f"AccountKey={LETTERS[:86]}==",
    "Telegram": f"110201543:AA{LETTERS[:33]}",
    "password": "password: 'correct-horse-42'",
    "header": f"Authorization: Bearer {LETTERS[:40]}",
}
ROW = "The ferry left without the nurses and nobody would say who had told it to."
SHORT, SHORTEST = "She counted the lamps twice", "Nobody waved"


@pytest.fixture
def folder(finished, tmp_path):
    """A model's folder, as files of its own."""
    made = tmp_path / "model"
    made.mkdir()
    for path in finished[0].iterdir():
        if path.is_file():
            (made / path.name).write_bytes(path.read_bytes())
    return made


def png(path: Path, kind: str, told: str) -> None:
    about = PngImagePlugin.PngInfo()
    add = {"tEXt": about.add_text, "iTXt": about.add_itxt}[kind.removesuffix(", compressed")]
    add("Description", told, zip=kind.endswith(", compressed"))
    Image.new("RGB", (4, 4)).save(path, pnginfo=about)


def chunk(path: Path, told: str) -> None:
    about = PngImagePlugin.PngInfo()
    about.add(b"prVt", told.encode())
    Image.new("RGB", (4, 4)).save(path, pnginfo=about)


def jpeg(path: Path, told: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = told
    Image.new("RGB", (4, 4)).save(path, exif=exif)


def onnx(path: Path, told: str) -> None:
    """An empty model whose only property is this."""
    value = told.encode()
    path.write_bytes(b"\x08\x08\x12" + bytes([len(b"pytorch")]) + b"pytorch\x32" + bytes([len(value)]) + value)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Ways to hide a text: how, and how the finding begins.
HIDDEN = {
    "in a line": (lambda f, t: (f / "notes.md").write_text(f"fine\nsee {t}\n"), "notes.md, line 2"),
    "in a page": (lambda f, t: (f / "notes.md").write_text(f"<p>{html.escape(t)}</p>"), "notes.md, line 1"),
    "in HTML entities": (
        lambda f, t: (f / "notes.md").write_text("".join(f"&#{ord(letter)};" for letter in t)),
        "notes.md, line 1",
    ),
    "url-encoded": (lambda f, t: (f / "notes.txt").write_text("?q=" + quote(t, safe="")), "notes.txt, line 1"),
    "all url-encoded": (
        lambda f, t: (f / "notes.txt").write_text("".join(f"%{ord(letter):02x}" for letter in t)),
        "notes.txt, line 1",
    ),
    "twice encoded": (
        lambda f, t: (f / "notes.txt").write_text(quote("".join(f"%{ord(letter):02x}" for letter in t), safe="")),
        "notes.txt, line 1",
    ),
    "in JSON escapes": (
        lambda f, t: (f / "more.json").write_text('["' + "".join(f"\\u{ord(letter):04x}" for letter in t) + '"]'),
        "more.json, ",
    ),
    "in base64": (
        lambda f, t: (f / "notes.md").write_text(f"key: {base64.b64encode(t.encode()).decode()}\n"),
        "notes.md, line 1",
    ),
    "in PNG text": (lambda f, t: png(f / "p.png", "tEXt", t), "p.png, inside"),
    "in compressed PNG text": (lambda f, t: png(f / "p.png", "iTXt, compressed", t), "p.png, inside"),
    "in a PNG chunk of one's own": (lambda f, t: chunk(f / "p.png", t), "p.png, inside"),
    "in EXIF": (lambda f, t: jpeg(f / "p.jpg", t), "p.jpg, inside"),
    "in safetensors metadata": (
        lambda f, t: save_file({"w": np.zeros(2)}, f / "more.safetensors", {"note": t}),
        "more.safetensors, its metadata",
    ),
    "in a tensor's name": (
        lambda f, t: save_file({t: np.zeros(2)}, f / "more.safetensors"),
        "more.safetensors, its tens",
    ),
    "in ONNX": (lambda f, t: onnx(f / "model.onnx", t), "model.onnx, inside"),
    "in a JSON line": (
        lambda f, t: (f / "more.json").write_text(json.dumps({"log": f'so:\n{t}\n"and"'})),
        "more.json, line 1",
    ),
    "in tokenizer.json": (
        lambda f, t: edit(f / "tokenizer.json", lambda content: content.update(note=t)),
        "tokenizer.json, a value",
    ),
    "in tokenizer_config.json": (
        lambda f, t: edit(f / "tokenizer_config.json", lambda content: content.update(name_or_path=t)),
        "tokenizer_config.json, line 1",
    ),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found(kind, folder):
    (folder / "notes.md").write_text(f"fine\n{SECRETS[kind]}\n")
    found = check_files(folder)
    assert found
    assert all(finding.startswith("notes.md, line 2: looks like a secret (") for finding in found)
    assert SECRETS[kind] not in "".join(found)


@pytest.mark.parametrize("way", HIDDEN)
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (HF, "looks like a secret (Hugging Face token); take it out, and revoke it"),
        ("/home/somebody/data/rows.csv", "a path of one machine, /home/somebody/data/rows.csv; want a name"),
        (ROW, "a text that it was trained on, or part of one"),
        (SHORT, "a text that it was trained on, or part of one"),
    ],
)
def test_it_is_found_wherever_it_stands(way, what, says, folder):
    plant, place = HIDDEN[way]
    plant(folder, what)
    found = check_files(folder, [ROW, SHORT, SHORTEST])
    assert found
    assert all(finding.startswith(place) for finding in found)
    assert any(says in finding for finding in found)


@pytest.mark.parametrize(
    "path",
    [
        *(r"C:\Users\somebody\rows.csv", "D:/projects/rows.csv", "file:///data/rows.csv", "file://host/share/rows.csv"),
        *(r"\\server\share\rows.csv", "//server/share/rows/all.csv", "smb://server/rows", "host:/export/rows/all.csv"),
        *(
            "/Users/somebody/rows.csv",
            "/mnt/disk/rows",
            "/gpfs/group/rows",
            "hdfs://cluster/rows",
            "ssh://me@host/home/me/rows",
        ),
    ],
)
@pytest.mark.parametrize("name", ["notes.md", "config.json"])
def test_a_path_of_any_system_is_found(path, name, folder):
    if name == "config.json":
        edit(folder / name, lambda content: content.update(_name_or_path=path))
    else:
        (folder / name).write_text(f"trained on `{path}`\n")
    found = check_files(folder)
    assert found
    assert all(finding.startswith(f"{name}, ") and "a path of one machine" in finding for finding in found)


def test_a_row_is_found_in_a_vocabulary_and_a_name(folder):
    edit(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update({ROW: 9999}))
    (folder / f"{SHORT.replace(' ', '_')}.md").write_text("fine\n")
    (folder / f"{HF}.txt").write_text("fine\n")
    (folder / "table.md").write_text(
        f"| text | label |\n| --- | --- |\n| {SHORTEST} | joy |\n| then {SHORTEST} too | joy |\n"
    )
    assert check_files(folder, [ROW, SHORT, SHORTEST]) == [
        "its name, its name: looks like a secret (Hugging Face token); take it out, and revoke it",
        "She_counted_the_lamps_twice.md, its name: a text that it was trained on, or part of one",
        "table.md, line 3: a text that it was trained on, or part of one",
        "tokenizer.json, its vocabulary: a text that it was trained on, or part of one",
    ]


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("model/data.pkl", b"x")
    return made.getvalue()


@pytest.mark.parametrize("protocol", [0, 1, 5])
@pytest.mark.parametrize("content", [Runs(), {"weights": [1.0, 2.0], "name": "x"}], ids=["runs code", "values"])
@pytest.mark.parametrize("name", ["notes.txt", "more.json", "model.onnx", "p.png", "spm.model"])
@pytest.mark.parametrize("around", ["", "before a zip", "before text", "behind a PNG header", "behind a picture"])
def test_a_pickle_is_found_under_any_name(protocol, content, name, around, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    data = pickle.dumps(content, protocol)
    data = {
        "": data,
        "before a zip": data + zipped(),
        "before text": data + b"\nfine\n",
        "behind a PNG header": b"\x89PNG\r\n\x1a\n" + data,
        "behind a picture": picture.getvalue() + data,
    }[around]
    if name.endswith(".data") and around.startswith("behind"):
        pytest.skip("raw weights, which nothing unpickles from there")
    (tmp_path / name).write_bytes(data)
    found = check_files(tmp_path)
    assert [finding.partition(":")[0] for finding in found][:1] == [name]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"text,label\n", "of a kind that belongs"),
        ("paper.pdf", b"%PDF-1.7\n", "of a kind that belongs"),
        ("train.ipynb", b"{}", "of a kind that belongs"),
        ("more.json", b"{'a': 1}", "not what its ending says, .json"),
        ("more.json", b"[" * 100_000, "not what its ending says, .json"),
        ("more.json", b'{"a": "one", "a": "two"}', "has a name twice"),
        ("p.png", b"fine", "not what its ending says, .png"),
        ("p.jpg", None, "not what its ending says but PNG"),
        ("more.safetensors", struct.pack("<Q", 2) + b"{}" + b"hidden", "not what its ending says, .safetensors"),
        ("spm.model", b"fine", "not what its ending says, .model"),
        ("notes.md", b"fine\x00", "neither text nor"),
    ],
)
def test_only_files_of_known_kinds_are_published(name, content, says, tmp_path):
    if content is None:
        Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
        (tmp_path / "p.png").rename(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    [found] = check_files(tmp_path)
    assert found.startswith(f"{name}: ")
    assert says in found


def test_no_link_is_followed(folder, tmp_path):
    (tmp_path / "outside.md").write_text("mine\n")
    (tmp_path / "more").mkdir()
    (folder / "notes.md").symlink_to(tmp_path / "outside.md")
    (folder / "onnx").symlink_to(tmp_path / "more", target_is_directory=True)
    (folder / "gone.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(folder / "pipe.txt")
    links = [f"{name}: a link; put the file itself here" for name in ("gone.txt", "notes.md", "onnx")]
    assert check_files(folder) == [*links, "pipe.txt: neither a file nor a folder"]
    with pytest.raises(InputError) as error:
        push_folder(folder, "owner/name", dry_run=True)
    assert all(link in str(error.value) for link in links)
    (folder / "app.py").write_text("")
    with pytest.raises(InputError, match=r"notes\.md: a link"):
        push_space(folder, "owner/name", "owner/model", dry_run=True)


def test_nothing_harmless_is_blamed(finished, fused, folder):
    (folder / "LICENSE").write_text("Apache License\n")
    (folder / "notes.md").write_text(
        "N.B. see https://example.org/home/page and [a page](../data/README.md), or `~/.cache`.\n"
        "`--token hf_...`, `HF_TOKEN=$TOKEN`, `password: None`, `tokenizer_token=[MASK]`, sha256 " + HEX[:64] + "\n"
        "50% off at 10:30, a//b, C: or D:, \\d+\\s\\w, &amp; %20, one/two/three, s3://bucket/key\n"
    )
    (folder / "version.txt").write_text("1.0\n")
    prompts = {"prompt": "Q:\nWhy?\nA:\nThe end.", "pad_token": "reserved_token_250", "regex": r"[\r\n]+\\p{L}|\s\w"}
    (folder / "prompts.json").write_text(json.dumps(prompts))
    texts = [ROW, "anger", "What is this?", "The model reads", "Thank you."]
    for each in (finished[0], fused[0] / "all", folder, ROOT / "space"):
        assert check_files(each, texts) == []


# ---- The handler of Inference Endpoints ------------------------------------------------------------------------------
# What `check_and_register_custom_pipeline_from_directory` of the toolkit does with a repository.
AS_THE_TOOLKIT = """
import importlib.util, json
folder = {folder!r}
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)
for request in json.loads({requests!r}):
    print(json.dumps(handler(request)))
"""
REQUESTS = [
    {"inputs": "the river took the road"},
    {"inputs": ["the river took the road", "", None]},
    {"inputs": "the river took the road", "parameters": {"top_k": None}},
    {"inputs": "the river", "parameters": None, "options": {"wait_for_model": True}},
    {"inputs": []},
]


@pytest.mark.parametrize("kind", ["finished", "fused"])
def test_the_toolkit_serves_a_published_folder_without_the_project(kind, request, python_without_project):
    folder, _ = request.getfixturevalue(kind)
    folder = folder if kind == "finished" else folder / "all"
    code = AS_THE_TOOLKIT.format(folder=str(folder), requests=json.dumps(REQUESTS))
    # The blocked names are those of the project; the toolkit makes the folder's files importable.
    one, several, every, with_options, none = map(json.loads, python_without_project(code).splitlines()[-5:])
    labels = list(json.loads((folder / "config.json").read_text())["id2label"].values())
    assert one[0]["label"] in labels
    assert several[0]["label"] == one[0]["label"]
    assert [answer["label"] for answer in several[1:]] == [None, None]
    assert all(answer["error"] for answer in several[1:])
    assert sorted(entry["label"] for entry in every) == sorted(labels)
    assert with_options[0]["label"] in labels
    assert none == []
    assert (folder / "requirements.txt").read_text() == "transformers>=5.4,<6\n"


@pytest.fixture(scope="module")
def handler(finished):
    return EndpointHandler(str(finished[0]))


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        ({}, "the request has no inputs"),
        (["a text"], "the request has no inputs"),
        ({"text": "a text"}, "the request has no inputs"),
        ({"inputs": "a text", "parameter": {}}, "unknown field 'parameter'"),
        ({"inputs": None}, "inputs is None; want a text or a list of texts"),
        ({"inputs": 3}, "inputs is 3; want a text or a list of texts"),
        ({"inputs": "a text", "parameters": [3]}, r"parameters is \[3\]; want an object"),
        ({"inputs": "a text", "parameters": {"topk": 3}}, "unknown option 'topk'; did you mean top_k"),
        ({"inputs": "a text", "parameters": {"top_k": "three"}}, "top_k is 'three'; want at least 1"),
        ({"inputs": "a text", "parameters": {"tokens_per_batch": "many"}}, "parameters .*many.*not supported"),
        ({"inputs": "a text", "parameters": {"top_k": 0}}, "top_k is 0; want at least 1"),
        ({"inputs": "a text", "parameters": {"function_to_apply": "max"}}, "'max'; want sigmoid, softmax or none"),
        ({"inputs": "a text", "parameters": {"max_length": 10**30}}, "max_length is 10+; the model reads at most 512"),
        (
            {"inputs": "a text", "parameters": {"truncation": False, "padding": True, "pad_to_multiple_of": 10**30}},
            "parameters .*too big",
        ),
    ],
)
def test_a_bad_request_is_told_what_would_be_right(handler, request_body, says):
    with pytest.raises(ValueError, match=says):
        handler(request_body)
