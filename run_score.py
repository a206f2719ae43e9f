"""Score any number of texts with a trained classifier: in shards, on any number of processes, resumable.

    python run_score.py --model outputs/quickstart --input comments.parquet --output scores/
    accelerate launch run_score.py --model owner/model --input folder/ --id_column_name id --output scores/
    cat texts.txt | python run_score.py --model outputs/quickstart -

The input is a file (.csv, .tsv, .json, .jsonl, .parquet, or .txt with a text a line; also compressed, as .csv.gz), a
folder of such files, a dataset on the Hub (owner/name), or - for standard input, a text a line. It is read as a
stream; only a .json list is held whole.

With --output, shards of consecutive rows appear there, scores-000000.parquet and so on, with the columns

    row                    number of the row in the input, from 0
    id                     if --id_column_name names a column
    label                  the most probable; of a model with several labels a text, those above one half
    probability_<label>    one column a label, in the model's order
    disagreement           of an ensemble: the share of its members that have another label
    truncated              whether the text was longer than the model reads
    error                  what is wrong with the row, which then has no label; where it stands, but not its text

and manifest.json: the model's version, the input, settings, counts, and each shard's rows and SHA-256. After a kill,
the same command goes on: every row comes out once, in order. An input, a model or settings that have changed are
refused. Processes of one machine share the work by themselves (accelerate launch, torchrun); machines take parts
(--part 1/4 to 4/4) and write into one folder, or into several: cp -r the folders of all into one, .shards included,
and start once more, which finds nothing to score and writes the manifest.

Without --output, labels go to standard output, a line each; a row with an error has an empty line, and says why on
standard error.
"""

import argparse
import hashlib
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import logging as transformers_logging

from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import WINDOW, EmotionPipeline, truncated
from trainer_ext.errors import InputError, ProcessError, first_line, run_command
from trainer_ext.escape import one_line
from trainer_ext.precision import Choice, choose
from trainer_ext.runs.provenance import command_line
from trainer_ext.scoring.score_folder import FORMATS, ScoreFolder, Scores
from trainer_ext.scoring.text_stream import Row, TextSource, UnreadableFile, open_source
from trainer_ext.training.tokenizer import library_quiet

OURS = {
    EmoDebertaConfig.model_type: (EmoDebertaConfig, EmoDebertaForSequenceClassification),
    EmoDebertaEnsembleConfig.model_type: (EmoDebertaEnsembleConfig, EmoDebertaEnsembleForSequenceClassification),
}
SHORT = {"bfloat16": "bf16", "float16": "fp16"}
# Of a model's folder, the files that decide what it says.
DECIDING = ("config.json", "*.safetensors*", "*token*", "tokenizer_*/*", "vocab*", "merges.txt", "spm.model")


