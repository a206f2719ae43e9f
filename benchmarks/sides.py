"""The encoders that the GPU comparison runs, with the same weights, and the check that they compute the same.

Two packages have fused attention for DeBERTa. Both replace a part of the library's own model: `flashdeberta` the class
of each layer's attention, `disentangled-flash` the encoder. A side whose package or device is missing is left out.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable

import torch
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2ForSequenceClassification, DebertaV2Model
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.measure import DEBERTA
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification, EmoDebertaModel

LIBRARY = "library, eager"
SIDES = [LIBRARY, "ours, sdpa", "ours, disentangled", "flashdeberta", "disentangled-flash"]
KINDS = {
    "encoder": (DebertaV2Model, EmoDebertaModel),
    "classifier": (DebertaV2ForSequenceClassification, EmoDebertaForSequenceClassification),
    "mlm": (DebertaV2ForMaskedLM, EmoDebertaForMaskedLM),
}
LABELS = 7
# Of a float32 side: the norm of its difference over the norm of the library's, for the worst tensor.
FLOAT32_TOLERANCE = 1e-4
# Of a bf16 side: its difference to the library in float32, over that of the library in bf16.
BF16_TOLERANCE = 2.0
# A gradient smaller than this share of the largest one is compared with that share: rounding is all that is in it.
SMALL_GRADIENT = 0.01
NOT_A_NUMBER = 1e9  # the difference of a tensor that is not finite; JSON has no infinity
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def available(device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Return the sides that can run on a device, and for each other one the reason why it cannot."""
    left_out = {}
    config = EmoDebertaConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=1)
    config._attn_implementation = "disentangled"
    try:
        EmoDebertaModel(config)
    except ValueError:
        left_out["ours, disentangled"] = "this version has no attn_implementation='disentangled'"
    for side in ("flashdeberta", "disentangled-flash"):
        if importlib.util.find_spec(side.replace("-", "_")) is None:
            left_out[side] = f"not installed (pip install --no-deps {side})"
        elif importlib.util.find_spec("triton") is None:
            left_out[side] = "needs Triton, which is not installed"
        elif device.type != "cuda" and (side != "flashdeberta" or os.environ.get("TRITON_INTERPRET") != "1"):
            left_out[side] = "its kernels need a GPU"
    return [side for side in SIDES if side not in left_out], left_out


def make(
    side: str,
    kind: str,
    shape: dict,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    inference: bool = False,
    weights: dict[str, torch.Tensor] | None = None,
) -> nn.Module:
    """Return a side's model of a kind in [`KINDS`].

    Args:
        shape: Options of the configuration, over DeBERTa-v3's.
        inference: Whether the model will only be run without gradients, for which a package may have another path.
        weights: The state of the library's model of this kind and shape; random weights if not given.
    """
    of_library, of_ours = KINDS[kind]
    torch.manual_seed(0)
    options = DEBERTA | {"initializer_range": 0.05} | shape  # of trained weights, about: attention that looks somewhere
    with device:
        if side.startswith("ours"):
            width = options["hidden_size"]
            head = {"pooling": "cls", "classifier_hidden_size": width, "classifier_activation": "gelu"}
            head |= {"classifier_dropout": options.get("hidden_dropout_prob", 0.1), "num_labels": LABELS}
            config = EmoDebertaConfig(**options, **(head if kind == "classifier" else {}))
            config._attn_implementation = side.partition(", ")[2]
            model = of_ours(config)
        else:
            dropout = options.get("hidden_dropout_prob", 0.1)
            head = {"pooler_dropout": dropout, "cls_dropout": dropout, "pooler_hidden_size": options["hidden_size"]}
            model = of_library(
                DebertaV2Config(**options, **head, pooler_hidden_act="gelu", num_labels=LABELS, legacy=False)
            )
    if weights is not None:
        ours = {"classifier.dense.": "pooler.dense.", "classifier.out_proj.": "classifier."}
        names = {}
        for name in model.state_dict():
            old = next((old for old in ours if name.startswith(old) and side.startswith("ours")), None)
            names[name] = name if old is None else ours[old] + name.removeprefix(old)
        model.load_state_dict({name: weights[of_weights] for name, of_weights in names.items()})
    model = model.to(dtype).train(not inference)
    backbone = model if kind == "encoder" else model.deberta
    if side == "flashdeberta":
        use_flashdeberta(backbone)
    elif side == "disentangled-flash":
        use_disentangled_flash(backbone, inference)
    return model


def use_flashdeberta(backbone: nn.Module) -> None:
    """Give each layer the package's attention, a subclass of the library's without parameters of its own."""
    from flashdeberta import FlashDisentangledSelfAttention

    for layer in backbone.encoder.layer:
        layer.attention.self.__class__ = FlashDisentangledSelfAttention
    if next(backbone.parameters()).device.type == "cpu":  # the interpreter; the package asks for the current GPU
        torch.cuda.device = lambda index: contextlib.nullcontext()


