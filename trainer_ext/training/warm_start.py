"""Start an EmoDeBERTa model from a checkpoint: DeBERTa, BERT and its relatives, or EmoDeBERTa itself."""

import logging
import re
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, DebertaV2Config, PretrainedConfig, PreTrainedModel

from configuration_emodeberta import CALIBRATION, EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification

from ..errors import InputError, first_line
from ..recipes import DEFAULT_ACCESS, HubAccess, flag
from .checkpoint_source import resolve_checkpoint
from .saved_model import check_config, reading


@dataclass
class CheckpointArguments:
    """Flags for the checkpoint to start from."""

    _argument_group_name = "Model"

    model_name_or_path: str | None = flag(
        None,
        "Checkpoint to start from, a folder or a Hub id: DeBERTa-v2/v3, BERT-shaped (BERT, MiniLM, RoBERTa, "
        "XLM-R, DistilBERT, ELECTRA, MPNet; same outputs at step 0), or EmoDeBERTa from an earlier stage.",
    )
    model_revision: str | None = flag(None, "Branch, tag or commit of the checkpoint on the Hub.")
    tokenizer_name: str | None = flag(None, "Folder or Hub id of the tokenizer. Default: the checkpoint's own.")
    from_scratch: bool = flag(
        False, "Use only the checkpoint's configuration and tokenizer, with random weights (the paper's w/o PLM row)."
    )
    relative_attention: bool = flag(
        False, "Add DeBERTa's relative positions to a BERT-shaped checkpoint. The outputs at step 0 stay the same."
    )
    cache_dir: str | None = flag(None, "Folder for downloads from the Hub. Default: the Hub client's cache.")
    token: str | None = flag(None, "Hub token, if not the one of `hf auth login`.")
    trust_remote_code: bool = flag(False, "Run the code in the checkpoint's tokenizer. Read that code first.")

    def model_access(self) -> HubAccess:
        """Return how to reach the checkpoint on the Hub."""
        return HubAccess(self.model_revision, self.cache_dir, self.token)

    def hub_access(self) -> HubAccess:
        """Return how to reach anything else on the Hub: `--model_revision` applies to the checkpoint only."""
        return HubAccess(cache_dir=self.cache_dir, token=self.token)

    def tokenizer_source(self) -> tuple[str, dict[str, Any]]:
        """Return the tokenizer's name or path, and keyword arguments for `load_tokenizer`."""
        access = self.hub_access() if self.tokenizer_name else self.model_access()
        name = self.tokenizer_name or self.model_name_or_path
        return name, {"access": access, "trust_remote_code": self.trust_remote_code}


logger = logging.getLogger(__name__)
# Heads of other models. They are dropped, which is logged.
_OTHER_HEADS = (
    *("classifier.", "pooler.", "cls.", "lm_predictions.", "mask_predictions.", "qa_outputs."),
    *("discriminator_predictions.", "generator_predictions.", "generator_lm_head.", "lm_head."),
    *("pre_classifier.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
)
# Also not loaded: buffers, and a copy of the word embeddings that Microsoft's training code left in some checkpoints.
_NOT_READ = (*_OTHER_HEADS, "embeddings.position_", "embeddings.word_embeddings._weight")
# Model types with BERT's encoder, and the patterns that rename their parameters to DeBERTa's names.
_PROJECTIONS = {rf"attention\.self\.{name}\.": f"attention.self.{name}_proj." for name in ("query", "key", "value")}
_ROBERTA = {r"^roberta\.": ""} | _PROJECTIONS
_BERT_SHAPED = {
    "bert": {r"^bert\.": ""} | _PROJECTIONS,
    "electra": {r"^electra\.": ""} | _PROJECTIONS,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": {
        r"^distilbert\.": "",
        r"transformer\.layer\.": "encoder.layer.",
        r"attention\.q_lin\.": "attention.self.query_proj.",
        r"attention\.k_lin\.": "attention.self.key_proj.",
        r"attention\.v_lin\.": "attention.self.value_proj.",
        r"attention\.out_lin\.": "attention.output.dense.",
        r"sa_layer_norm\.": "attention.output.LayerNorm.",
        r"ffn\.lin1\.": "intermediate.dense.",
        r"ffn\.lin2\.": "output.dense.",
        r"output_layer_norm\.": "output.LayerNorm.",
    },
    "mpnet": {
        r"^mpnet\.": "",
        r"attention\.attn\.q\.": "attention.self.query_proj.",
        r"attention\.attn\.k\.": "attention.self.key_proj.",
        r"attention\.attn\.v\.": "attention.self.value_proj.",
        r"attention\.attn\.o\.": "attention.output.dense.",
        r"attention\.LayerNorm\.": "attention.output.LayerNorm.",
        r"encoder\.relative_attention_bias\.": "encoder.position_bias.",
    },
}
_MPNET_BUCKETS = 32  # the library's MPNetEncoder always uses 32, whatever its configuration says
# The masked-language-model heads of BERT, RoBERTa, MPNet, DistilBERT and (with `legacy=True`) the library's DeBERTa
# have the same layers.
_TO_LM_HEAD = {
    r"^cls\.predictions\.transform\.": "lm_predictions.lm_head.",
    r"^cls\.predictions\.bias$": "lm_predictions.lm_head.bias",
    r"^lm_head\.dense\.": "lm_predictions.lm_head.dense.",
    r"^lm_head\.layer_norm\.": "lm_predictions.lm_head.LayerNorm.",
    r"^lm_head\.bias$": "lm_predictions.lm_head.bias",
    r"^vocab_transform\.": "lm_predictions.lm_head.dense.",
    r"^vocab_layer_norm\.": "lm_predictions.lm_head.LayerNorm.",
    r"^vocab_projector\.bias$": "lm_predictions.lm_head.bias",
}


