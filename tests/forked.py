"""Scripts in processes of their own that start in a tenth of a second, where a new Python takes ten to import.

They are forked off a process that has imported what all of them need and has done nothing else. What Python or a
library reads when it starts or is imported (HF_HUB_OFFLINE, PYTHONPATH) is as it was for that process; a test of that
wants `subprocess`.

As a script, `forked.py JOB ...`, this file does what tests want of two connected processes; the jobs are at its end.
"""

import contextlib
import hashlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from trainer_ext import ChildTuningArguments, ChildTuningTrainer
from trainer_ext.child_tuning import ChildNetwork
from trainer_ext.training.trainer import ResumableTrainer
from trainer_ext.training.warm_start import warm_start

ROOT = Path(__file__).parents[1]
# In the environment of a script: where the server is, so that the trainings that it starts are forked as well. A test
# that kills the script sets it to "".
SERVER = "EMODEBERTA_TESTS_FORK_SERVER"
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["run_classify", "run_compare", "run_export", "run_fuse", "run_mlm", "run_score", "run_search"]
)


def _server() -> str:
    """Start the server if it does not run, and return its address."""
    if address := forkserver._forkserver._forkserver_address:
        return address
    before, path = Path.cwd(), os.environ.get("PYTHONPATH")
    os.chdir(ROOT)  # a test's folder may have files that are called like the project's
    os.environ["PYTHONPATH"] = str(ROOT)  # the server reads it when it starts
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if path is None else {"PYTHONPATH": path}
    return forkserver._forkserver._forkserver_address


