"""Pack a padded batch into its tokens and back, so that attention does no work on padding.

Texts of similar length form groups, as in https://arxiv.org/abs/2208.08124. Here attention has relative positions.
Shipped inside every saved model.
"""

from dataclasses import dataclass

import torch

# Added to the scores of padding. Its probability is then 0 in every precision, and no sum overflows float16.
MASKED = -3e4


def is_traced() -> bool:
    """Return whether a graph is being recorded (`torch.compile`, `torch.export`, `torch.jit.trace`).

    The graph must also work for other texts, so it must not depend on where this batch has padding.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exported() -> bool:
    """Return whether a graph is being recorded for export, which must then work for all lengths."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


@dataclass
class TextGroup:
    """Texts of similar length, which attention computes as one grid.

    Attributes:
        tokens: The slice of the batch's packed tokens that belongs to the group.
        rows, length: Number of texts, and of tokens in the longest one.
        heads: Number of attention heads.
        cells: `(heads * rows * length,)`. For each cell of the grid, the index of its state among the group's
            `(tokens * heads, size)` states. Cells past the end of a text have its last state. `None` for a single text.
        back: `(tokens * heads,)`. The cell of each state; `None` for a single text.
        beyond: Cells past the end of a text, or `None` if there are none.
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
        """Return `(batch's tokens, heads * size)` as `(heads, rows, length, size)`; a view for a single text."""
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
    """

    shape: tuple[int, int]
    heads: int
    index: torch.Tensor | None
    groups: list[TextGroup]
    bias: torch.Tensor | None = None

    @classmethod
    def padded(cls, attention_mask: torch.Tensor, heads: int) -> "Packing":
        """Return a packing that keeps every cell, whatever the mask's values, for `torch.compile` and export."""
        batch, length = attention_mask.shape
        mask = (1 - attention_mask.to(torch.float32))[:, None] * MASKED
        return cls((batch, length), heads, None, [TextGroup(slice(None), batch, length, heads, mask=mask)])

    @classmethod
    def of(cls, attention_mask: torch.Tensor, heads: int, tokens_per_group: int | None) -> "Packing":
        """Return a packing without the padding before each text's first token and after its last.

        Args:
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding, which may also lie between tokens.
            tokens_per_group: Maximum number of cells in a group of several texts; `None` makes one group.
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
        """Return `(batch, length, hidden)` states as `(tokens, hidden)`."""
        states = states.flatten(0, 1)
        return states if self.index is None else states.index_select(0, self.index)

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """Return `(tokens, hidden)` states as `(batch, length, hidden)`, with zeros for padding."""
        if self.index is not None:
            cells = states.new_zeros((self.shape[0] * self.shape[1], states.shape[1]))
            states = cells.index_copy(0, self.index, states)
        return states.unflatten(0, self.shape)