def main() -> None:
    args = parser().parse_args()
    name = args.input or args.input_file
    if name is None or (args.input and args.input_file):
        raise InputError("give what to score: --input FILE, FOLDER or owner/name, or - for standard input")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # processes wait for one another at the end only
    if args.output is None and state.num_processes > 1:
        raise InputError("labels go to standard output from one process only; give --output FOLDER")
    if name == "-" and state.num_processes > 1:
        raise InputError("standard input is read by one process only; give a file or a folder")
    if Path(name).is_dir() and args.output is not None and args.output.resolve().is_relative_to(Path(name).resolve()):
        raise InputError(f"{args.output}: is inside the input {name}, and would be read with it; give another --output")
    source = open_source(
        name,
        text_column=args.text_column_name,
        id_column=args.id_column_name,
        config_name=args.dataset_config_name,
        split=args.split_name,
        token=args.token,
    )
    config, version = read_config(args.model, args.revision, args.token)
    if not Path(args.model).is_dir():
        args.revision = version  # that and no later one
    begun = ScoreFolder.begun(args.output) if args.output else {}
    chosen = choose_precision(args, begun, state.device)
    dtype = chosen.dtype
    if state.is_main_process:
        print(chosen, file=sys.stderr)
    if args.output is None:
        print_labels(source, load_pipeline(args, config, dtype, state.device), args.tokens_per_batch)
        return

    labels = [config.id2label[label] for label in range(config.num_labels)]
    settings = {
        "text_column_name": args.text_column_name,
        "id_column_name": args.id_column_name,
        "rows_per_shard": args.rows_per_shard,
        "format": args.format,
        "dtype": str(dtype).removeprefix("torch."),
    }
    about = {"command": command_line(), "precision": begun.get("precision", chosen.record())}
    folder = ScoreFolder(args.output, source, {"name": args.model, "version": version}, labels, settings, about)
    if state.num_processes > 1 and state.is_main_process:
        print(f"{state.num_processes} processes share the shards", file=sys.stderr)
    shards = write_shards(folder, args, config, dtype, state)
    state.wait_for_everyone()
    if state.is_main_process:
        summarise(folder.close(shards), folder, args)
    state.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("input", nargs="?", metavar="INPUT", help="the same as --input")
    made.add_argument("--model", required=True, help="output folder of run_classify.py or run_fuse.py, or a Hub id")
    made.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    made.add_argument("--input", dest="input_file", metavar="INPUT", help="what to score; see above")
    made.add_argument("--output", type=Path, metavar="FOLDER", help="where shards go (default: labels are printed)")
    made.add_argument("--text_column_name", default="text", help="column with the text (default: text)")
    made.add_argument("--id_column_name", help="column to carry over as id")
    made.add_argument("--dataset_config_name", help="configuration of a dataset on the Hub")
    made.add_argument("--split_name", default="train", help="split of a dataset on the Hub (default: train)")
    made.add_argument("--format", choices=FORMATS, default="parquet", help="of the shards (default: parquet)")
    made.add_argument("--rows_per_shard", type=at_least_one, default=10_000, help="default: 10,000")
    made.add_argument("--part", type=part, default=(0, 1), metavar="N/M", help="score the Nth of M parts only")
    made.add_argument(
        "--tokens_per_batch",
        type=at_least_one,
        help="tokens in a batch, with padding (default: 2,048 in float32 and 4,096 in bf16 on CPU, else 65,536)",
    )
    made.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: the faster of bfloat16 and float32, timed once per machine)",
    )
    made.add_argument("--token", help="Hub token, if not the one of `hf auth login`")
    return made


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; want a number from 1")
    return int(text)


def part(text: str) -> tuple[int, int]:
    """`3/16` as (2, 16)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise argparse.ArgumentTypeError(f"{text}; want two numbers, as 3/16 for the third of sixteen parts")
    return number - 1, parts


# ---- Model --------------------------------------------------------------------------------------------------------


def read_config(name: str, revision: str | None, token: str | None) -> tuple[PretrainedConfig, str]:
    """A classifier's configuration, and what tells its versions apart: a commit of the Hub, or a hash of its files."""
    folder = Path(name)
    if not folder.is_dir() and (folder.exists() or name[0] in "./~" or name.count("/") > 1):
        raise InputError(f"{name}: no such folder; want an output folder of run_classify.py, or a Hub id (owner/name)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{name}: no config.json there; want an output folder of run_classify.py or run_fuse.py")
    try:
        values, _ = PretrainedConfig.get_config_dict(name, revision=revision, token=token)
        kind = OURS.get(values.get("model_type"))
        if kind is None:
            config = AutoConfig.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
        else:
            config = kind[0].from_dict(values)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: no model there ({first_line(error)})") from error
    if not any("SequenceClassification" in architecture for architecture in config.architectures or ()):
        raise InputError(f"{name}: {', '.join(config.architectures or ['no architecture'])}; want a text classifier")
    if config.num_labels < 2 or config.problem_type == "regression":
        raise InputError(f"{name}: gives one number a text; want a classifier with two labels or more")
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted({path for pattern in DECIDING for path in folder.glob(pattern) if path.is_file()}):
            with open(path, "rb") as file:
                digest.update(str(path.relative_to(folder)).encode() + hashlib.file_digest(file, "sha256").digest())
        return config, digest.hexdigest()
    # The cache has a folder for each commit.
    return config, Path(hf_hub_download(name, "config.json", revision=revision, token=token)).parent.name


