"""run_classify.py with its model sharded by FSDP2 on the CPU. Accelerate shards only beside an accelerator: it is told
that these processes are of that kind, and all the rest, gloo's collectives included, is real."""

from accelerate import DistributedType, PartialState

plain = PartialState.__init__


def init(self, *args, **kwargs):
    plain(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = init

import run_classify  # noqa: E402

if __name__ == "__main__":
    run_classify.main()
