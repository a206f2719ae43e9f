"""Export a trained EmoDeBERTa to ONNX, in float32 and optionally int8, and compare it with PyTorch on real texts.

    python run_export.py outputs/quickstart
    python run_export.py outputs/mine --int8 --check_file dev.csv --text_column_name essay

Writes MODEL/onnx/model.onnx (inputs input_ids and attention_mask, output logits, any batch size and length). The logits
are divided by the model's calibration_temperature. Its label_thresholds and abstain_below stay in its config.json. With
--int8, also writes model_int8.onnx, but only if it predicts the same labels as float32 for 99.5% of the texts. Requires
the `onnx` extra: pip install 'emodeberta[onnx]'.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_export")  # --help and wrong flags end here; the imports below take seconds

import argparse
import logging
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeling_emodeberta import EmoDebertaForSequenceClassification
from texts_emodeberta import token_budget_batches
from trainer_ext.data.load import read_texts
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.decisions import decide, to_probabilities
from trainer_ext.files import check_free, claim, open_to_readers, release, write_json
from trainer_ext.recipe_file import SHIPPED
from trainer_ext.training.checkpoint_source import resolve_checkpoint
from trainer_ext.training.saved_model import check_config, load_whole, reading

ESSAYS = SHIPPED / "examples" / "essays.tsv"
LARGEST_DIFFERENCE = 1e-4  # between logits, relative to the largest one
EQUAL_DECISIONS = 0.995
REPORT = "export.json"
_WRITTEN = re.compile(r"export\.json|model(_int8)?\.onnx(\.data)?")  # weights of 2 GB and more are in a .data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="output folder of run_classify.py, or an EmoDeBERTa on the Hub")
    parser.add_argument(
        "--output_dir", type=Path, help="default: onnx/ in the model's folder; onnx/ here for a Hub model"
    )
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--int8", action="store_true", help="also export a smaller model with int8 weights (dynamic quantization)"
    )
    parser.add_argument(
        "--check_file",
        type=Path,
        default=ESSAYS,
        help="texts to compare on: .csv, .tsv, .json, .jsonl or .parquet (default: the project's examples)",
    )
    parser.add_argument(
        "--text_column_name", default="text", help="column of --check_file with the text (default: text)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # of loading
    check_extra()
    texts = read_texts(args.check_file, args.text_column_name)
    output_dir = args.output_dir or (Path(args.model) / "onnx" if Path(args.model).is_dir() else Path("onnx"))
    before = [path for path in output_dir.glob("*") if not path.name.startswith(".")]
    exported = (output_dir / REPORT).is_file()
    if other := [path.name for path in before if not (exported and _WRITTEN.fullmatch(path.name))]:
        raise InputError(f"{output_dir}: is in use ({other[0]} is not part of an export); give another --output_dir")
    if before and not args.overwrite_output_dir:
        raise InputError(f"{output_dir}: holds an export; give another --output_dir, or --overwrite_output_dir")
    check_free(output_dir)
    model, tokenizer = load(args.model)

    claim(output_dir)
    for left in output_dir.glob(".incomplete-*"):  # from an export that was killed
        shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=output_dir))
    export(model, staging / "model.onnx")
    report = compare(model, tokenizer, texts, staging / "model.onnx", "PyTorch and ONNX")
    if report["relative_logit_difference"] > LARGEST_DIFFERENCE:
        shutil.rmtree(staging)
        raise InputError(
            f"{args.model}: the exported model's logits differ from PyTorch's by "
            f"{report['relative_logit_difference']:.1e} of the largest; nothing is written"
        )
    reports = {"model.onnx": report}
    if args.int8:
        quantize(staging / "model.onnx", staging / "model_int8.onnx")
        report = compare(model, tokenizer, texts, staging / "model_int8.onnx", "PyTorch and int8")
        if report["equal_decisions"] < EQUAL_DECISIONS:
            (staging / "model_int8.onnx").unlink()
        reports["model_int8.onnx"] = report
    write_json(staging / REPORT, {"texts": len(texts), "against PyTorch, float32": reports})
    # While a file of an export is in the folder, the report is, too: it tells the next start whose they are.
    for path in sorted(before, key=lambda path: path.name == REPORT):
        path.unlink()
    open_to_readers(staging)
    for path in sorted(staging.iterdir(), key=lambda path: path.name != REPORT):
        path.rename(output_dir / path.name)
    staging.rmdir()
    release(output_dir)

    for name, report in reports.items():
        print(f"{name}: decides as PyTorch in {report['equal_decisions']:.2%} of {len(texts)} texts, ", end="")
        print(f"logits within {report['relative_logit_difference']:.1e} of the largest")
    print(f"saved to {output_dir}/")
    if args.int8 and reports["model_int8.onnx"]["equal_decisions"] < EQUAL_DECISIONS:
        raise InputError(
            f"int8 is not written: it decides as float32 in less than {EQUAL_DECISIONS:.1%} of texts; use model.onnx"
        )


def check_extra() -> None:
    """Check that the packages of the `onnx` extra are installed.

    Raises:
        InputError: if one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'emodeberta[onnx]'") from error


