"""Disentangled attention of DeBERTa-v2/v3, exact, with a fraction of the work.

Same parameters and same numbers as `transformers`' own (He et al. 2021, https://arxiv.org/abs/2006.03654, equation 4),
which is kept as `attn_implementation="eager"`. What differs, under `"sdpa"`:

- padding is left out: the layers see the batch's tokens one after the other, attention sees groups of texts of like
  length (as in https://arxiv.org/abs/2208.08124, for an attention with relative positions);
- only the relative positions that a batch can reach are projected, once per layer instead of once per row, and in
  inference once for all batches, until the weights change;
- position scores are a shifted view of a matrix product, not gathered by an index as large as the scores;
- training keeps the attention probabilities and nothing else of that size; dropped ones carry a minus sign.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Added to the scores of padding: its probability is 0 in every precision, and no sum overflows float16.
MASKED = -3e4
# Queries (or keys) whose position scores are one matrix product, where a long text is on its own.
BLOCK = 64
# Bytes of one feature of the tokens that attention sees at once on CPU: their scores stay in the cache.
GROUP_BYTES = 1024


# ---- Relative positions -------------------------------------------------------------------------------------------
def relative_rows(length: int, span: int, buckets: int, max_position: int, device: torch.device) -> torch.Tensor:
    """Row of the relative embedding for each distance query - key, from `1 - length` to `length - 1`.

    Args:
        length: Number of tokens.
        span: Half the rows of the relative embedding.
        buckets, max_position: DeBERTa's logarithmic buckets; `buckets < 1` for none.

    Returns:
        `(2 * length - 1,)`, non-decreasing.
    """
    distance = torch.arange(1 - length, length, device=device)
    if buckets > 0 and max_position > 0:
        distance = make_log_bucket_position(distance, buckets, max_position).to(torch.long)
    return (distance + span).clamp(0, 2 * span - 1)


def bias_buckets(length: int, buckets: int, max_distance: int, device: torch.device) -> torch.Tensor:
    """Bucket of each distance key - query, from `1 - length` to `length - 1`, by MPNet's rule.

    Half of the buckets are for keys at or before the query, half for keys after it. In each half, the first half of the
    buckets holds one distance each, and the rest grow logarithmically up to `max_distance`. The bounds are whole
    numbers, computed once in Python: a logarithm taken on a device may round a bound into the bucket below.

    Args:
        length: Number of tokens.
        buckets: Number of buckets of both directions.
        max_distance: Distance from which on every key is in the last bucket.

    Returns:
        `(2 * length - 1,)`.
    """
    half = buckets // 2
    exact = half // 2
    growth = (max_distance / exact) ** (1 / (half - exact))
    bounds = [*range(1, exact), *(math.ceil(round(exact * growth**step, 6)) for step in range(half - exact))]
    distance = torch.arange(1 - length, length, device=device)
    within = (distance.abs()[:, None] >= torch.tensor(bounds, device=device)).sum(1)
    return within + (distance > 0) * half


def shifted(scores: torch.Tensor, columns: int) -> torch.Tensor:
    """A view `(..., m, columns)` of `(..., m, columns + m - 1)` with `view[r, c] = scores[r, c - r + m - 1]`.

    Row r of the matrix is read m - 1 - r columns further right: in memory, rows that are one entry shorter.
    """
    m, width = scores.shape[-2:]
    if m == 1:
        return scores
    flat = scores.flatten(-2)[..., m - 1 : m - 1 + m * (width - 1)]
    return flat.unflatten(-1, (m, width - 1))[..., :columns]


def blocks(rows: int, length: int) -> list[tuple[int, int, slice]]:
    """Where the blocks of a text begin and end, and which of its `2 * length - 1` distances they reach."""
    size = BLOCK if rows == 1 else length
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(start, end, slice(length - end, 2 * length - 1 - start)) for start, end in ends]


def position_products(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Each token with each distance that its block reaches, moved so that columns are the other tokens.

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
    """Content-to-position plus position-to-content scores.

    Args:
        query, key: `(heads, rows, length, size)`; `query` is scaled already.
        c2p: Keys of the positions, `(heads, 2 * length - 1, size)`, by falling distance query - key.
        p2c: Queries of the positions, scaled, by rising distance.

    Returns:
        `(heads, rows, length, length)`.
    """
    _, rows, length, _ = query.shape
    if torch.compiler.is_compiling() or rows > 1 or length <= BLOCK:
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
                scores[..., start:end] += other.contiguous()  # a copy that transposes is faster than such a sum
    return scores


def add_position_gradients(
    scores: torch.Tensor,
    states: torch.Tensor,
    positions: torch.Tensor,
    for_states: torch.Tensor,
    for_positions: torch.Tensor,
) -> None:
    """What [`position_products`] hands back: adds to `for_states` and `for_positions`.

    Args:
        scores: Gradient `(heads, rows, length, length)`; for `p2c` transposed.
        states, for_states: `(heads, rows, length, size)`.
        positions: `(heads, 2 * length - 1, size)`.
        for_positions: Likewise, in float32.
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


