"""The library's own tests of a model, `tests/test_modeling_common.py` of the installed version, on our classes.

They come from the version's source distribution on PyPI, which is kept in the cache folder. Where it cannot be had,
this file is skipped with a line. What differs from a model of the library's own, on purpose:

- The encoder alone is not trained. The library leaves its own encoders out by name, too.
- Tests for exporters and for text generation are not in the distribution; test_attention.py and test_pipeline.py
  have ours.
- Tests that need another configuration skip themselves: flash attention, rotary positions, experts, tensor parallelism,
  several devices.
"""

import importlib
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

import pytest
import torch
import transformers
from filelock import FileLock
from support import TINY

from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification, EmoDebertaModel
from trainer_ext.precision import cache_folder


def library_tests() -> Path:
    """Return the folder with the library's tests as the package `transformers_tests`.

    The distribution has no subfolders of tests. What `test_modeling_common.py` imports from there, mixins for exporters
    and text generation, becomes empty classes.
    """
    version = transformers.__version__
    folder = cache_folder() / f"transformers-tests-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        if folder.is_dir():
            return folder
        options = ("--no-binary", ":all:", "--no-deps", "--retries", "0", "--timeout", "15", "-q", "-d", temporary)
        command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={version}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        (archive,) = Path(temporary).glob("*.tar.gz")
        package = Path(temporary) / "made" / "transformers_tests"
        package.mkdir(parents=True)
        with tarfile.open(archive) as content:
            for member in content.getmembers():
                parts = Path(member.name).parts
                if member.isfile() and parts[1:-1] == ("tests",) and parts[-1].endswith(".py"):
                    (package / parts[-1]).write_bytes(content.extractfile(member).read())
        common = (package / "test_modeling_common.py").read_text(encoding="utf-8")
        for subfolder, module, name in re.findall(r"^from \.(\w+)\.(\w+) import (\w+)$", common, re.MULTILINE):
            (package / subfolder).mkdir(exist_ok=True)
            with open(package / subfolder / f"{module}.py", "a", encoding="utf-8") as file:
                file.write(f"class {name}:\n    pass\n")
        package.parent.rename(folder)
    return folder


try:
    sys.path.append(str(library_tests()))
    common = importlib.import_module("transformers_tests.test_modeling_common")
except (OSError, subprocess.SubprocessError, ImportError, ValueError) as error:
    pytest.skip(f"the library's own tests cannot be had: {error}", allow_module_level=True)


class Tester:
    """A small configuration and a batch, as the library's tests ask for them."""

    batch_size, seq_length, is_training = 5, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def get_config(self) -> EmoDebertaConfig:
        return EmoDebertaConfig(**TINY | {"vocab_size": 99}, classifier_hidden_size=16, num_labels=3)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(5, 99, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class TestLibrary(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (EmoDebertaModel, EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification)

    def setUp(self):
        self.model_tester = Tester()
        if self._testMethodName.startswith("test_training"):  # the library leaves out encoders by their names alone
            self.all_model_classes = (EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is EmoDebertaForSequenceClassification:
            inputs["labels"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
        if return_labels and model_class is EmoDebertaForMaskedLM:
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
        return inputs
