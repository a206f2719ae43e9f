"""Draw or threshold the masks of a child network, and apply them in place."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Shard

from .checks import ChildTuningError

# Entries to mask at a time on CPU. This many stay in the processor's cache over all passes.
CHUNK = 2**17
# A matrix with this many rows is mostly zero if it is an embedding's gradient. Its all-zero rows are skipped.
MANY_ROWS = 2**14
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Draws:
    """A generator of random masks for one parameter at one step: bool tensors, true with probability p.

    Masks are made from 16-bit parts of 64-bit random numbers. On CPU these come from numpy's SFC64, which is five times
    as fast as torch's generator. On other devices they come from torch.

    Args:
        p: Probability, rounded to a multiple of 1/65,536.
        seed: See `mask_seed`.
        device: Device of the masks.
    """

    def __init__(self, p: float, seed: int, device: torch.device | str):
        self.device = torch.device(device)
        self._levels = kept_levels(p)
        on_cpu = self.device.type == "cpu"
        self._numpy = np.random.SFC64(seed) if on_cpu else None
        self._torch = None if on_cpu else torch.Generator(self.device).manual_seed(seed)

    def next(self, count: int) -> torch.Tensor:
        """Return the next mask, `(count,)`. Each call starts with a new 64-bit number."""
        number = -(-count // 4)
        if self._numpy is not None:
            draws = torch.from_numpy(self._numpy.random_raw(number).view(np.int16))
        else:
            draws = torch.empty(number, dtype=torch.int64, device=self.device)
            draws = draws.random_(-(2**63), None, generator=self._torch).view(torch.int16)
        if self._levels == 2**16:
            return torch.ones(count, dtype=torch.bool, device=self.device)
        return draws[:count] < self._levels - 2**15


Mask = torch.Tensor | Callable[[int], torch.Tensor]  # a bool tensor, or a function from a count to the next mask


def keep(values: torch.Tensor, kept: Mask, divisor: float | None = None) -> None:
    """Zero the entries of `values` that are not kept, and divide the others by `divisor`, in place.

    The entries' bits are multiplied by 0 or 1 as integers, which is several times as fast as a masked fill.
    """
    for (part,), bits in _masked_parts(kept, values):
        _integers(part).mul_(bits)
        if divisor is not None:
            part.div_(divisor)


def put_back(values: torch.Tensor, before: torch.Tensor, kept: Mask) -> None:
    """Restore the entries of `values` that are not kept from `before`, in place, bit for bit.

    `before` is overwritten.
    """
    for (part, old), bits in _masked_parts(kept, values, before):
        part, old = _integers(part), _integers(old)
        bits.mul_(torch.bitwise_xor(part, old, out=part))  # what changed, where it is kept
        torch.bitwise_xor(old, bits, out=part)


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor's bits as integers."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def _masked_parts(kept: Mask, *tensors: torch.Tensor) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Yield parts of equally large tensors, as views, and the mask of each part as integers 0 or 1 of the same size.

    On CPU, the parts fit in the processor's cache. On other devices, or if a tensor is not contiguous, there is one
    part: the whole tensors.
    """
    fits = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    parts = zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True) if fits else [tensors]
    dtype, done, buffer = _INTEGERS[tensors[0].element_size()], 0, None
    for part in parts:
        count = part[0].numel()
        mask = kept(count) if callable(kept) else kept.reshape(-1)[done : done + count]
        if buffer is None:
            buffer = torch.empty(count, dtype=dtype, device=part[0].device)
        done += count
        yield part, buffer[:count].copy_(mask).view(part[0].shape)


def highest_share(values: list[torch.Tensor], p: float, sharded: bool = False) -> float:
    """Return the threshold that a share p of all entries reach, by bisection, without concatenating or sorting them.

    The threshold is above 0, so that an entry without information is never in a child.

    Args:
        values: Float32 tensors without negative entries.
        p: Share in (0, 1].
        sharded: Whether each process of the default group holds only a part of the entries.
    """
    bits = [
        value.view(torch.int32) for value in values
    ]  # floats that are not negative have the same order as their bits

    def total(count: int) -> int:
        if sharded:
            counted = torch.tensor(count, device=values[0].device)
            torch.distributed.all_reduce(counted)
            return int(counted)
        return count

    wanted = max(1, round(p * total(sum(value.numel() for value in values))))
    low, high = 1, torch.tensor(float("inf")).view(torch.int32).item()
    while low < high:  # the largest threshold that enough entries reach
        middle = (low + high + 1) // 2
        if total(sum(int((value >= middle).sum()) for value in bits)) >= wanted:
            low = middle
        else:
            high = middle - 1
    return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()


def mask_seed(seed: int, step: int, parameter: int, shard: int | None = None) -> int:
    """Return a 63-bit seed for the mask of one parameter (or of one shard of it) at one optimizer step.

    Rounds of the splitmix64 finalizer (https://prng.di.unimi.it/splitmix64.c) make the random streams of neighbours
    independent.
    """
    key = 0
    for part in (seed, step, parameter) if shard is None else (seed, step, parameter, shard):
        key = (key + part + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return key >> 1


def kept_levels(p: float) -> int:
    """Return how many of the 65,536 values of a 16-bit number count as kept for probability p."""
    return max(1, round(p * 2**16))


def stored_gradient(parameter: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the stored values of a parameter's gradient, to mask in place, and their indices in the parameter.

    For a dense gradient, these are the whole gradient and no indices. A sparse gradient is first coalesced: entries
    with the same index are summed.

    Raises:
        ChildTuningError: if the gradient has a layout or an element size that cannot be masked.
    """
    gradient = local_part(parameter.grad)
    if gradient.element_size() not in _INTEGERS or gradient.layout not in (torch.strided, torch.sparse_coo):
        raise ChildTuningError(f"Child-Tuning does not mask gradients of {gradient.dtype}, {gradient.layout}")
    if not gradient.is_sparse:
        return gradient, ()
    if not gradient.is_coalesced():
        parameter.grad = gradient = gradient.coalesce()
    return gradient.values(), tuple(gradient.indices())


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a `DTensor`, as a view; any other tensor is returned itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_number(parameter: torch.Tensor) -> int | None:
    """Return the number of the shard of a `DTensor` that this process holds, or `None` if it is not sharded."""
    if not isinstance(parameter, DTensor):
        return None
    number = None
    for dimension, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            coordinate = parameter.device_mesh.get_local_rank(dimension)
            number = (number or 0) * parameter.device_mesh.size(dimension) + coordinate
    return number
