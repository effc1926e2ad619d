"""Made-up pictures the size of person crops."""

import numpy as np
from PIL import Image


def picture(generator: np.random.Generator) -> Image.Image:
    """Blocks of colour that run into each other, under some noise: 250 to 700 high, a half to a quarter as wide."""
    height = int(generator.integers(250, 700))
    size = (int(height / generator.uniform(2, 4)), height)
    blocks = generator.integers(0, 256, (24, 10, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    noise = generator.integers(-8, 9, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
