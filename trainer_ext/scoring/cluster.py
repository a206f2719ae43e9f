"""Score on a Ray cluster: Ray Data reads, schedules and tries again, and the folder of scores keeps its contract.

The driver plans runs of consecutive shards from the number of rows in each file. A task reads a run and yields a block
for each shard, the same blocks in the same order whenever Ray repeats it. It reads with the project's own reader: a row
that cannot be read keeps its place and gets its reason, where Ray's readers stop or leave it out. The actors of a pool
load the model once and leave each shard and its record as a process of run_score.py does. Texts and scores never
come to the driver. Tasks that read do not import torch, because that takes a process seconds. The driver does so while
Ray starts.
"""

import logging
import os
import pickle
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import RayError, RayTaskError

from ..errors import InputError, ProcessError, first_line
from .score_folder import ScoreFolder

if TYPE_CHECKING:
    from tqdm import tqdm

_MOST_TASKS = 1000  # of one kind; the driver keeps a few objects for each
_OF_A_USER = (InputError, OSError, MemoryError)


class Run(NamedTuple):
    """Consecutive shards that one task reads, from where the first of them begins.

    Attributes:
        file, group: Where reading starts: a file and, in parquet, one of its row groups.
        skip: How many rows from there belong to the shard before.
        first: Number of the first shard.
        shards: How many there are, or `None` for all up to the end of the input.
    """

    file: int
    group: int
    skip: int
    first: int
    shards: int | None


