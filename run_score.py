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
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm.auto import tqdm

from pipeline_emodeberta import EmotionPipeline
from trainer_ext.data.delimited import QUOTING
from trainer_ext.data.load import QUOTING_HELP
from trainer_ext.errors import InputError, ProcessError, first_line, run_command
from trainer_ext.escape import one_line
from trainer_ext.precision import Choice, choose
from trainer_ext.runs.provenance import command_line
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import FORMATS, load_pipeline, print_labels, read_classifier_config, score
from trainer_ext.scoring.text_stream import UnreadableFile, open_source

SHORT = {"bfloat16": "bf16", "float16": "fp16"}


def main() -> None:
    args = parser().parse_args()
    name = args.input or args.input_file
    if not name or (args.input and args.input_file):
        raise InputError("give what to score: --input FILE, FOLDER or owner/name, or - for standard input")
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=30))  # processes wait for one another at the end only
    if args.output is None and state.num_processes > 1:
        raise InputError("labels go to standard output from one process only; give --output FOLDER")
    if name == "-" and state.num_processes > 1:
        raise InputError("standard input is read by one process only; give a file or a folder")
    if re.match(r"\w{2,}:/", str(args.output)):
        raise InputError(f"{args.output}: an address; scores go to a folder, which all machines that score must see")
    if Path(name).is_dir() and args.output is not None and args.output.resolve().is_relative_to(Path(name).resolve()):
        raise InputError(f"{args.output}: is inside the input {name}, and would be read with it; give another --output")
    if args.num_gpus_per_worker is not None and args.engine != "ray":
        raise InputError(
            "--num_gpus_per_worker: is of --engine ray; a process without it takes one GPU if there is any"
        )
    with ray_cluster(args, name, state) if args.engine == "ray" else nullcontext() as ray:
        scored = run(args, name, state, ray)
    if scored and state.is_main_process:
        summarise(*scored, args)
    state.destroy_process_group()