def choose_precision(args: argparse.Namespace, begun: dict, device: torch.device) -> Choice:
    """The dtype of the flags, of the scores that are `begun` (their manifest), or whichever is faster here."""
    if args.dtype:
        return Choice(SHORT.get(args.dtype, args.dtype), "as the flags say")
    dtype = begun.get("settings", {}).get("dtype")
    if dtype:
        return Choice(SHORT.get(dtype, dtype), "as the scores in the folder")
    return choose(device)


def load_pipeline(
    args: argparse.Namespace, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> EmotionPipeline:
    """The model and its tokenizers, ready."""
    hub = {"revision": args.revision, "token": args.token}
    kind = OURS.get(config.model_type, (None, AutoModelForSequenceClassification))[1]
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # of loading
    try:
        with library_quiet():
            options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
            model, loaded = kind.from_pretrained(args.model, **options, **hub)
            tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False, **hub)
            if lacking := sorted([*loaded["missing_keys"], *(key[0] for key in loaded["mismatched_keys"])]):
                raise InputError(f"{args.model}: its weights lack {lacking[0]}, and would be drawn at random")
            if tokenizer.model_max_length > 10**6:  # it does not say; RoBERTa's positions start at 2
                tokenizer.model_max_length = max(getattr(config, "max_position_embeddings", 0) - 2, 0) or 512
            return EmotionPipeline(model=model.eval(), tokenizer=tokenizer, device=device, **hub)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{args.model}: cannot be loaded ({first_line(error)})") from error


# ---- Scores -------------------------------------------------------------------------------------------------------


def score(
    classify: EmotionPipeline,
    rows: list[Row],
    tokens_per_batch: int | None,
    progress: tqdm | None = None,
    step: int = 1,
) -> Scores:
    """Scores of the rows, which are sorted by length among as many as the pipeline sorts. A row for which the model
    gives no number gets an error, in place."""
    config = classify.model.config
    several, ensemble = config.problem_type == "multi_label_classification", hasattr(classify.model, "members")
    probabilities = np.full((len(rows), config.num_labels), np.nan, dtype=np.float32)
    cut = np.zeros(len(rows), dtype=bool)
    disagreement = np.zeros(len(rows), dtype=np.float32) if ensemble else None
    for start in range(0, len(rows), WINDOW):
        window = rows[start : start + WINDOW]
        usable = np.array([start + place for place, row in enumerate(window) if row.text is not None], dtype=int)
        if progress is not None:
            progress.update((len(window) - len(usable)) * step)
        if not len(usable):
            continue
        encoded = classify.encode([rows[place].text for place in usable])
        cut[usable] = truncated(encoded)
        for positions, outputs in classify.batches(encoded, tokens_per_batch, ensemble):
            places, logits = usable[positions], outputs["logits"].float()
            probabilities[places] = (logits.sigmoid() if several else logits.softmax(dim=-1)).numpy()
            if ensemble:
                differs = outputs["member_logits"].argmax(dim=-1) != logits.argmax(dim=-1, keepdim=True)
                disagreement[places] = differs.float().mean(dim=-1).numpy()
            if progress is not None:
                progress.update(len(places) * step)
    for place in np.flatnonzero(np.isnan(probabilities).any(axis=1)):
        if rows[place].error is None:
            rows[place] = rows[place]._replace(error="the model gives no number (NaN); try another --dtype")
    return Scores(probabilities, several, cut, disagreement)


