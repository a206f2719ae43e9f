"""Pack a padded batch into its tokens and back, so that attention does no work on padding.

Texts of similar length form groups, as in https://arxiv.org/abs/2208.08124. Here attention has relative positions.
Shipped inside every saved model.
"""

import functools
import math
from dataclasses import dataclass, field

import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

# Added to the scores of padding. Its probability is then 0 in every precision, and no sum overflows float16.
MASKED = -3e4

# Lengths on a GPU are multiples of this, which its matrix products and torch's fused attention need to be fast.
ALIGNED = 16


def is_traced() -> bool:
    """Return whether a graph is being recorded (`torch.compile`, `torch.export`, `torch.jit.trace`).

    The graph must also work for other texts, so it must not depend on where this batch has padding.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exported() -> bool:
    """Return whether a graph is being recorded for export, which must then work for all lengths."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@dataclass
class PositionRows:
    """For each distance between two tokens, its row in the relative embedding, or in what a layer projects from it.

    Attributes:
        rising: `(2 * length - 1,)`, in order of rising distance query - key, from `1 - length` on. On a GPU, one more
            at the end, which no score reads, for the alignment of matrix products.
        falling: The same in order of falling distance.
        fused: The same in the form that `disentangled_flash` takes, made when first needed.
        by_heads: What [`by_head`] returned.
    """

    rising: torch.Tensor
    falling: torch.Tensor
    fused: tuple | None = None
    by_heads: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def by_head(self, terms: tuple[str, ...], heads: int) -> torch.Tensor:
        """Return an index of what a layer projects from the positions.

        Args:
            terms: The parts of the projections, `"p2c"` with rows of rising and `"c2p"` of falling distance.

        Returns:
            `(len(terms) * heads * distances,)`, an index of `(positions * len(terms) * heads, size)`.
        """
        if (terms, heads) not in self.by_heads:
            with torch.inference_mode(False):  # a later training may use it
                part = torch.arange(len(terms) * heads, device=self.rising.device).view(len(terms), heads, 1)
                rows = torch.stack([self.rising if term == "p2c" else self.falling for term in terms])
                self.by_heads[terms, heads] = (rows[:, None] * len(terms) * heads + part).flatten()
        return self.by_heads[terms, heads]


def relative_rows(length: int, span: int, buckets: int, max_position: int, device: torch.device) -> torch.Tensor:
    """Return the row of the relative embedding for each distance query - key, from `1 - length` to `length - 1`.

    Args:
        length: Number of tokens.
        span: Half the rows of the relative embedding.
        buckets, max_position: DeBERTa's logarithmic buckets; none if `buckets < 1`.

    Returns:
        `(2 * length - 1,)`, non-decreasing.
    """
    distance = torch.arange(1 - length, length, device=device)
    if buckets > 0 and max_position > 0:
        distance = make_log_bucket_position(distance, buckets, max_position).to(torch.long)
    return (distance + span).clamp(0, 2 * span - 1)


