"""A captioned image set -> the embeddings of its images and captions, and how well they find each other."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from .data_collator import caption_columns
from .distributed_gadms import num_processes
from .person_retrieval.ranking import retrieval_metrics
from .training_data import read_row, stable_hash


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

    def metrics(self) -> dict[str, float]:
        """`t2i_R@1`, ..., `i2t_mINP`: percentages both ways; a match is any image or caption of the same person."""
        texts, images = (self.text_embeds, self.text_person_ids), (self.image_embeds, self.image_person_ids)
        metrics = {}
        for direction, (query, query_ids), (gallery, gallery_ids) in (("t2i", texts, images), ("i2t", images, texts)):
            found = retrieval_metrics(query, gallery, query_ids, gallery_ids)
            metrics |= {f"{direction}_{name}": value for name, value in found.items()}
        return metrics


@torch.no_grad()
def encode_retrieval_set(model, processor, dataset, batch_size=64, progress=True) -> RetrievalSet:
    """Encode every image and every caption once, shared among the processes there are.

    Args:
        model ([`GADMSModel`]): the retriever.
        processor ([`GADMSProcessor`]): its processor.
        dataset (`datasets.Dataset`): columns `image`, `image_path`, `caption1`, ... and, if there is one, `person_id`;
            without it each image is its own person.
        batch_size (`int`): images, and captions, at a time.
        progress (`bool`): show a bar.

    Returns:
        [`RetrievalSet`] on the CPU, whole in every process.

    Raises:
        ValueError: the data set is empty, or has no caption column.
    """
    if len(dataset) == 0:
        raise ValueError("cannot measure retrieval on an empty data set")
    world = num_processes()
    mine = list(range(dist.get_rank() if world > 1 else 0, len(dataset), world))
    parts = []
    was_training = model.training
    model.eval()
    for start in tqdm(range(0, len(mine), batch_size), desc="Encoding", disable=not progress, leave=False):
        indices = mine[start : start + batch_size]
        rows = [read_row(dataset, index) for index in indices]
        captions = [
            (index, row[name]) for index, row in zip(indices, rows, strict=True) for name in caption_columns(row)
        ]
        images = processor(images=[row["image"] for row in rows], return_tensors="pt").to(model.device)
        texts = processor(text=[caption for _, caption in captions], return_tensors="pt").to(model.device)
        parts.append(
            (
                indices,
                _unit(model.get_image_features(images["pixel_values"]).pooler_output),
                [row["person_id"] if "person_id" in row else stable_hash(row["image_path"]) for row in rows],
                [index for index, _ in captions],
                _unit(model.get_text_features(texts["input_ids"]).pooler_output),
            )
        )
    model.train(was_training)
    if world > 1:
        gathered = [None] * world
        dist.all_gather_object(gathered, parts)
        parts = [part for process in gathered for part in process]
    indices, image_embeds, person_ids, text_index, text_embeds = zip(*parts, strict=True)
    order = torch.argsort(torch.tensor(sum(indices, [])))
    text_index = torch.tensor(sum(text_index, []))
    text_order = torch.argsort(text_index, stable=True)
    person_ids = torch.tensor(sum(person_ids, []))[order]
    return RetrievalSet(
        image_embeds=torch.cat(image_embeds)[order],
        text_embeds=torch.cat(text_embeds)[text_order],
        image_person_ids=person_ids,
        text_person_ids=person_ids[text_index[text_order]],
        text_image_index=text_index[text_order],
    )


def _unit(embeds):
    return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu()
