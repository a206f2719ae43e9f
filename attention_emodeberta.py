"""Disentangled attention of DeBERTa-v2/v3, exact, with a fraction of the work.

Same parameters and same numbers as `transformers`' own (He et al. 2021, https://arxiv.org/abs/2006.03654, equation 4),
which is kept as `attn_implementation="eager"`. What differs, under `"sdpa"`:

- only the relative positions that a batch can reach are projected, once per layer instead of once per row;
- position scores are a shifted view of one matrix product, not gathered by an index as large as the scores;
- inference goes through `scaled_dot_product_attention`, with the position scores as its bias;
- padding is masked by key, not by a matrix of queries and keys for each text.
"""

import math

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)


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


def shifted(scores: torch.Tensor) -> torch.Tensor:
    """A view `(..., n, n)` of `(..., n, 2n - 1)` with `view[r, c] = scores[r, c - r + n - 1]`.

    Row r of the matrix is read n - 1 - r columns further right: in memory, rows that are one entry shorter.
    """
    n = scores.shape[-2]
    flat = scores.flatten(-2)[..., n - 1 : n - 1 + n * (2 * n - 2)] if n > 1 else scores.flatten(-2)
    return flat.unflatten(-1, (n, max(2 * n - 2, 1)))[..., :n]


class EmoDebertaSelfAttention(DisentangledSelfAttention):
    """The library's module with a faster `forward`. Heads come first in its tensors, so that the products with the
    position projections, which all rows share, run over the whole batch at once."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: torch.Tensor | None = None,
        rel_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; arguments as [`EmoDebertaEncoder`] prepares them, or the library's.

        Args:
            hidden_states: `(batch, length, hidden)`.
            attention_mask: `(1, batch, 1, length)`, to add to the scores.
            relative_pos: `(2 * length - 1,)` rows of `rel_embeddings` by distance, from [`relative_rows`].
            rel_embeddings: `(rows, hidden)`, the reachable ones only.

        Returns:
            `(batch, length, hidden)`, and `None` in place of the attention probabilities.
        """
        if output_attentions or self.config._attn_implementation == "eager":
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        batch, length, _ = hidden_states.shape
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = 1 / math.sqrt(self.attention_head_size * terms)
        query = self._heads_first(self.query_proj(hidden_states)) * scale
        key = self._heads_first(self.key_proj(hidden_states))
        value = self._heads_first(self.value_proj(hidden_states))

        bias = None
        if self.relative_attention and self.pos_att_type:
            bias = self._position_scores(query, key, relative_pos, self.pos_dropout(rel_embeddings), scale)
        mask = attention_mask.to(query.dtype)
        bias = mask.expand(len(query), batch, length, length) if bias is None else bias + mask

        if self.training or (torch.is_grad_enabled() and query.requires_grad):
            # The fused kernels take no bias with a gradient, and on CPU no dropout.
            queries, keys, values = (states.flatten(0, 1) for states in (query, key, value))
            scores = torch.baddbmm(bias.flatten(0, 1), queries, keys.transpose(1, 2))
            context = torch.bmm(self.dropout(scores.softmax(-1)).to(values.dtype), values).view_as(value)
        else:
            context = F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
        # The library's padded queries attend to all positions alike; nothing reads them, but all states shall agree.
        context = torch.where(mask.transpose(-1, -2) < 0, value.mean(2, keepdim=True), context)
        return context.permute(1, 2, 0, 3).reshape(batch, length, self.all_head_size), None

    def _heads_first(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch, length, heads * size)` to `(heads, batch, length, size)`."""
        return (
            states.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).permute(2, 0, 1, 3).contiguous()
        )

    def _position_scores(
        self, query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Content-to-position plus position-to-content, `(heads, batch, length, length)`; `query` is scaled already."""
        total = None
        if "c2p" in self.pos_att_type:
            projection = self.key_proj if self.share_att_key else self.pos_key_proj
            # entry (i, j) belongs to distance i - j: columns by falling distance
            total = shifted(self._products(query, projection(positions), rows.flip(0)))
        if "p2c" in self.pos_att_type:
            projection = self.query_proj if self.share_att_key else self.pos_query_proj
            scores = shifted(self._products(key, projection(positions) * scale, rows)).transpose(-1, -2)
            total = scores if total is None else total + scores
        return total

    def _products(self, states: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Each token with each distance: `(heads, batch, length, 2 * length - 1)`."""
        heads, batch, length, size = states.shape
        positions = positions.index_select(0, rows).unflatten(-1, (heads, size)).permute(1, 2, 0)
        return (states.flatten(1, 2) @ positions).unflatten(1, (batch, length))


class EmoDebertaEncoder(DebertaV2Encoder):
    """The library's encoder; under `sdpa` it prepares masks and positions once and keeps only states asked for."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        for layer in self.layer:
            layer.attention.self = EmoDebertaSelfAttention(config)

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
        """
        if output_attentions and self.config._attn_implementation != "eager":
            logger.warning_once("attention probabilities come from attn_implementation='eager', which is slower")
        if output_attentions or self.config._attn_implementation == "eager":
            return super().forward(hidden_states, attention_mask, output_hidden_states, output_attentions)

        dtype = hidden_states.dtype
        key_mask = (1 - attention_mask[None, :, None, :].to(dtype)) * (torch.finfo(dtype).min / 2)
        rows = positions = None
        if self.relative_attention:
            length = hidden_states.shape[1]
            positions = self.get_rel_embedding()
            rows = relative_rows(
                length, len(positions) // 2, self.position_buckets, self.max_relative_positions, hidden_states.device
            )
            reach = min(length, len(positions) // 2)  # no bucket lies further from 0 than its distance
            first = max(0, len(positions) // 2 - reach)
            positions = positions[first : len(positions) // 2 + reach]
            rows = rows - first

        states = (hidden_states,)
        embedded = hidden_states
        for index, layer in enumerate(self.layer):
            hidden_states, _ = layer(hidden_states, key_mask, None, rows, positions, False)
            if index == 0 and self.conv is not None:
                hidden_states = self.conv(embedded, hidden_states, attention_mask)
                embedded = None
            if output_hidden_states:
                states = (*states, hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states, hidden_states=states if output_hidden_states else None, attentions=None
        )
