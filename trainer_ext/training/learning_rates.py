"""Learning rates by depth: a higher rate for the new head, lower rates for the lower layers.

This is discriminative fine-tuning (Howard and Ruder 2018, https://aclanthology.org/P18-1031, section 3.2): each layer's
rate is that of the layer above it, times a constant.
"""

import re

import torch

_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")


def depth_of(name: str, base_model_prefix: str, layers: int) -> int | None:
    """Return how deep in the encoder a parameter is.

    Args:
        name: Name of the parameter in the whole model.
        base_model_prefix: Prefix of the encoder's parameters, for example `deberta`.
        layers: Number of encoder layers.

    Returns:
        0 for the embeddings and for parameters that all layers share, 1 for the lowest layer, `layers` for the highest,
        and `None` for the head.
    """
    if not name.startswith(f"{base_model_prefix}."):
        return None
    found = _LAYER.search(name)
    return min(int(found.group(1)) + 1, layers) if found else 0


class LearningRatesMixin:
    """A mixin for `Trainer` that gives each depth of the model its own learning rate.

    Args:
        head_learning_rate: Rate of the parameters outside the encoder; `None` for `args.learning_rate`.
        layerwise_decay: Factor from a layer's rate to the rate of the layer below it. The highest layer has
            `args.learning_rate`. With 1, all layers have the same rate.
    """

    def __init__(self, *args, head_learning_rate: float | None = None, layerwise_decay: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.head_learning_rate, self.layerwise_decay = head_learning_rate, layerwise_decay

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the library's optimizer with its parameter groups split by learning rate."""
        existed = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if existed or (self.head_learning_rate is None and self.layerwise_decay == 1):
            return optimizer
        rates = {id(weight): self._rate(name) for name, weight in self.model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                by_rate.setdefault(rates[id(weight)], []).append(weight)
            groups += [group | {"params": weights, "lr": rate} for rate, weights in by_rate.items()]
        optimizer.param_groups[:] = groups
        return optimizer

    def _rate(self, name: str) -> float:
        layers = self.model.config.num_hidden_layers
        depth = depth_of(name, self.model.base_model_prefix, layers)
        if depth is None:
            return self.args.learning_rate if self.head_learning_rate is None else self.head_learning_rate
        return self.args.learning_rate * self.layerwise_decay ** (layers - depth)
