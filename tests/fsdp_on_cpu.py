"""Chesboard under FSDP2 on CPUs. accelerate shards on accelerators alone: it is told that gloo's processes are of their
kind. Everything else is accelerate's, transformers' and torch's own."""

import os
from pathlib import Path

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import chesboard
from trainers.loop.trainer import PreferenceTrainer

begin, barrier, train = PartialState.__init__, torch.distributed.barrier, PreferenceTrainer.train


def _as_of_gpus(self, *args, **kwargs) -> None:
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def _without_devices(*args, device_ids=None, **kwargs):  # gloo's takes none
    return barrier(*args, **kwargs)


def _witnessed(self, *args, **kwargs):
    """Train, and leave word of how much of the weights this process held in the end."""
    done = train(self, *args, **kwargs)
    for module in self.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the last layer's stay whole from the end of a forward pass on
    weights = [p for p in self.model.parameters() if isinstance(p, DTensor)]
    assert len(weights) == len(list(self.model.parameters())), "not all weights are sharded"
    share = sum(p.to_local().numel() for p in weights) / sum(p.numel() for p in weights)
    Path(os.environ["WITNESS"] + os.environ["RANK"]).write_text(str(share))
    return done


PartialState.__init__ = _as_of_gpus
torch.distributed.barrier = _without_devices
PreferenceTrainer.train = _witnessed
chesboard.main()
