"""EmoDeBERTa: a DeBERTa-v2/v3 encoder, masked mean pooling and a classification head.

This is the system of LingJing, which won WASSA 2022's emotion-classification track (paper, sections 2.2 and 3.2). The
encoder subclasses that of `transformers`, so every published DeBERTa-v2/v3 checkpoint keeps its parameter names.
Shipped inside every saved model; loads with `trust_remote_code=True` where the project is not installed.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Embeddings,
    DebertaV2Model,
    DebertaV2OnlyMLMHead,
    DebertaV2PreTrainedModel,
)

try:  # all files are imported here, because transformers 5.4 copies these but not what they import in turn
    from .attention_emodeberta import EmoDebertaEncoder
    from .configuration_emodeberta import EmoDebertaConfig
    from .gpu_emodeberta import AttentionChoice
    from .kernels_emodeberta import Dropout, Tie, TiedLogits, TiedLookup
    from .layers_emodeberta import first_state, has_hooks
    from .packing_emodeberta import is_traced
    from .pipeline_emodeberta import EmotionPipeline
    from .texts_emodeberta import token_budget_batches  # noqa: F401
except ImportError:
    from attention_emodeberta import EmoDebertaEncoder
    from configuration_emodeberta import EmoDebertaConfig
    from gpu_emodeberta import AttentionChoice
    from kernels_emodeberta import Dropout, Tie, TiedLogits, TiedLookup
    from layers_emodeberta import first_state, has_hooks
    from packing_emodeberta import is_traced
    from pipeline_emodeberta import EmotionPipeline


def masked_mean(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the token states that the mask keeps (paper, section 2.2), summed in float32.

    Args:
        hidden_states: `(batch, length, hidden)`.
        attention_mask: `(batch, length)`, 1 for a token and 0 for padding. A row without any token gives zeros.

    Returns:
        `(batch, hidden)`, in the dtype of `hidden_states`.
    """
    mask = attention_mask.to(torch.float32)
    total = (hidden_states.float() * mask.unsqueeze(-1)).sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: EmoDebertaConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Return cross-entropy in float32 for one class, several classes or a distribution per row.

    Args:
        logits: `(batch, labels)`.
        labels: Integers `(batch,)`, one class per row, -100 to leave a row out. Or floats `(batch, labels)`: 0 or 1
            per label if `config.problem_type` is `multi_label_classification` (binary cross-entropy), otherwise a
            probability distribution (soft labels).
        config: Gives `problem_type`, `class_weights` and `label_smoothing`.
        num_items_in_batch: The label entries other than -100 that `Trainer` counted over all accumulation steps and
            devices. The summed loss is divided by it, so that 4 batches of 4 give the gradient of one batch of 16.
            `None` divides by this batch's own count. Class weights do not enter the divisor, for the same reason.

    Returns:
        The scalar loss.

    Raises:
        ValueError: If the labels' shape or dtype does not fit `problem_type`.
    """
    logits, labels = logits.float(), labels.to(logits.device)
    batch, num_labels = logits.shape
    weight = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    multi_label = config.problem_type == "multi_label_classification"

    if not labels.is_floating_point():
        if multi_label or labels.dim() != 1:
            raise ValueError(
                f"integer labels of shape {tuple(labels.shape)} name one class per row, shape ({batch},); for "
                f"several classes or a distribution pass floats of shape ({batch}, {num_labels})"
            )
        total = F.cross_entropy(
            logits, labels, weight, ignore_index=-100, reduction="sum", label_smoothing=config.label_smoothing
        )
        items = (labels != -100).sum()
    else:
        if labels.shape != logits.shape:
            raise ValueError(f"float labels have shape {tuple(labels.shape)}; the logits have {tuple(logits.shape)}")
        if config.problem_type is None:
            raise ValueError(
                "float labels need config.problem_type: multi_label_classification for several classes per row, "
                "single_label_classification for a distribution"
            )
        labels = labels.float()
        if multi_label:
            targets = labels * (1 - config.label_smoothing) + config.label_smoothing / 2
            total = F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
        else:
            # `Trainer` counts every entry of the (batch, labels) matrix, `num_labels` per row.
            rows = F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=config.label_smoothing)
            total = rows * num_labels
        items = labels.numel()

    items = items if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(items, device=total.device).clamp(min=1)


class EmoDebertaModel(AttentionChoice, DebertaV2Model):
    """The encoder, with `pooler_output` `(batch, hidden)`: masked mean or first token (`config.pooling`)."""

    config_class = EmoDebertaConfig
    config: EmoDebertaConfig
    # On one device each under `device_map`: layers share what the encoder prepares, and no hook moves that.
    _no_split_modules = ("DebertaV2Embeddings", "EmoDebertaEncoder", "EmoDebertaModel")

    def __init__(self, config: EmoDebertaConfig):
        super(DebertaV2Model, self).__init__(config)  # skips DebertaV2Model's, which would build another encoder
        self.embeddings = DebertaV2Embeddings(config)
        self.embeddings.dropout = Dropout(config.hidden_dropout_prob)
        self.encoder = EmoDebertaEncoder(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPooling:
        """Return the token states and the pooled state of a batch.

        Args:
            input_ids: `(batch, length)` token ids, or pass `inputs_embeds` `(batch, length, embedding)` instead.
            attention_mask: `(batch, length)`, 1 for a token and 0 for padding; all ones if not given.

        Returns:
            `last_hidden_state` `(batch, length, hidden)`, `pooler_output` `(batch, hidden)` and, on request,
            `hidden_states` and `attentions`, one tensor per layer; as a tuple with `return_dict=False`.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = inputs_embeds if input_ids is None else input_ids
        if attention_mask is None:
            if input_ids is not None:
                self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        embedded = self.embeddings(input_ids, token_type_ids, position_ids, attention_mask, inputs_embeds)
        outputs = self.encoder(embedded, attention_mask, output_hidden_states, output_attentions)
        hidden = outputs.last_hidden_state
        pooled = (first_state if config.pooling == "cls" else masked_mean)(hidden, attention_mask.to(hidden.device))
        outputs = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return outputs if return_dict else outputs.to_tuple()


