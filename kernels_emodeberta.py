"""Hand-written gradients for disentangled attention and tied word embeddings, and a cheap dropout and GELU.

Autograd would compute the same, with more time and memory. Attention is equation 4 of He et al. 2021
(https://arxiv.org/abs/2006.03654). Shipped inside every saved model.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

try:
    from .packing_emodeberta import Packing, is_exported, is_traced
except ImportError:
    from packing_emodeberta import Packing, is_exported, is_traced

# For a single long text, this many queries (or keys) share one matrix product for their position scores.
BLOCK = 64


def refuse_second_derivative() -> None:
    """Raise an error if the backward pass is to be differentiated again, which these gradients do not support."""
    if torch.is_grad_enabled():
        raise RuntimeError("no second derivative (create_graph=True) here; load with attn_implementation='eager'")


# ---- Scores by relative position ------------------------------------------------------------------------------------
def shifted(scores: torch.Tensor, columns: int) -> torch.Tensor:
    """Return a view `(..., m, columns)` of `(..., m, columns + m - 1)`, where `view[r, c] = scores[r, c - r + m - 1]`.

    Each row starts one column further left than the row above. In memory, the view is a matrix with rows one entry
    shorter.
    """
    m, width = scores.shape[-2:]
    if is_exported():  # one more column, so that the same graph works for m = 1
        flat = F.pad(scores, (0, 1)).flatten(-2)[..., m - 1 : m - 1 + m * width]
        return flat.unflatten(-1, (m, width))[..., :columns]
    if m == 1:
        return scores
    flat = scores.flatten(-2)[..., m - 1 : m - 1 + m * (width - 1)]
    return flat.unflatten(-1, (m, width - 1))[..., :columns]


def blocks(rows: int, length: int) -> list[tuple[int, int, slice]]:
    """Return each block's start and end, and the slice of the text's `2 * length - 1` distances that it reaches."""
    size = BLOCK if rows == 1 else length
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(start, end, slice(length - end, 2 * length - 1 - start)) for start, end in ends]


def position_products(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the products of each token with the positions at all distances of its block, one column per other token.

    Args:
        states: `(heads, rows, block, size)`.
        positions: `(heads, length + block - 1, size)`.

    Returns:
        `(heads, rows, block, length)`, a view.
    """
    heads, rows, block, size = states.shape
    products = states.reshape(heads, rows * block, size) @ positions.transpose(1, 2)
    return shifted(products.unflatten(1, (rows, block)), positions.shape[1] - block + 1)


def position_scores(
    query: torch.Tensor, key: torch.Tensor, c2p: torch.Tensor | None, p2c: torch.Tensor | None
) -> torch.Tensor:
    """Return content-to-position plus position-to-content scores.

    Args:
        query, key: `(heads, rows, length, size)`; `query` is scaled already.
        c2p: Keys of the positions, `(heads, 2 * length - 1, size)`, in order of falling distance query - key.
        p2c: Queries of the positions, scaled, in order of rising distance.

    Returns:
        `(heads, rows, length, length)`.
    """
    _, rows, length, _ = query.shape
    if is_traced() or rows > 1 or length <= BLOCK:
        scores = None if c2p is None else position_products(query, c2p)
        if p2c is not None:
            other = position_products(key, p2c).transpose(-1, -2)
            scores = other if scores is None else scores + other.contiguous()
        return scores.contiguous()
    scores = query.new_empty((*query.shape[:3], length))
    if c2p is not None:
        for start, end, reach in blocks(rows, length):
            scores[:, :, start:end] = position_products(query[:, :, start:end], c2p[:, reach])
    if p2c is not None:
        for start, end, reach in blocks(rows, length):
            other = position_products(key[:, :, start:end], p2c[:, reach]).transpose(-1, -2)
            if c2p is None:
                scores[..., start:end] = other
            else:
                scores[..., start:end] += other.contiguous()  # transposing in a copy first is faster
    return scores


def add_position_gradients(
    scores: torch.Tensor,
    states: torch.Tensor,
    positions: torch.Tensor,
    for_states: torch.Tensor,
    for_positions: torch.Tensor,
) -> None:
    """Add the gradients of [`position_products`] to `for_states` and `for_positions`.

    Args:
        scores: Gradient of the scores, `(heads, rows, length, length)`; transposed for `p2c`.
        states, for_states: `(heads, rows, length, size)`.
        positions: `(heads, 2 * length - 1, size)`.
        for_positions: The same shape, in float32.
    """
    heads, rows, length, size = states.shape
    products = None
    for start, end, reach in blocks(rows, length):
        block = end - start
        if products is None or products.shape[2] != block:
            products = scores.new_zeros((heads, rows, block, length + block - 1))
        shifted(products, length).copy_(scores[:, :, start:end])
        flat = products.view(heads, rows * block, -1)
        for_states[:, :, start:end] += (flat @ positions[:, reach]).view(heads, rows, block, size)
        for_positions[:, reach] += flat.transpose(1, 2) @ states[:, :, start:end].reshape(heads, rows * block, size)


