"""Masks of a child network: drawn or thresholded, and applied in place, a piece of a tensor at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Shard

from .checks import ChildTuningError

# Entries masked at a time on CPU: from the first pass over them to the last they stay in the cache.
CHUNK = 2**17
# In a matrix with so many rows, those that are all zero are passed over: an embedding's, of tokens not in the batch.
MANY_ROWS = 2**14
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Draws:
    """Where one parameter's child begins and ends at one step: bool tensors, true with probability p.

    16-bit numbers are cut from 64-bit draws: of numpy's SFC64 on CPU, five times as fast as torch's generator there,
    of torch's own elsewhere.

    Args:
        p: Rounded to the next of 1/65,536 to 65,536/65,536.
        seed: See [`mask_seed`].
        device: Of the masks.
    """

    def __init__(self, p: float, seed: int, device: torch.device | str):
        self.device = torch.device(device)
        self._levels = kept_levels(p)
        on_cpu = self.device.type == "cpu"
        self._numpy = np.random.SFC64(seed) if on_cpu else None
        self._torch = None if on_cpu else torch.Generator(self.device).manual_seed(seed)

    def next(self, count: int) -> torch.Tensor:
        """The next `(count,)`; a new 64-bit draw begins it."""
        number = -(-count // 4)
        if self._numpy is not None:
            draws = torch.from_numpy(self._numpy.random_raw(number).view(np.int16))
        else:
            draws = torch.empty(number, dtype=torch.int64, device=self.device)
            draws = draws.random_(-(2**63), None, generator=self._torch).view(torch.int16)
        if self._levels == 2**16:
            return torch.ones(count, dtype=torch.bool, device=self.device)
        return draws[:count] < self._levels - 2**15


Mask = torch.Tensor | Callable[[int], torch.Tensor]  # bools of a tensor's size, or what gives the next so many


def keep(values: torch.Tensor, kept: Mask, divisor: float | None = None) -> None:
    """Zero, in place, what is not kept, and divide the rest.

    As integers, whose product with a bit is several times as fast as a masked fill.
    """
    for (part,), bits in _masked_parts(kept, values):
        _integers(part).mul_(bits)
        if divisor is not None:
            part.div_(divisor)


def put_back(values: torch.Tensor, before: torch.Tensor, kept: Mask) -> None:
    """`before` in place of `values`, in place and to the bit, where they are not kept; uses `before` up."""
    for (part, old), bits in _masked_parts(kept, values, before):
        part, old = _integers(part), _integers(old)
        bits.mul_(torch.bitwise_xor(part, old, out=part))  # what changed, where it is kept
        torch.bitwise_xor(old, bits, out=part)


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def _masked_parts(kept: Mask, *tensors: torch.Tensor) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Views of equally large tensors, in order, and 0 or 1 for each entry, as an integer of its size.

    On CPU they are short enough for the cache, and the integers lie in one buffer; elsewhere, and where a tensor is
    not in one piece, they are the whole, in the first one's shape.
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
    """The threshold that the share p of all entries reach, found by halving, without joining or sorting them.

    Never 0: an entry without information is not in a child.

    Args:
        values: Float32 tensors, nowhere negative.
        p: In (0, 1].
        sharded: Whether each process of the default group holds a part.
    """
    bits = [value.view(torch.int32) for value in values]  # in the order of the floats, where none is negative

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
    """63-bit seed of one parameter's (or shard's) mask at one optimizer step: rounds of the splitmix64 finalizer
    (https://prng.di.unimi.it/splitmix64.c), so that neighbours share no stream."""
    key = 0
    for part in (seed, step, parameter) if shard is None else (seed, step, parameter, shard):
        key = (key + part + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return key >> 1


def kept_levels(p: float) -> int:
    """How many of the 65,536 values of a 16-bit number are kept."""
    return max(1, round(p * 2**16))


def stored_gradient(parameter: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return what is stored of a parameter's gradient, to be masked in place, and where in the parameter that lies.

    Of a sparse gradient that is its values and their indices; a position that came several times is summed first. Any
    other gradient is whole, and the indices are empty.

    Raises:
        ChildTuningError: for a layout or an element size that is not masked.
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
    """This process's part of a `DTensor`, a view; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_number(parameter: torch.Tensor) -> int | None:
    """Which part of a sharded `DTensor` this process holds; `None` where all hold the same."""
    if not isinstance(parameter, DTensor):
        return None
    number = None
    for dimension, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            coordinate = parameter.device_mesh.get_local_rank(dimension)
            number = (number or 0) * parameter.device_mesh.size(dimension) + coordinate
    return number
