"""Low-rank updates in place of whole matrices (LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685), by PEFT."""

from transformers import PreTrainedModel

from ..errors import InputError

# Queries, keys and values, those of relative positions, and the layers after attention and of the feed-forward part.
LAYERS = r".*\.encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)"


def add_lora(model: PreTrainedModel, rank: int) -> None:
    """Freeze the model but for its head, and give every linear layer of the encoder an update `B A` of `rank`, scaled
    by 2 (`lora_alpha` is twice the rank), in place. B is zero at first: the model computes what it did.

    Raises:
        InputError: if PEFT is not installed, or the rank is below 1.
    """
    if rank < 1:
        raise InputError(f"--lora_rank is {rank}; want at least 1")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("--lora_rank needs PEFT: pip install peft (or this project with the extra `lora`)") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS), model)
    for weight in model.classifier.parameters():
        weight.requires_grad = True


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates to their matrices and drop them, in place: the model is of its own class and size again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(True)