def _run(script: str, arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    multiprocessing.current_process()._config["daemon"] = False  # it may start processes, too
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    sys.argv = [script, *arguments]
    if "OMP_NUM_THREADS" in env:
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    if server := env.get(SERVER):  # instead of a server of its own
        forkserver._forkserver._forkserver_address = server
        forkserver._forkserver.ensure_running = lambda: None
    with trainings() if server else contextlib.nullcontext():
        if script.endswith(".py"):
            runpy.run_path(script, run_name="__main__")
        else:
            sys.path = [path for path in sys.path if path not in ("", cwd)]  # as with -P
            runpy.run_module(script, run_name="__main__", alter_sys=True)


class _Training:
    """What the driver of trials starts instead of a new Python: the same script, forked off the same server."""

    def __init__(self, command: list, env: dict[str, str], stdout, **options):
        self.args = command
        _server()
        script, *arguments = (part for part in map(str, command[1:]) if part not in ("-P", "-m"))
        self._process = _context.Process(
            target=_run, args=(script, arguments, os.getcwd(), env, stdout.name, stdout.name), daemon=True
        )
        self._process.start()

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


@contextlib.contextmanager
def trainings():
    """Fork the trainings of a comparison or fusion, whose start takes longer than they do.

    They do not hold their driver's lock, so a test that kills the driver wants new Pythons.
    """
    import subprocess

    from trainer_ext.runs import trials

    _server()  # now: it changes the folder for a moment, and a driver has threads
    real = trials.subprocess
    trials.subprocess = type("subprocess", (), vars(subprocess) | {"Popen": _Training})
    try:
        yield
    finally:
        trials.subprocess = real


class Forked:
    """A script that runs, as one process or as several that are connected as `torchrun` connects them.

    Looks like `subprocess.Popen`, with the first process's output.
    """

    def __init__(self, script: str | Path, *arguments: object, cwd: Path, env: dict[str, str] | None = None, ranks=1):
        self.args = [str(script), *map(str, arguments)]
        self.returncode: int | None = None
        self._said = tempfile.TemporaryDirectory()
        env = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
            env |= {"LOCAL_WORLD_SIZE": str(ranks)}
        self.processes = []
        env = {SERVER: _server()} | env
        for rank in range(ranks):
            files = [f"{self._said.name}/{name}{rank}" for name in ("out", "err")]
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            process = _context.Process(
                target=_run, args=(self.args[0], self.args[1:], str(cwd), dict(env | of_rank), *files), daemon=True
            )
            process.start()
            self.processes.append(process)

    def poll(self) -> int | None:
        return None if any(process.is_alive() for process in self.processes) else self.wait()

    def kill(self) -> None:
        """SIGKILL to all, as the kernel sends it when memory runs out."""
        for process in self.processes:
            process.kill()
        self.wait()

    def send_signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def wait(self, timeout: float = 600) -> int:
        for process in self.processes:
            process.join(timeout)
            if process.is_alive():
                for each in self.processes:
                    each.kill()
                raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
        self.returncode = next((process.exitcode for process in self.processes if process.exitcode), 0)
        return self.returncode

    def _read(self, name: str) -> str:
        path = Path(self._said.name, name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def stdout(self) -> str:
        return self._read("out0")

    @property
    def stderr(self) -> str:
        return "".join(self._read(f"err{rank}") for rank in range(len(self.processes)))


def run(script: str | Path, *arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    """A script's run to its end."""
    started = Forked(script, *arguments, **options)
    started.wait()
    assert not check or started.returncode == 0, f"{started.args}\n{started.stdout[-2000:]}\n{started.stderr[-4000:]}"
    return subprocess.CompletedProcess(started.args, started.returncode, started.stdout, started.stderr)


# ---- Jobs of two connected processes
STEPS = 20
P = 0.3


# ---- ChildTuningTrainer under DDP: replicas, and a run resumed from a checkpoint -------------------------------------
def train(folder: Path, checkpoint: str, resume: str | None, **options) -> tuple[str, ChildTuningTrainer]:
    """The hash of this replica's weights after training on texts of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = ["gate " * (1 + 7 * index % 11) + "and the dog" for index in range(96)]
    rows = Dataset.from_dict(
        {**tokenizer(texts, return_token_type_ids=False), "labels": [index % 3 for index in range(96)]}
    )
    args = ChildTuningArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=8,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    torch.manual_seed(7)
    trainer = ChildTuningTrainer(
        model=warm_start(checkpoint, num_labels=3), args=args, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=resume)
    values = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
    return hashlib.sha256(values).hexdigest(), trainer


def replicas_agree(checkpoint: str, folder: str) -> None:
    for variant in ("F", "D"):
        for target in ("gradient", "update"):
            name = f"{variant}-{target}"
            options = {"child_tuning": variant, "child_tuning_target": target, "child_tuning_p": 0.3}
            straight, trainer = train(Path(folder, name), checkpoint, None, **options)
            assert trainer.args.world_size == dist.get_world_size() == 2
            replicas: list[str | None] = [None, None]
            dist.all_gather_object(replicas, straight)
            assert replicas[0] == replicas[1], f"{name}: replicas differ"
            resumed, _ = train(Path(folder, name), checkpoint, str(Path(folder, name, "checkpoint-8")), **options)
            assert resumed == straight, f"{name}: the resumed run differs"
            if dist.get_rank() == 0:
                print(f"{name}: replicas and resumed run identical")


# ---- Child-Tuning on parameters sharded by FSDP2 over gloo -----------------------------------------------------------
def sharded_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(2)]
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), *layers, torch.nn.Linear(64, 3))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())  # every process has rows of its own
    return model(torch.randn(4, 5, 16, generator=generator)).float().pow(2).mean()


def check(variant: str, target: str) -> None:
    model = sharded_model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    child = ChildNetwork(optimizer, variant, P, target, scope="all", seed=3)
    if variant == "D":
        child.find(model, (loss(model, step) for step in range(3)))
        counts = torch.tensor([sum(int(m.sum()) for m in child.masks), sum(m.numel() for m in child.masks)])
        dist.all_reduce(counts)
        assert abs(counts[0] / counts[1] - P) < 1e-3, counts  # over all shards, not in each
    for step in range(3):
        loss(model, step).backward()
        assert all(isinstance(p.grad, DTensor) for p in model.parameters())
        gradients = [p.grad.to_local().clone() for p in model.parameters()]
        weights = [p.to_local().detach().clone() for p in model.parameters()]
        child.measure = True
        optimizer.step()
        kept, seen = child.kept
        assert seen == sum(gradient.numel() for gradient in gradients)
        if variant == "F":
            assert abs(kept / seen - P) < 4 * (P * (1 - P) / seen) ** 0.5, kept / seen
        bits = []
        for p, gradient, old in zip(model.parameters(), gradients, weights, strict=True):
            if target == "gradient":
                now, scale = p.grad.to_local(), P if variant == "F" else 1
                mask = now != 0
                torch.testing.assert_close(now[mask] * scale, gradient[mask], rtol=1e-4, atol=1e-7)
            else:
                mask = p.to_local() != old
            bits.append(mask.flatten())
        if variant == "D":
            assert not (torch.cat(bits) & ~torch.cat([mask.flatten() for mask in child.masks])).any()
        else:  # independent streams; a matrix of 3 rows is not cut in equal shards
            everyones: list[list[torch.Tensor] | None] = [None, None]
            dist.all_gather_object(everyones, bits)
            pairs = [(one, other) for one, other in zip(*everyones, strict=True) if one.shape == other.shape]
            one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
            assert len(pairs) > 20
            expected = one.float().mean() * other.float().mean()
            assert abs((one & other).float().mean() - expected) < 0.01
        optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"{variant}, {target}: sharded gradients masked on {dist.get_world_size()} processes")


def sharded_gradients_are_masked() -> None:
    dist.init_process_group("gloo")
    for variant in ("F", "D"):
        for target in ("gradient", "update"):
            check(variant, target)


# ---- run_classify.py with its model sharded by FSDP2 on the CPU ------------------------------------------------------
def sharded_classify(*flags: str) -> None:
    """Accelerate shards only beside an accelerator: it is told that these processes are of that kind, and all the rest,
    gloo's collectives included, is real."""
    plain = PartialState.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    import run_classify

    sys.argv = ["run_classify.py", *flags]
    run_classify.main()


# ---- Two processes save a checkpoint, the second slowly: when the state is there, is its random state? ---------------
class Slow(ResumableTrainer):
    def _save_scaler(self, output_dir: str) -> None:  # what comes before the random state
        super()._save_scaler(output_dir)
        if self.args.process_index == 1:
            time.sleep(2)


class Look(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 0:
            folder = Path(args.output_dir, "checkpoint-1")
            is_there = (folder / "trainer_state.json").exists() and (folder / "rng_state_1.pth").exists()
            print(f"complete when the state was there: {is_there}", flush=True)


class Model(torch.nn.Linear):
    def forward(self, values):
        return {"loss": super().forward(values).square().mean()}


def save_slowly(folder: str) -> None:
    options = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "remove_unused_columns": False}
    args = TrainingArguments(folder, max_steps=1, save_steps=1, **options)
    Slow(Model(4, 2), args, train_dataset=[{"values": torch.ones(4)}] * 32, callbacks=[Look()]).train()


JOBS = {job.__name__: job for job in (replicas_agree, sharded_gradients_are_masked, sharded_classify, save_slowly)}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
    if sys.argv[1] != "sharded_classify":  # which ends its processes itself
        dist.barrier()  # else one process may leave while gloo still talks to it
        dist.destroy_process_group()