# ---- Dropout and GELU ---------------------------------------------------------------------------------------------
def dropout_noise(shape: torch.Size, threshold: int, device: torch.device) -> torch.Tensor:
    """Float32 noise, negative with probability `threshold / 2**16`, from torch's global generator.

    On CPU four decisions come from one 64-bit draw: `Tensor.bernoulli_` takes several times as long.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device).sub_(threshold / 2**16)
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:count].view(shape).to(torch.float32).sub_(threshold - 2**15 - 0.5)


class Dropout(nn.Dropout):
    """`nn.Dropout` with masks that are cheap to draw on CPU; p counts in steps of 2**-16."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        threshold = round(self.p * 2**16)
        if not self.training or threshold in (0, 2**16) or states.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(states)
        scale = 2**16 / (2**16 - threshold)
        return states * (dropout_noise(states.shape, threshold, states.device) > 0).to(states.dtype).mul_(scale)


class Gelu(nn.Module):
    """GELU, in place where nothing needs its argument again: a fresh tensor of that size costs more than the GELU."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.gelu(states)
        return torch.ops.aten.gelu_(states)


# ---- Padding ------------------------------------------------------------------------------------------------------
@dataclass
class TextGroup:
    """Texts of like length that attention sees as one grid.

    Attributes:
        tokens: Where their tokens lie among the batch's.
        rows, length: Of the grid.
        heads: Of attention.
        cells: `(heads * rows * length,)` for each cell of the grid which of the group's `(tokens * heads, size)` states
            it holds; cells beyond a text's end hold its last. `None` for a single text.
        back: `(tokens * heads,)` the cell of each state, or `None` likewise.
        beyond: Cells beyond a text's end, or `None` where there are none.
        mask: `(rows, 1, length)` to add to the scores, or `None`.
    """

    tokens: slice
    rows: int
    length: int
    heads: int
    cells: torch.Tensor | None = None
    back: torch.Tensor | None = None
    beyond: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def grid(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch's tokens, heads * size)` to `(heads, rows, length, size)`; a view for a single text."""
        states = states[self.tokens]
        if self.cells is None:
            return states.view(self.rows, self.length, self.heads, -1).permute(2, 0, 1, 3)
        states = states.reshape(len(states) * self.heads, -1).index_select(0, self.cells)
        return states.view(self.heads, self.rows, self.length, -1)

    def zero_grid(self, states: torch.Tensor) -> torch.Tensor:
        """As [`grid`], with zeros beyond the texts' ends."""
        states = self.grid(states)
        if self.beyond is not None:
            states.view(-1, states.shape[-1]).index_fill_(0, self.beyond, 0)
        return states

    def put(self, grid: torch.Tensor, states: torch.Tensor) -> None:
        """The way back of [`grid`], into its tokens of `states`."""
        states = states[self.tokens]
        if self.back is None:
            states.view(self.rows, self.length, self.heads, -1).copy_(grid.permute(1, 2, 0, 3))
        else:
            size = grid.shape[-1]
            torch.index_select(grid.view(-1, size), 0, self.back, out=states.view(-1, size))


