"""Serve this folder's model on the Hub's Inference Endpoints, whose server imports this file from the repository.

A request is `{"inputs": "a text"}` or `{"inputs": ["a text", "another"]}`. `parameters` may hold options of the
pipeline, for example `{"inputs": "a text", "parameters": {"top_k": null}}` for the scores of all labels. The file works
alone in the folder. It imports the folder's own code through `transformers`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

FIELDS = ("inputs", "parameters", "options")  # the Hub's clients may send options, which are for the server


class EndpointHandler:
    """The model behind an endpoint.

    Args:
        path: Folder of the model. Default: the folder of this file.
    """

    def __init__(self, path: str = ""):
        folder = str(path) or str(Path(__file__).parent)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.classify = pipeline("text-classification", model=folder, trust_remote_code=True, device=device)

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Return what the pipeline says of a request's `inputs`, as JSON values.

        A list of texts has one result per text. A text that is empty or not a text has an `error` in its place.

        Raises:
            ValueError: if the request is not one. The server answers with the message and status 400.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError(
                'the request has no inputs; want {"inputs": "a text"} or {"inputs": ["a text", "another"]}'
            )
        if unknown := sorted(set(data) - set(FIELDS)):
            raise ValueError(f"unknown field {unknown[0]!r}; want inputs, and parameters for the pipeline's options")
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(inputs, str | list | dict):
            raise ValueError(f"inputs is {inputs!r:.60}; want a text or a list of texts")
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is {parameters!r:.60}; want an object, such as {{'top_k': 3}}")
        try:
            return self.classify(inputs, **parameters)
        except (TypeError, AttributeError, OverflowError) as error:  # an option has a value of another kind
            raise ValueError(f"parameters {parameters!r:.200}: {error}") from error