# ---- Dropout and GELU -----------------------------------------------------------------------------------------------
def dropout_noise(shape: torch.Size, threshold: int, device: torch.device) -> torch.Tensor:
    """Return float32 noise from torch's global generator, negative with probability `threshold / 2**16`.

    On CPU, one 64-bit draw makes four decisions. `Tensor.bernoulli_` takes several times as long.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device).sub_(threshold / 2**16)
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return draws.view(torch.int16)[:count].view(shape).to(torch.float32).sub_(threshold - 2**15 - 0.5)


class Dropout(nn.Dropout):
    """`nn.Dropout` with masks that are cheap to draw on CPU; p is rounded to steps of 2**-16."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        threshold = round(self.p * 2**16)
        if not self.training or threshold in (0, 2**16) or states.device.type != "cpu" or is_traced():
            return super().forward(states)
        scale = 2**16 / (2**16 - threshold)
        return states * (dropout_noise(states.shape, threshold, states.device) > 0).to(states.dtype).mul_(scale)


class Gelu(nn.Module):
    """GELU. It is computed in place if no gradient needs its input, since a new tensor costs more than GELU itself."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or is_traced():
            return F.gelu(states)
        return torch.ops.aten.gelu_(states)


# ---- Attention ------------------------------------------------------------------------------------------------------
def by_head(positions: torch.Tensor | None, length: int, heads: int) -> torch.Tensor | None:
    """Return the part of `(2 * longest - 1, heads * size)` that a text reaches, as `(heads, 2 * length - 1, size)`."""
    if positions is None:
        return None
    beyond = (positions.shape[0] + 1) // 2 - length
    return positions[beyond : beyond + 2 * length - 1].unflatten(1, (heads, -1)).transpose(0, 1)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    c2p: torch.Tensor | None,
    p2c: torch.Tensor | None,
    bias: torch.Tensor | None,
    packing: Packing,
    dropout: float = 0.0,
    keep: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attend within each text, group by group.

    Args:
        query, key, value: `(tokens, heads * size)`; `query` is scaled already.
        c2p, p2c: `(2 * longest - 1, heads * size)`, see [`position_scores`].
        bias: `(heads, longest, longest)`, see [`Packing`].
        keep: Return the probabilities, too.

    Returns:
        `(tokens, heads * size)`, and if `keep`, the probabilities of each group `(heads * rows, length, length)`,
        negative where dropout removed them.
    """
    context, kept = torch.empty_like(query), []
    threshold = round(dropout * 2**16)
    bias = None if bias is None else bias.to(query.dtype)
    for group in packing.groups:
        heads, rows, length = group.heads, group.rows, group.length
        queries, keys, values = (group.grid(states) for states in (query, key, value))
        scores = None
        if c2p is not None or p2c is not None:
            scores = position_scores(queries, keys, by_head(c2p, length, heads), by_head(p2c, length, heads))
        if bias is not None:
            shared = bias[:, None, :length, :length]
            scores = shared.expand(-1, rows, -1, -1).contiguous() if scores is None else scores.add_(shared)
        queries, keys, values = (states.reshape(heads * rows, length, -1) for states in (queries, keys, values))
        if scores is None:
            scores = torch.bmm(queries, keys.transpose(1, 2))
        else:
            scores = scores.view(heads * rows, length, length).baddbmm_(queries, keys.transpose(1, 2))
        if group.mask is not None:
            scores.view(heads, rows, length, length).add_(group.mask.to(scores.dtype))
        torch.softmax(scores, -1, out=scores)
        used = scores
        if threshold:
            noise = dropout_noise(scores.shape, threshold, scores.device)
            torch.copysign(scores, noise.to(scores.dtype), out=scores)
            used = scores.relu()
        found = torch.bmm(used, values)
        if threshold:
            found.mul_(2**16 / (2**16 - threshold) if threshold < 2**16 else 0.0)
        group.put(found.view(heads, rows, length, -1), context)
        if keep:
            kept.append(scores)
    return context, kept


