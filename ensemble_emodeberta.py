"""Late fusion: several EmoDeBERTa classifiers behind one model (LingJing, WASSA 2022; paper, section 2.4).

Shipped inside every saved ensemble; loads with `trust_remote_code=True` where the project is not installed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

try:  # all files are imported here, because transformers 5.4 copies these but not what they import in turn
    from .attention_emodeberta import EmoDebertaEncoder  # noqa: F401
    from .configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
    from .gpu_emodeberta import AttentionChoice
    from .kernels_emodeberta import DisentangledAttention  # noqa: F401
    from .layers_emodeberta import EmoDebertaOutput  # noqa: F401
    from .modeling_emodeberta import EmoDebertaForSequenceClassification, classification_loss
    from .packing_emodeberta import Packing  # noqa: F401
    from .pipeline_emodeberta import EmotionPipeline
    from .texts_emodeberta import token_budget_batches  # noqa: F401
except ImportError:
    from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
    from gpu_emodeberta import AttentionChoice
    from modeling_emodeberta import EmoDebertaForSequenceClassification, classification_loss
    from pipeline_emodeberta import EmotionPipeline

# Share of the mean probability in a hard vote's distribution, so small that one vote always outweighs it.
SMOOTHING = 1e-3


def fuse(probabilities: torch.Tensor, fusion: str, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Return one distribution from those of several members.

    Args:
        probabilities: `(members, rows, labels)`, each row a distribution.
        fusion: `hard` gives each label its share of the votes, plus a small share of the mean probability, which
            orders ties and labels without a vote. `soft` gives the mean probability.
        weights: For `soft`: one per member, adding up to 1.

    Returns:
        `(rows, labels)`, each row a distribution.
    """
    if fusion == "soft":
        if weights is None:
            return probabilities.mean(dim=0)
        return torch.einsum("m,mrl->rl", probabilities.new_tensor(weights), probabilities)
    votes = nn.functional.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1]).to(probabilities.dtype)
    return (votes.mean(dim=0) + SMOOTHING * probabilities.mean(dim=0)) / (1 + SMOOTHING)


def to_logits(distribution: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the logarithm of a distribution, divided by the temperature; always finite."""
    return distribution.clamp(min=torch.finfo(distribution.dtype).tiny).log() / temperature


def on_one_device(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the members' tensors on the first one's device; with `device_map`, members may be on several."""
    return [tensor.to(tensors[0].device) for tensor in tensors]


@dataclass
class EnsembleOutput(ModelOutput):
    """The output of an ensemble.

    Attributes:
        loss: Scalar loss, if there are labels.
        logits: `(batch, labels)` in float32, the logarithm of the fused distribution, divided by the temperature.
        member_logits: `(batch, members, labels)`, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    member_logits: torch.Tensor | None = None


class _EnsemblePreTrainedModel(AttentionChoice, PreTrainedModel):
    config_class = EmoDebertaEnsembleConfig
    config: EmoDebertaEnsembleConfig
    _no_split_modules = ("EmoDebertaModel",)

    def __init__(self, config: EmoDebertaEnsembleConfig):
        super().__init__(config)
        if not config.members:
            raise ValueError("an ensemble needs members; config.members has none")
        configs = [EmoDebertaConfig.from_dict(values) for values in config.members]
        for member in configs:
            member._attn_implementation = config._attn_implementation
        self.members = nn.ModuleList(map(EmoDebertaForSequenceClassification, configs))
        self.post_init()

    def with_inputs(
        self, inputs: dict[str, torch.Tensor | None]
    ) -> Iterator[tuple[EmoDebertaForSequenceClassification, dict[str, torch.Tensor]]]:
        """Yield each member with its tokenizer's inputs: `input_ids` for tokenizer 0, `input_ids_1` for 1, ..."""
        tokenizer_of_member = self.config.tokenizer_of_member or [0] * len(self.members)
        for member, tokenizer in zip(self.members, tokenizer_of_member, strict=True):
            suffix = f"_{tokenizer}" if tokenizer else ""
            if inputs.get(f"input_ids{suffix}") is None:
                raise ValueError(
                    f"no input_ids{suffix}: the members use {max(tokenizer_of_member) + 1} tokenizers, and each needs "
                    "its own inputs; EmotionPipeline provides them"
                )
            names = ("input_ids", "attention_mask", "token_type_ids")
            found = {name: inputs.get(f"{name}{suffix}") for name in names}
            yield member, {name: value for name, value in found.items() if value is not None}


class EmoDebertaEnsembleForSequenceClassification(_EnsemblePreTrainedModel):
    """Several classifiers with one fused prediction; each member keeps its weights, size and pooling."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_member_logits: bool = False,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **other_tokenizers: torch.Tensor,
    ) -> tuple | EnsembleOutput:
        """Classify a batch.

        Args:
            input_ids, attention_mask, token_type_ids: As `EmoDebertaForSequenceClassification`, from tokenizer 0.
            labels, num_items_in_batch: See `classification_loss`.
            output_member_logits: Also return the members' own logits.
            other_tokenizers: `input_ids_1`, `attention_mask_1` and so on, from the other tokenizers.

        Returns:
            `EnsembleOutput`, or a tuple of its values with `return_dict=False`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= other_tokenizers
        logits = torch.stack(on_one_device([member(**own).logits for member, own in self.with_inputs(inputs)]))
        fused = fuse(logits.softmax(dim=-1), self.config.fusion, self.config.weights)
        of_ensemble, loss = to_logits(fused, self.config.temperature), None
        if labels is not None:
            loss = classification_loss(of_ensemble, labels, self.members[0].config, num_items_in_batch)
        of_members = logits.transpose(0, 1) if output_member_logits else None
        outputs = EnsembleOutput(loss=loss, logits=of_ensemble, member_logits=of_members)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


class EmoDebertaEnsembleModel(_EnsemblePreTrainedModel):
    """The members' text vectors, concatenated, as `AutoModel` returns them.

    `pooler_output` is `(batch, sum of the members' hidden sizes)`, in the members' order. There is no
    `last_hidden_state`, because members with different tokenizers share no tokens.
    """

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **other_tokenizers: torch.Tensor,
    ) -> tuple | BaseModelOutputWithPooling:
        """Return the concatenated text vectors of a batch; inputs are as in the ensemble's classifier above."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= other_tokenizers
        pooled = on_one_device([member.deberta(**own).pooler_output for member, own in self.with_inputs(inputs)])
        outputs = BaseModelOutputWithPooling(pooler_output=torch.cat(pooled, dim=-1))
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()


EmoDebertaEnsembleModel.register_for_auto_class("AutoModel")
EmoDebertaEnsembleForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["EmoDebertaEnsembleForSequenceClassification", "EmoDebertaEnsembleModel", "EmotionPipeline"]
