"""A learning rate for each depth: a higher one for the new head, lower ones for the lower layers.

Discriminative fine-tuning, Howard and Ruder 2018, https://aclanthology.org/P18-1031 (section 3.2): the rate of a layer
is that of the layer above it, times a constant.
"""

import re

import torch

_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")


def depth_of(name: str, base_model_prefix: str, layers: int) -> int | None:
    """Return how deep in the encoder a parameter is.

    Args:
        name: Of the parameter, within the whole model.
        base_model_prefix: Of the encoder's parameters, for example `deberta`.
        layers: How many the encoder has.

    Returns:
        0 for embeddings and what all layers share, 1 for the lowest layer, `layers` for the highest. `None` for the
        head.
    """
    if not name.startswith(f"{base_model_prefix}."):
        return None
    found = _LAYER.search(name)
    return min(int(found.group(1)) + 1, layers) if found else 0


class LearningRatesMixin:
    """For a `Trainer`: its optimizer has a learning rate for each depth of the model.

    Args:
        head_learning_rate: Of the parameters outside the encoder. `None` for `args.learning_rate`.
        layerwise_decay: What the rate of a layer is multiplied by to get that of the layer below. The highest layer
            has `args.learning_rate`. 1 gives all layers the same.
    """

    def __init__(self, *args, head_learning_rate: float | None = None, layerwise_decay: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.head_learning_rate, self.layerwise_decay = head_learning_rate, layerwise_decay

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the library's optimizer, its parameter groups divided by learning rate."""
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
