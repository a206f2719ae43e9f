"""Save a classifier as a folder that is complete: weights, code, tokenizers, and what the Hub's endpoints need."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files import open_to_readers

HANDLER = Path(__file__).with_name("handler.py")
# Endpoints install these first; the transformers on their image may be too old for the code in the folder.
REQUIREMENTS = "transformers>=5.4,<6\n"


def save_classifier(folder: Path, model: PreTrainedModel, *tokenizers: PreTrainedTokenizerBase) -> None:
    """Save a classifier into a folder, which may exist.

    Args:
        tokenizers: Those of an ensemble, in the order of its `tokenizer_of_member`, else one. The first is next to the
            weights, number n in the subfolder `tokenizer_n`.
    """
    model.save_pretrained(folder)
    for number, tokenizer in enumerate(tokenizers):
        tokenizer.save_pretrained(folder / f"tokenizer_{number}" if number else folder)
    shutil.copyfile(HANDLER, folder / "handler.py")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    for weights in folder.glob("*.safetensors"):
        open_to_readers(weights)