def warm_start(
    name_or_path: str,
    model_class: type[PreTrainedModel] = EmoDebertaForSequenceClassification,
    *,
    from_scratch: bool = False,
    access: HubAccess = DEFAULT_ACCESS,
    **config_overrides,
) -> PreTrainedModel:
    """Return a `model_class` with the weights of a checkpoint.

    - `deberta-v2` (v2 and v3, also the convolution of v2-xxlarge): parameter names are the same; loaded unchanged.
    - `bert` (BERT, MiniLM), `roberta`, `xlm-roberta`, `distilbert`, `electra` (base and large; small has narrow
      embeddings, which are not supported): parameters are renamed, outputs at step 0 are the same. They stay the same
      with `relative_attention=True`: position projections start at zero, and the query projection is multiplied by
      sqrt(3), since DeBERTa divides the scores by sqrt(d * (1 + |c2p| + |p2c|)).
    - `mpnet`: as BERT's relatives. Its position bias is added after the division, so it is kept unchanged.
    - `emodeberta`: loaded unchanged. The classification head is kept if the labels (`id2label`) are the same. What was
      fitted after its training (`CALIBRATION` in the configuration) is not.
    - `EmoDebertaForMaskedLM` takes the masked-language-model head of DeBERTa v1/v2 and of BERT's relatives. It does not
      take that of DeBERTa-v3, which was never trained (v3 was trained to detect replaced tokens).

    Args:
        name_or_path: Folder or Hub id. Weights are read from safetensors only.
        model_class: `EmoDebertaForSequenceClassification`, `EmoDebertaForMaskedLM` or `EmoDebertaModel`.
        from_scratch: Use only the configuration; all weights are random (the paper's "w/o PLM" row).
        access: How to reach the Hub, if the name is a Hub id.
        config_overrides: Fields of `EmoDebertaConfig` to set, for example `id2label`, `pooling` or
            `relative_attention` (for a BERT-shaped checkpoint).

    Returns:
        The model. Its attribute `drawn_anew` is the set of modules with random weights instead of the checkpoint's, and
        `source_type` the `model_type` of the checkpoint.

    Raises:
        InputError: if there is no such checkpoint, its architecture is not supported, a setting is out of range, or its
            parameters do not fit. The message names them.
    """
    path = resolve_checkpoint(name_or_path, access)
    if path != name_or_path:
        access = replace(access, revision=None)
    source = _read_config(path, access)
    with reading(name_or_path, "its config.json does not describe a model"):
        config = _emodeberta_config(source, name_or_path, config_overrides)
    if from_scratch:
        logger.info(f"{name_or_path}: only the configuration is used; all weights are random")
        config.max_position_embeddings -= _first_position(source)
        with reading(name_or_path, "no model of this config.json can be made"):
            model = model_class(config)
        model.drawn_anew, model.source_type = set(), source.model_type
        return model

    # Prefixes of parameters that the checkpoint may lack.
    fresh = ["classifier.", "lm_predictions."]
    if source.model_type == "emodeberta" and model_class.__name__ in (source.architectures or ()):  # has its own head
        fresh = ["classifier.dense."] if source.classifier_hidden_size != config.classifier_hidden_size else []
    renames = dict(_TO_LM_HEAD) if model_class is EmoDebertaForMaskedLM else {}
    if source.model_type in _BERT_SHAPED:
        renames |= _BERT_SHAPED[source.model_type]
        if config.relative_attention:
            fresh += ["encoder.rel_embeddings.", "encoder.LayerNorm.", ".pos_key_proj.", ".pos_query_proj."]
    with reading(
        name_or_path,
        "no weights in safetensors format found that fit (pickled ones are not read); want a model.safetensors beside "
        "its config.json",
    ):
        model, info = model_class.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            key_mapping=renames,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            **access.arguments(),
        )
    model._weight_conversions = None  # else `save_pretrained` would use the checkpoint's parameter names
    model.source_type = source.model_type
    model.drawn_anew = _check_loaded(name_or_path, info, fresh, model.base_model_prefix)
    if model_class is EmoDebertaForMaskedLM:
        if any(key.startswith("mask_predictions.") for key in info["unexpected_keys"]):
            model.lm_predictions = type(model.lm_predictions)(config)
            model.lm_predictions.apply(model._init_weights)
            model.drawn_anew.add("lm_predictions.lm_head")
        if any(module.startswith("lm_predictions") for module in model.drawn_anew):
            logger.info(f"{name_or_path}: no usable head for masked words; a new one is tied to the word embeddings")
    head = {_module(name, "") for name, _ in model.named_parameters() if name.startswith("classifier.")}
    others_head = source.model_type == "emodeberta" and source.id2label != config.id2label
    if source.model_type in _BERT_SHAPED:  # RoBERTa's head has our parameter names, but its label order is unknown
        others_head = not head <= model.drawn_anew
    if others_head and head:
        logger.info(f"{name_or_path}: its labels differ; with random weights: {', '.join(sorted(head))}")
        model.classifier = type(model.classifier)(config)
        model.classifier.apply(model._init_weights)
        model.drawn_anew |= head
    if first := _first_position(source):
        _count_positions_from_0(model, first)
    if source.model_type in _BERT_SHAPED and config.relative_attention:
        _keep_function_under_relative_attention(model)
    return model


