"""Models from released checkpoints and back: each weight is used, or listed with a reason; any other is an error."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig

from dataset_webperson import DataError
from dataset_webperson.files import replacing

from ..configuration_gadms import GADMSConfig, GADMSVisionConfig
from ..modeling_gadms import GADMSForPreTraining, GADMSModel
from ..vision_gadms import resize_position_table
from .layout import (
    DECODER_PREFIXES,
    GIVEAWAYS,
    check_fits_released_layout,
    config_from_shapes,
    from_released,
    layout,
    reason_to_leave,
    to_released,
)
from .mobile_clip import in_names_of_clip, patch_shape
from .open_clip import (
    CONFIG_FILE,
    Settings,
    refuse_other_shapes,
    refuse_undecided,
    settings_beside,
    without_prefix,
)
from .reading import read_checkpoint
from .rotary_towers import ROTARY
from .rotary_towers import in_names_of_clip as rotary_in_names_of_clip
from .token_selection import TokenSelection, selection_from_released

DESCRIBED = {"clip": "CLIP ViT", "eva02": "EVA02-CLIP", "pe_core": "PE-Core"}  # by the kind of towers


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    used (`list[str]`): released weights that the model holds.
    left (`dict[str, str]`): weights it has no place for, with the reason.
    architecture (`str`): the architecture read from the shapes, in words.
    selection ([`TokenSelection`], *optional*): the second branch of an RDE, which is not a part of the model.
    image_options (`dict`): options of the image processor other than CLIP's.
    """

    used: list[str]
    left: dict[str, str]
    architecture: str
    selection: TokenSelection | None = None
    image_options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self.architecture, f"used: {len(self.used)} weights"]
        lines += [f"  {name}" for name in self.used]
        lines += [f"left: {len(self.left)}"] + [f"  {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, "missing: none"])


def load_released(
    path: str,
    image_size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    activation: str | None = None,
) -> tuple[GADMSModel | GADMSForPreTraining, Conversion]:
    """The model in a released checkpoint: [`GADMSForPreTraining`] when the decoder is in it, else [`GADMSModel`].

    Widths, depths, patch and image size, context length and vocabulary are read from the shapes. Activation
    (QuickGELU), heads (64 wide) and the last three ids (mask, BOS, EOS) are those of the family, and so is a decoder
    that attends to padding (`config.decoder_attends_padding`). For an open_clip model activation and heads are read
    from the configuration beside it; see `open_clip`. Without one a plain CLIP, unless it is OpenAI's own archive,
    needs `activation`.

    Args:
        path (`str`): see `reading.read_checkpoint`; weights of any floating type.
        image_size (`tuple[int, int]`, *optional*): height and width in pixels, for a grid that is neither square nor
            3:1. A square position table of a CLIP (OpenAI's, or of open_clip) is resized to it.
        dtype (`torch.dtype`): dtype of the model.
        activation (`str`, *optional*): `gelu` or `quick_gelu`, of a file without a configuration.

    Raises:
        FileNotFoundError: no such file.
        DataError: the activation of a plain CLIP is not known, or is another in its configuration.
        ValueError: a file that cannot be read safely, a weight that is missing, of the wrong shape or unexplained (the
            message guesses whose checkpoint it is), or a position table that does not fit the image size.
    """
    weights, beside = read_checkpoint(path)
    settings = settings_beside(path)
    if settings is not None and activation not in (None, settings.hidden_act):
        raise DataError(
            f"{path}: {CONFIG_FILE} beside it says {settings.hidden_act}, --activation {activation}; leave one out"
        )
    towers = "base_model." if any(name.startswith("base_model.") for name in weights) else ""
    has_decoder = any(name.startswith(DECODER_PREFIXES) for name in weights)
    try:
        if settings is not None:
            weights = without_prefix(weights)
            if settings.timm_model in ROTARY:
                weights = rotary_in_names_of_clip(weights)
            elif settings.timm_model is not None:  # one alone is not refused
                weights = in_names_of_clip(weights)
            refuse_other_shapes(path, weights, settings)
        # the methods of the family, all from OpenAI's CLIP, have a prefix
        plain = settings is not None or not towers
        if plain and image_size is not None:
            weights = resized(weights, image_size)
        config = config_from_shapes(weights, towers, image_size, settings or Settings(activation or "quick_gelu"))
    except KeyError as error:
        raise ValueError(_refusal(path, weights, [], [error.args[0]])) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    names = layout(config, towers, has_decoder)
    missing = [name for name in names if name not in weights]
    unexplained = [name for name in weights if name not in names and reason_to_leave(name) is None]
    if missing or unexplained:
        raise ValueError(_refusal(path, weights, unexplained, missing))
    if settings is None and plain:
        refuse_undecided(path, weights, activation)

    model = (GADMSForPreTraining if has_decoder else GADMSModel)._from_config(config).to(dtype).eval()
    own = model.state_dict()
    converted = from_released({name: weights[name] for name in names}, names)
    for released, ours in names.items():
        for name in ours:
            if converted[name].shape != own[name].shape or not converted[name].is_floating_point():
                raise ValueError(
                    f"{path}: {released} is {weights[released].dtype} of shape {tuple(weights[released].shape)} and "
                    f"does not fit the rest: {name} takes a floating type and {tuple(own[name].shape)}"
                )
    model.load_state_dict(converted)  # strict; copies, and so casts

    left = {name: reason for name in weights if name not in names and (reason := reason_to_leave(name))}
    left |= {name: "the state of a training run, not a weight" for name in beside}
    try:
        selection = selection_from_released(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    image_options = {} if settings is None else settings.image_options
    return model, Conversion(list(names), left, _describe(config, has_decoder), selection, image_options)


def resized(weights: dict[str, torch.Tensor], image_size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Weights of a CLIP whose square position table, if it is one, is resized to images of this size.

    Raises:
        ValueError: patches do not divide the images.
    """
    table, patch_size = weights["visual.positional_embedding"], patch_shape(weights)[-1]
    if math.isqrt(len(table) - 1) ** 2 != len(table) - 1:
        return weights  # of images that were not square: the size says which
    grid = GADMSVisionConfig(image_size=image_size, patch_size=patch_size).grid
    return weights | {"visual.positional_embedding": resize_position_table(table, grid)}


def save_released(model: GADMSModel | GADMSForPreTraining, path: str) -> int:
    """Write a model as released code reads it: `{"model": tensors}`, towers under `base_model.`; returns their number.

    The released code lets the decoder attend to padding; one trained here without (`config.decoder_attends_padding`)
    predicts somewhat differently there. Retrieval does not use the decoder. A matching head, which the released code
    does not have, is left out.

    Raises:
        ValueError: the model has head widths, activations or norms that the released code does not have.
    """
    check_fits_released_layout(model.config)
    names = layout(model.config, "base_model.", isinstance(model, GADMSForPreTraining))
    weights = to_released({name: tensor.cpu() for name, tensor in model.state_dict().items()}, names)
    with replacing(path) as temporary:
        torch.save({"model": weights}, temporary)
    return len(weights)


def load_converted(path: str, dtype: torch.dtype = torch.float32) -> GADMSModel | GADMSForPreTraining:
    """The whole model of a folder or Hub id, with its decoder when it was saved with one.

    Raises:
        ValueError: another kind of model, or one with missing weights.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not isinstance(config, GADMSConfig):
        raise ValueError(f"{path}: holds a {config.model_type} model, not GA-DMS; give a GA-DMS folder or Hub id")
    model_class = GADMSForPreTraining if "GADMSForPreTraining" in (config.architectures or []) else GADMSModel
    model, report = model_class.from_pretrained(  # type: ignore[misc]  # a pair, when asked for the report
        path, dtype=dtype, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"{path} lacks weights of a {model_class.__name__}: {_some(sorted(report['missing_keys']))}")
    return model


def _refusal(path: str, weights: dict, unexplained: list[str], missing: list[str]) -> str:
    """One line with the names that do not fit and the method whose checkpoint it looks like."""
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (("unexplained", unexplained), ("missing", missing))
        if names
    ]
    giveaway = next(
        ((part, method) for part, method in GIVEAWAYS.items() if any(part in name for name in weights)),
        None,
    )
    guess = (
        f"probably a checkpoint of {giveaway[1]}, by its {giveaway[0]}*"
        if giveaway
        else "not a checkpoint of OpenAI's CLIP, GA-DMS, IRRA, NAM, RDE or HAM, or not all of one"
    )
    return f"{path}: {guess}; of {len(weights)} weights, {' and '.join(problems)}"


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _describe(config: GADMSConfig, has_decoder: bool) -> str:
    text, vision = config.text_config, config.vision_config
    return (
        f"{DESCRIBED[config.tower]}, {vision.num_hidden_layers} layers x {vision.hidden_size}, patches of "
        f"{vision.patch_size}, images {vision.image_size[0]}x{vision.image_size[1]} (height x width); text "
        f"{text.num_hidden_layers} layers x {text.hidden_size}, {text.max_position_embeddings} positions, vocabulary "
        f"{text.vocab_size}; embeddings of {config.projection_dim}; "
        + (f"decoder of {config.decoder_num_layers} blocks" if has_decoder else "no decoder")
    )