class DisentangledAttention(torch.autograd.Function):
    """[`attend`] with a gradient that needs only the probabilities; same arguments, without `keep`."""

    @staticmethod
    def forward(ctx, query, key, value, c2p, p2c, bias, packing, dropout):
        with torch.autocast(query.device.type, enabled=False):
            context, kept = attend(query, key, value, c2p, p2c, bias, packing, dropout, keep=True)
        ctx.packing, ctx.threshold = packing, round(dropout * 2**16)
        ctx.bias_shape = bias.shape if ctx.needs_input_grad[5] else None
        ctx.save_for_backward(query, key, value, c2p, p2c, context, *kept)
        return context

    @staticmethod
    def backward(ctx, gradient):
        refuse_second_derivative()
        with torch.autocast(gradient.device.type, enabled=False):
            return DisentangledAttention._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx, gradient):
        query, key, value, c2p, p2c, context, *kept = ctx.saved_tensors
        heads, threshold = ctx.packing.heads, ctx.threshold
        # Per query, the sum over keys of probability times gradient: https://arxiv.org/abs/2205.14135, appendix B.
        sums = (gradient * context).unflatten(1, (heads, -1)).sum(-1)
        if threshold:
            gradient = gradient * (2**16 / (2**16 - threshold) if threshold < 2**16 else 0.0)
        for_query, for_key, for_value = (torch.empty_like(states) for states in (query, key, value))
        size = query.shape[1] // heads
        for_c2p, for_p2c = (
            None if positions is None else positions.new_zeros((heads, len(positions), size), dtype=torch.float32)
            for positions in (c2p, p2c)
        )
        for_bias = None if ctx.bias_shape is None else query.new_zeros(ctx.bias_shape, dtype=torch.float32)
        for group, saved in zip(ctx.packing.groups, kept, strict=True):
            rows, length = group.rows, group.length
            flat, grid = (heads * rows, length, -1), (heads, rows, length, -1)
            queries, keys, values = (group.grid(states).reshape(flat) for states in (query, key, value))
            outer = group.zero_grid(gradient).reshape(flat)
            used, probabilities = (saved.relu(), saved.abs()) if threshold else (saved, saved)
            group.put(torch.bmm(used.transpose(1, 2), outer).view(grid), for_value)
            scores = torch.bmm(outer, values.transpose(1, 2)).mul_(used)
            scores.addcmul_(probabilities, group.zero_grid(sums).reshape(flat), value=-1)
            found_query = torch.bmm(scores, keys).view(grid)
            found_key = torch.bmm(scores.transpose(1, 2), queries).view(grid)
            scores, queries, keys = scores.view(grid), queries.view(grid), keys.view(grid)
            if for_bias is not None:
                for_bias[:, :length, :length] += scores[:, 0] if rows == 1 else scores.sum(1, dtype=torch.float32)
            for positions, sink, states, found, part in (
                (c2p, for_c2p, queries, found_query, scores),
                (p2c, for_p2c, keys, found_key, scores.transpose(-1, -2)),
            ):
                if positions is not None:
                    beyond = (len(positions) + 1) // 2 - length
                    reached = sink[:, beyond : len(positions) - beyond]
                    add_position_gradients(part, states, by_head(positions, length, heads), found, reached)
            group.put(found_query, for_query)
            group.put(found_key, for_key)
        for_c2p, for_p2c = (
            None if sink is None else sink.transpose(0, 1).flatten(1).to(query.dtype) for sink in (for_c2p, for_p2c)
        )
        return for_query, for_key, for_value, for_c2p, for_p2c, for_bias, None, None


# ---- Tied word embeddings -------------------------------------------------------------------------------------------
class Tie:
    """A note from the output end of the tied word embeddings to the input end, within one backward pass.

    Autograd would compute a gradient of the whole table at each end, keep the first one during the encoder's backward
    pass, and add the two. Here the output end stores two small factors. The input end multiplies them and adds its own
    rows, so there is only one table. The input end runs last, since its gradient comes through the encoder.
    """

    factors: tuple[torch.Tensor, torch.Tensor] | None = None


class TiedLookup(torch.autograd.Function):
    """A lookup of ids `(batch, length)` in the word embeddings `(vocabulary, hidden)`, with both ends' gradient."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, ids: torch.Tensor, padding: int | None, tie: Tie) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype, ctx.padding, ctx.tie = weight.shape, weight.dtype, padding, tie
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        refuse_second_derivative()
        (ids,) = ctx.saved_tensors
        rows = gradient.flatten(0, -2).to(ctx.dtype)
        if ctx.padding is not None:
            rows = rows.masked_fill((ids == ctx.padding).view(-1, 1), 0)
        if ctx.tie.factors is None:
            table = rows.new_zeros(ctx.shape)
        else:
            for_logits, states = ctx.tie.factors
            table = (for_logits.T @ states).to(ctx.dtype)
            ctx.tie.factors = None
        return table.index_add_(0, ids.flatten(), rows), None, None, None


class TiedLogits(torch.autograd.Function):
    """The logits `(tokens, vocabulary)` of states `(tokens, hidden)`; [`TiedLookup`] computes the weight's gradient."""

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, tie: Tie) -> torch.Tensor:
        logits = F.linear(states, weight, bias)
        ctx.save_for_backward(states, weight)
        ctx.bias_dtype, ctx.tie = bias.dtype, tie
        return logits

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        refuse_second_derivative()
        states, weight = ctx.saved_tensors
        ctx.tie.factors = (gradient, states.to(gradient.dtype))
        for_states = (gradient @ weight.to(gradient.dtype)).to(states.dtype)
        return for_states, None, gradient.sum(0, dtype=ctx.bias_dtype), None
