"""Embeddings of the images and captions of a data set, and how well they find each other.

While the model works on a batch, a thread reads and prepares the next one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import BatchFeature, PretrainedConfig, ProcessorMixin

from dataset_webperson.reading_ahead import ahead

from ..distributed_gadms import num_processes
from ..person_retrieval.ranking import QueryRanks, rank_both_ways, rank_queries, summarize_ranks
from ..rows import all_captions, person_ids, read_row
from .models import Retriever

# a row with its decoded image, and its index -> the image to encode in its place
Change = Callable[[dict, int], Image.Image]
_BATCHES_ON_DEVICE = 16  # whose results stay there, before they are fetched together


@dataclass
class RetrievalSet:
    """Embeddings of a gallery and of all captions as queries; `N` images, `M` captions.

    Attributes:
        image_embeds (`torch.Tensor` of shape `(N, D)`): float32, unit norm.
        text_embeds (`torch.Tensor` of shape `(M, D)`): float32, unit norm.
        image_person_ids (`torch.Tensor` of shape `(N,)`): int64.
        text_person_ids (`torch.Tensor` of shape `(M,)`): int64.
        text_image_index (`torch.Tensor` of shape `(M,)`): row of the image that each caption was written for.
    """

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_person_ids: torch.Tensor
    text_person_ids: torch.Tensor
    text_image_index: torch.Tensor

    def described(self) -> torch.Tensor:
        """Which images show a person whom a caption describes, bool `(N,)`: those that are queries too."""
        return torch.isin(self.image_person_ids, self.text_person_ids)

    def ranks(self) -> dict[str, QueryRanks]:
        """`t2i`, with the captions as queries, and `i2t`, with the images that are `described`."""
        texts, images = (self.text_embeds, self.text_person_ids), (self.image_embeds, self.image_person_ids)
        if (kept := self.described()).all():
            t2i, i2t = rank_both_ways(texts[0], images[0], texts[1], images[1])
        else:  # some are there only to be searched
            t2i = rank_queries(texts[0], images[0], texts[1], images[1])
            i2t = rank_queries(images[0][kept], texts[0], images[1][kept], texts[1])
        return {"t2i": t2i, "i2t": i2t}

    def metrics(self) -> dict[str, float]:
        """`t2i_R@1`, ..., `i2t_mINP`: percentages both ways; a match is any image or caption of the same person."""
        return {
            f"{direction}_{name}": value
            for direction, found in self.ranks().items()
            for name, value in summarize_ranks(found).items()
        }


def encode_retrieval_set(
    model: Retriever,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    progress: bool = True,
    num_workers: int = 0,
) -> RetrievalSet:
    """Encode every image and every caption once, shared among all processes.

    Args:
        model ([`GADMSModel`], or a CLIP-like model): has `get_image_features` and `get_text_features`.
        processor ([`GADMSProcessor`], or the model's own): its processor.
        dataset (`datasets.Dataset`): columns `image`, `image_path`, `captions` (lists) or `caption1`, ... and, if
            there is one, `person_id`; without it each image is its own person.
        batch_size (`int`): images, or captions, encoded at a time.
        progress (`bool`): show a bar.
        num_workers (`int`): processes that load and prepare images in the background.

    Returns:
        [`RetrievalSet`] on the CPU, whole in every process, and bit for bit the same for any number of processes.

    Raises:
        ValueError: the data set is empty, or has no captions.
    """
    if len(dataset) == 0:
        raise ValueError("cannot measure retrieval on an empty data set")
    captions, text_image_index = all_captions(dataset)
    image_person_ids = torch.tensor(person_ids(dataset))
    return RetrievalSet(
        image_embeds=encode_images(model, processor, dataset, batch_size, progress, num_workers),
        text_embeds=encode_captions(model, processor, captions, batch_size, progress),
        image_person_ids=image_person_ids,
        text_person_ids=image_person_ids[text_image_index],
        text_image_index=text_image_index,
    )


def encode_images(
    model: Retriever,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    batch_size: int = 64,
    progress: bool = True,
    num_workers: int = 0,
    change: Change | None = None,
) -> torch.Tensor:
    """Embeddings `(N, D)` of the images of a data set, float32, unit norm, on the CPU, whole in every process.

    Args:
        change (`Callable`, *optional*): `(row with its decoded image, index) -> image` to encode in its place.
    """
    batches = ImageBatches(processor, dataset, batch_size, change)

    def encode(inputs: BatchFeature) -> torch.Tensor:
        return _unit(image_features(model, inputs))

    return encode_batches(model, batches, encode, "Encoding images", progress, num_workers)


def image_features(model: Retriever, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Features `(B, D)` of one batch of prepared images, float32, on the model's device."""
    placed = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None, non_blocking=True)
        for name, tensor in inputs.items()
    }
    return _features(model.get_image_features(**placed))


