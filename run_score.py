"""Score any number of texts with a trained classifier: in shards, with any number of processes, resumable.

    python run_score.py --model outputs/quickstart --input comments.parquet --output scores/
    accelerate launch run_score.py --model owner/model --input folder/ --id_column_name id --output scores/
    RAY_ADDRESS=head:6379 python run_score.py --engine ray --model owner/model --input s3://bucket/a --output scores/
    cat texts.txt | python run_score.py --model outputs/quickstart -

The input is a file (.csv, .tsv, .json, .jsonl, .parquet, or .txt with one text per line; also compressed, as .csv.gz),
a folder of such files, the address of either in an object store (s3://bucket/folder, gs://...), a dataset on the Hub
(owner/name), or - for standard input with one text per line. It is read as a stream.

With --output, that folder gets shards of consecutive rows (scores-000000.parquet and so on) with these columns:

    row                    number of the row in the input, from 0
    id                     the id, if --id_column_name names a column
    label                  the most probable label, none if it is less probable than the model's abstain_below; if a
                           text may have several, all labels that reach the model's thresholds (or exceed one half)
    probability_<label>    one column per label, in the model's order
    disagreement           for an ensemble: the share of its members that predict another label
    truncated              whether the text was longer than the model reads
    error                  where the row is and what is wrong with it, without its text; such a row has no label

It also gets manifest.json: the model's version, the input, settings, counts, and each shard's rows and SHA-256. If
scoring is killed, run the same command again: every row is scored once, in order. A changed input, model or setting is
an error, also an input that changes while it is read. Shards that are missing or were changed are scored again.

Processes of one machine share the work (accelerate launch, torchrun). Several machines score parts (--part 1/4 to 4/4)
into one folder, or into several. To merge several, cp -r all into one, including .shards, and run the command once
more. It scores nothing and writes the manifest.

With --engine ray, Ray shares the work among the nodes of the cluster at RAY_ADDRESS, or among the processors of this
machine. All nodes must see the model, the input and the output. The output is the same, and either engine resumes what
the other began.

Without --output, labels are printed, one per line. A row with an error prints an empty line, and the error on standard
error.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_score")  # --help and wrong flags end here; the imports below take seconds

import argparse
import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from trainer_ext.data.delimited import QUOTING, QUOTING_HELP
from trainer_ext.errors import InputError, ProcessError, first_line, run_command
from trainer_ext.escape import one_line
from trainer_ext.runs.provenance import command_line
from trainer_ext.scoring.score_folder import FORMATS, ScoreFolder
from trainer_ext.scoring.text_stream import TextSource, UnreadableFile, open_source

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "float32": "float32"}  # by their short names


def main() -> None:
    args = parser().parse_args()
    name = args.input or args.input_file
    if not name or (args.input and args.input_file):
        raise InputError("give what to score: --input FILE, FOLDER or owner/name, or - for standard input")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if args.output is None and processes > 1:
        raise InputError("labels go to standard output from one process only; give --output FOLDER")
    if name == "-" and processes > 1:
        raise InputError("standard input is read by one process only; give a file or a folder")
    if re.match(r"\w{2,}:/", str(args.output)):
        raise InputError(f"{args.output}: an address; scores go to a folder, which all machines that score must see")
    if Path(name).is_dir() and args.output is not None and args.output.resolve().is_relative_to(Path(name).resolve()):
        raise InputError(f"{args.output}: is inside the input {name}, and would be read with it; give another --output")
    with ray_cluster(args, name) if args.engine == "ray" else processes_of(args) as engine:
        scored = run(args, name, engine)
    if scored and engine.first:
        summarise(*scored, args)


def run(args: argparse.Namespace, name: str, engine: Any) -> tuple[ScoreFolder, int] | None:
    """Write the shards of what `name` names, or print its labels if there is no `--output`.

    Args:
        engine: A [`trainer_ext.scoring.scorer.Processes`] or a [`trainer_ext.scoring.cluster.Cluster`].

    Returns:
        The folder and the number of shards in all. `None` if labels were printed.
    """
    source = open_source(
        name,
        text_column=args.text_column_name,
        text_delimiter=args.text_column_delimiter,
        id_column=args.id_column_name,
        config_name=args.dataset_config_name,
        split=args.split_name,
        quoting=args.quoting,
        token=args.token,
        each=engine.each,
    )
    if args.engine == "ray" and "dataset" in source.files[0]:
        raise InputError(
            f"{name}: --engine ray reads files and folders, also of object stores; download it, or score it without"
        )
    labels, version = engine.classifier()
    begun = ScoreFolder.begun(args.output) if args.output else {}
    precision = choose_precision(args, begun) or engine.faster_precision()
    dtype = DTYPES[precision["name"]]
    if engine.first:
        print(f"precision: {precision['name']} ({precision['reason']})", file=sys.stderr)
    if args.output is None:
        print_labels(source, engine.load(dtype), labels, args.tokens_per_batch)
        return None

    settings = {
        "text_column_name": args.text_column_name,
        "id_column_name": args.id_column_name,
        "rows_per_shard": args.rows_per_shard,
        "format": args.format,
        "dtype": dtype,
    }
    later = {"quoting": "auto", "text_column_delimiter": " ", "tokens_per_batch": None}
    # Scores from before these flags keep their settings.
    settings |= {name: getattr(args, name) for name, default in later.items() if getattr(args, name) != default}
    about = {"command": command_line(), "precision": begun.get("precision", precision)}
    folder = ScoreFolder(args.output, source, {"name": args.model, "version": version}, labels, settings, about)
    if engine.count > 1 and engine.first:
        print(f"{engine.count} processes share the shards", file=sys.stderr)
    return folder, write_shards(folder, args, dtype, engine)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("input", nargs="?", metavar="INPUT", help="the same as --input")
    made.add_argument("--model", required=True, help="output folder of run_classify.py or run_fuse.py, or a Hub id")
    made.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    made.add_argument("--input", dest="input_file", metavar="INPUT", help="what to score; see above")
    made.add_argument("--output", type=Path, metavar="FOLDER", help="where shards go (default: labels are printed)")
    made.add_argument(
        *("--text_column_name", "--text_column_names"),
        default="text",
        help="column with the text (default: text); several, separated by commas, are joined without their empty cells",
    )
    made.add_argument("--text_column_delimiter", default=" ", help="what joins them (default: a space)")
    made.add_argument("--id_column_name", help="column to carry over as id")
    made.add_argument("--quoting", choices=QUOTING, default="auto", help=QUOTING_HELP)
    made.add_argument("--dataset_config_name", help="configuration of a dataset on the Hub")
    made.add_argument("--split_name", default="train", help="split of a dataset on the Hub (default: train)")
    made.add_argument("--format", choices=FORMATS, default="parquet", help="of the shards (default: parquet)")
    made.add_argument("--rows_per_shard", type=at_least_one, default=10_000, help="default: 10,000")
    made.add_argument(
        "--engine", choices=("processes", "ray"), default="processes", help="see above (default: processes)"
    )
    made.add_argument(
        "--num_gpus_per_worker",
        type=from_zero,
        metavar="N",
        help="of --engine ray, also 0.5 for two workers per GPU (default: 1 if the cluster has GPUs, else 0)",
    )
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


def from_zero(text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text}; want a number from 0")
    return float(text)


def part(text: str) -> tuple[int, int]:
    """Return `3/16` as `(2, 16)`."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise argparse.ArgumentTypeError(f"{text}; want two numbers, as 3/16 for the third of sixteen parts")
    return number - 1, parts


