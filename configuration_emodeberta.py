"""Configuration of EmoDeBERTa. Ships in every saved model, so it needs only `transformers` and what that needs."""

from copy import deepcopy
from typing import Literal

import transformers

# Checked before importing what another version may lack. Configurations are dataclasses since 5.4. This is not an
# ImportError, because the other files would treat that as a missing file.
if not (5, 4) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (6, 0):
    raise RuntimeError(
        f"EmoDeBERTa's code needs transformers 5.4 or newer, below 6; this is {transformers.__version__}: "
        "pip install 'transformers>=5.4,<6'"
    )

from huggingface_hub.dataclasses import strict
from transformers import DebertaV2Config, PreTrainedConfig
from transformers.activations import ACT2FN

# Written into every config.json, so that each auto class finds the code next to the weights.
# (`register_for_auto_class` remembers one auto class per class, and only for the model being saved.)
AUTO_MAP = {
    "AutoConfig": "configuration_emodeberta.EmoDebertaConfig",
    "AutoModel": "modeling_emodeberta.EmoDebertaModel",
    "AutoModelForMaskedLM": "modeling_emodeberta.EmoDebertaForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_emodeberta.EmoDebertaForSequenceClassification",
}
ENSEMBLE_AUTO_MAP = {
    "AutoConfig": "configuration_emodeberta.EmoDebertaEnsembleConfig",
    "AutoModel": "ensemble_emodeberta.EmoDebertaEnsembleModel",
    "AutoModelForSequenceClassification": "ensemble_emodeberta.EmoDebertaEnsembleForSequenceClassification",
}
# Settings of a training that are not part of the trained model.
LOSS = ("class_weights", "label_smoothing")
# Settings fitted on validation rows after a training. run_classify.py starts a training without them. Loaded with other
# labels or another problem type, a checkpoint loses them.
CALIBRATION = ("calibration_temperature", "label_thresholds", "abstain_below")
# The same for `pipeline("text-classification", …)`.
CUSTOM_PIPELINES = {
    "text-classification": {
        "impl": "pipeline_emodeberta.EmotionPipeline",
        "pt": ["AutoModelForSequenceClassification"],
        "type": "text",
    }
}


class Pipelines(dict):
    """`CUSTOM_PIPELINES`, where the library also finds its other name for the task, `sentiment-analysis`.

    There is still only one entry, from which `pipeline(model=…)` infers the task.
    """

    def __init__(self):
        super().__init__(deepcopy(CUSTOM_PIPELINES))

    def __contains__(self, task: object) -> bool:
        return task == "sentiment-analysis" or super().__contains__(task)

    def __missing__(self, task: str) -> dict:
        return self["text-classification"]

    def __reduce__(self) -> tuple:
        return Pipelines, ()


