"""Low-rank adapters (LoRA) on both towers, by peft; the decoder and the classifier are trained in full."""

import copy
import os
from dataclasses import dataclass, field

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from dataset_webperson.files import replacing

from .model import GADMSForFineTuning


@dataclass
class LoraArguments:
    """Options of the adapters."""

    _argument_group_name = "adapters (LoRA)"

    lora: bool = field(default=False, metadata={"help": "Train low-rank adapters on the towers, not the towers."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "Linear layers of the towers that get an adapter, by the ends of their names."},
    )

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1; got {self.lora_rank}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be at least 0 and below 1; got {self.lora_dropout}")


def add_lora(model: GADMSForFineTuning, args: LoraArguments) -> PeftModel:
    """Freeze the towers and put an adapter on each targeted layer.

    Raises:
        ValueError: a target is not a linear layer of the towers; names those there are.
    """
    layers = [name for name, module in model.gadms.named_modules() if isinstance(module, nn.Linear)]
    missing = [target for target in args.lora_targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if missing or not args.lora_targets:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise ValueError(
            f"lora_targets {', '.join(missing) or 'are empty'}: no such linear layer in the towers; they have "
            f"{', '.join(known)}"
        )
    targets = "|".join(target.replace(".", r"\.") for target in args.lora_targets)
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,  # type: ignore[arg-type]  # any number scales
        lora_dropout=args.lora_dropout,
        target_modules=rf"gadms\.(.*\.)?({targets})",  # the decoder has layers of the same names
        modules_to_save=["decoder", "classifier"],
    )
    return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: str) -> None:
    """Write the adapters and the decoder, without the classifier, for `PeftModel.from_pretrained(base, folder)`.

    `base` is the [`GADMSForPreTraining`] that training started from; its decoder is replaced by the trained one.
    """
    config = copy.copy(model.peft_config["default"])
    assert isinstance(config, LoraConfig)
    config.modules_to_save, config.inference_mode = ["decoder"], True
    config.save_pretrained(folder)
    weights = {
        name: weight.contiguous()
        for name, weight in get_peft_model_state_dict(model).items()
        if ".classifier." not in name
    }
    with replacing(os.path.join(folder, "adapter_model.safetensors")) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})


def merged(model: PeftModel) -> GADMSForFineTuning:
    """A copy of the model with its adapters added into the weights; the same embeddings, without peft."""
    return copy.deepcopy(model).merge_and_unload()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of trainable parameters, and of all, adapters included.

    The original heads, which peft keeps beside their trained copies, are not counted.
    """
    named = model.named_parameters()
    counted = [parameter for name, parameter in named if ".original_module." not in name]
    trainable = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in counted)
