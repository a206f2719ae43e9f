"""Scripts in processes of their own that start in a tenth of a second, where a new Python takes ten to import.

They are forked off a process that has imported what all of them need and has done nothing else. What Python or a
library reads when it starts or is imported (HF_HUB_OFFLINE, PYTHONPATH) is as it was for that process; a test of that
wants `subprocess`.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

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
