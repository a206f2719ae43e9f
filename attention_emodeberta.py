"""Disentangled attention of DeBERTa-v2/v3: exact, with a fraction of the work.

Parameters and numbers are those of `transformers`' own code (He et al. 2021, https://arxiv.org/abs/2006.03654,
equation 4), which is still there as `attn_implementation="eager"`. Under `"sdpa"`:

- Padding is left out. Layers see the batch's tokens one after the other, attention sees groups of texts of similar
  length (packing_emodeberta.py).
- Only the relative positions that a batch can reach are projected, once per layer instead of once per row. In
  inference, projections are kept for all batches until the weights change ([`ProjectionCache`]).
- Position scores are a shifted view of a matrix product, not gathered by an index as large as the scores
  (kernels_emodeberta.py).
- Training keeps the attention probabilities and nothing else of that size. Dropped ones carry a minus sign.
- On CUDA, the same is done in few kernels, by torch's fused attention or by `disentangled_flash` (gpu_emodeberta.py).
"""

import math

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention
from transformers.utils import logging

try:
    from .gpu_emodeberta import attend_at_once, by_flash, flash_attention
    from .kernels_emodeberta import DisentangledAttention, Dropout, Gelu, attend, shifted
    from .layers_emodeberta import EmoDebertaIntermediate, EmoDebertaOutput, Projections, can_fuse, has_hooks
    from .packing_emodeberta import (
        Packing,
        PositionRows,
        bias_buckets,
        is_traced,
        relative_rows,
        rows_on_cpu,
        rows_on_gpu,
    )
except ImportError:
    from gpu_emodeberta import attend_at_once, by_flash, flash_attention
    from kernels_emodeberta import DisentangledAttention, Dropout, Gelu, attend, shifted
    from layers_emodeberta import EmoDebertaIntermediate, EmoDebertaOutput, Projections, can_fuse, has_hooks
    from packing_emodeberta import (
        Packing,
        PositionRows,
        bias_buckets,
        is_traced,
        relative_rows,
        rows_on_cpu,
        rows_on_gpu,
    )

logger = logging.get_logger(__name__)

# Bytes of one feature of all tokens in a group on CPU. With this limit, the group's scores stay in the cache.
GROUP_BYTES = 1024


def in_one_grid(device: torch.device) -> bool:
    """Return whether a batch's attention is one grid on this device; on others it is computed group by group."""
    return device.type == "cuda"


