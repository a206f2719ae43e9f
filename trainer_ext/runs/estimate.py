"""Measure how fast this machine is, to estimate how long trainings take."""

import os
import platform
import time

import torch


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
