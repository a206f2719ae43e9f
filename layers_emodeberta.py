"""The linear parts of a layer on a GPU, each with its gradient in one node of autograd's graph.

A GPU computes a layer of base size faster than Python starts its kernels, so the number of kernels and of autograd's
nodes decides the speed. Here several linear layers become one matrix product, gradients are written by hand, and
nothing is kept that the gradient does not need. Shipped inside every saved model.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Intermediate, DebertaV2Output

try:
    from .kernels_emodeberta import Gelu, refuse_second_derivative
    from .packing_emodeberta import is_traced
except ImportError:
    from kernels_emodeberta import Gelu, refuse_second_derivative
    from packing_emodeberta import is_traced

native = torch.ops.aten


def in_few_nodes(device: torch.device) -> bool:
    """Return whether layers on this device are computed by this file."""
    return device.type == "cuda"


def can_fuse(states: torch.Tensor, *modules: nn.Module) -> bool:
    """Return whether the hand-written gradients of this file can be used instead of calling the modules.

    They can if a gradient is needed, the states are packed, `(tokens, hidden)`, and all modules are plain linear layers
    or normalisations. Modules with hooks or adapters, and quantised, sharded or offloaded ones, have to be called.
    """
    if states.dim() != 2 or not torch.is_grad_enabled() or is_traced() or not in_few_nodes(states.device):
        return False
    return all(is_plain(module) for module in modules)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a linear layer or normalisation without hooks, its weights ordinary tensors."""
    if type(module) not in (nn.Linear, nn.LayerNorm) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if module._backward_hooks or module._backward_pre_hooks or hasattr(module, "_hf_hook"):
        return False
    return module.bias is not None and type(module.weight) is nn.Parameter


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks of torch, or of accelerate, which fetch its weights."""
    return bool(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"))


def first_state(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the state of each text's first token, [CLS], `(batch, hidden)`. Padding may be on either side."""
    first = attention_mask.bool().int().argmax(dim=1)
    return states.gather(1, first[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)


def compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products: autocast's, or that of the states."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def for_dense(gradient: torch.Tensor, states: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of a linear layer's weight and bias. Not needed where they are frozen, as beside LoRA."""
    return (gradient.T @ states).to(dtype), gradient.sum(0).to(dtype)


class Projections(torch.autograd.Function):
    """Queries, keys and values of tokens, and queries and keys of positions, by one matrix product each.

    Args:
        states: `(tokens, hidden)`.
        positions: `(positions, hidden)`; `None` without `terms`.
        scale: By which those of the positions are multiplied.
        terms: Those of `("p2c", "c2p")` that the scores have.
        parameters: Weight and bias of query, key and value. If positions have their own: of those in `terms`, too.

    Returns:
        `(tokens, 3 * hidden)`: queries, keys, values. `(positions, len(terms) * hidden)`: queries for p2c, keys for
        c2p; `None` without `terms`.
    """

    @staticmethod
    def forward(ctx, states, positions, scale, terms, *parameters):
        dtype, width = compute_dtype(states), len(parameters[0])
        weights, biases = parameters[::2], parameters[1::2]
        ctx.scale, ctx.width, ctx.dtypes = scale, width, (states.dtype, weights[0].dtype)
        # Rows of the tokens' weights that positions share; `None` if they have their own.
        ctx.part = slice(width * ("p2c" not in terms), width * (1 + ("c2p" in terms))) if len(weights) == 3 else None
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(dtype)
            weight, bias = (torch.cat(part[:3]).to(dtype) for part in (weights, biases))
            projected = torch.addmm(bias, states, weight.T)
            table = own = None
            if terms:
                ctx.dtypes = (*ctx.dtypes, positions.dtype)
                positions = positions.to(dtype)
                if ctx.part is None:
                    own, bias = (torch.cat(part[3:]).to(dtype) for part in (weights, biases))
                    table = torch.addmm(bias, positions, own.T, beta=scale, alpha=scale)
                else:
                    table = torch.addmm(bias[ctx.part], positions, weight[ctx.part].T, beta=scale, alpha=scale)
        ctx.save_for_backward(states, positions if terms else None, weight, own)
        return projected, table

    @staticmethod
    def backward(ctx, gradient, for_table):
        refuse_second_derivative()
        states, positions, weight, own = ctx.saved_tensors
        of_states, of_weights, *of_positions = ctx.dtypes
        with torch.autocast(gradient.device.type, enabled=False):
            for_states, for_positions = (gradient @ weight).to(of_states), None
            if positions is not None:
                for_positions = (for_table @ (weight[ctx.part] if own is None else own)).mul_(ctx.scale)
                for_positions = for_positions.to(*of_positions)
            if not any(ctx.needs_input_grad[4:]):
                return for_states, for_positions, *[None] * (len(ctx.needs_input_grad) - 2)
            found = [(gradient.T @ states, gradient.sum(0))]
            if positions is not None:
                if own is None:
                    found[0][0][ctx.part].addmm_(for_table.T, positions, alpha=ctx.scale)
                    found[0][1][ctx.part].add_(for_table.sum(0), alpha=ctx.scale)
                else:
                    found.append(((for_table.T @ positions).mul_(ctx.scale), for_table.sum(0).mul_(ctx.scale)))
            for_parameters = [
                part
                for weight_and_bias in found
                for pair in zip(*(part.to(of_weights).split(ctx.width) for part in weight_and_bias), strict=True)
                for part in pair
            ]
            return for_states, for_positions, None, None, *for_parameters


class DenseGelu(torch.autograd.Function):
    """A linear layer and GELU, `(tokens, hidden)` to `(tokens, intermediate)`."""

    @staticmethod
    def forward(ctx, states, weight, bias):
        dtype = compute_dtype(states)
        ctx.dtypes = (states.dtype, weight.dtype)
        with torch.autocast(states.device.type, enabled=False):
            states, weight = states.to(dtype), weight.to(dtype)
            inner = torch.addmm(bias.to(dtype), states, weight.T)
            ctx.save_for_backward(states, weight, inner)
            return F.gelu(inner)

    @staticmethod
    def backward(ctx, gradient):
        refuse_second_derivative()
        states, weight, inner = ctx.saved_tensors
        of_states, of_weight = ctx.dtypes
        with torch.autocast(gradient.device.type, enabled=False):
            gradient = native.gelu_backward(gradient, inner)
            trained = any(ctx.needs_input_grad[1:])
            for_weight, for_bias = for_dense(gradient, states, of_weight) if trained else (None, None)
            return (gradient @ weight).to(of_states), for_weight, for_bias


class DenseAddNorm(torch.autograd.Function):
    """A linear layer, dropout, the residual connection and layer normalisation.

    Args:
        states: `(tokens, features)`.
        residual: `(tokens, hidden)`.
        dropout: Its probability; 0 outside training.
    """

    @staticmethod
    def forward(ctx, states, residual, weight, bias, norm_weight, norm_bias, eps, dropout):
        dtype, kind = compute_dtype(states), states.device.type
        ctx.dtypes, ctx.dropout = (states.dtype, residual.dtype, weight.dtype), dropout
        full = torch.is_autocast_enabled(kind)  # autocast normalises in float32
        with torch.autocast(kind, enabled=False):
            states, weight = states.to(dtype), weight.to(dtype)
            total, mask = torch.addmm(bias.to(dtype), states, weight.T), None
            if dropout:
                total, mask = torch.native_dropout(total, dropout, True)
            total = total.add_(residual) if total.dtype == residual.dtype else total + residual
            total = total.float() if full else total
            ctx.of_norm = norm_weight.dtype
            norm_weight, norm_bias = norm_weight.to(total.dtype), norm_bias.to(total.dtype)
            normalised, mean, scale = torch.native_layer_norm(total, total.shape[-1:], norm_weight, norm_bias, eps)
        ctx.save_for_backward(states, weight, norm_weight, norm_bias, total, mean, scale, mask)
        return normalised

    @staticmethod
    def backward(ctx, gradient):
        refuse_second_derivative()
        states, weight, norm_weight, norm_bias, total, mean, scale, mask = ctx.saved_tensors
        of_states, of_residual, of_weight = ctx.dtypes
        with torch.autocast(gradient.device.type, enabled=False):
            gradient, for_norm, for_norm_bias = native.native_layer_norm_backward(
                gradient, total, total.shape[-1:], mean, scale, norm_weight, norm_bias, [True, True, True]
            )
            for_residual, gradient = gradient.to(of_residual), gradient.to(states.dtype)
            if mask is not None:
                gradient = native.native_dropout_backward(gradient, mask, 1 / (1 - ctx.dropout))
            trained = any(ctx.needs_input_grad[2:4])
            for_weight, for_bias = for_dense(gradient, states, of_weight) if trained else (None, None)
            for_states = (gradient @ weight).to(of_states)
            for_norm, for_norm_bias = for_norm.to(ctx.of_norm), for_norm_bias.to(ctx.of_norm)
            return for_states, for_residual, for_weight, for_bias, for_norm, for_norm_bias, None, None


# ---- Modules --------------------------------------------------------------------------------------------------------
class EmoDebertaIntermediate(DebertaV2Intermediate):
    """The library's first half of the feed-forward part."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dense = self.dense
        if type(self.intermediate_act_fn) is not Gelu:
            return super().forward(hidden_states)
        if can_fuse(hidden_states, dense):
            return DenseGelu.apply(hidden_states, dense.weight, dense.bias)
        if has_hooks(dense):  # which may keep what `Gelu` overwrites
            return F.gelu(dense(hidden_states))
        return super().forward(hidden_states)


class EmoDebertaOutput(DebertaV2Output):
    """The library's end of each half of a layer: a linear layer, dropout, the residual connection, normalisation."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        dense, norm, dropout = self.dense, self.LayerNorm, self.dropout.p if self.dropout.training else 0.0
        if dropout < 1 and can_fuse(hidden_states, dense, norm):
            parameters = (dense.weight, dense.bias, norm.weight, norm.bias)
            return DenseAddNorm.apply(hidden_states, input_tensor, *parameters, norm.eps, dropout)
        return super().forward(hidden_states, input_tensor)
