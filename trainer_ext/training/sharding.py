"""A model whose weights lie in shards on several GPUs (FSDP2): what it asks of the settings, and how it becomes one
piece again."""

import os

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ..errors import InputError


def is_sharded(args: TrainingArguments) -> bool:
    """Whether FSDP is asked for, by `--fsdp` or by the configuration that `accelerate launch` was given."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def check_sharding(args: TrainingArguments) -> None:
    """Refuse what would not shard, or would leave checkpoints that this project does not read; where no other class is
    named, a shard is cut from each layer.

    Raises:
        InputError: without several GPUs (the library would train whole copies and say nothing), under FSDP1, or if
            checkpoints are to be written in shards.
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
    """A sharded model's class is made by torch, whose source files the library would put into every checkpoint as the
    model's code."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if isinstance(model, FSDPModule):
            type(model)._auto_class = None


@torch.no_grad()
def join_shards(trainer: Trainer) -> None:
    """Give a trainer whose model is sharded the same model in one piece and float32, on every process.

    Every process takes part. A whole copy has to fit beside the shards; it is of the model's own class, and is
    evaluated and saved as any other.
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