def bias_buckets(length: int, buckets: int, max_distance: int, device: torch.device) -> torch.Tensor:
    """Return the bucket of each distance key - query, from `1 - length` to `length - 1`, by MPNet's rule.

    Half of the buckets are for keys at or before the query, half for keys after it. In each half, the nearer half of
    the buckets hold one distance each, and the rest grow logarithmically up to `max_distance`. The bounds are whole
    numbers computed in Python, because a logarithm taken on a device may round a bound into the bucket below.

    Args:
        length: Number of tokens.
        buckets: Number of buckets for both directions together.
        max_distance: From this distance on, every key is in the last bucket.

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


@functools.lru_cache(maxsize=256)
def rows_on_cpu(length: int, span: int, buckets: int, max_position: int) -> tuple[torch.Tensor, int]:
    """Return what [`relative_rows`] does and how far it reaches, kept for all batches of this length.

    All rows lie between `span - reach` and `span + reach`. The reach is one row per token, up to `span`. It may be more
    where there are few positions per bucket, since buckets then rise faster than distances: with 256 buckets for 300
    positions, distance 129 is in bucket 130.

    Returns:
        `(2 * length - 1,)`, and the reach.
    """
    with torch.inference_mode(False), torch.device("cpu"):  # whatever the default device is
        rows = relative_rows(length, span, buckets, max_position, torch.device("cpu"))
    return rows, max(min(length, span), span - int(rows.min()), int(rows.max()) + 1 - span)


@functools.lru_cache(maxsize=256)
def rows_on_gpu(length: int, span: int, buckets: int, max_position: int, device: torch.device) -> PositionRows:
    """Return the rows of the reachable part of the relative embedding, kept for all batches of this length."""
    rows, reach = rows_on_cpu(length, span, buckets, max_position)
    with torch.inference_mode(False):
        rows = rows - (span - reach)
        rising, falling = (torch.cat([part, part[-1:]]).to(device) for part in (rows, rows.flip(0)))
        return PositionRows(rising, falling)


@dataclass
class TextGroup:
    """Texts of similar length, which attention computes as one grid.

    Attributes:
        tokens: The slice of the batch's packed tokens that belongs to the group.
        rows, length: Number of texts, and of tokens in the longest one.
        heads: Number of attention heads.
        cells: `(heads * rows * length,)`. For each cell of the grid, the index of its state among the group's
            `(tokens * heads, size)` states. Cells past the end of a text have its last state. `None` if the states are
            a grid already, as those of a single text are.
        back: `(tokens * heads,)`. The cell of each state; `None` if `cells` is.
        beyond: Cells past the end of a text, or `None` if there are none.
        mask: `(rows, 1, length)` to add to the scores, or `None`.
        by_heads: What [`by_head`] returned.
    """

    tokens: slice
    rows: int
    length: int
    heads: int
    cells: torch.Tensor | None = None
    back: torch.Tensor | None = None
    beyond: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    by_heads: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def by_head(self, heads: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the way of queries, keys and values from tokens to keys, queries and values by head, and back.

        The first is `(3 * heads * rows * length,)`, an index of `(tokens * 3 * heads, size)`. The second is
        `(tokens * 3 * heads,)`, an index of `(3 * heads * rows * length, size)`. For groups with one head in `cells`.
        """
        if heads not in self.by_heads:
            every = torch.arange(self.rows * self.length, device=device)
            cells, back = (every, every) if self.cells is None else (self.cells, self.back)
            part = torch.arange(3 * heads, device=device).view(3, heads)[[1, 0, 2]].flatten()  # its own inverse
            forth = (part[:, None] + 3 * heads * cells).flatten()
            self.by_heads[heads] = forth, (back[:, None] + len(every) * part).flatten()
        return self.by_heads[heads]

    def grid(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(batch's tokens, heads * size)` as `(heads, rows, length, size)`; a view if the states are a grid."""
        states = states[self.tokens]
        if self.cells is None:
            return states.view(self.rows, self.length, self.heads, -1).permute(2, 0, 1, 3)
        states = states.reshape(len(states) * self.heads, -1).index_select(0, self.cells)
        return states.view(self.heads, self.rows, self.length, -1)

    def zero_grid(self, states: torch.Tensor) -> torch.Tensor:
        """Return the same as [`grid`], with zeros past the ends of the texts."""
        states = self.grid(states)
        if self.beyond is not None:
            states.view(-1, states.shape[-1]).index_fill_(0, self.beyond, 0)
        return states

    def put(self, grid: torch.Tensor, states: torch.Tensor) -> None:
        """Write a grid back to the group's tokens in `states`; the inverse of [`grid`]."""
        states = states[self.tokens]
        if self.back is None:
            states.view(self.rows, self.length, self.heads, -1).copy_(grid.permute(1, 2, 0, 3))
        else:
            size = grid.shape[-1]
            torch.index_select(grid.view(-1, size), 0, self.back, out=states.view(-1, size))


@dataclass
class Packing:
    """The tokens of a padded batch, one text after the other, longest text first.

    Attributes:
        shape: `(batch, length)` of the padded batch.
        heads: Number of attention heads.
        index: `(tokens,)`. The cell of the padded batch that each token comes from; `None` for every cell in order.
        groups: The texts that have tokens.
        bias: `(heads, length, length)` to add to the scores of every text in every layer, or `None`. A shorter text
            uses the upper left corner, since the bias depends on distance alone.
        one_grid: The texts are one group, whose grid is `(1, rows, length, heads * size)`: on a GPU and in a graph.
        added: For one grid, what is added to the scores of every layer: the mask, plus the bias if there is one. It
            broadcasts to `(rows, heads, length, length)`; `None` for nothing.
        bounds: If lengths are aligned, `(texts + 1,)` int32: where each text starts among the tokens, and where the
            last one ends. `None` otherwise, and if the mask has gaps between tokens.
    """

    shape: tuple[int, int]
    heads: int
    index: torch.Tensor | None
    groups: list[TextGroup]
    bias: torch.Tensor | None = None
    one_grid: bool = False
    added: torch.Tensor | None = None
    bounds: torch.Tensor | None = None

    @classmethod
    def padded(cls, attention_mask: torch.Tensor) -> "Packing":
        """Return a packing that keeps every cell of the batch, padding included.

        Its shapes depend on the mask's shape only and not on its values, as `torch.compile` and export require.

        Args:
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding.
        """
        batch, length = attention_mask.shape
        mask = (1 - attention_mask.to(torch.float32))[:, None] * MASKED
        return cls((batch, length), 1, None, [TextGroup(slice(None), batch, length, 1, mask=mask)], one_grid=True)

    @classmethod
    def for_gpu(cls, attention_mask: torch.Tensor) -> "Packing":
        """Return a packing in one grid of an aligned length. The host reads the mask once, and nothing after it."""
        packing = cls.of(attention_mask, 1, None, ALIGNED)
        packing.one_grid = True
        return packing

    @property
    def length(self) -> int:
        """Return how many tokens the positions must reach: those of the grid, or those of the padded batch."""
        return self.groups[0].length if self.one_grid and self.groups else self.shape[1]

    def add(self, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        """Keep the bias `(heads, length, length)` for all layers; with one grid, in `added`, with the mask."""
        self.bias = bias
        if not self.one_grid or not self.groups:
            return
        mask = self.groups[0].mask
        self.added = None if mask is None else mask[:, None].to(dtype)
        if bias is not None:
            bias = bias.to(dtype)
            self.added = bias[None].contiguous() if mask is None else bias + self.added

    @classmethod
    def of(cls, attention_mask: torch.Tensor, heads: int, tokens_per_group: int | None, aligned: int = 1) -> "Packing":
        """Return a packing without the padding before each text's first token and after its last.

        Args:
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding, which may also lie between tokens.
            tokens_per_group: Maximum number of cells in a group of several texts; `None` makes one group.
            aligned: Round the length of each group up to a multiple of this.
        """
        device, mask = attention_mask.device, attention_mask.bool().cpu()
        batch, length = mask.shape
        columns = torch.arange(length + aligned, device="cpu")  # as all that follows, whatever the default device is
        first = torch.where(mask, columns[:length], length).amin(1)
        lengths = (torch.where(mask, columns[:length], -1).amax(1) + 1 - first).clamp(min=0)
        order = lengths.argsort(descending=True, stable=True)
        counts = lengths.tolist()
        rows = [(row, counts[row]) for row in order.tolist() if counts[row]]

        groups, index, done, gaps = [], [], 0, False
        while done < len(rows):
            longest = -(-rows[done][1] // aligned) * aligned
            count = len(rows) if tokens_per_group is None else max(1, tokens_per_group // longest)
            chosen = torch.tensor([row for row, _ in rows[done : done + count]], device="cpu")
            done += len(chosen)
            cells = first[chosen, None] + columns[:longest]
            inside = columns[:longest] < lengths[chosen, None]
            cells = cells.where(inside, (first + lengths - 1)[chosen, None])
            tokens = (chosen[:, None] * length + cells)[inside]
            start = groups[-1].tokens.stop if groups else 0
            group = TextGroup(slice(start, start + len(tokens)), len(chosen), longest, heads)
            seen = mask[chosen[:, None], cells] & inside
            if not seen.all():
                group.mask = torch.where(seen, 0.0, MASKED)[:, None]
                gaps = gaps or not torch.equal(seen, inside)
            if (len(chosen) > 1 and heads > 1) or not inside.all():
                head = torch.arange(heads, device="cpu")
                grid = torch.arange(heads * len(chosen) * longest, device="cpu").view(heads, -1)
                ends = lengths[chosen].cumsum(0)[:, None]
                token = (ends - lengths[chosen, None] + columns[:longest]).where(inside, ends - 1).flatten()
                group.cells = (token * heads + head[:, None]).flatten()
                group.back = grid[:, inside.flatten()].T.flatten()
                if not inside.all():
                    group.beyond = grid[:, ~inside.flatten()].flatten()
            groups.append(group)
            index.append(tokens)
        index = torch.cat(index) if index else torch.empty(0, dtype=torch.long, device="cpu")
        whole = len(index) == batch * length and torch.equal(index, torch.arange(batch * length, device="cpu"))
        packing = cls((batch, length), heads, None if whole else index, groups)
        if aligned > 1 and not gaps:
            packing.bounds = torch.tensor([0, *(count for _, count in rows)], device="cpu").cumsum(0).to(torch.int32)
        if device.type != "cpu":
            packing.move(device)
        return packing

    def move(self, device: torch.device) -> None:
        """Move everything to a device, in one copy: each copy waits for the device."""
        fields = [(group, name) for group in self.groups for name in ("cells", "back", "beyond", "mask")]
        fields = [*fields, (self, "index"), (self, "bounds")]
        fields = [(owner, name) for owner, name in fields if getattr(owner, name) is not None]
        fields.sort(key=lambda field: -getattr(*field).element_size())  # so that all of them are aligned
        parts = [getattr(owner, name).contiguous() for owner, name in fields]
        if not parts:
            return
        sizes = [part.nbytes for part in parts]
        moved = torch.cat([part.view(-1).view(torch.uint8) for part in parts]).to(device)
        for (owner, name), part, data in zip(fields, parts, moved.split(sizes), strict=True):
            setattr(owner, name, data.view(part.dtype).view(part.shape))

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(batch, length, hidden)` states as `(tokens, hidden)`."""
        states = states.flatten(0, 1)
        return states if self.index is None else states.index_select(0, self.index)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(tokens, hidden)` states as `(batch, length, hidden)`, with zeros for padding."""
        if self.index is not None:
            cells = states.new_zeros((self.shape[0] * self.shape[1], states.shape[1]))
            states = cells.index_copy(0, self.index, states)
        return states.unflatten(0, self.shape)
