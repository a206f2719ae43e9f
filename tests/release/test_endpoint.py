"""The handler in a model's folder, called as huggingface_inference_toolkit does on the Hub's Inference Endpoints."""

import json

import pytest

from trainer_ext.release.handler import EndpointHandler

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