def embed_images(model: Retriever, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Embeddings `(B, D)` of one batch of prepared images, float32, unit norm, on the CPU."""
    return _unit(image_features(model, inputs)).cpu()


def encode_captions(
    model: Retriever, processor: ProcessorMixin, captions: list[str], batch_size: int = 64, progress: bool = True
) -> torch.Tensor:
    """Embeddings `(M, D)` of captions, float32, unit norm, on the CPU, whole in every process.

    Captions of like length are encoded together, the longest first, so that little is padding, and equal ones once.
    The result of a caption does not depend on their order, not even in its last bit.
    """

    def encode(inputs: BatchFeature) -> torch.Tensor:
        placed = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
        return _unit(_features(model.get_text_features(**placed)))

    different = sorted(set(captions), key=lambda caption: (-len(caption), caption))
    batches = CaptionBatches(processor, different, batch_size, model.config)
    embeds = encode_batches(model, batches, encode, "Encoding captions", progress, 0)
    places = {caption: place for place, caption in enumerate(different)}
    return embeds[[places[caption] for caption in captions]]


def pinned(inputs: BatchFeature, device: torch.device) -> BatchFeature:
    """Prepared inputs in memory from which a GPU copies while it works; for other devices, as they are."""
    if device.type == "cuda":
        inputs.update({name: tensor.pin_memory() for name, tensor in inputs.items()})
    return inputs


class ImageBatches(Dataset):
    """Prepared pixels of whole batches, by number, so that any process or worker can make any batch."""

    def __init__(
        self, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int, change: Change | None
    ) -> None:
        self.processor, self.dataset, self.batch_size, self.change = processor, dataset, batch_size, change

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __getitem__(self, number: int) -> BatchFeature:
        first = number * self.batch_size
        images = []
        for index in range(first, min(first + self.batch_size, len(self.dataset))):
            row = read_row(self.dataset, index)
            images.append(row["image"] if self.change is None else self.change(row, index))
        return self.processor(images=images, return_tensors="pt")


class CaptionBatches(Dataset):
    """Prepared ids of whole batches, by number."""

    def __init__(
        self, processor: ProcessorMixin, captions: list[str], batch_size: int, config: PretrainedConfig
    ) -> None:
        # SigLIP was trained on lower case, and not every tokenizer of its family sees to that
        self.captions = [caption.lower() for caption in captions] if is_siglip(config) else captions
        self.processor, self.batch_size = processor, batch_size
        self.options = caption_options(config)

    def __len__(self) -> int:
        return -(-len(self.captions) // self.batch_size)

    def __getitem__(self, number: int) -> BatchFeature:
        first = number * self.batch_size
        return self.processor(text=self.captions[first : first + self.batch_size], **self.options)


def caption_options(config: PretrainedConfig) -> dict[str, Any]:
    """How the processor of a model of this configuration is to pad and cut captions."""
    longest = config.text_config.max_position_embeddings
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    if is_siglip(config):
        # it reads the last position, padding or not, and was trained on captions of full length without a mask;
        # the tokenizer that transformers has for SigLIP 2 pads on the left by itself, and gives a mask
        options |= {"padding": "max_length", "padding_side": "right", "return_attention_mask": False}
    return options


def is_siglip(config: PretrainedConfig) -> bool:
    """Whether this is a SigLIP or SigLIP 2 of transformers, whose captions are prepared in a way of their own."""
    return config.model_type.startswith("siglip")


def _features(found: Any) -> torch.Tensor:
    """What a model answered, float32: a tensor or, of newer versions of transformers, an output with one."""
    return (found if isinstance(found, torch.Tensor) else found.pooler_output).float()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features, dim=-1)


@torch.no_grad()
def encode_batches(
    model: Retriever,
    batches: Dataset,
    encode: Callable[[Any], torch.Tensor],
    words: str,
    progress: bool,
    num_workers: int,
) -> torch.Tensor:
    """What `encode` makes of each batch, one after the other, whole in every process: each encodes its share."""
    # Whole batches are shared out, so that a batch holds the same items, padded the same, for any number of processes.
    world, count = num_processes(), len(batches)  # type: ignore[arg-type]  # they have a length
    mine = list(range(dist.get_rank() if world > 1 else 0, count, world))
    # All encode as often, for layers that are divided over processes are put together by all of them at once.
    mine += [0] * (-(-count // world) - len(mine))
    loader = DataLoader(batches, batch_size=None, sampler=mine, num_workers=num_workers)
    prepared: Iterator[BatchFeature] = (pinned(batch, model.device) for batch in loader)
    if len(mine) > 1:
        prepared = ahead(prepared)
    was_training = model.training
    model.eval()
    parts: list[torch.Tensor] = []
    waiting: list[torch.Tensor] = []
    for batch in tqdm(prepared, desc=words, total=len(mine), disable=not progress, leave=False):
        waiting.append(encode(batch))
        if len(waiting) == _BATCHES_ON_DEVICE:  # fetching the result of each would let the device wait for the next
            parts += [part.cpu() for part in waiting]
            waiting = []
    parts += [part.cpu() for part in waiting]
    model.train(was_training)
    if world > 1:
        gathered: list[list[torch.Tensor]] = [[] for _ in range(world)]
        dist.all_gather_object(gathered, parts)
        # batch b is the (b // world)-th of process b % world
        parts = [gathered[number % world][number // world] for number in range(count)]
    return torch.cat(parts)
