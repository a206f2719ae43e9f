"""Measure how fast this machine is, to estimate how long trainings take."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..errors import InputError
from ..training.checkpoint_source import resolve_checkpoint
from .trial_record import RECORD, read_record


def machine(jobs: int = 1) -> str:
    """Return the name of the hardware, and how many trainings share it."""
    name = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if torch.cuda.is_available():
        name, jobs = torch.cuda.get_device_name(), -(-jobs // torch.cuda.device_count())
    return name if jobs == 1 else f"{name}, {jobs} trainings at a time"


def matrix_gflops() -> float:
    """Return the measured speed of a matrix product of a typical layer's size, in billion operations per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = torch.ones(1024, 768, device=device), torch.ones(768, 768, device=device)
    spent = []
    for _ in range(7):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        spent.append(time.perf_counter() - start)
    return 2e-9 * 1024 * 768 * 768 / min(spent)


def measured_rate(folder: Path, jobs: int, gflop: float = 0.0) -> float | None:
    """Return the median seconds per billion operations of earlier trials, or `None` if there are none.

    Only trials count that ran on this machine, without a break and with as many at a time. Much smaller ones than the
    training in question do not count: their time is mostly that of the start.

    Args:
        folder: Folder of the trials.
        jobs: Trainings at a time.
        gflop: Billion operations of the training in question.
    """
    rates = []
    for path in folder.glob(f"*/{RECORD}"):
        with suppress(InputError):  # perhaps of another comparison, which will say so
            record = read_record(path.parent)
            here = record["machine"] == machine(jobs) and not record["resumed"]
            if here and record["gflop"] and record["gflop"] >= gflop / 10:
                rates.append(record["seconds"] / record["gflop"])
    return statistics.median(rates) if rates else None


def training_gflop(settings: dict[str, Any], held_out: float, texts: Sequence[str], checkpoint: str) -> float:
    """Estimate how many billion operations a training's matrix products take: 6 for each weight and token.

    Args:
        settings: The training's flags.
        held_out: Share of the texts that it does not see.
        texts: The texts, from which the number of tokens is estimated.
        checkpoint: The checkpoint it starts from.
    """
    tokens = [min(2 + 1.35 * len(text.split()), settings["max_seq_length"]) for text in texts]
    rows = len(tokens) * (1 - held_out) * settings["num_train_epochs"]
    if settings["max_steps"] > 0:
        rows = settings["max_steps"] * settings["per_device_train_batch_size"]
    return 6e-9 * _weights_of(checkpoint) * rows * statistics.mean(tokens)


@functools.cache
def _weights_of(checkpoint: str) -> int:
    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_checkpoint(checkpoint))
    except OSError as error:
        raise InputError(f"{checkpoint}: no config.json there ({str(error).strip().splitlines()[0]})") from error
    width, inner = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)
