"""Train models that are too large to train whole: LoRA (Hu et al. 2022, arXiv:2106.09685), and FSDP2."""

import os

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ..errors import InputError

# ---- LoRA ------------------------------------------------------------------------------------------------------------
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


# ---- Sharding over several GPUs --------------------------------------------------------------------------------------
def is_sharded(args: TrainingArguments) -> bool:
    """Return whether `--fsdp` or the configuration of `accelerate launch` asks for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def check_sharding(args: TrainingArguments) -> None:
    """Check that the FSDP settings shard the model and write whole checkpoints.

    If the settings name no layer class to wrap, this sets `DebertaV2Layer`, so that each layer is sharded.

    Raises:
        InputError: on one device (the library would silently train without sharding), with FSDP1, or if checkpoints are
            to be written in shards.
    """
    config = "see recipes/accelerate/fsdp2.yaml"
    if args.distributed_state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise InputError(f"FSDP shards a model over several GPUs; on a CPU or one GPU leave it out ({config})")
    os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", "DebertaV2Layer")
    given = args.fsdp_plugin_args or {}
    version = int(given.get("fsdp_version", os.environ.get("FSDP_VERSION", "1")))
    if version != 2:
        raise InputError(f"FSDP version {version} is not supported; want fsdp_version: 2 ({config})")
    plugin = FullyShardedDataParallelPlugin(**given)
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise InputError(
            f"fsdp_state_dict_type is {plugin.state_dict_type.name}; checkpoints are read and averaged whole: want "
            f"FULL_STATE_DICT ({config})"
        )


class CheckpointsWithoutCode(TrainerCallback):
    """A callback that keeps torch's source files out of the checkpoints of a sharded model.

    Torch creates a sharded model's class, so the library would save the file of that class as the model's code.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if isinstance(model, FSDPModule):
            type(model)._auto_class = None


@torch.no_grad()
def join_shards(trainer: Trainer) -> None:
    """Replace a trainer's sharded model by the whole model in float32, on every process.

    Every process must call this. The whole copy has to fit in memory together with the shards. It has the model's
    original class, and is evaluated and saved like any other.
    """
    sharded = trainer.model
    own_class = next(
        kind for kind in type(sharded).__mro__ if issubclass(kind, PreTrainedModel) and not issubclass(kind, FSDPModule)
    )
    whole = own_class(sharded.config).to(trainer.args.device)
    weights = whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        weights[name].copy_(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)
    trainer.model = trainer.model_wrapped = whole
