"""Attention on a GPU: few kernels per layer, and none that waits for the host.

Position scores are two matrix products and one sum. Torch's fused attention adds them to its own scores and returns
their gradient. Where `disentangled_flash` is installed, its kernels do all of it, for whatever they compute exactly.
Shipped inside every saved model.
"""

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

try:
    from .kernels_emodeberta import by_head, position_scores, refuse_second_derivative
    from .layers_emodeberta import compute_dtype
    from .packing_emodeberta import Packing, PositionRows, TextGroup, is_exported, is_traced
except ImportError:
    from kernels_emodeberta import by_head, position_scores, refuse_second_derivative
    from layers_emodeberta import compute_dtype
    from packing_emodeberta import Packing, PositionRows, TextGroup, is_exported, is_traced

logger = logging.get_logger(__name__)

# Tokens of the longest text from which `disentangled_flash` was at least as fast as torch, forward with backward, on an
# H200 (docs/performance.md).
FLASH_FROM = 1024


def attend_at_once(
    projected: torch.Tensor,
    table: torch.Tensor | None,
    terms: tuple[str, ...],
    rows: PositionRows | None,
    packing: Packing,
    heads: int,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Attend within each text, in one grid.

    Args:
        projected: `(tokens, 3 * heads * size)`: queries, keys, values.
        table: `(positions, len(terms) * heads * size)`: queries of the positions if `"p2c"` is in `terms`, and keys if
            `"c2p"` is, both multiplied by `scale`. `None` without `terms`.
        rows: Which position each distance has.
        scale: Of the scores.

    Returns:
        `(tokens, heads * size)`.
    """
    if not packing.groups:
        return projected[:, : projected.shape[1] // 3]
    (group,) = packing.groups
    if is_traced():
        query, key, value, added = traced_grid(group, projected, table, terms, rows, heads, packing.added)
    elif terms:
        query, key, value, added = Grid.apply(projected, table, terms, rows, group, heads, packing.added)
    else:
        query, key, value, added = *Grid.apply(projected, None, (), None, group, heads, None)[:3], packing.added
    context = torch_attention(query, key, value, added, scale, dropout).transpose(1, 2)
    if is_traced():  # a recorded graph may run another kernel, with another layout
        context = context.clone(memory_format=torch.contiguous_format)
    grid = context.reshape(group.rows * group.length, -1)
    return grid if group.cells is None else FromGrid.apply(grid, group)


def traced_grid(group, projected, table, terms, rows, heads, added) -> tuple[torch.Tensor, ...]:
    """Return what [`Grid`] does, in operators that a graph can record."""
    parts = projected.view(group.rows, group.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.contiguous().unbind(0)
    if not terms:
        return query, key, value, added
    tables = dict(zip(terms, table.chunk(len(terms), 1), strict=True))
    c2p = by_head(tables["c2p"].index_select(0, rows.falling), group.length, heads) if "c2p" in terms else None
    p2c = by_head(tables["p2c"].index_select(0, rows.rising), group.length, heads) if "p2c" in terms else None
    scores = position_scores(query.transpose(0, 1), key.transpose(0, 1), c2p, p2c)
    return query, key, value, scores.transpose(0, 1) + added


class Grid(torch.autograd.Function):
    """Queries, keys and values as a grid, and what is added to their scores.

    The latter are content-to-position plus position-to-content scores, plus what else is added to all scores.

    Args:
        projected, table, terms, rows: See [`attend_at_once`].
        added: Broadcasts to the scores, or `None`.

    Returns:
        Queries, keys, values `(rows, heads, length, size)`; `(rows, heads, length, length)`, or `None` without `terms`.
    """

    @staticmethod
    def forward(ctx, projected, table, terms, rows, group, heads, added):
        size, count, length = projected.shape[1] // 3 // heads, group.rows, group.length
        cells, ctx.back = group.by_head(heads, projected.device)
        grid = projected.view(-1, size).index_select(0, cells).view(3 * heads, count * length, size)
        scores = positions = None
        if terms:
            ctx.index = rows.by_head(terms, heads)
            positions = table.view(-1, size).index_select(0, ctx.index).view(len(terms) * heads, 2 * length, size)
            products = torch.bmm(grid[of_terms(terms, heads)], positions.transpose(1, 2))
            parts = by_distance(products, terms, count, length)
            scores = products.new_empty((count, heads, length, length))
            scores = torch.add(*parts, out=scores) if len(parts) == 2 else scores.copy_(parts[0])
            if added is not None:
                scores += added
            ctx.table = table.shape
        ctx.save_for_backward(grid, positions)
        ctx.terms, ctx.shape = terms, (count, heads, length, size)
        ctx.added = added.shape if ctx.needs_input_grad[6] else None
        key, query, value = grid.view(3, heads, count, length, size).transpose(1, 2).unbind(0)
        return query, key, value, scores

    @staticmethod
    def backward(ctx, for_query, for_key, for_value, for_scores):
        refuse_second_derivative()
        grid, positions = ctx.saved_tensors
        terms, (count, heads, length, size) = ctx.terms, ctx.shape
        found = torch.cat((for_key, for_query, for_value), 1).transpose(0, 1).reshape(grid.shape)
        for_table = for_added = None
        if terms:
            part = of_terms(terms, heads)
            products = grid.new_zeros((len(terms) * heads, count * length, 2 * length))
            for of_term in by_distance(products, terms, count, length):
                of_term.copy_(for_scores)
            found[part].baddbmm_(products, positions)
            for_positions = torch.bmm(products.transpose(1, 2), grid[part]).view(-1, size)
            for_table = grid.new_zeros(ctx.table)
            for_table.view(-1, size).index_add_(0, ctx.index, for_positions)
            for_added = None if ctx.added is None else for_scores.sum_to_size(ctx.added)
        for_projected = found.view(-1, size).index_select(0, ctx.back).view(-1, 3 * heads * size)
        return for_projected, for_table, None, None, None, None, for_added


def of_terms(terms: tuple[str, ...], heads: int) -> slice:
    """Return which of the keys, queries and values by head meet positions: keys those of p2c, queries those of c2p."""
    first = 0 if terms[0] == "p2c" else heads
    return slice(first, first + len(terms) * heads)


def by_distance(products: torch.Tensor, terms: tuple[str, ...], rows: int, length: int) -> list[torch.Tensor]:
    """Return views of products, one for each term, `(rows, heads, length, length)`: the score of each query and key.

    Args:
        products: `(len(terms) * heads, rows * length, 2 * length)`, of each token with the positions at all distances.
    """
    width, heads, of_row = 2 * length, len(products) // len(terms), 2 * length * length
    found = []
    for number, term in enumerate(terms):
        within = (1, width - 1) if term == "p2c" else (width - 1, 1)  # one token on, a distance is one column back
        start = products.storage_offset() + number * heads * rows * of_row + length - 1
        found.append(products.as_strided((rows, heads, length, length), (of_row, rows * of_row, *within), start))
    return found


class FromGrid(torch.autograd.Function):
    """Cells `(rows * length, hidden)` as tokens `(tokens, hidden)`."""

    @staticmethod
    def forward(ctx, grid: torch.Tensor, group: TextGroup) -> torch.Tensor:
        ctx.group = group
        return grid.index_select(0, group.back)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return gradient.index_select(0, ctx.group.cells).index_fill_(0, ctx.group.beyond, 0), None


# ---- By torch's own kernels -----------------------------------------------------------------------------------------
def torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    added: torch.Tensor | None,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Return torch's fused attention `(rows, heads, length, size)` with `added` added to the scores.

    On recent GPUs, torch prefers cuDNN's kernel, which has no gradient for what is added. So that is switched off.
    """
    if added is not None and added.requires_grad and not (query.requires_grad or value.requires_grad):
        query = query.detach().requires_grad_()  # torch before 2.14 keeps nothing for a gradient of `added` alone
    arguments = (query, key, value, None if added is None else added.to(query.dtype), dropout)
    if added is None or query.device.type != "cuda" or is_exported():
        return F.scaled_dot_product_attention(*arguments, scale=scale)
    if is_traced():
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):  # takes longer than the calls below
            return F.scaled_dot_product_attention(*arguments, scale=scale)
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(*arguments, scale=scale)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


