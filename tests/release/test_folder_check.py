"""What is found in a folder before it is published; and its handler, called as the Hub's endpoints do."""

import base64
import html
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from support import ROOT

from trainer_ext.errors import InputError
from trainer_ext.release.folder_check import check_files
from trainer_ext.release.handler import EndpointHandler
from trainer_ext.release.hub import push_folder, push_space

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
        ({"inputs": "a text", "parameters": {"max_length": 10**30}}, "parameters .*too big"),
    ],
)
def test_a_bad_request_is_told_what_would_be_right(handler, request_body, says):
    with pytest.raises(ValueError, match=says):
        handler(request_body)
