"""Augments a whole batch of bytes on its device: the normalised pixels that the collator would make, to the last bit.

Loader workers are left with decoding and resizing, and hand over a quarter of the bytes.
"""

import numpy as np
import torch

from ..image_processing_gadms import GADMSImageProcessor

_BLACK, _MEAN = 256, 257  # in the table of values, after those of the bytes


def black(image_processor: GADMSImageProcessor) -> torch.Tensor:
    """Black as it is once normalised, `(3,)`."""
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    return -mean / std


def value_table(image_processor: GADMSImageProcessor) -> torch.Tensor:
    """What each byte is once normalised, in each channel, then black and the mean colour: `(3, 258)`."""
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    values = image_processor([ramp], do_resize=False, return_tensors="pt")["pixel_values"][0, :, 0]
    return torch.cat([values, black(image_processor)[:, None], torch.zeros(3, 1)], dim=1)


def augmented(pixels: torch.Tensor, plans: torch.Tensor, table: torch.Tensor, crop_padding: int) -> torch.Tensor:
    """Flip, pad and crop, erase and normalise images; nothing waits for the device.

    Args:
        pixels (`torch.Tensor` of shape `(B, 3, height, width)`): uint8.
        plans (`torch.Tensor` of shape `(B, 7)`): of each image, as `PairCollator.plan` makes it.
        table (`torch.Tensor` of shape `(3, 258)`): see [`value_table`].
        crop_padding (`int`): black pixels on each side before the crop.

    Returns:
        `torch.Tensor` of shape `(B, 3, height, width)`, float32.
    """
    count, channels, height, width = pixels.shape
    flips, top, left, first_row, end_row, first_column, end_column = plans[..., None].unbind(dim=1)
    places, across = (torch.arange(side, device=pixels.device)[None] for side in (height, width))
    erased = _within(places, first_row, end_row)[:, :, None] & _within(across, first_column, end_column)[:, None]

    rows, columns = places + top - crop_padding, across + left - crop_padding
    inside = _within(rows, 0, height)[:, :, None] & _within(columns, 0, width)[:, None]
    columns = torch.where(flips > 0, width - 1 - columns, columns)
    sources = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
    moved = pixels.flatten(2).gather(2, sources.flatten(1)[:, None].expand(-1, channels, -1))

    values = moved.view_as(pixels).long()
    values = torch.where(erased[:, None], _MEAN, torch.where(inside[:, None], values, _BLACK))
    values += torch.arange(channels, device=pixels.device)[:, None, None] * table.shape[1]
    return table.take(values)


def _within(numbers: torch.Tensor, first: torch.Tensor | int, end: torch.Tensor | int) -> torch.Tensor:
    return (numbers >= first) & (numbers < end)
