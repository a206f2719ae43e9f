"""Publishing against a Hub on the loopback, by the real client in processes of its own."""

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, Fault, LoopbackHub
from PIL import Image
from support import ESSAY_FLAGS, ROOT
from transformers import AutoTokenizer

from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.errors import InputError
from trainer_ext.release.folder_check import check_folder
from trainer_ext.release.hub import name_model, push_folder

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
    single, ensemble = finished[0], fused[0] / "all"
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
    assert "tokenizer_1/tokenizer.json" in files_of(hub, "models", "owner/ensemble", "next")

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