# ---- By disentangled_flash ------------------------------------------------------------------------------------------
@functools.cache
def flash() -> SimpleNamespace | None:
    """Return what is used of `disentangled_flash` 1.1, or `None` where that or Triton is not installed."""
    try:
        import triton  # noqa: F401
        from disentangled_flash import KernelConfig, KernelTuningOptions, __version__
        from disentangled_flash.position import gradient_band
        from disentangled_flash.training._kernels import training_attention_packed
        from disentangled_flash.tuning import ProfileRegistry, register_profile_registry, resolve_launch_config
    except ImportError:
        return None
    return SimpleNamespace(
        version=__version__,
        attention=training_attention_packed,
        gradient_band=gradient_band,
        config=KernelConfig,
        resolve=resolve_launch_config,
        profiles=register_profile_registry(ProfileRegistry.from_options(KernelTuningOptions())),
    )


class AttentionChoice:
    """The default attention of a model: `disentangled` where a GPU and `disentangled_flash` are there, else `sdpa`."""

    _supports_sdpa = True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention is None and torch.cuda.is_available() and flash() is not None:
            requested_attention = "disentangled"
        if requested_attention != "disentangled":
            return super().get_correct_attn_implementation(requested_attention, is_init_check)
        if flash() is None:
            logger.warning_once(
                "attn_implementation='disentangled' needs disentangled-flash 1.1 and Triton; without them it is 'sdpa'"
            )
        return requested_attention


def by_flash(*workload: Any) -> bool:
    """Return whether [`flash_attention`] computes this, given what [`not_by_flash`] takes; say why not, once."""
    if flash() is None or is_traced():
        return False
    if (reason := not_by_flash(*workload)) is not None:
        logger.warning_once(f"attention: torch's kernels, since disentangled_flash does not compute {reason}")
        return False
    states, *_, size, _ = workload
    return flash_works(states.device, compute_dtype(states), size)