@dataclass
class Packing:
    """The tokens of a padded batch, one text after the other, longest first.

    Attributes:
        shape: `(batch, length)` of the padded batch.
        index: `(tokens,)` cells of the padded batch, or `None`: every cell, in order.
        heads: Of attention.
        groups: Of the texts that have tokens.
        bias: `(heads, length, length)` to add to the scores of every text in every layer, or `None`. A shorter text
            takes the upper left corner, since the bias depends on the distance alone.
    """

    shape: tuple[int, int]
    heads: int
    index: torch.Tensor | None
    groups: list[TextGroup]
    bias: torch.Tensor | None = None

    @classmethod
    def padded(cls, attention_mask: torch.Tensor, heads: int) -> "Packing":
        """Nothing is left out, and nothing is looked at: for `torch.compile` and export."""
        batch, length = attention_mask.shape
        mask = (1 - attention_mask.to(torch.float32))[:, None] * MASKED
        return cls((batch, length), heads, None, [TextGroup(slice(None), batch, length, heads, mask=mask)])

    @classmethod
    def of(cls, attention_mask: torch.Tensor, heads: int, tokens_per_group: int | None) -> "Packing":
        """Leave out what lies before a text's first token and after its last.

        Args:
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding, which may also lie between tokens.
            tokens_per_group: At most so many cells in a group of several texts; `None`: one group.
        """
        device, mask = attention_mask.device, attention_mask.bool().cpu()
        batch, length = mask.shape
        columns = torch.arange(length)
        first = torch.where(mask, columns, length).amin(1)
        lengths = (torch.where(mask, columns, -1).amax(1) + 1 - first).clamp(min=0)
        order = lengths.argsort(descending=True, stable=True)
        rows = [(row, int(lengths[row])) for row in order.tolist() if lengths[row]]

        groups, index, done = [], [], 0
        while done < len(rows):
            longest = rows[done][1]
            count = len(rows) if tokens_per_group is None else max(1, tokens_per_group // longest)
            chosen = torch.tensor([row for row, _ in rows[done : done + count]])
            done += len(chosen)
            cells = first[chosen, None] + columns[:longest]
            inside = columns[:longest] < lengths[chosen, None]
            cells = cells.where(inside, (first + lengths - 1)[chosen, None])
            tokens = (chosen[:, None] * length + cells)[inside]
            start = groups[-1].tokens.stop if groups else 0
            group = TextGroup(slice(start, start + len(tokens)), len(chosen), longest, heads)
            seen = mask[chosen[:, None], cells] & inside
            if not seen.all():
                group.mask = torch.where(seen, 0.0, MASKED)[:, None].to(device)
            if len(chosen) > 1:
                head = torch.arange(heads)
                grid = torch.arange(heads * len(chosen) * longest).view(heads, -1)
                ends = lengths[chosen].cumsum(0)[:, None]
                token = (ends - lengths[chosen, None] + columns[:longest]).where(inside, ends - 1).flatten()
                group.cells = (token * heads + head[:, None]).flatten().to(device)
                group.back = grid[:, inside.flatten()].T.flatten().to(device)
                if not inside.all():
                    group.beyond = grid[:, ~inside.flatten()].flatten().to(device)
            groups.append(group)
            index.append(tokens)
        index = torch.cat(index) if index else torch.empty(0, dtype=torch.long)
        whole = len(index) == batch * length and torch.equal(index, torch.arange(batch * length))
        return cls((batch, length), heads, None if whole else index.to(device), groups)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch, length, hidden)` to `(tokens, hidden)`."""
        states = states.flatten(0, 1)
        return states if self.index is None else states.index_select(0, self.index)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """The way back; padding becomes zeros."""
        if self.index is not None:
            cells = states.new_zeros((self.shape[0] * self.shape[1], states.shape[1]))
            states = cells.index_copy(0, self.index, states)
        return states.unflatten(0, self.shape)


# ---- Attention ----------------------------------------------------------------------------------------------------
def by_head(positions: torch.Tensor | None, length: int, heads: int) -> torch.Tensor | None:
    """The middle of `(2 * longest - 1, heads * size)` that `length` tokens reach: `(heads, 2 * length - 1, size)`."""
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
    """Attention of each text to itself, group by group.

    Args:
        query, key, value: `(tokens, heads * size)`; `query` is scaled already.
        c2p, p2c: `(2 * longest - 1, heads * size)`, see [`position_scores`].
        bias: `(heads, longest, longest)`, see [`Packing`].
        keep: Return the probabilities.

    Returns:
        `(tokens, heads * size)`, and for each group the probabilities `(heads * rows, length, length)`, negative
        where dropout took them.
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
    """[`attend`] with a gradient that needs only the probabilities: arguments as there, without `keep`."""

    @staticmethod
    def forward(ctx, query, key, value, c2p, p2c, bias, packing, dropout):
        with torch.autocast(query.device.type, enabled=False):
            context, kept = attend(query, key, value, c2p, p2c, bias, packing, dropout, keep=True)
        ctx.packing, ctx.threshold = packing, round(dropout * 2**16)
        ctx.bias_shape = bias.shape if ctx.needs_input_grad[5] else None
        ctx.save_for_backward(query, key, value, c2p, p2c, context, *kept)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with torch.autocast(gradient.device.type, enabled=False):
            return DisentangledAttention._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx, gradient):
        query, key, value, c2p, p2c, context, *kept = ctx.saved_tensors
        heads, threshold = ctx.packing.heads, ctx.threshold
        # Sum over keys of probability and its gradient, as in https://arxiv.org/abs/2205.14135, appendix B.
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


class EmoDebertaSelfAttention(DisentangledSelfAttention):
    """The library's module, over packed texts, with MPNet's position bias where the configuration has one."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        if self.relative_attention:
            self.pos_dropout = Dropout(config.hidden_dropout_prob)
        elif config.position_bias_buckets:  # the library's `forward` then asks for `disentangled_attention_bias`
            self.relative_attention, self.pos_dropout = True, nn.Identity()
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        self.scale = 1 / math.sqrt(self.attention_head_size * terms)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Packing | torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: torch.Tensor | None = None,
        rel_embeddings: torch.Tensor | tuple | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; arguments as [`EmoDebertaEncoder`] prepares them, or the library's.

        Args:
            hidden_states: `(tokens, hidden)`.
            attention_mask: How the tokens are packed.
            relative_pos: `(2 * length - 1,)` rows of `rel_embeddings` by distance, from [`relative_rows`].
            rel_embeddings: `(rows, hidden)`, the reachable ones; or their projections, from [`project_positions`].

        Returns:
            `(tokens, hidden)`, and `None` in place of the attention probabilities.
        """
        if not isinstance(attention_mask, Packing):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query = self.query_proj(hidden_states) * self.scale
        key, value = self.key_proj(hidden_states), self.value_proj(hidden_states)
        c2p = p2c = None
        if relative_pos is not None:
            if isinstance(rel_embeddings, torch.Tensor):
                rel_embeddings = self.project_positions(self.pos_dropout(rel_embeddings))
            c2p, p2c = rel_embeddings
            c2p = None if c2p is None else c2p.index_select(0, relative_pos.flip(0))
            p2c = None if p2c is None else p2c.index_select(0, relative_pos)
        dropout = self.dropout.p if self.training else 0.0
        parts = (query, key, value, c2p, p2c, attention_mask.bias)
        arguments = (*parts, attention_mask)
        if torch.compiler.is_compiling():
            return self._fused(*arguments, dropout), None
        if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts):
            return DisentangledAttention.apply(*arguments, dropout), None
        return attend(*arguments, dropout)[0], None

    def disentangled_attention_bias(self, query_layer, key_layer, relative_pos, rel_embeddings, scale_factor):
        """Return the library's scores of positions plus the position bias, for `eager`.

        The library adds the result to scaled scores, as MPNet adds its bias. `relative_pos` is the library's, or as
        [`EmoDebertaEncoder.get_rel_pos`] returns it.
        """
        if not self.config.position_bias_buckets:
            return super().disentangled_attention_bias(
                query_layer, key_layer, relative_pos, rel_embeddings, scale_factor
            )
        relative_pos, bias = relative_pos
        bias = bias.to(query_layer.dtype).repeat(len(query_layer) // len(bias), 1, 1)
        if relative_pos is None:
            return bias
        scores = super().disentangled_attention_bias(query_layer, key_layer, relative_pos, rel_embeddings, scale_factor)
        return scores + bias

    def project_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Keys and scaled queries of the positions, `(rows, hidden)` each; `None` for a term that is off."""
        c2p = p2c = None
        if "c2p" in self.pos_att_type:
            c2p = (self.key_proj if self.share_att_key else self.pos_key_proj)(positions)
        if "p2c" in self.pos_att_type:
            p2c = (self.query_proj if self.share_att_key else self.pos_query_proj)(positions) * self.scale
        return c2p, p2c

    @staticmethod
    def _fused(query, key, value, c2p, p2c, bias, packing, dropout) -> torch.Tensor:
        """[`attend`] as one graph, for the compiler."""
        (group,) = packing.groups
        heads = group.heads
        queries, keys, values = (group.grid(states) for states in (query, key, value))
        added = group.mask.to(query.dtype)
        if bias is not None:
            added = added + bias[:, None].to(query.dtype)
        if c2p is not None or p2c is not None:
            added = added + position_scores(
                queries, keys, by_head(c2p, group.length, heads), by_head(p2c, group.length, heads)
            )
        else:
            added = added.expand(heads, -1, group.length, -1)
        context = F.scaled_dot_product_attention(queries, keys, values, added, dropout_p=dropout, scale=1.0)
        return context.permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format).view(query.shape)


class EmoDebertaEncoder(DebertaV2Encoder):
    """The library's encoder; under `sdpa` its layers see no padding, and only states asked for are kept."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        for layer in self.layer:
            layer.attention.self = EmoDebertaSelfAttention(config)
            layer.attention.output.dropout = Dropout(config.hidden_dropout_prob)
            layer.output.dropout = Dropout(config.hidden_dropout_prob)
            if config.hidden_act == "gelu":
                layer.intermediate.intermediate_act_fn = Gelu()
        self.position_bias = None
        if config.position_bias_buckets:
            self.position_bias = nn.Embedding(config.position_bias_buckets, config.num_attention_heads)
        self._projected: tuple = (None, [], [])  # state of the weights, the weights (kept alive), projections

    def train(self, mode: bool = True) -> "EmoDebertaEncoder":
        """Training also forgets the projections kept for inference."""
        if mode:
            self._projected = (None, [], [])
        return super().train(mode)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutput:
        """Run the layers.

        Args:
            hidden_states: `(batch, length, hidden)` embeddings.
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding.

        Returns:
            States as asked for, `(batch, length, hidden)`; those of padding are zeros.
        """
        if output_attentions and self.config._attn_implementation != "eager":
            logger.warning_once("attention probabilities come from attn_implementation='eager', which is slower")
        if output_attentions or self.config._attn_implementation == "eager":
            return super().forward(hidden_states, attention_mask, output_hidden_states, output_attentions)

        heads = self.config.num_attention_heads
        if torch.compiler.is_compiling():
            packing = Packing.padded(attention_mask, heads)
        else:
            on_cpu = hidden_states.device.type == "cpu"
            at_once = GROUP_BYTES // hidden_states.element_size() if on_cpu else None
            packing = Packing.of(attention_mask, heads, at_once)
        packing.bias = self.bias_matrix(attention_mask.shape[1], hidden_states.device)
        rows, positions = self._positions(attention_mask.shape[1], hidden_states)

        embedded = hidden_states
        states = (hidden_states,)
        hidden_states = packing.pack(hidden_states)
        for index, layer in enumerate(self.layer):
            hidden_states, _ = layer(hidden_states, packing, None, rows, positions[index], False)
            if index == 0 and self.conv is not None:
                hidden_states = packing.pack(self.conv(embedded, packing.unpack(hidden_states), attention_mask))
                embedded = None
            if output_hidden_states:
                states = (*states, packing.unpack(hidden_states) * attention_mask[..., None].to(hidden_states.dtype))
        last = packing.unpack(hidden_states) * attention_mask[..., None].to(hidden_states.dtype)
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=states if output_hidden_states else None, attentions=None
        )

    def bias_matrix(self, length: int, device: torch.device) -> torch.Tensor | None:
        """What MPNet adds to the scores of each query and key: `(heads, length, length)`, or `None` without a bias.

        One for all layers and texts of a batch. It is spread from the values by distance, so the gradient of a bucket
        is the sum over its cells.
        """
        if self.position_bias is None:
            return None
        config = self.config
        buckets = bias_buckets(length, config.position_bias_buckets, config.position_bias_max_distance, device)
        by_distance = self.position_bias(buckets).T
        return shifted(by_distance[:, None].expand(-1, length, -1), length)

    def get_rel_pos(self, hidden_states, query_states=None, relative_pos=None):
        """As the library's, for `eager`; with a position bias `(relative positions or None, bias matrix)`."""
        relative_pos = super().get_rel_pos(hidden_states, query_states, relative_pos)
        bias = self.bias_matrix(hidden_states.shape[-2], hidden_states.device)
        return relative_pos if bias is None else (relative_pos, bias)

    def _positions(self, length: int, hidden_states: torch.Tensor) -> tuple[torch.Tensor | None, list]:
        """Rows by distance, and for each layer what they are rows of: embeddings, or in inference projections."""
        if not self.relative_attention:
            return None, [None] * len(self.layer)
        span = len(self.rel_embeddings.weight) // 2
        rows = relative_rows(length, span, self.position_buckets, self.max_relative_positions, hidden_states.device)
        if torch.compiler.is_compiling():
            return rows, [self.get_rel_embedding()] * len(self.layer)
        if self.training or torch.is_grad_enabled() or self._is_sharded():
            reach = min(length, span)  # no bucket lies further from 0 than its distance
            positions = self.get_rel_embedding()[span - reach : span + reach]
            return rows - (span - reach), [positions] * len(self.layer)
        state, weights = self._projection_state()
        if state is None or self._projected[0] != state:
            positions = self.get_rel_embedding()
            made = [layer.attention.self.project_positions(positions) for layer in self.layer]
            self._projected = (state, weights, made)
        return rows, self._projected[2]

    def _is_sharded(self) -> bool:
        """Whether a layer's weights are whole only while it runs (FSDP2's `DTensor`)."""
        return hasattr(next(self.layer.parameters()), "full_tensor")

    def _projection_state(self) -> tuple[tuple | None, list[torch.Tensor]]:
        """What tells whether kept projections are still true; `None` where it cannot be told."""
        modules: list[nn.Module] = [self.rel_embeddings]
        if "layer_norm" in self.norm_rel_ebd:
            modules.append(self.LayerNorm)
        for layer in self.layer:
            attention = layer.attention.self
            shared = attention.share_att_key
            if "c2p" in attention.pos_att_type:
                modules.append(attention.key_proj if shared else attention.pos_key_proj)
            if "p2c" in attention.pos_att_type:
                modules.append(attention.query_proj if shared else attention.pos_query_proj)
        known = (nn.Embedding, nn.Linear, nn.LayerNorm)
        weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
        if any(type(module) not in known for module in modules) or any(weight.is_inference() for weight in weights):
            return None, []
        device_type = weights[0].device.type
        precision = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type)
        state = tuple((id(weight), weight.data_ptr(), weight.dtype, weight._version) for weight in weights)
        return (precision, state), [weight.detach() for weight in weights]