def use_disentangled_flash(backbone: nn.Module, inference: bool) -> None:
    """Replace the encoder with the package's, padded for batches without padding and packed for others."""
    from disentangled_flash import optimize_deberta, pack_padded_with_info, unpack_packed

    optimize_deberta(backbone, backend="triton", inference=inference)
    encoder = backbone.encoder
    padded, prepared = encoder.forward, None

    def forward(states: torch.Tensor, attention_mask: torch.Tensor, **_) -> BaseModelOutput:
        nonlocal prepared
        length = states.shape[1]
        if bool(attention_mask.all()):
            if inference and length != prepared:
                encoder.prepare_for_inference(length)
                prepared = length
            return padded(states, attention_mask)
        packed, ends, info = pack_padded_with_info(states, attention_mask)
        packed = encoder.forward_packed(packed, ends, info.max_seqlen, packed_info=info).last_hidden_state
        last, _ = unpack_packed(packed, ends, length, packed_info=info)
        return BaseModelOutput(last_hidden_state=last, hidden_states=(last,))

    encoder.forward = forward


# ---- Whether two sides compute the same -----------------------------------------------------------------------------
def observe(
    side: str,
    shape: dict,
    device: torch.device,
    dtype: torch.dtype,
    weights: dict[str, torch.Tensor],
    batch: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return a side's token states in inference and in training, and every parameter's gradient, in float32."""
    kept = batch["attention_mask"].bool()
    model = make(side, "encoder", shape, device, dtype, inference=True, weights=weights)
    with torch.inference_mode():
        found = {"states in inference": model(**batch).last_hidden_state[kept].float()}
    del model
    model = make(side, "encoder", shape, device, dtype, weights=weights)
    states = model(**batch).last_hidden_state[kept].float()
    # Weighted at random: a symmetric loss of normalised states has next to no gradient to compare.
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(device)
    (states * direction).sum().backward()
    found["states in training"] = states.detach()
    named = model.named_parameters()
    return found | {f"gradient of {name}": p.grad.float() for name, p in named if p.grad is not None}


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return for states and for gradients the largest relative difference of a tensor, by its norm."""
    largest = max(tensor.norm() for name, tensor in wanted.items() if name.startswith("gradient"))
    worst = {"states": 0.0, "gradients": 0.0}
    for name, tensor in wanted.items():
        part = "gradients" if name.startswith("gradient") else "states"
        size = tensor.norm()
        if part == "gradients":
            size = size.clamp(min=SMALL_GRADIENT * largest)
        other = found[name] if name in found else torch.zeros_like(tensor)
        apart = ((other - tensor).norm() / size).item()
        worst[part] = max(worst[part], apart if math.isfinite(apart) else NOT_A_NUMBER)
    return worst


def check(sides: list[str], shape: dict, batch: dict, device: torch.device, dtypes: list[torch.dtype]) -> dict:
    """Compare every side with the library's eager code in float32, over two layers of a shape, without dropout.

    Returns:
        For each side `{dtype: {"states": ..., "gradients": ..., "limit": ...}}` with its relative differences, and
        under `failed` what is wrong, if anything.
    """
    shape = shape | NO_DROPOUT | {"num_hidden_layers": 2}
    weights = make(LIBRARY, "encoder", shape, device).state_dict()
    wanted = observe(LIBRARY, shape, device, torch.float32, weights, batch)
    found: dict[str, dict] = {side: {} for side in sides}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        limit = {"states": FLOAT32_TOLERANCE, "gradients": FLOAT32_TOLERANCE}
        if dtype != torch.float32:
            limit = difference(observe(LIBRARY, shape, device, dtype, weights, batch), wanted)
            limit = {part: BF16_TOLERANCE * value for part, value in limit.items()}
        for side in sides:
            seen, failure = attempt(lambda side=side, dtype=dtype: observe(side, shape, device, dtype, weights, batch))
            if failure is None:
                apart = difference(seen, wanted)
                found[side][name] = {part: float(f"{value:.2g}") for part, value in apart.items()}
                found[side][name]["limit"] = {part: float(f"{value:.2g}") for part, value in limit.items()}
                wrong = [f"{part} differ by {apart[part]:.1e}" for part in apart if not apart[part] <= limit[part]]
                failure = ", ".join(wrong) or None
            if failure is not None:
                found[side].setdefault("failed", {})[name] = failure
    return found


def attempt(run: Callable[[], object]) -> tuple[object, str | None]:
    """Return what `run()` returns and `None`, or `None` and one line about why it failed, so that other sides go on."""
    try:
        return run(), None
    except torch.OutOfMemoryError:
        failure = "out of memory"
    except Exception as error:
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, failure
