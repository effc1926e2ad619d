"""Tiny trainings with the layers divided over processes by FSDP2 on CPUs, which accelerate does on other devices.

torchrun --nproc_per_node 2 tests/helpers/train_divided.py pretrain --output_dir DIR [training arguments]
torchrun --nproc_per_node 2 tests/helpers/train_divided.py finetune --output_dir DIR [fine-tuning arguments]
"""

import json
import os
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from finetune_tiny import finetune
from torch.distributed.fsdp import FSDPModule
from train_tiny import train

from modeling_gadms.training import arguments

initialise = AcceleratorState.__init__


def as_on_gpus(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if self.__dict__.get("fsdp_plugin") is not None:
        self.distributed_type = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = as_on_gpus
    arguments.NOT_DIVIDED = ()
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",  # as `accelerate launch --use_fsdp --fsdp_version 2 ...` does
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "CLIPEncoderLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }
    trainer = {"pretrain": train, "finetune": finetune}[sys.argv[1]](sys.argv[2:])
    divided = [name for name, part in trainer.model.named_modules() if isinstance(part, FSDPModule)]
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        with open(f"{trainer.args.output_dir}/run.json", "w") as file:
            json.dump({"log": trainer.state.log_history, "metrics": metrics, "divided": divided}, file)