def encoder_weights(name_or_path: str, access: HubAccess = DEFAULT_ACCESS) -> float:
    """Return about how many weights the layers of a checkpoint's encoder have, from its configuration.

    Raises:
        InputError: if there is no such checkpoint.
    """
    path = resolve_checkpoint(name_or_path, access)
    config = _read_config(path, access if path == name_or_path else replace(access, revision=None))
    return 12 * config.num_hidden_layers * config.hidden_size**2  # attention has 4 such matrices, the rest usually 8


def _read_config(path: str, access: HubAccess) -> PretrainedConfig:
    if Path(path).exists() or path[0] in "./~" or path.count("/") > 1:
        file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
        if file.name != "config.json" or not file.is_file():
            raise InputError(f"{path}: no config.json there; want a checkpoint folder or a Hub id (owner/name)")
    with reading(path, "its config.json cannot be read; want that of a DeBERTa, of a BERT's relative or of ours"):
        content, _ = PretrainedConfig.get_config_dict(path, **access.arguments())
        if content.get("model_type") == "emodeberta":
            config = EmoDebertaConfig.from_dict(content)
        else:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False, **access.arguments())
        check_config(path, config)
        return config


def _emodeberta_config(source: PretrainedConfig, name: str, overrides: dict) -> EmoDebertaConfig:
    fields = source.to_dict()
    if source.model_type in _BERT_SHAPED:
        if getattr(source, "embedding_size", source.hidden_size) != source.hidden_size:
            raise InputError(
                f"{name}: its embeddings are {source.embedding_size} wide, its layers {source.hidden_size}; want an "
                "ELECTRA of one width, as base and large are"
            )
        names = DebertaV2Config.__dataclass_fields__
        fields = {key: value for key, value in fields.items() if key in names} | {
            "relative_attention": False,
            "position_biased_input": True,
        }
        if source.model_type == "distilbert":  # other field names, no token types, a fixed epsilon
            fields |= {
                "hidden_size": source.dim,
                "num_hidden_layers": source.n_layers,
                "num_attention_heads": source.n_heads,
                "intermediate_size": source.hidden_dim,
                "hidden_act": source.activation,
                "hidden_dropout_prob": source.dropout,
                "attention_probs_dropout_prob": source.attention_dropout,
                "type_vocab_size": 0,
                "layer_norm_eps": 1e-12,
            }
        if source.model_type == "mpnet":
            if source.relative_attention_num_buckets != _MPNET_BUCKETS:
                raise InputError(
                    f"{name}: its relative_attention_num_buckets is {source.relative_attention_num_buckets}; want "
                    f"{_MPNET_BUCKETS}, the only number that transformers' MPNet computes with"
                )
            fields["position_bias_buckets"] = _MPNET_BUCKETS
        if overrides.get("relative_attention"):
            fields |= {
                "pos_att_type": ["c2p", "p2c"],
                "position_buckets": 256,
                "share_att_key": False,
                "norm_rel_ebd": "layer_norm",
                "max_relative_positions": source.max_position_embeddings - _first_position(source),
            }
    elif source.model_type not in ("deberta-v2", "emodeberta"):
        raise InputError(
            f"{name}: model_type is {source.model_type!r}; want deberta-v2 (v2 and v3), {', '.join(_BERT_SHAPED)} "
            "or emodeberta"
        )
    not_kept = ("model_type", "architectures", "auto_map", "transformers_version", "dtype", "problem_type")
    for key in (*not_kept, *CALIBRATION):
        fields.pop(key, None)
    if "id2label" in overrides:
        fields.pop("label2id", None)
    try:
        return EmoDebertaConfig(**fields | overrides)
    except StrictDataclassError as error:
        raise InputError(f"{name}: {first_line(error.__cause__ or error)}") from error


