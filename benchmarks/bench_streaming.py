"""Measure the memory of `run_mlm.py --streaming` over millions of rows, in the first and the last tenth of the run.

The rows are generated and the model is tiny. So this measures reading, tokenising, shuffling and masking a file that is
never in memory as a whole. The memory of the process is read ten times a second (Linux).
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, PreTrainedTokenizerFast

from benchmarks.measure import DEBERTA, ROOT, Results, machine
from trainer_ext.files import RESULTS

BATCH = 1000
WORDS = [f"w{number}" for number in range(500)]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def make_checkpoint(folder: Path) -> None:
    """Save a model with one layer of 16 units, and a tokenizer of 500 words."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    DebertaV2ForMaskedLM(DebertaV2Config(**DEBERTA, **shape, vocab_size=505, legacy=False)).save_pretrained(folder)


def make_rows(path: Path, rows: int) -> None:
    """Write texts of 4 to 11 words, all different, piece by piece."""
    schema = pyarrow.schema([("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            texts = [
                " ".join(WORDS[(row * 7 + place * (row % 491 + 1)) % 500] for place in range(4 + row % 8))
                for row in range(start, min(start + 50_000, rows))
            ]
            writer.write_table(pyarrow.table({"text": texts}, schema))


def resident(pid: int) -> int | None:
    """Return a process's own bytes, including swapped ones, or `None` if it has ended.

    Pages of files do not count. The system frees them at any time, which would hide growth.
    """
    try:
        found = re.findall(r"(?:RssAnon|VmSwap):\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return None
    return sum(map(int, found)) * 1024 if found else None


def measure(results: Results, rows: int, device) -> None:
    """Return the mean memory in each tenth of the training."""

    def run() -> dict:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_checkpoint(folder / "model")
            make_rows(folder / "rows.parquet", rows)
            flags = (
                "--streaming --train_file rows.parquet --model_name_or_path model --output_dir out --max_seq_length 16 "
                f"--max_steps {rows // BATCH - 1} --per_device_train_batch_size {BATCH} --max_eval_samples {BATCH} "
                "--save_strategy no --eval_strategy no --use_cpu --bf16 false"
            )
            command = [sys.executable, str(ROOT / "run_mlm.py"), *flags.split()]
            sizes: list[tuple[float, int]] = []
            with open(folder / "log", "wb") as log:
                process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
                while process.poll() is None:
                    size = resident(process.pid)
                    if size:
                        sizes.append((time.time(), size))
                    time.sleep(0.1)
            if process.returncode:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            assert (folder / "out" / RESULTS).exists()
            # Training begins once the model is loaded.
            first = next(at for at, size in sizes if size > 0.9 * statistics.median(size for _, size in sizes))
            during = [size for at, size in sizes if at >= first]
            tenth = len(during) // 10
            tenths = [statistics.mean(during[i * tenth : (i + 1) * tenth]) / 1e6 for i in range(10)]
        return {"megabytes": [round(size, 1) for size in tenths], "last_over_first": round(tenths[-1] / tenths[0], 4)}

    row = results.part("streaming", {"rows": rows, "machine": machine(device)}, run)
    print(f"\nstreaming {rows:,} rows: memory of the last tenth of the run / the first {row['last_over_first']:.3f}")
