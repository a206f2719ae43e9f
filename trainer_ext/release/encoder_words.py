"""Say in words what an encoder and its head are, from the configuration."""

from collections.abc import Sequence

from configuration_emodeberta import EmoDebertaConfig

from .upstream import FAMILIES, Upstream


def family_of(source_type: str, config: EmoDebertaConfig, base: Upstream) -> str:
    """Return the key of `FAMILIES` of a model's encoder.

    Args:
        source_type: `model_type` of the checkpoint that it started from.
        config: Its configuration.
        base: What is known of that checkpoint. An EmoDeBERTa has the family in its card.
    """
    if source_type in FAMILIES:
        return source_type
    if base.family is not None:
        return base.family
    if config.relative_attention:
        return "deberta-v2"
    return "mpnet" if config.position_bias_buckets else "bert"


def encoder_name(family: str, names: Sequence[str]) -> str:
    """Return the name of an encoder: of its family, or a narrower one that a checkpoint's name gives away.

    Args:
        names: Names of the checkpoints that it came from.
    """
    called = " ".join(names).lower()
    if family == "deberta-v2":
        return "DeBERTa-v3" if "deberta-v3" in called else FAMILIES[family]
    return "MiniLM" if family == "bert" and "minilm" in called else FAMILIES[family]


def encoder_in_words(family: str, config: EmoDebertaConfig, names: Sequence[str]) -> str:
    """Return the kind and the size of an encoder, for example `MiniLM (BERT's shape), 6 layers, hidden size 384, …`."""
    name = encoder_name(family, names)
    shape = "" if family in ("deberta-v2", "bert") and name != "MiniLM" else " (BERT's shape)"
    return (
        f"{name}{shape}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {_positions(family, config)}"
    )


def _positions(family: str, config: EmoDebertaConfig) -> str:
    if config.relative_attention:
        return "disentangled attention" + (" of DeBERTa, added to it" if family != "deberta-v2" else "")
    if config.position_bias_buckets:
        return "absolute positions and MPNet's relative position bias"
    return "absolute positions"


def pooling_in_words(config: EmoDebertaConfig) -> str:
    """Return what the head reads."""
    return "mean of the token states" if config.pooling == "mean" else "state of the first token, [CLS]"


def head_in_words(config: EmoDebertaConfig) -> str:
    """Return the layers of the classification head."""
    width = f" to {config.classifier_hidden_size} ({config.classifier_activation})"
    hidden = "" if config.classifier_hidden_size is None else width
    return f"{config.hidden_size}{hidden} to {config.num_labels} labels, dropout {config.classifier_dropout:g}"