class EmoDebertaClassificationHead(nn.Module):
    """Dropout, a layer of `config.classifier_hidden_size` with its activation, dropout, one logit per label."""

    def __init__(self, config: EmoDebertaConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        width = config.hidden_size
        self.dense = None
        if config.classifier_hidden_size is not None:
            self.dense = nn.Linear(width, config.classifier_hidden_size)
            self.activation = ACT2FN[config.classifier_activation]
            width = config.classifier_hidden_size
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits `(batch, labels)` of pooled states `(batch, hidden)`."""
        pooled = self.dropout(pooled)
        if self.dense is not None:
            pooled = self.dropout(self.activation(self.dense(pooled)))
        return self.out_proj(pooled)


class EmoDebertaForSequenceClassification(AttentionChoice, DebertaV2PreTrainedModel):
    """An `EmoDebertaModel` with the classification head. Logits and loss are in float32."""

    config_class = EmoDebertaConfig
    config: EmoDebertaConfig

    def __init__(self, config: EmoDebertaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deberta = EmoDebertaModel(config)
        self.classifier = EmoDebertaClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> tuple | SequenceClassifierOutput:
        """Classify a batch, given the arguments of `EmoDebertaModel` and of `classification_loss`.

        Returns:
            `loss` (if there are labels), `logits` `(batch, labels)` in float32, in evaluation mode divided by
            `config.calibration_temperature`, and, on request, `hidden_states` and `attentions`; or a tuple of these.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        encoded = self.deberta(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(output_attentions, output_hidden_states, True),
            **kwargs,
        )
        logits = self.classifier(encoded.pooler_output).float()
        if self.config.calibration_temperature is not None and not self.training:
            logits = logits / self.config.calibration_temperature
        loss = None if labels is None else classification_loss(logits, labels, self.config, num_items_in_batch)
        outputs = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return outputs if return_dict else outputs.to_tuple()


class EmoDebertaForMaskedLM(AttentionChoice, DebertaV2PreTrainedModel):
    """An `EmoDebertaModel` with the masked-language-model head of DeBERTa v1/v2.

    The head is a dense layer, activation, normalisation, the transposed word embeddings and a bias. Its parameters have
    the names of `DebertaV2ForMaskedLM` with `legacy=False`, as in Microsoft's checkpoints (`lm_predictions.lm_head.*`).
    The configuration sets `legacy=False`.
    """

    config_class = EmoDebertaConfig
    config: EmoDebertaConfig

    # Default of `full_logits`, for callers like `Trainer`. None: all logits in evaluation, only labelled in training.
    full_logits: bool | None = None

    def __init__(self, config: EmoDebertaConfig):
        super().__init__(config)
        config.legacy = False
        self.deberta = EmoDebertaModel(config)
        self.lm_predictions = DebertaV2OnlyMLMHead(config)
        self.post_init()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resize as the library does, and resize the head's bias, too; the bias of new tokens is the mean."""
        embeddings, head = super().resize_token_embeddings(*args, **kwargs), self.lm_predictions.lm_head
        new = embeddings.weight.shape[0] - len(head.bias)
        if new:
            bias = head.bias.detach()
            bias = torch.cat([bias, bias.mean().expand(new)]) if new > 0 else bias[:new].clone()
            head.bias = nn.Parameter(bias, requires_grad=head.bias.requires_grad)
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        full_logits: bool | None = None,
        **kwargs,
    ) -> tuple | MaskedLMOutput:
        """Predict masked tokens, given the arguments of `EmoDebertaModel` and these.

        Args:
            labels: `(batch, length)`, the token to predict, or -100 for none.
            num_items_in_batch: The labels that `Trainer` counted over all accumulation steps and devices. The summed
                loss is divided by it; `None` divides by this batch's own count.
            full_logits: Return the logits of every token even if there are labels; see the class's attribute.

        Returns:
            `loss` (if there are labels), `logits` in float32 and, on request, `hidden_states` and `attentions`; as a
            tuple with `return_dict=False`. Logits are `(batch, length, vocabulary)`. In training with labels, they are
            `(labels, vocabulary)`, for the tokens that have one, in order: a vocabulary of 128,100 at every token costs
            more than the encoder.
        """
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        words, head, tie = self.deberta.embeddings.word_embeddings, self.lm_predictions.lm_head, None
        given = self.full_logits if full_logits is None else full_logits
        full_logits = not self.training if given is None else given
        plain = type(words) is nn.Embedding and not has_hooks(words) and self.config._attn_implementation != "eager"
        trained = torch.is_grad_enabled() and words.weight.requires_grad and not is_traced()
        if trained and plain and input_ids is not None and inputs_embeds is None:
            tie = Tie()
            inputs_embeds = TiedLookup.apply(words.weight, input_ids, words.padding_idx, tie)
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            input_ids = None
        encoded = self.deberta(
            *(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            *(output_attentions, output_hidden_states, True),
            **kwargs,
        )
        states, loss, chosen = encoded.last_hidden_state, None, None
        if labels is not None:
            chosen = labels != -100
            labels = labels[chosen]
        if chosen is not None and not full_logits:
            states = states[chosen]
        states = head.LayerNorm(head.transform_act_fn(head.dense(states)))
        if tie is None:
            logits = F.linear(states, words.weight, head.bias)
        else:
            flat = TiedLogits.apply(states.flatten(0, -2), words.weight, head.bias, tie)
            logits = flat.unflatten(0, states.shape[:-1])
        logits = logits.float()
        if labels is not None:
            scored = logits[chosen] if full_logits else logits
            items = labels.numel() if num_items_in_batch is None else num_items_in_batch
            loss = F.cross_entropy(scored, labels, reduction="sum")
            loss = loss / torch.as_tensor(items, device=loss.device).clamp(min=1)
        outputs = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return outputs if return_dict else outputs.to_tuple()


EmoDebertaModel.register_for_auto_class("AutoModel")
EmoDebertaForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
EmoDebertaForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["EmoDebertaForMaskedLM", "EmoDebertaForSequenceClassification", "EmoDebertaModel", "EmotionPipeline"]