@strict
class EmoDebertaConfig(DebertaV2Config):
    """A DeBERTa-v2/v3 configuration with the pooling and the classification head of LingJing (WASSA 2022).

    Every `DebertaV2Config` field is kept, including those that published checkpoints carry as plain attributes
    (`position_buckets`, `share_att_key`, `norm_rel_ebd`, `conv_kernel_size`, ...).

    Args:
        pooling: `mean` averages the last hidden states over the unmasked tokens (paper, section 2.2);
            `cls` takes the first token.
        classifier_hidden_size: Width of the layer between pooled state and labels; `None` leaves it out.
            The paper sets 1024 for "all uninitialized layers" (section 3.2).
        classifier_dropout: Dropout probability before each linear layer of the head.
        classifier_activation: Activation between the two layers; the paper does not name one.
        class_weights: One non-negative weight per label, applied in the loss. `None` weights all labels equally.
            This and `label_smoothing` belong to one training: they are not saved, and not read from older folders.
        label_smoothing: Share of each target that is spread evenly over the labels, in [0, 1).
        position_bias_buckets: Number of buckets of distances in MPNet's position bias. Each has one learned number per
            head, added to the scaled attention scores of every layer. Even; 0 turns the bias off; MPNet has 32.
        position_bias_max_distance: From this distance on, all tokens are in the last bucket of their direction.
        calibration_temperature: Divides the logits in evaluation mode; above 1 makes the model less certain. Fitted on
            validation rows (Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html). `None` leaves them as
            they are. Training always sees the undivided logits.
        label_thresholds: If a text may have several labels: for each label, in the order of the ids, the probability
            from which it counts. `None` counts those above one half.
        abstain_below: If a text has one label: the pipeline and bulk scoring give no label below this probability.

    Raises:
        huggingface_hub.errors.StrictDataclassError: if a value has another type or is outside these ranges, or for
            `problem_type="regression"`. Its `__cause__` says what is wrong in one line.
    """

    model_type = "emodeberta"

    pooling: Literal["mean", "cls"] = "mean"
    classifier_hidden_size: int | None = 1024
    classifier_dropout: float | int = 0.1
    classifier_activation: str = "gelu"
    class_weights: list[float] | None = None
    label_smoothing: float | int = 0.0
    position_bias_buckets: int = 0
    position_bias_max_distance: int = 128
    calibration_temperature: float | int | None = None
    label_thresholds: list[float] | None = None
    abstain_below: float | int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)
        self.custom_pipelines = Pipelines()

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Return the configuration as the library does, but without the loss settings that older folders contain.

        If `num_labels`, the number of names in `id2label` or `problem_type` is another than in the dictionary, the
        settings that were fitted on validation rows are left out, too.
        """
        before = config_dict.get("id2label") or range(2)
        count = kwargs.get("num_labels") or len(kwargs.get("id2label") or before)
        kind = config_dict.get("problem_type")
        changed = count != len(before) or kwargs.get("problem_type", kind) != kind
        left_out = {*LOSS, *(CALIBRATION if changed else ())}
        return super().from_dict({key: value for key, value in config_dict.items() if key not in left_out}, **kwargs)

    def to_dict(self) -> dict:
        """Return the library's dictionary without the loss settings, what was not fitted, and the classes that
        `pipeline()` added to it.
        """
        values = {key: value for key, value in super().to_dict().items() if key not in LOSS}
        values = {key: value for key, value in values.items() if key not in CALIBRATION or value is not None}
        return values | {"custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    def validate_head(self):
        """Check that the settings of the head are in range; `@strict` calls this after every construction."""
        if self.problem_type not in (None, "single_label_classification", "multi_label_classification"):
            raise ValueError(
                f"problem_type is {self.problem_type!r}; EmoDeBERTa classifies: want single_label_classification or "
                "multi_label_classification"
            )
        if self.classifier_hidden_size is not None and self.classifier_hidden_size < 1:
            raise ValueError(
                f"classifier_hidden_size is {self.classifier_hidden_size}; give a positive width, or None for a "
                "single linear layer"
            )
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout is {self.classifier_dropout}; it must lie in [0, 1)")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.classifier_activation not in ACT2FN:
            raise ValueError(
                f"classifier_activation {self.classifier_activation!r} is unknown; transformers has "
                f"{', '.join(sorted(ACT2FN))}"
            )
        if self.class_weights is not None:
            if len(self.class_weights) != self.num_labels:
                raise ValueError(f"class_weights has {len(self.class_weights)} values for {self.num_labels} labels")
            if min(self.class_weights) < 0 or max(self.class_weights) == 0:
                raise ValueError("class_weights must be non-negative, and not all zero")

    def validate_size(self):
        """Check numbers that take memory although no weight has them, and that there is a layer.

        `@strict` calls this after every construction.
        """
        if self.num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; want 1 or more")
        for name, most in (("num_hidden_layers", 1_000), ("max_position_embeddings", 2**20)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; want at most {most:,}")

    def validate_calibration(self):
        """Check what was fitted on validation rows; `@strict` calls this after every construction."""
        if self.calibration_temperature is not None and not self.calibration_temperature > 0:
            raise ValueError(f"calibration_temperature is {self.calibration_temperature}; want more than 0")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise ValueError(f"abstain_below is {self.abstain_below}; want a probability, 0 to 1")
        if self.label_thresholds is not None:
            if self.problem_type != "multi_label_classification":
                raise ValueError("label_thresholds are for problem_type multi_label_classification")
            if len(self.label_thresholds) != self.num_labels:
                raise ValueError(
                    f"label_thresholds has {len(self.label_thresholds)} values for {self.num_labels} labels"
                )
            if not all(0 <= threshold <= 1 for threshold in self.label_thresholds):
                raise ValueError(f"label_thresholds are {self.label_thresholds}; want probabilities, 0 to 1")

    def validate_position_bias(self):
        """Check that the buckets of the position bias are valid; `@strict` calls this after every construction."""
        buckets, distance = self.position_bias_buckets, self.position_bias_max_distance
        if buckets and (buckets < 4 or buckets % 2):
            raise ValueError(f"position_bias_buckets is {buckets}; give an even number of at least 4, or 0 for no bias")
        if buckets and distance <= buckets // 4:
            raise ValueError(
                f"position_bias_max_distance is {distance}; {buckets} buckets need more than {buckets // 4}"
            )


@strict
class EmoDebertaEnsembleConfig(PreTrainedConfig):
    """Several EmoDeBERTa classifiers with the same labels, and how they are fused (paper, section 2.4).

    Args:
        members: The configuration of each member, as the values of an `EmoDebertaConfig`.
        member_names: The name of each member.
        tokenizer_of_member: Number of the tokenizer that each member uses, from 0. Tokenizer 0 is next to the weights,
            tokenizer n in the subfolder `tokenizer_n`. `None`: all use tokenizer 0. Older folders call it `families`,
            which is still read.
        fusion: `hard` counts votes, and ties go to the higher mean probability (the paper's rule). `soft` takes the
            mean of the probabilities.
        weights: For `soft`: one per member, adding up to 1. `None` weights all members equally.
        temperature: Divides the logits of the fused distribution; above 1 makes the ensemble less certain.

    Raises:
        huggingface_hub.errors.StrictDataclassError: if values have another type or do not fit each other.
    """

    model_type = "emodeberta-ensemble"
    attribute_map = {"families": "tokenizer_of_member"}  # noqa: RUF012  as the library's own configurations have it

    members: list[dict] | None = None
    member_names: list[str] | None = None
    tokenizer_of_member: list[int] | None = None
    fusion: Literal["hard", "soft"] = "hard"
    weights: list[float] | None = None
    temperature: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.auto_map = dict(ENSEMBLE_AUTO_MAP)
        self.custom_pipelines = Pipelines()

    def to_dict(self) -> dict:
        """Return the library's dictionary without classes that `pipeline()` added to it."""
        return super().to_dict() | {"custom_pipelines": deepcopy(CUSTOM_PIPELINES)}

    def validate_members(self):
        """Check that the settings fit together; `@strict` calls this after every construction."""
        count = len(self.members or ())
        for name in ("member_names", "tokenizer_of_member", "weights"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} values for {count} members")
        numbers = self.tokenizer_of_member
        if numbers and sorted(set(numbers)) != list(range(len(set(numbers)))):
            raise ValueError(f"tokenizer_of_member is {numbers}; want numbers from 0 on, none left out")
        if self.weights is not None and (min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6):
            raise ValueError(f"weights are {self.weights}; want none below 0, and a sum of 1")
        if self.weights is not None and self.fusion == "hard":
            raise ValueError("weights are for the soft vote; a hard vote counts every member once")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; want more than 0")


EmoDebertaConfig.register_for_auto_class()
EmoDebertaEnsembleConfig.register_for_auto_class()