# ---- Scores -------------------------------------------------------------------------------------------------------


def processes_of(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """Return this process and those that were started with it.

    Raises:
        InputError: if the flags do not go with it.
    """
    if args.num_gpus_per_worker is not None:
        raise InputError(
            "--num_gpus_per_worker: is of --engine ray; a process without it takes one GPU if there is any"
        )
    from trainer_ext.scoring.scorer import Processes  # imports torch, which the driver of a cluster does without

    return nullcontext(Processes((args.model, args.revision, args.token)))


def ray_cluster(args: argparse.Namespace, name: str) -> AbstractContextManager[Any]:
    """Return the Ray cluster to enter.

    Raises:
        InputError: if the extra is not installed, or the flags do not go with it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or args.part != (0, 1):
        raise InputError("--engine ray shares the work itself; start one process, without --part")
    if args.output is None or name == "-":
        raise InputError("--engine ray writes shards of a file or a folder; give --input and --output FOLDER")
    try:
        from trainer_ext.scoring.cluster import cluster
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'emodeberta[ray]'") from error
    return cluster((args.model, args.revision, args.token), args.num_gpus_per_worker)


def choose_precision(args: argparse.Namespace, begun: dict) -> dict[str, Any] | None:
    """Return the precision of the flags, else that of the scores already in the folder, if there are any.

    Args:
        begun: Manifest of the scores in the folder, or an empty dict.
    """
    short = {dtype: name for name, dtype in DTYPES.items()}
    if args.dtype:
        return {"name": short[args.dtype], "reason": "as the flags say", "timing": None}
    dtype = begun.get("settings", {}).get("dtype")
    return {"name": short[dtype], "reason": "as the scores in the folder", "timing": None} if dtype in short else None


def print_labels(source: TextSource, classify: Any, names: list[str], tokens_per_batch: int | None) -> None:
    """Print the label of each row as soon as rows arrive, one per line.

    Args:
        classify: A pipeline.
        names: Of the labels, in the model's order.
    """
    from trainer_ext.scoring.scorer import as_they_come, score

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
        print(f"{errors:,} rows have an error instead of a label", file=sys.stderr)


def write_shards(folder: ScoreFolder, args: argparse.Namespace, dtype: str, engine: Any) -> int:
    """Score the missing shards, or a process's share of them, and return the number of shards in all.

    Raises:
        ProcessError: if the input cannot be read to its end, memory runs out, or a shard cannot be written.
    """
    number, parts = -1, args.part[1]
    done = len(folder.finished()) * args.rows_per_shard
    total = None if folder.source.rows is None else max(folder.source.rows // parts, 1)
    with tqdm(
        total=total,
        initial=min(done, total or done),
        unit=" rows",
        desc="scored",
        disable=None if engine.first else True,
    ) as progress:
        try:
            for finished in engine.write_shards(folder, dtype, args.tokens_per_batch, args.part, progress):
                number = max(number, finished)
        except UnreadableFile as error:
            folder.forget(error.file)
            raise ProcessError(f"{error}; {len(folder.finished())} shards before it stay valid") from error
        except InputError as error:  # that the first process may not meet
            raise ProcessError(str(error)) from error
        except MemoryError as error:
            other = (
                " and another --output, because the shards in this one used the same value" if folder.finished() else ""
            )
            raise ProcessError(f"out of memory; give fewer --tokens_per_batch{other} ({first_line(error)})") from error
        except OSError as error:
            raise ProcessError(
                f"{folder.folder}: cannot write a shard ({error.strerror or first_line(error)}); "
                f"{len(folder.finished())} are there and stay valid; fix that, then run the same command again"
            ) from error
    return number + 1


def summarise(folder: ScoreFolder, shards: int, args: argparse.Namespace) -> None:
    """Write the manifest and print a summary of the scores, or which part is done if others are missing.

    Args:
        shards: How many there are in all.

    Raises:
        InputError: if shards are missing or damaged that should be there.
    """
    manifest = folder.close(shards)
    if manifest is None and args.engine == "ray":
        raise InputError(f"{folder.folder}: not all shards are there; start again in the same way")
    if manifest is None:
        print(f"part {args.part[0] + 1} of {args.part[1]} is done; {folder.folder}/ does not have all parts yet")
        return
    labelled = manifest["labelled"]
    print(f"{manifest['rows']:,} rows, {labelled:,} with a label:", end=" ")
    counts = ", ".join(f"{name} {count / max(labelled, 1):.1%}" for name, count in manifest["label_counts"].items())
    print(one_line(counts))
    if unsure := manifest["rows"] - manifest["errors"] - labelled:
        print(f"{unsure:,} rows have no label, because none is probable enough for the model")
    if manifest["errors"]:
        print(f"{manifest['errors']:,} rows have an error instead of a label; the first: {manifest['first_error']}")
    if manifest["truncated"]:
        print(f"{manifest['truncated']:,} texts are longer than the model reads and were cut")
    print(f"saved to {folder.folder}/; manifest.json lists the shards")


if __name__ == "__main__":
    run_command(main)