def _check_loaded(name: str, info: dict, fresh: list[str], prefix: str) -> set[str]:
    """Return the modules with new random weights; raise `InputError` if the checkpoint's parameters do not fit."""

    def fits(key: str, allowed: list[str] | tuple[str, ...]) -> bool:
        return any(f".{part}" in f".{key}" if part[0] != "." else part in key for part in allowed)

    missing = [key for key in info["missing_keys"] if not fits(key, fresh)]
    mismatched = [key for key, *_ in info["mismatched_keys"] if not fits(key, ["classifier."])]
    unexpected = [key for key in info["unexpected_keys"] if not fits(key, _NOT_READ)]
    problems = [
        f"{what}: {', '.join(sorted(keys)[:8])}{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}"
        for what, keys in (("missing", missing), ("of another shape", mismatched), ("not known", unexpected))
        if keys
    ]
    if problems:
        raise InputError(f"{name}: the checkpoint does not fit its configuration. Parameters {'; '.join(problems)}")
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    drawn = {_module(key, prefix) for key in new}
    if drawn:
        logger.info(f"{name}: with random weights: {', '.join(sorted(drawn))}")
    if dropped := {_module(key, prefix) for key in info["unexpected_keys"]}:
        logger.info(f"{name}: in the checkpoint, but not used: {', '.join(sorted(dropped))}")
    return drawn


def _module(key: str, prefix: str) -> str:
    """Turn `deberta.encoder.layer.3.attention.output.dense.weight` into `encoder.layer.*.attention.output.dense`."""
    return re.sub(r"\.\d+\.", ".*.", key.removeprefix(f"{prefix}.")).rpartition(".")[0]


def _first_position(source: PretrainedConfig) -> int:
    """Return the position of a text's first token: RoBERTa starts after the padding id, MPNet at 2, others at 0."""
    if source.model_type == "mpnet":
        return 2
    return source.pad_token_id + 1 if source.model_type in ("roberta", "xlm-roberta") else 0


@torch.no_grad()
def _count_positions_from_0(model: PreTrainedModel, first: int) -> None:
    """Drop the position embeddings before `first`, which no token uses."""
    embeddings = model.base_model.embeddings
    rows = embeddings.position_embeddings.weight[first:].clone()
    embeddings.position_embeddings = nn.Embedding.from_pretrained(rows, freeze=False)
    embeddings.position_ids = embeddings.position_ids[:, : len(rows)]
    model.config.max_position_embeddings = len(rows)


@torch.no_grad()
def _keep_function_under_relative_attention(model: PreTrainedModel) -> None:
    for layer in model.base_model.encoder.layer:
        attention = layer.attention.self
        for projection in (attention.pos_key_proj, attention.pos_query_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        attention.query_proj.weight.mul_(sqrt(3))
        attention.query_proj.bias.mul_(sqrt(3))
