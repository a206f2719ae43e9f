"""Attention on a GPU: few kernels per layer, and none that waits for the host.

Position scores are two matrix products and one sum. Torch's fused attention adds them to its own scores and returns
their gradient. Where `disentangled_flash` is installed, its kernels do all of it, for whatever they compute exactly.
Shipped inside every saved model.
"""

import functools
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

try:
    from .kernels_emodeberta import by_head, position_scores, refuse_second_derivative, shifted
    from .packing_emodeberta import Packing, PositionRows, TextGroup, is_exported, is_traced
except ImportError:
    from kernels_emodeberta import by_head, position_scores, refuse_second_derivative, shifted
    from packing_emodeberta import Packing, PositionRows, TextGroup, is_exported, is_traced

logger = logging.get_logger(__name__)


def attend_at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    c2p: torch.Tensor | None,
    p2c: torch.Tensor | None,
    rows: PositionRows | None,
    packing: Packing,
    heads: int,
    dropout: float,
    fused: bool = False,
) -> torch.Tensor:
    """Attend within each text, in one grid.

    Args:
        query, key, value: `(tokens, heads * size)`; `query` is scaled already.
        c2p: Keys of the positions, `(positions, heads * size)`.
        p2c: Queries of the positions, scaled.
        rows: Which position each distance has.
        fused: Use `disentangled_flash` where it can.

    Returns:
        `(tokens, heads * size)`.
    """
    if not packing.groups:
        return query
    (group,) = packing.groups
    if fused and flash() is not None and not is_traced():
        reason = not_by_flash(query, c2p, p2c, packing, heads, dropout)
        if reason is not None:
            logger.warning_once(f"attention: torch's kernels, since disentangled_flash does not compute {reason}")
        elif flash_works(query.device, query.dtype, query.shape[1] // heads):
            return flash_attention(query, key, value, c2p, p2c, rows, packing, heads, dropout)
    c2p = None if c2p is None else c2p.index_select(0, rows.falling)
    p2c = None if p2c is None else p2c.index_select(0, rows.rising)
    queries, keys, values = (
        states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in to_grid(group, query, key, value)
    )
    added = packing.added
    if is_traced() and (c2p is not None or p2c is not None):
        by_rows = (queries.transpose(0, 1), keys.transpose(0, 1))
        tables = (by_head(positions, group.length, heads) for positions in (c2p, p2c))
        added = position_scores(*by_rows, *tables).transpose(0, 1) + added
    elif c2p is not None or p2c is not None:
        added = PositionScores.apply(queries, keys, c2p, p2c, added)
    context = torch_attention(queries, keys, values, added, dropout).transpose(1, 2)
    if is_traced():  # a recorded graph may run another kernel, with another layout
        context = context.clone(memory_format=torch.contiguous_format)
    return from_grid(group, context.flatten(2))


# ---- Between tokens and grid ----------------------------------------------------------------------------------------
class ToGrid(torch.autograd.Function):
    """Tokens `(tokens, hidden)` as cells `(rows * length, hidden)`; cells past the end of a text pass no gradient."""

    @staticmethod
    def forward(ctx, cells: torch.Tensor, back: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(back)
        return tuple(tokens.index_select(0, cells) for tokens in states)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple:
        (back,) = ctx.saved_tensors
        return None, None, *(gradient.index_select(0, back) for gradient in gradients)


class FromGrid(torch.autograd.Function):
    """Cells `(rows * length, hidden)` as tokens `(tokens, hidden)`."""

    @staticmethod
    def forward(ctx, grid: torch.Tensor, group: TextGroup) -> torch.Tensor:
        ctx.group = group
        return grid.index_select(0, group.back)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return gradient.index_select(0, ctx.group.cells).index_fill_(0, ctx.group.beyond, 0), None


def to_grid(group: TextGroup, *states: torch.Tensor) -> list[torch.Tensor]:
    """Return states `(tokens, hidden)` as `(rows, length, hidden)`."""
    if group.cells is not None:
        states = ToGrid.apply(group.cells, group.back, *states)
    return [cells.view(group.rows, group.length, cells.shape[-1]) for cells in states]


def from_grid(group: TextGroup, grid: torch.Tensor) -> torch.Tensor:
    """Return a grid `(rows, length, hidden)` as `(tokens, hidden)`."""
    grid = grid.reshape(group.rows * group.length, grid.shape[-1])
    return grid if group.cells is None else FromGrid.apply(grid, group)


# ---- By torch's own kernels -----------------------------------------------------------------------------------------
class PositionScores(torch.autograd.Function):
    """Content-to-position plus position-to-content scores, plus what else is added to all scores.

    Args:
        query, key: `(rows, heads, length, size)`; `query` is scaled already.
        c2p: Keys of the positions, `(2 * length, heads * size)`, in order of falling distance query - key.
        p2c: Queries of the positions, scaled, in order of rising distance.
        added: Broadcasts to the scores, or `None`.

    Returns:
        `(rows, heads, length, length)`.
    """

    @staticmethod
    def forward(ctx, query, key, c2p, p2c, added):
        rows, heads, length, _ = query.shape
        parts = [None if c2p is None else PositionScores.products(query, c2p)]
        parts.append(None if p2c is None else PositionScores.products(key, p2c).transpose(-1, -2))
        parts = [part for part in parts if part is not None]
        scores = query.new_empty((heads, rows, length, length))
        if len(parts) == 2:
            torch.add(*parts, out=scores)
        else:
            scores.copy_(parts[0])
        scores = scores.transpose(0, 1)
        if added is not None:
            scores += added
        ctx.save_for_backward(query, key, c2p, p2c)
        ctx.added = added.shape if ctx.needs_input_grad[4] else None
        return scores

    @staticmethod
    def backward(ctx, gradient):
        refuse_second_derivative()
        query, key, c2p, p2c = ctx.saved_tensors
        rows, heads, length, size = query.shape
        products = gradient.new_zeros((heads, rows, length, 2 * length))
        found = []
        for part, states, positions in (
            (gradient, query, c2p),
            (gradient.transpose(-1, -2), key, p2c),
        ):
            if positions is None:
                found.append((None, None))
                continue
            shifted(products, length).copy_(part.transpose(0, 1))
            flat = products.view(heads, rows * length, 2 * length)
            states = states.transpose(0, 1).reshape(heads, rows * length, size)
            for_states = torch.bmm(flat, positions.view(2 * length, heads, size).transpose(0, 1))
            for_positions = torch.bmm(flat.transpose(1, 2), states).transpose(0, 1).flatten(1)
            found.append((for_states.view(heads, rows, length, size).transpose(0, 1), for_positions))
        (for_query, for_c2p), (for_key, for_p2c) = found
        for_added = None if ctx.added is None else gradient.sum_to_size(ctx.added)
        return for_query, for_key, for_c2p, for_p2c, for_added

    @staticmethod
    def products(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return each token's products with the positions at its distances, `(heads, rows, length, length)`, a view."""
        rows, heads, length, size = states.shape
        flat = states.transpose(0, 1).reshape(heads, rows * length, size)
        products = torch.bmm(flat, positions.view(2 * length, heads, size).permute(1, 2, 0))
        return shifted(products.view(heads, rows, length, 2 * length), length)


def torch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, added: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """Return torch's fused attention `(rows, heads, length, size)` with `added` added to the scores.

    On recent GPUs, torch prefers cuDNN's kernel, which has no gradient for what is added. So that is switched off.
    """
    if added is not None and added.requires_grad and not (query.requires_grad or value.requires_grad):
        query = query.detach().requires_grad_()  # torch before 2.14 keeps nothing for a gradient of `added` alone
    arguments = (query, key, value, None if added is None else added.to(query.dtype), dropout)
    if added is None or query.device.type != "cuda" or is_exported():
        return F.scaled_dot_product_attention(*arguments, scale=1.0)
    if is_traced():
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):  # takes longer than the calls below
            return F.scaled_dot_product_attention(*arguments, scale=1.0)
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(*arguments, scale=1.0)
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


def not_by_flash(
    query: torch.Tensor,
    c2p: torch.Tensor | None,
    p2c: torch.Tensor | None,
    packing: Packing,
    heads: int,
    dropout: float,
) -> str | None:
    """Return what `disentangled_flash` does not compute exactly, or faster than torch; `None` if it does."""
    size, length = query.shape[1] // heads, packing.length
    positions = c2p if c2p is not None else p2c
    if positions is None:
        return "attention without relative positions faster than torch"
    if packing.bias is not None:
        return "a position bias"
    if packing.bounds is None:
        return "masks with gaps between tokens"
    if size not in (32, 64, 128):
        return f"heads of {size} features"
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{query.dtype}"
    if not 0 <= dropout < 1:
        return f"dropout of {dropout}"
    if length > 2**16 or len(query) * heads * max(2 * length, len(positions)) >= 2**31:
        return "so many tokens at once (its offsets have 32 bits)"
    return None


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    c2p: torch.Tensor | None,
    p2c: torch.Tensor | None,
    rows: PositionRows,
    packing: Packing,
    heads: int,
    dropout: float,
) -> torch.Tensor:
    """Do what [`attend_at_once`] does by the kernels of `disentangled_flash`, on packed tokens without a grid."""
    package, length, slots = flash(), packing.length, rows.rising[:-1]
    if rows.fused is None:  # reads the rows on the host, once per length
        with torch.inference_mode(False):
            slots = slots.to(torch.int32)
            rows.fused = (slots, package.gradient_band(slots, query.device))
    slots, band = rows.fused
    size, texts = query.shape[1] // heads, len(packing.bounds) - 1
    positions = c2p if c2p is not None else p2c
    layout = ("strict", "packed", False)
    workload = (length, size, texts * heads, len(positions), str(query.dtype).removeprefix("torch."))
    workload = (*workload, c2p is not None, p2c is not None, *layout)
    configs = (
        package.resolve(package.profiles, "auto", query.device.index, (*workload, phase, dropout > 0), texts * heads)
        for phase in ("training_forward", "backward_dq", "backward_dkv")
    )
    parts = (query, key, value, c2p, p2c)
    by_heads = (None if part is None else part.unflatten(1, (heads, size)).transpose(0, 1) for part in parts)
    forward, for_query, for_key = (package.config(*config) for config in configs)
    return package.attention(
        *(*by_heads, slots, packing.bounds),
        max_seqlen=length,
        score_scale=1.0,
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
            found, wanted = (
                small_attention(device, dtype, size, attend) for attend in (flash_attention, attend_at_once)
            )
        agrees = all(torch.allclose(*pair, rtol=0.05, atol=0.05) for pair in zip(found, wanted, strict=True))
        problem = None if agrees else "its results differ from torch's"
    except Exception as error:  # a missing compiler, an unknown GPU
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem is not None:
        logger.warning(f"attention: torch's kernels, since {name} does not work on {device} in {dtype} ({problem})")
        return False
    logger.warning(f"attention: {name} on {device} in {dtype}")
    return True


def small_attention(device: torch.device, dtype: torch.dtype, size: int, attend) -> list[torch.Tensor]:
    """Return the result of an attention, and the gradients of all that it is given."""
    heads, generator = 2, torch.Generator().manual_seed(0)
    packing = Packing.for_gpu((torch.arange(19) < torch.tensor([[19], [7]])).to(device))
    packing.add(None, dtype)
    rising = torch.arange(2 * packing.length).clamp(6, 57)  # far distances share a row
    rows = PositionRows(rising.to(device), torch.cat([rising[:-1].flip(0), rising[-1:]]).to(device))
    parts = [torch.randn(tokens, heads * size, generator=generator) / size**0.25 for tokens in (26, 26, 26, 64, 64)]
    parts = [part.to(device, dtype).requires_grad_() for part in parts]
    result = attend(*parts, rows, packing, heads, 0.0)
    return [result, *torch.autograd.grad(result.square().sum(), parts)]