def write_shards(
    folder: ScoreFolder, args: argparse.Namespace, config: PretrainedConfig, dtype: torch.dtype, state: PartialState
) -> int:
    """Score this process's share of the shards that are missing; returns how many there are in all."""
    part, parts = args.part
    share, shares = part + parts * state.process_index, parts * state.num_processes
    classify, number = None, -1
    done = len(folder.finished()) * args.rows_per_shard
    total = None if folder.source.rows is None else max(folder.source.rows // parts, 1)
    with tqdm(
        total=total,
        initial=min(done, total or done),
        unit=" rows",
        desc="scored",
        disable=None if state.is_main_process else True,
    ) as progress:
        try:
            for number, rows in folder.shards(share, shares):
                if rows:
                    if classify is None:
                        classify = load_pipeline(args, config, dtype, state.device)
                    scores = score(classify, rows, args.tokens_per_batch, progress, state.num_processes)
                    folder.write(number, rows, scores)
        except UnreadableFile as error:
            folder.forget(error.file)
            raise ProcessError(f"{error}; {len(folder.finished())} shards before it stay valid") from error
        except InputError as error:  # that the first process may not meet
            raise ProcessError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise ProcessError(f"out of memory; give fewer --tokens_per_batch ({first_line(error)})") from error
        except OSError as error:
            raise ProcessError(
                f"{folder.folder}: cannot write a shard ({error.strerror or first_line(error)}); "
                f"{len(folder.finished())} are there and stay valid; start again in the same way when that is put right"
            ) from error
    return number + 1


def summarise(manifest: dict | None, folder: ScoreFolder, args: argparse.Namespace) -> None:
    """What came out, in a few lines."""
    if manifest is None:
        print(f"part {args.part[0] + 1} of {args.part[1]} is done; {folder.folder}/ does not have all parts yet")
        return
    scored = manifest["rows"] - manifest["errors"]
    print(f"{manifest['rows']:,} rows, {scored:,} with a label:", end=" ")
    counts = ", ".join(f"{name} {count / max(scored, 1):.1%}" for name, count in manifest["label_counts"].items())
    print(one_line(counts))
    if manifest["errors"]:
        print(f"{manifest['errors']:,} rows have an error in place of a label; the first: {manifest['first_error']}")
    if manifest["truncated"]:
        print(f"{manifest['truncated']:,} texts are longer than the model reads and were cut")
    print(f"saved to {folder.folder}/, manifest.json tells the shards")


def print_labels(source: TextSource, classify: EmotionPipeline, tokens_per_batch: int | None) -> None:
    """A line for each row, as soon as rows are there."""
    names = [classify.model.config.id2label[label] for label in range(classify.model.config.num_labels)]
    errors = 0
    try:
        for rows in as_they_come(source):
            for row, label in zip(rows, score(classify, rows, tokens_per_batch).labels(names), strict=True):
                print(one_line(",".join(label) if isinstance(label, list) else label or ""))
                if row.error:
                    errors += 1
                    print(row.error, file=sys.stderr)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if errors:
        print(f"{errors:,} rows have an error in place of a label", file=sys.stderr)


def as_they_come(source: TextSource) -> Iterator[list[Row]]:
    """What there is of rows, at least one and at most as many as the pipeline sorts: a slow stream is answered row by
    row, a fast one in large batches."""
    ahead: queue.Queue[Row | Exception | None] = queue.Queue(maxsize=WINDOW)

    def read() -> None:
        try:
            for row in source:
                ahead.put(row)
            ahead.put(None)
        except Exception as error:  # raised again where it is waited for
            ahead.put(error)

    threading.Thread(target=read, daemon=True).start()
    last: Row | Exception | None = None
    while True:
        rows: list[Row] = []
        while len(rows) < WINDOW and not (rows and ahead.empty()) and isinstance(last := ahead.get(), Row):
            rows.append(last)
        if rows:
            yield rows
        if isinstance(last, Exception):
            raise last
        if last is None:
            return


def command() -> None:
    """Console entry point."""
    run_command(main)


if __name__ == "__main__":
    command()
