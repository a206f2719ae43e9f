"""Small checkpoints and a tokenizer, made here; real corpora where EMODEBERTA_DATA names a folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and so do the processes that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import forked
import pytest
import torch
from support import BLOCK_PROJECT, ESSAY_FLAGS, ESSAYS, ROOT, TINY, call, once, write_comparison
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertModel, DebertaV2Config, DebertaV2Model, PreTrainedTokenizerFast

import run_classify as script

# Where tests that have this fixture run: on a GPU, too, if there is one. `make test-gpu` chooses these by their mark.
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def pytest_configure(config):
    if config.option.markexpr == "gpu" and not torch.cuda.is_available():
        raise pytest.UsageError(
            "torch finds no CUDA device here, so no test of the GPU can run; make test runs the rest"
        )
    for version in ("", "_3", "_4"):
        config.addinivalue_line("markers", f"flash_attn{version}_test: of the library's own tests")
    for name in ("accelerate_tests", "torch_compile_test", "slow"):
        config.addinivalue_line("markers", f"{name}: of the library's own tests")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "long" not in item.keywords)  # else one of these would run alone at the end
    if not os.environ.get("EMODEBERTA_DATA"):
        skip = pytest.mark.skip(reason="EMODEBERTA_DATA names no folder with the real corpora")
        for item in items:
            if "realdata" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def forked_trainings():
    """Trainings that a driver in this process starts take a second instead of ten."""
    with forked.trainings():
        yield


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> torch.device:
    """The CPU, then the GPU; there, convolutions are in full float32, as matrix products are by default."""
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_dir() -> str:
    return str(Path(os.environ["EMODEBERTA_DATA"]).resolve())  # tests run in folders of their own


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-piece tokenizer of 600 entries, trained on the project's own essays."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    inner.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def v3_folder(tmp_path_factory, tokenizer) -> Path:
    """A checkpoint made by the library's own `DebertaV2Model`, DeBERTa-v3 style, with a tokenizer."""
    folder = tmp_path_factory.mktemp("deberta-v3-tiny")
    torch.manual_seed(0)
    DebertaV2Model(DebertaV2Config(**TINY)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory, tokenizer) -> Path:
    """A checkpoint made by the library's own `BertModel`."""
    folder = tmp_path_factory.mktemp("bert-tiny")
    torch.manual_seed(0)
    shape = {key: TINY[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    BertModel(BertConfig(**shape, intermediate_size=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def batch(tokenizer) -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded."""
    texts = ["The river took the road.", "Nobody told us", "They knew, and they signed it all the same, twice over."]
    return dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))


@pytest.fixture(scope="session")
def finished(bert_folder, tmp_path_factory):
    """One finished run on the project's essays, shared by the tests that only look at it: BERT-shaped at the start,
    with DeBERTa's positions, so that names and shapes differ from the checkpoint's."""

    def make(folder):
        return forked.run(
            *(ROOT / "run_classify.py", "--model_name_or_path", bert_folder, *ESSAY_FLAGS),
            *("--relative_attention", "--max_steps", 24, "--eval_strategy", "steps", "--eval_steps", 12),
            *("--save_steps", 12, "--tfidf_baseline", "--output_dir", folder / "model", "--child_tuning", "F"),
            cwd=folder,
        )

    folder, done = once(tmp_path_factory, "finished", make)
    return folder / "model", done


@pytest.fixture(scope="session")
def fused(tmp_path_factory, v3_folder, bert_folder):
    """Three members of two sizes and two tokenizers, and their ensemble."""

    def make(folder):
        other = AutoTokenizer.from_pretrained(bert_folder)
        other.add_tokens(["evacuation"])
        other_folder = folder / "checkpoint"
        bert = BertModel.from_pretrained(bert_folder)
        bert.resize_token_embeddings(len(other))
        bert.save_pretrained(other_folder)
        other.save_pretrained(other_folder)
        flags = [*ESSAY_FLAGS, "--max_steps", 12, "--max_predict_samples", 20]
        for name, checkpoint, more in (
            ("first", v3_folder, []),
            ("cls", v3_folder, ["--pooling", "cls", "--seed", 7]),
            ("other", other_folder, ["--classifier_hidden_size", 16]),
        ):
            call(script.main, "--model_name_or_path", checkpoint, *flags, *more, "--output_dir", folder / name)
        return forked.run(
            *(ROOT / "run_fuse.py", "--members", "first", "cls", "other", "--fusion", "weighted"),
            *("--output_dir", "all"),
            cwd=folder,
        )

    folder, done = once(tmp_path_factory, "fused", make)
    return folder, done


@pytest.fixture(scope="session")
def compared(tmp_path_factory, v3_folder):
    """A comparison on a user's csv, with labels of its own and no groups: the folder of the table, and what it said."""

    def make(folder):
        write_comparison(folder, v3_folder)
        return forked.run(ROOT / "run_compare.py", "mine.yaml", cwd=folder)

    folder, done = once(tmp_path_factory, "compared", make)
    return folder / "results" / "compare" / "mine", done


@pytest.fixture(scope="session")
def comparison(compared):
    """The folder it was made in."""
    return compared[0].parents[2]


@pytest.fixture
def run_classify(tmp_path):
    """Run run_classify.py as a process of its own."""
    return lambda *arguments, check=True: forked.run(ROOT / "run_classify.py", *arguments, cwd=tmp_path, check=check)


@pytest.fixture
def in_process(monkeypatch, tmp_path, v3_folder):
    """Call run_classify.main() here: cheaper than a process, for runs whose isolation does not matter."""

    def run(*arguments):
        recipe = [arguments[0]] if str(arguments[0]).endswith(".yaml") else []
        argv = [*recipe, "--model_name_or_path", v3_folder, "--output_dir", tmp_path / "out", "--use_cpu"]
        argv += ["--max_seq_length", 32, "--per_device_train_batch_size", 8, *arguments[len(recipe) :]]
        monkeypatch.setattr(sys, "argv", ["run_classify.py", *map(str, argv)])
        monkeypatch.chdir(tmp_path)
        script.main()
        return json.loads((tmp_path / "out" / "all_results.json").read_text())

    return run


@pytest.fixture
def python_without_project(tmp_path):
    """Run code in a new process, elsewhere, that cannot import the project."""

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", BLOCK_PROJECT + code],
            cwd=tmp_path,
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
