"""Layer-wise decay of the learning rate: the nearer a layer of a tower is to its input, the less it moves."""

import re
from collections.abc import Iterable

# what each tower has below its head; CLIP's norm before the first layer (its own spelling) goes with the embeddings
_PLACE = re.compile(r"\b(text_model|vision_model)\.(?:embeddings|pre_layrnorm|encoder\.layers?\.(\d+))\.")


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """The learning rate of every parameter, relative to that of the heads: `decay ** depth`.

    The depth of a tower's last layer is 1, that of the layer below it 2, and so on; embeddings lie below the first.
    Whatever lies above the layers of a tower, the projections and the decoder among it, has depth 0 (Clark et al.,
    *ELECTRA*, 2020, which introduced it for fine-tuning; Bao et al., *BEiT*, 2021, for images).

    Args:
        names (`Iterable[str]`): of all parameters of a model, so that they tell how many layers each tower has.
        decay (`float`): factor from each layer to the next one below.
    """
    places = {name: _PLACE.search(name) for name in names}
    tops: dict[str, int] = {}
    for found in filter(None, places.values()):
        tops[found[1]] = max(tops.get(found[1], 0), _height(found) + 1)
    return {name: decay ** (tops[found[1]] - _height(found)) if found else 1.0 for name, found in places.items()}


def _height(found: re.Match[str]) -> int:
    """0 for embeddings, 1 for the first layer."""
    return 0 if found[2] is None else int(found[2]) + 1