def load(name: str) -> tuple[EmoDebertaForSequenceClassification, PreTrainedTokenizerBase]:
    """Return the model, in float32, and its tokenizer.

    Raises:
        InputError: if there is no EmoDeBERTa classifier, or a file of it cannot be read.
    """
    path = resolve_checkpoint(name)
    with reading(name, "no EmoDeBERTa classifier there"):
        values, _ = PretrainedConfig.get_config_dict(path)
        if values.get("model_type") != "emodeberta":
            raise InputError(f"{name}: a {values.get('model_type')}, not an EmoDeBERTa")
        model = load_whole(EmoDebertaForSequenceClassification, path, dtype=torch.float32)
        check_config(name, model.config)
        return model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False)


class Logits(torch.nn.Module):
    """The model with the interface for ONNX: two inputs, and the logits as the only output."""

    def __init__(self, model: EmoDebertaForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export(model: EmoDebertaForSequenceClassification, path: Path) -> None:
    """Write the model as an ONNX file with variable batch size and length."""
    limit = {"max": model.config.max_position_embeddings} if model.config.position_biased_input else {}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, **limit)
    ids = torch.full((3, 20), 5)
    axes = {0: batch, 1: length}
    for library in ("torch.onnx", "onnxscript", "onnx_ir"):  # hides each change of the graph, and packages not needed
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits(model),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            verbose=False,
        )
        for graph in (program.model.graph, *program.model.functions.values()):
            for node in graph.all_nodes():
                node.metadata_props.clear()  # these contain local paths
        program.save(path)


def quantize(source: Path, target: Path) -> None:
    """Write the model with int8 weights in the matrix products; activations are quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # of an extra

    logging.disable(logging.INFO)  # the package tells of each node
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    logging.disable(logging.NOTSET)


def compare(model, tokenizer, texts: list[str], path: Path, label: str) -> dict:
    """Return how far the logits of an ONNX file differ from PyTorch's, and how many predicted labels are equal.

    Args:
        path: The ONNX file.
        label: Text for the progress bar.

    Returns:
        `relative_logit_difference` (the largest difference, relative to the largest logit) and `equal_decisions` (a
        share).
    """
    import onnxruntime  # of an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    encoded = tokenizer(texts, truncation=True, return_token_type_ids=False)
    batches = list(token_budget_batches([len(ids) for ids in encoded["input_ids"]], 2048))
    wanted, found = [], []
    for positions in tqdm(batches, desc=label, disable=None):
        rows = {name: [values[position] for position in positions] for name, values in encoded.items()}
        inputs = tokenizer.pad(rows, return_tensors="pt")
        with torch.inference_mode():
            wanted.append(model(**inputs).logits.numpy())
        found += session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    wanted, found = np.concatenate(wanted), np.concatenate(found)
    several, thresholds = model.config.problem_type == "multi_label_classification", model.config.label_thresholds
    decisions = [decide(to_probabilities(logits, several), several, thresholds) for logits in (wanted, found)]
    equal = decisions[0] == decisions[1]
    return {
        "relative_logit_difference": float(np.abs(wanted - found).max() / np.abs(wanted).max()),
        "equal_decisions": float(equal.mean()),
    }


if __name__ == "__main__":
    run_command(main)