def run(args: argparse.Namespace, name: str, state: PartialState, ray: Any) -> tuple[ScoreFolder, int, bool] | None:
    """Write the shards of what `name` names, or print its labels if there is no `--output`.

    Args:
        ray: A [`trainer_ext.scoring.cluster.Cluster`], or `None` if this process scores its share itself.

    Returns:
        The folder, the number of shards in all, and whether the model gives no label that is not probable enough.
        `None` if labels were printed.
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
        each=ray.each if ray else map,
    )
    if ray and "dataset" in source.files[0]:
        raise InputError(
            f"{name}: --engine ray reads files and folders, also of object stores; download it, or score it without"
        )
    config, version = read_classifier_config(args.model, args.revision, args.token)
    if not Path(args.model).is_dir():
        args.revision = version  # that and no later one
    begun = ScoreFolder.begun(args.output) if args.output else {}
    chosen = choose_precision(args, begun, ray.choose if ray else lambda: choose(state.device))
    dtype = chosen.dtype
    if state.is_main_process:
        print(chosen, file=sys.stderr)
    load = partial(load_pipeline, args.model, config, dtype, revision=args.revision, token=args.token)
    if args.output is None:
        print_labels(source, load(device=state.device), args.tokens_per_batch)
        return None

    labels = [config.id2label[label] for label in range(config.num_labels)]
    settings = {
        "text_column_name": args.text_column_name,
        "id_column_name": args.id_column_name,
        "rows_per_shard": args.rows_per_shard,
        "format": args.format,
        "dtype": str(dtype).removeprefix("torch."),
    }
    later = {"quoting": "auto", "text_column_delimiter": " ", "tokens_per_batch": None}
    # Scores from before these flags keep their settings.
    settings |= {name: getattr(args, name) for name, default in later.items() if getattr(args, name) != default}
    about = {"command": command_line(), "precision": begun.get("precision", chosen.record())}
    folder = ScoreFolder(args.output, source, {"name": args.model, "version": version}, labels, settings, about)
    if state.num_processes > 1 and state.is_main_process:
        print(f"{state.num_processes} processes share the shards", file=sys.stderr)
    shards = write_shards(folder, args, load, state, ray)
    state.wait_for_everyone()
    return folder, shards, getattr(config, "abstain_below", None) is not None  # the library's own have none


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


def ray_cluster(args: argparse.Namespace, name: str, state: PartialState) -> AbstractContextManager[Any]:
    """Return the Ray cluster to enter.

    Raises:
        InputError: if the extra is not installed, or the flags do not go with it.
    """
    if state.num_processes > 1 or args.part != (0, 1):
        raise InputError("--engine ray shares the work itself; start one process, without --part")
    if args.output is None or name == "-":
        raise InputError("--engine ray writes shards of a file or a folder; give --input and --output FOLDER")
    try:
        from trainer_ext.scoring.cluster import cluster
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'emodeberta[ray]'") from error
    return cluster(args.num_gpus_per_worker)


def choose_precision(args: argparse.Namespace, begun: dict, faster: Callable[[], Choice]) -> Choice:
    """Return the dtype of the flags, else that of the scores already in the folder, else the faster one.

    Args:
        begun: Manifest of the scores in the folder, or an empty dict.
        faster: Finds it out.
    """
    if args.dtype:
        return Choice(SHORT.get(args.dtype, args.dtype), "as the flags say")
    dtype = begun.get("settings", {}).get("dtype")
    if dtype in ("float32", *SHORT):
        return Choice(SHORT.get(dtype, dtype), "as the scores in the folder")
    return faster()


def write_shards(
    folder: ScoreFolder,
    args: argparse.Namespace,
    load: Callable[..., EmotionPipeline],
    state: PartialState,
    ray: Any,
) -> int:
    """Score this process's share of the missing shards, or Ray's workers all of them, and return the number of shards
    in all.

    Raises:
        ProcessError: if the input cannot be read to its end, memory runs out, or a shard cannot be written.
    """
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
            for finished, count in ray.write_shards(folder, load, args.tokens_per_batch) if ray else ():
                number = max(number, finished)
                progress.update(count)
            for number, rows in () if ray else folder.shards(share, shares):
                if rows:
                    if classify is None:
                        classify = load(device=state.device)
                    scores = score(classify, rows, args.tokens_per_batch, progress, state.num_processes)
                    folder.write(number, rows, scores)
        except UnreadableFile as error:
            folder.forget(error.file)
            raise ProcessError(f"{error}; {len(folder.finished())} shards before it stay valid") from error
        except InputError as error:  # that the first process may not meet
            raise ProcessError(str(error)) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            other = " and another --output, for those there were made with as many" if folder.finished() else ""
            raise ProcessError(f"out of memory; give fewer --tokens_per_batch{other} ({first_line(error)})") from error
        except OSError as error:
            raise ProcessError(
                f"{folder.folder}: cannot write a shard ({error.strerror or first_line(error)}); "
                f"{len(folder.finished())} are there and stay valid; start again in the same way when that is put right"
            ) from error
    return number + 1


def summarise(folder: ScoreFolder, shards: int, abstains: bool, args: argparse.Namespace) -> None:
    """Write the manifest and print a summary of the scores, or which part is done if others are missing.

    Args:
        shards: How many there are in all.
        abstains: Whether the model gives no label that is not probable enough.

    Raises:
        InputError: if shards are missing or damaged that should be there.
    """
    manifest = folder.close(shards)
    if manifest is None and args.engine == "ray":
        raise InputError(f"{folder.folder}: not all shards are there; start again in the same way")
    if manifest is None:
        print(f"part {args.part[0] + 1} of {args.part[1]} is done; {folder.folder}/ does not have all parts yet")
        return
    scored = manifest["rows"] - manifest["errors"]
    unsure = scored - sum(manifest["label_counts"].values()) if abstains else 0
    scored -= unsure
    print(f"{manifest['rows']:,} rows, {scored:,} with a label:", end=" ")
    counts = ", ".join(f"{name} {count / max(scored, 1):.1%}" for name, count in manifest["label_counts"].items())
    print(one_line(counts))
    if unsure:
        print(f"{unsure:,} rows have no label, because the best one is less probable than the model's abstain_below")
    if manifest["errors"]:
        print(f"{manifest['errors']:,} rows have an error instead of a label; the first: {manifest['first_error']}")
    if manifest["truncated"]:
        print(f"{manifest['truncated']:,} texts are longer than the model reads and were cut")
    print(f"saved to {folder.folder}/, manifest.json tells the shards")


if __name__ == "__main__":
    run_command(main)