def not_by_flash(
    states: torch.Tensor, positions: int, packing: Packing, heads: int, size: int, dropout: float
) -> str | None:
    """Return what `disentangled_flash` does not compute exactly, or faster than torch; `None` if it does.

    Args:
        states: `(tokens, hidden)`.
        positions: How many the tokens can reach; 0 without relative positions.
    """
    if not positions:
        return "attention without relative positions faster than torch"
    if packing.bias is not None:
        return "a position bias"
    if packing.bounds is None:
        return "masks with gaps between tokens"
    if size not in (32, 64, 128):
        return f"heads of {size} features"
    if (dtype := compute_dtype(states)) not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{dtype}"
    if not 0 <= dropout < 1:
        return f"dropout of {dropout}"
    length = packing.length
    if length < FLASH_FROM:
        return f"attention within fewer than {FLASH_FROM} tokens faster than torch"
    if length > 2**16 or len(states) * heads * max(2 * length, positions) >= 2**31:
        return "so many tokens at once (its offsets have 32 bits)"
    return None


def flash_attention(
    projected: torch.Tensor,
    table: torch.Tensor,
    terms: tuple[str, ...],
    rows: PositionRows,
    packing: Packing,
    heads: int,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """Do what [`attend_at_once`] does by the kernels of `disentangled_flash`, on packed tokens without a grid.

    Takes the same, but a table that is not scaled.
    """
    package, length, slots = flash(), packing.length, rows.rising[:-1]
    if rows.fused is None:  # reads the rows on the host, once per length
        with torch.inference_mode(False):
            slots = slots.to(torch.int32)
            rows.fused = (slots, package.gradient_band(slots, projected.device))
    slots, band = rows.fused
    size, texts = projected.shape[1] // 3 // heads, len(packing.bounds) - 1
    tables = dict(zip(terms, table.chunk(len(terms), 1), strict=True))
    layout = ("strict", "packed", False)
    workload = (length, size, texts * heads, len(table), str(projected.dtype).removeprefix("torch."))
    workload = (*workload, "c2p" in terms, "p2c" in terms, *layout)
    device, phases = projected.device.index, ("training_forward", "backward_dq", "backward_dkv")
    configs = (
        package.resolve(package.profiles, "auto", device, (*workload, phase, dropout > 0), texts * heads)
        for phase in phases
    )
    parts = (*projected.chunk(3, 1), tables.get("c2p"), tables.get("p2c"))
    of_heads = (None if part is None else part.unflatten(1, (heads, size)).transpose(0, 1) for part in parts)
    forward, for_query, for_key = (package.config(*config) for config in configs)
    return package.attention(
        *(*of_heads, slots, packing.bounds),
        max_seqlen=length,
        score_scale=scale,
        strict_fp32=True,
        forward_config=forward,
        dq_config=for_query,
        dkv_config=for_key,
        dropout_p=dropout,
        gradient_band=band,
    )


@functools.cache
def flash_works(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Return whether `disentangled_flash` agrees with torch on this device, tried on two short texts; say so once."""
    if flash() is None or device.type != "cuda":
        return False
    name = f"disentangled_flash {flash().version}"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            found, wanted = (small_attention(device, dtype, size, of_flash) for of_flash in (True, False))
        agrees = all(torch.allclose(*pair, rtol=0.05, atol=0.05) for pair in zip(found, wanted, strict=True))
        problem = None if agrees else "its results differ from torch's"
    except Exception as error:  # a missing compiler, an unknown GPU
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem is not None:
        logger.warning(f"attention: torch's kernels, since {name} does not work on {device} in {dtype} ({problem})")
        return False
    logger.warning(f"attention: {name} on {device} in {dtype}")
    return True


def small_attention(device: torch.device, dtype: torch.dtype, size: int, of_flash: bool) -> list[torch.Tensor]:
    """Return the result of an attention, and the gradients of all that it is given."""
    heads, generator = 2, torch.Generator("cpu").manual_seed(0)
    packing = Packing.for_gpu(torch.arange(19, device=device) < torch.tensor([[19], [7]], device=device))
    packing.add(None, dtype)
    rising = torch.arange(2 * packing.length, device="cpu").clamp(6, 57)  # far distances share a row
    rows = PositionRows(rising.to(device), torch.cat([rising[:-1].flip(0), rising[-1:]]).to(device))
    shapes = ((26, 6 * size), (64, 4 * size))
    parts = [torch.randn(*shape, generator=generator, device="cpu") / size**0.25 for shape in shapes]
    parts = [part.to(device, dtype).requires_grad_() for part in parts]
    attend, scales = (flash_attention, (1, 1)) if of_flash else (attend_at_once, (1, 0.5))
    given = (part * scale for part, scale in zip(parts, scales, strict=True))
    result = attend(*given, ("p2c", "c2p"), rows, packing, heads, 0.5, 0.0)
    return [result, *torch.autograd.grad(result.square().sum(), parts)]