def plan(groups: list[list[int | None]], rows_per_shard: int) -> list[Run]:
    """Return the runs of all shards: one for each row group or text file in which a shard begins.

    Args:
        groups: By file, the rows of each row group, of text files their rows. The last may be `None`, not known.
    """
    runs, row = [], 0
    for file, counts in enumerate(groups):
        for group, count in enumerate(counts):
            first = -(-row // rows_per_shard)
            after = None if count is None else -(-(row + count) // rows_per_shard)
            if after is None or first < after:
                runs.append(Run(file, group, first * rows_per_shard - row, first, after and after - first))
            row += count or 0
    return runs


@contextmanager
def cluster(model: tuple[str, str | None, str | None], gpus_per_worker: float | None) -> Iterator["Cluster"]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine until the end of the `with` block.

    Args:
        model: Name of the classifier, its revision and the token for the Hub.
        gpus_per_worker: GPUs of each worker, also a part of one; `None` for one if the cluster has any.

    Raises:
        InputError: if the cluster does not answer, or has no room for one worker.
        ProcessError: if Ray fails within the block.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its messages are in Ray's log files
    address = os.environ.get("RAY_ADDRESS") or "local"
    options = {}
    if address == "local":
        options = {"include_dashboard": False}
        os.environ.setdefault("RAY_worker_niceness", "0")  # as without Ray; its workers give way to all else
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")  # a busy machine takes long to start one
    # What a node says when it dies goes to standard output, in dozens of lines.
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        _ended_by_signals() as take_signals,
        ThreadPoolExecutor(1) as thread,
    ):
        thread.submit(_import_scorer)  # takes seconds, and so does Ray
        try:
            if found := re.search(r"([^/:]+):(\d+)$", address):  # Ray itself tries for minutes
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            with _no_stderr(nowhere):
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
            take_signals()  # Ray's own handler prints a stack
        except Exception as error:  # Ray raises many kinds, also bare ones
            wrong = "Ray does not start" if address == "local" else f"RAY_ADDRESS {address}: no Ray cluster to be used"
            raise InputError(f"{wrong} ({first_line(error)})") from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # bytes: a block for each shard
        try:
            warnings.filterwarnings("ignore", module=r"ray\.")  # of workers that are left without a shard
            yield Cluster(model, gpus_per_worker, local=address == "local")
        except RayTaskError:
            raise  # a fault of the program
        except RayError as error:
            raise ProcessError(f"Ray gave up ({first_line(error)}); start again in the same way") from error
        finally:
            ray.shutdown()


@contextmanager
def _ended_by_signals() -> Iterator[Callable[[], None]]:
    """End this process at once on Ctrl-C or SIGTERM within a `with` block. A Ray that it started ends with it.

    Yield a function that takes SIGTERM back after Ray has installed its own handler.

    A thread ends the process, because an exception of a handler in the middle of Ray's code is lost, or aborts.
    """
    if threading.current_thread() is not threading.main_thread():  # which gets the signals
        yield lambda: None
        return
    stderr = os.dup(2)
    signals, written = socket.socketpair()

    def end() -> None:
        while number := signals.recv(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                os.write(stderr, b"\nstopped; start it again in the same way\n")
                os._exit(128 + number[0])

    written.setblocking(False)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = signal.set_wakeup_fd(written.fileno())
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    try:
        yield lambda: signal.signal(signal.SIGTERM, signal.default_int_handler)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        written.close()
        thread.join()
        signals.close()
        os.close(stderr)


@contextmanager
def _no_stderr(nowhere: TextIO) -> Iterator[None]:
    """Hide what Ray's processes print on standard error while they start, within a `with` block."""
    kept = os.dup(2)
    os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Cluster:
    """A Ray cluster that is connected, with the methods of [`trainer_ext.scoring.scorer.Processes`].

    Attributes:
        workers: How many workers fit at once.
        gpus: GPUs of each worker.
    """

    count, first = 1, True

    def __init__(self, model: tuple[str, str | None, str | None], gpus: float | None, local: bool):
        self._model, self._local = model, local
        has = ray.cluster_resources()
        self.gpus = float(has.get("GPU", 0) >= 1) if gpus is None else gpus
        self.workers = int(has.get("GPU", 0) / self.gpus) if self.gpus else int(has.get("CPU", 0))
        self._device = "cuda" if self.gpus else "cpu"
        if not self.workers:
            raise InputError(
                f"the Ray cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, and a worker wants "
                f"{f'{self.gpus:g} GPUs; give fewer --num_gpus_per_worker' if self.gpus else 'a CPU'}"
            )

    def classifier(self) -> tuple[list[str], str]:
        """Return the labels and the version of the classifier."""
        from .scorer import open_classifier

        described, self._load = open_classifier(*self._model)
        return described

    def faster_precision(self) -> dict[str, Any]:
        """Return the faster precision of a worker and why, as a record of a [`Choice`]."""
        if self._local and not self.gpus:
            return _faster_precision(self._device)
        return ray.get(ray.remote(num_cpus=1, num_gpus=self.gpus)(_faster_precision).remote(self._device))

    def each(self, function: Callable[[int], Any], numbers: range) -> list[Any]:
        """Call a function with each number, on any node, and return the results in order.

        Raises:
            InputError: the first of those that the function raises.
        """
        home, shared, size = Path.cwd(), ray.put(function), -(-len(numbers) // _MOST_TASKS) or 1

        @ray.remote(max_retries=-1)
        def call(function: Callable[[int], Any], part: range) -> bytes:
            return _outcome(home, lambda: [function(number) for number in part])

        parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        outcomes = ray.get([call.remote(shared, part) for part in parts])
        return [value for outcome in outcomes for value in _opened(outcome)]

    def write_shards(
        self, folder: ScoreFolder, dtype: str, tokens_per_batch: int | None, part: tuple[int, int], progress: "tqdm"
    ) -> Iterator[int]:
        """Score the missing shards, and yield the number of each shard that is there.

        Raises:
            InputError, OSError, MemoryError: as in a process that scores. Nothing is written any more.
        """
        with folder.claimed(0, 1):
            kept = {number for number in folder.finished() if folder.keeps(number)}
            yield from kept
            folder.begin()
            runs = plan(self.each(folder.source.count, range(len(folder.source.files))), folder.rows_per_shard)
            if not runs:
                return
            home = Path.cwd()

            def read(batch: dict[str, Any]) -> Iterator[dict[str, list]]:
                for index in batch["id"]:
                    for number, rows in _read(home, folder, runs[index], kept):
                        yield {"number": [number], "rows": [rows]}

            nodes, about = _living_nodes(), folder.source.rows
            most = self.workers if about is None else min(self.workers, about // folder.rows_per_shard + 1)
            blocks = min(len(runs), _MOST_TASKS)
            shards = ray.data.from_items([{"id": index} for index in range(len(runs))], override_num_blocks=blocks)
            # Reading takes little of a processor, so that every one can have a worker.
            readers = TaskPoolStrategy(size=min(self.workers, blocks))
            shards = shards.map_batches(read, batch_size=None, num_cpus=0, compute=readers)
            shards = shards.map(
                _Worker,
                fn_constructor_args=(home, folder, self._load, dtype, tokens_per_batch, self._device),
                compute=ActorPoolStrategy(size=most),
                num_cpus=1,
                num_gpus=self.gpus,
            )
            for shard in shards.iter_rows():
                try:
                    progress.update(_opened(shard["outcome"]))
                    yield shard["number"]
                except _OF_A_USER:
                    ray.shutdown()  # no worker writes a shard after this
                    raise
            if died := nodes - _living_nodes():
                print(f"{len(died)} nodes of the cluster died; the others did their work", file=sys.stderr)


class _Worker:
    """An actor of the pool, which loads the model for its first shard and keeps it."""

    def __init__(
        self,
        home: Path,
        folder: ScoreFolder,
        load: Callable[..., Any],
        dtype: str,
        tokens_per_batch: int | None,
        device: str,
    ):
        self._home, self._folder, self._load, self._dtype = home, folder, load, dtype
        self._tokens_per_batch, self._device, self._classify = tokens_per_batch, device, None
        self._scorer = _import_scorer()  # takes seconds, in which the first shards are read

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        outcome = _outcome(self._home, self._score, shard["number"], shard["rows"])
        return {"number": shard["number"], "outcome": outcome}

    def _score(self, number: int, read: bytes) -> int:
        import torch

        rows = _opened(read)
        if not self._folder.folder.is_dir():
            raise InputError(
                f"{self._folder.folder}: not seen by {socket.gethostname()}; give a folder that all nodes see"
            )
        try:
            if self._classify is None:
                self._classify = self._load(dtype=self._dtype, device=torch.device(self._device))
            scores = self._scorer.score(self._classify, rows, self._tokens_per_batch)
        except torch.OutOfMemoryError as error:
            raise MemoryError(first_line(error)) from error
        self._folder.write(number, rows, scores)
        return len(rows)


def _read(home: Path, folder: ScoreFolder, run: Run, kept: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the shards of a run that are not kept, the last one with an error instead of rows if reading ends there."""
    stop = None if run.shards is None else run.skip + run.shards * folder.rows_per_shard
    number = run.first
    try:
        _go(home)
        rows = islice(folder.source.rows_from(run.file, run.group), run.skip, stop)
        for number, shard in folder.cut(rows, run.first, lambda number: number not in kept):
            if shard:
                yield number, pickle.dumps(shard)
    except _OF_A_USER as error:
        yield number, pickle.dumps(error)


def _go(home: Path) -> None:
    """Make paths that are relative to the driver's folder mean the same here, if there is such a folder."""
    with suppress(OSError):
        os.chdir(home)


def _outcome(home: Path, function: Callable[..., Any], *args: Any) -> bytes:
    """Return what a function returns, or the error that a user can mend, for [`_opened`]."""
    try:
        _go(home)
        return pickle.dumps(function(*args))
    except _OF_A_USER as error:
        return pickle.dumps(error)


def _opened(outcome: bytes) -> Any:
    """Return what [`_outcome`] holds.

    Raises:
        Exception: if it is an error.
    """
    value = pickle.loads(outcome)
    if isinstance(value, Exception):
        raise value
    return value


def _import_scorer() -> ModuleType:
    from . import scorer

    return scorer


def _faster_precision(device: str) -> dict[str, Any]:
    import torch

    from ..precision import choose

    return choose(torch.device(device)).record()


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