class EmoDebertaSelfAttention(DisentangledSelfAttention):
    """The library's self-attention over packed texts, with MPNet's position bias if the configuration has one."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        if self.relative_attention:
            self.pos_dropout = Dropout(config.hidden_dropout_prob)
        elif config.position_bias_buckets:  # the library's `forward` then asks for `disentangled_attention_bias`
            self.relative_attention, self.pos_dropout = True, nn.Identity()
        self.terms = tuple(term for term in ("p2c", "c2p") if term in self.pos_att_type)
        self.scale = 1 / math.sqrt(self.attention_head_size * (1 + len(self.terms)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Packing | torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: PositionRows | torch.Tensor | None = None,
        rel_embeddings: torch.Tensor | tuple | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend, given what [`EmoDebertaEncoder`] prepares or the library's own arguments.

        Args:
            hidden_states: `(tokens, hidden)`.
            attention_mask: How the tokens are packed.
            relative_pos: Rows of `rel_embeddings` by distance.
            rel_embeddings: `(rows, hidden)`, the reachable rows; or their projections from [`project_positions`].

        Returns:
            `(tokens, hidden)`, and `None` instead of the attention probabilities.
        """
        if not isinstance(attention_mask, Packing):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        dropout = self.dropout.p if self.dropout.training else 0.0
        if attention_mask.one_grid:
            return self.attend_at_once(hidden_states, rel_embeddings, relative_pos, attention_mask, dropout), None
        query = self.query_proj(hidden_states) * self.scale
        key, value = self.key_proj(hidden_states), self.value_proj(hidden_states)
        c2p = p2c = None
        if relative_pos is not None:
            if isinstance(rel_embeddings, torch.Tensor):
                rel_embeddings = self.project_positions(self.pos_dropout(rel_embeddings))
            c2p, p2c = rel_embeddings
        c2p = None if c2p is None else c2p.index_select(0, relative_pos.falling)
        p2c = None if p2c is None else p2c.index_select(0, relative_pos.rising)
        parts = (query, key, value, c2p, p2c, attention_mask.bias)
        arguments = (*parts, attention_mask)
        if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts):
            return DisentangledAttention.apply(*arguments, dropout), None
        return attend(*arguments, dropout)[0], None

    def disentangled_attention_bias(self, query_layer, key_layer, relative_pos, rel_embeddings, scale_factor):
        """Return the library's position scores plus the position bias, for `eager`.

        The library adds the result to scaled scores, as MPNet adds its bias. `relative_pos` is the library's, or what
        [`EmoDebertaEncoder.get_rel_pos`] returns.
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

    def attend_at_once(
        self,
        states: torch.Tensor,
        positions: torch.Tensor | None,
        rows: PositionRows | None,
        packing: Packing,
        dropout: float,
    ) -> torch.Tensor:
        """Return the context `(tokens, hidden)` of texts in one grid; see [`forward`]."""
        terms, heads, size = () if rows is None else self.terms, self.num_attention_heads, self.attention_head_size
        fused = self.config._attn_implementation == "disentangled"
        fused = fused and by_flash(states, len(positions) if terms else 0, packing, heads, size, dropout)
        projected, table = self.project(states, positions, terms, 1.0 if fused else self.scale)
        attend = flash_attention if fused else attend_at_once
        return attend(projected, table, terms, rows, packing, heads, self.scale, dropout)

    def project(
        self, states: torch.Tensor, positions: torch.Tensor | None, terms: tuple[str, ...], scale: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what [`Projections`] does, by the modules themselves where they are not plain."""
        positions = self.pos_dropout(positions) if terms else None
        modules = [self.query_proj, self.key_proj, self.value_proj]
        if not self.share_att_key:
            modules += [self.pos_query_proj if term == "p2c" else self.pos_key_proj for term in terms]
        if can_fuse(states, *modules):
            parameters = (part for module in modules for part in (module.weight, module.bias))
            return Projections.apply(states, positions, scale, terms, *parameters)
        of_states, of_positions = modules[:3], modules[3:]
        if self.share_att_key:
            of_positions = [self.query_proj if term == "p2c" else self.key_proj for term in terms]
        table = torch.cat([module(positions) for module in of_positions], 1) * scale if terms else None
        return torch.cat([module(states) for module in of_states], 1), table

    def project_positions(self, positions: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return keys and scaled queries of the positions, `(rows, hidden)` each; `None` for a term that is off."""
        c2p = p2c = None
        if "c2p" in self.pos_att_type:
            c2p = (self.key_proj if self.share_att_key else self.pos_key_proj)(positions)
        if "p2c" in self.pos_att_type:
            p2c = (self.query_proj if self.share_att_key else self.pos_query_proj)(positions) * self.scale
        return c2p, p2c


class ProjectionCache:
    """Every layer's projections of the relative positions, kept from one inference batch to the next.

    They depend on the relative embedding, its normalisation and the layers' projections, but not on the batch. They are
    stale once one of these weights changes its value or precision. A weight's version does not show every change, for
    example by fused optimizers or `weight.data`. So the cache sums the weights' bits, which takes less time than the
    projections. Nothing is cached for layers of other classes, such as adapters or quantised or offloaded layers.
    """

    def __init__(self):
        # Precision, sums and projections, in one tuple so that threads see all of them or none.
        self._kept: tuple[tuple, torch.Tensor, list[tuple]] | None = None

    def of(self, encoder: "EmoDebertaEncoder") -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Return what [`EmoDebertaSelfAttention.project_positions`] gives for each layer, computed anew if stale."""
        weights, kept = self._weights(encoder), self._kept
        if weights is not None:
            device = weights[0].device
            autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
            precision = (device, autocast, *(weight.dtype for weight in weights))
            sums = torch.cat([bit_sums(weight) for weight in weights])
            if kept is not None and kept[0] == precision and torch.equal(kept[1], sums):
                return kept[2]
        positions = encoder.get_rel_embedding()
        made = [layer.attention.self.project_positions(positions) for layer in encoder.layer]
        self._kept = None if weights is None else (precision, sums, made)
        return made

    @staticmethod
    def _weights(encoder: "EmoDebertaEncoder") -> list[torch.Tensor] | None:
        """Return the weights that projections are made of, or `None` if they may depend on something else."""
        modules: list[nn.Module] = [encoder.rel_embeddings]
        if "layer_norm" in encoder.norm_rel_ebd:
            modules.append(encoder.LayerNorm)
        for layer in encoder.layer:
            attention = layer.attention.self
            shared = attention.share_att_key
            if "c2p" in attention.pos_att_type:
                modules.append(attention.key_proj if shared else attention.pos_key_proj)
            if "p2c" in attention.pos_att_type:
                modules.append(attention.query_proj if shared else attention.pos_query_proj)
        weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
        known = (nn.Embedding, nn.Linear, nn.LayerNorm)
        if any(type(module) not in known or has_hooks(module) for module in modules):
            return None
        return None if len({weight.device for weight in weights}) > 1 else weights


def bit_sums(weight: torch.Tensor) -> torch.Tensor:
    """Return for each row the sum of its bits, read as integers; it changes if one bit changes."""
    rows = weight.detach().contiguous()
    rows = rows.view(len(rows), -1) if rows.dim() > 1 else rows.view(1, -1)
    whole = torch.int64 if rows.shape[1] * rows.element_size() % 8 == 0 else torch.uint8
    return rows.view(whole).sum(1, dtype=torch.int64)


class EmoDebertaEncoder(DebertaV2Encoder):
    """The encoder of `transformers`. Under `sdpa`, its layers see no padding and it keeps only the states asked for."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        for layer in self.layer:
            layer.attention.self = EmoDebertaSelfAttention(config)
            for output in (layer.attention.output, layer.output):
                output.__class__ = EmoDebertaOutput  # a new module would draw other random weights
                output.dropout = Dropout(config.hidden_dropout_prob)
            layer.intermediate.__class__ = EmoDebertaIntermediate
            if config.hidden_act == "gelu":
                layer.intermediate.intermediate_act_fn = Gelu()
        self.position_bias = None
        if config.position_bias_buckets:
            self.position_bias = nn.Embedding(config.position_bias_buckets, config.num_attention_heads)
        self.projection_cache = ProjectionCache()

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
            The last hidden states (and all of them on request), `(batch, length, hidden)`, with zeros for padding.
        """
        if output_attentions and self.config._attn_implementation != "eager":
            logger.warning_once("attention probabilities come from attn_implementation='eager', which is slower")
        if output_attentions or self.config._attn_implementation == "eager":
            return super().forward(hidden_states, attention_mask, output_hidden_states, output_attentions)

        device, dtype = hidden_states.device, hidden_states.dtype
        if is_traced():
            packing = Packing.padded(attention_mask)
        elif in_one_grid(device):
            packing = Packing.for_gpu(attention_mask)
        else:
            at_once = GROUP_BYTES // hidden_states.element_size() if device.type == "cpu" else None
            packing = Packing.of(attention_mask, self.config.num_attention_heads, at_once)
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        packing.add(self.bias_matrix(packing.length, device), dtype)
        rows, positions = self._positions(packing.length, device)

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
        """Return MPNet's bias for the score of each query and key, `(heads, length, length)`; `None` without a bias.

        All layers and texts of a batch share it. It is a view of one value per distance, so the gradient of a bucket
        is the sum over its cells.
        """
        if self.position_bias is None:
            return None
        config = self.config
        buckets = bias_buckets(length, config.position_bias_buckets, config.position_bias_max_distance, device)
        by_distance = self.position_bias(buckets).T
        return shifted(by_distance[:, None].expand(-1, length, -1), length)

    def get_rel_embedding(self) -> torch.Tensor | None:
        """Return the relative embedding; weights that a hook fetches (`cpu_offload`) are read through their module."""
        if not self.relative_attention or not has_hooks(self.rel_embeddings):
            return super().get_rel_embedding()
        weight = self.rel_embeddings.weight
        positions = self.rel_embeddings(torch.arange(len(weight), device=None if weight.is_meta else weight.device))
        return self.LayerNorm(positions) if "layer_norm" in self.norm_rel_ebd else positions

    def get_rel_pos(self, hidden_states, query_states=None, relative_pos=None):
        """Return the library's result, for `eager`; with a position bias, `(that result or None, bias matrix)`."""
        relative_pos = super().get_rel_pos(hidden_states, query_states, relative_pos)
        bias = self.bias_matrix(hidden_states.shape[-2], hidden_states.device)
        return relative_pos if bias is None else (relative_pos, bias)

    def _positions(self, length: int, device: torch.device) -> tuple[PositionRows | None, list]:
        """Return rows by distance, and for each layer what they index: embeddings, or projections in inference."""
        if not self.relative_attention:
            return None, [None] * len(self.layer)
        span = len(self.rel_embeddings.weight) // 2
        positions = (length, span, self.position_buckets, self.max_relative_positions)
        if is_traced():
            rows = relative_rows(*positions, device)
            return PositionRows(rows, rows.flip(0)), [self.get_rel_embedding()] * len(self.layer)
        rows, reach = rows_on_cpu(*positions)
        if in_one_grid(device):  # reading the cache of projections would take longer than they do
            reached = self.get_rel_embedding()[span - reach : span + reach]
            return rows_on_gpu(*positions, device), [reached] * len(self.layer)
        rows = rows.to(device)
        drops = any(layer.attention.self.pos_dropout.training for layer in self.layer)
        if drops or torch.is_grad_enabled() or self._is_sharded():
            rows = rows - (span - reach)
            reached = self.get_rel_embedding()[span - reach : span + reach]
            return PositionRows(rows, rows.flip(0)), [reached] * len(self.layer)
        return PositionRows(rows, rows.flip(0)), self.projection_cache.of(self)

    def _is_sharded(self) -> bool:
        """Return whether a layer's weights are complete only while the layer runs (FSDP2's `DTensor`)."""
        return hasattr(next(self.layer.parameters()), "full_tensor")
