"""Compiles what repeats in a training step: the layers of the towers and of the decoder, and those of the score."""

from torch import nn

from ..modeling_gadms import GADMSForPreTraining

PAD_TO_MULTIPLE_OF = 8  # captions of compiled layers: of each length that occurs a graph might be made


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile in place; names of weights stay, and layers of one kind share their graphs.

    Layer by layer compiling takes a minute where a whole model takes many, and what lies between layers costs little.

    Args:
        model ([`GADMSForPreTraining`]): or one with it inside.
        backend (`str`): of `torch.compile`.
    """
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for layer in part:
                layer.compile(backend=backend)
        elif isinstance(part, GADMSForPreTraining):  # also within adapters
            part.score_compiler = backend
