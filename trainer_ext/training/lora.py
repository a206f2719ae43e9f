"""Train low-rank updates instead of whole matrices: LoRA (Hu et al. 2022, arXiv:2106.09685), with PEFT."""

from transformers import PreTrainedModel

from ..errors import InputError

# Query, key and value projections, also those of relative positions; attention output and feed-forward layers.
LAYERS = r".*\.encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)"


def add_lora(model: PreTrainedModel, rank: int) -> None:
    """Add a trainable low-rank update to every linear layer of the encoder, in place, and freeze the rest but the head.

    The update of a weight matrix is `2 B A`, since `lora_alpha` is twice the rank. B starts at zero, so the model's
    output does not change at first.

    Args:
        model: A model with a `classifier`.
        rank: Rank of each update.

    Raises:
        InputError: if PEFT is not installed, or the rank is below 1.
    """
    if rank < 1:
        raise InputError(f"--lora_rank is {rank}; want at least 1")
    try:
        from peft import LoraConfig, inject_adapter_in_model  # of an extra; takes seconds
    except ImportError as error:
        raise InputError("--lora_rank needs PEFT: pip install peft (or this project with the extra `lora`)") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LAYERS), model)
    for weight in model.classifier.parameters():
        weight.requires_grad = True


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates to their weight matrices and remove the adapters, in place.

    Afterwards the model has its original class and size, and all its weights are trainable.
    """
    from peft.tuners.lora import LoraLayer  # of an extra; takes seconds

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(True)
