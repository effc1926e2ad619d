"""Patch evidence: how much more likely a word makes its image than other images, and which words make it less so.

A word with its two neighbours forms a query; its score with an image is the log-sum-exp of the query's products with
the image's patches. The head learns, for each word of noisy captions, to tell its image from the others of the batch,
so the score estimates `log p(image | word) - log p(image)` (InfoNCE: van den Oord et al., arXiv 1807.03748): a false
word speaks against its image. This is not part of the paper; `examples/studies` measures its worth.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from dataset_webperson import DataError

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..rows import caption_columns, read_row
from ..towers_gadms import valid_tokens
from ..training.collator import PairCollator
from ..training.samplers import EpochSampler, TrainingRows
from .image_tower import OnImageTower, learning_steps

WORDS_PER_STEP = 700  # drawn at random from a batch
NEIGHBOURS = (-1, 0, 1)
NUM_REFERENCES = 100  # images that stand for all
HIDDEN = "hidden_spans"  # suffix of the columns that `hide_words` adds


class PatchEvidence(OnImageTower):
    """A head on the patches of an image tower, copied from a model; words have embeddings, but no text tower.

    Args:
        gadms ([`GADMSModel`]): its image tower and projection are copied.
        embedding (`int`): width of a word's embedding.
        hidden (`int`): width of the hidden layers.
    """

    reference_keys: torch.Tensor

    def __init__(self, gadms: GADMSModel, embedding: int = 64, hidden: int = 256) -> None:
        super().__init__(gadms)
        width = gadms.config.projection_dim
        self.embedding = nn.Embedding(gadms.config.text_config.vocab_size, embedding)
        self.query = nn.Sequential(
            nn.Linear(len(NEIGHBOURS) * embedding, hidden),
            nn.GELU(),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, width),
        )
        self.key = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )
        self.register_buffer("reference_keys", torch.zeros(0, 1, width))

    def keys(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, height, width)` -> `(B, S, D)`, one key for each patch and CLS."""
        return self.key(self.patches(pixel_values))

    def queries(self, input_ids: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Queries `(N, D)` of the words at `places` in the captions `rows`, each `(N,)` int64."""
        last = input_ids.shape[1] - 1
        near = [self.embedding(input_ids[rows, (places + offset).clamp(0, last)]) for offset in NEIGHBOURS]
        return self.query(torch.cat(near, dim=-1))

    @staticmethod
    def logits(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """`(N, D)`, `(B, S, D)` -> `(N, B)`: the fit of each word and image, up to a constant per word."""
        products = queries @ keys.flatten(0, 1).T / math.sqrt(queries.shape[-1] / 2)
        return products.unflatten(1, keys.shape[:2]).logsumexp(dim=-1)

    @torch.no_grad()
    def score(self, keys: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Evidence of every token for its image, in nats.

        Args:
            keys (`torch.Tensor` of shape `(B, S, D)`): keys of the images, from `keys`.
            input_ids (`torch.Tensor` of shape `(B, T)`): one caption per image.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32: above 0 where the token speaks for its image rather than for
            the reference images, below 0 where it speaks against it; 0 at BOS, EOS and padding. It depends neither
            on padding nor on the rest of the batch.
        """
        scores = torch.zeros(input_ids.shape, device=input_ids.device)
        rows, places = valid_tokens(input_ids, self.tower.config.text_config).nonzero(as_tuple=True)
        queries = self.queries(input_ids, rows, places)

        # one image at a time; `rows` ascends, so the parts are in the order of the words
        own_parts = []
        for row in range(len(keys)):
            fit = self.logits(queries[rows == row], keys[row : row + 1])
            own_parts.append(fit[:, 0])
        own = torch.cat(own_parts)

        scores[rows, places] = own - self.of_references(queries)
        return scores

    def of_references(self, queries: torch.Tensor) -> torch.Tensor:
        """Logarithm of the mean likelihood of the reference images: queries `(N, D)` -> `(N,)`."""
        return self.logits(queries, self.reference_keys).logsumexp(dim=1) - math.log(len(self.reference_keys))


def refuse_unfit(dataset: datasets.Dataset) -> None:
    """Refuse a data set that words cannot be hidden in, before anything is learnt.

    Raises:
        DataError: a column is missing, there are hidden words already, or a caption is missing; names the first row.
    """
    columns = dataset.column_names
    captions = caption_columns(columns)
    if missing := sorted({"image", "image_path"} - set(columns)):
        raise DataError(f"the data set lacks {', '.join(missing)}; it has {columns}")
    if taken := [name for name in columns if name.endswith(f"_{HIDDEN}")]:
        raise DataError(f"the data set already has {', '.join(taken)}: leave them out with `remove_columns`")
    texts = dataset.select_columns(captions).with_format("arrow")
    for first in range(0, len(texts), 10_000):
        part = texts[first : first + 10_000]
        for name in captions:
            if part[name].null_count:
                row = first + part[name].is_null().to_pylist().index(True)
                raise DataError(f"row {row}: {name} is None; replace it by an empty string")


def train_patch_evidence(
    model: GADMSModel,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    steps: int,
    tower_learning_rate: float,
    head_learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> PatchEvidence:
    """Learn patch evidence from captioned images, on the model's device; the model itself stays as it is.

    Args:
        model ([`GADMSModel`]): the image tower starts from its own.
        processor ([`GADMSProcessor`]): its processor.
        dataset (`datasets.Dataset`): rows with an image, its path and captions; the captions may be noisy.
        steps (`int`): batches to learn from; the captions of an image take turns.
        tower_learning_rate (`float`): peak rate of the copied image tower; 0 leaves it as it is.
        head_learning_rate (`float`): peak rate of the head.
        batch_size (`int`): images per batch, among which each word must find its own.
        seed (`int`): seed of everything random; torch's global generator is left alone.
        num_workers (`int`): processes that read and prepare images ahead.
        progress (`bool`): show a bar.

    Raises:
        DataError: there are fewer rows than a batch, a column is missing, an image cannot be read, or a batch has no
            words; names the images.
        FloatingPointError: the loss is not finite.
    """
    refuse_unfit(dataset)
    if len(dataset) < batch_size:
        raise DataError(f"{len(dataset)} rows do not fill one batch of {batch_size}: patch evidence needs more rows")
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):  # nothing is drawn on a GPU
        torch.default_generator.manual_seed(seed)
        batches = _batches(dataset, processor, batch_size, seed, num_workers)
        chosen = torch.randperm(len(dataset))[:NUM_REFERENCES].tolist()
        images = [read_row(dataset, index)["image"] for index in chosen]
        references = processor(images=images, return_tensors="pt")["pixel_values"].to(device)

        evidence = PatchEvidence(model).to(device)
        step = learning_steps(evidence, head_learning_rate, tower_learning_rate, steps)
        for batch in tqdm(itertools.islice(batches, steps), "Learning patch evidence", steps, disable=not progress):
            step(_batch_loss(evidence, batch, device), batch["image_paths"])
    evidence.eval()  # first: the keys of the reference images carry no dropout
    with torch.no_grad():
        evidence.reference_keys = evidence.keys(references)
    return evidence


def _batch_loss(evidence: PatchEvidence, batch: dict[str, Any], device: torch.device) -> torch.Tensor:
    """InfoNCE of some words of a batch: each must find its image among those of the batch."""
    pixel_values, input_ids = (batch[name].to(device) for name in ("pixel_values", "input_ids"))
    rows, places = valid_tokens(input_ids, evidence.tower.config.text_config).nonzero(as_tuple=True)
    words = torch.randperm(len(rows))[:WORDS_PER_STEP].to(device)
    rows, places = rows[words], places[words]
    if not len(rows):
        raise DataError(f"no words in any caption of {', '.join(batch['image_paths'])}: leave these rows out")
    logits = evidence.logits(evidence.queries(input_ids, rows, places), evidence.keys(pixel_values))
    return F.cross_entropy(logits, rows)


def _batches(
    dataset: datasets.Dataset, processor: GADMSProcessor, batch_size: int, seed: int, num_workers: int
) -> Iterator[dict[str, Any]]:
    """Full batches without end, in an order that follows from seed and epoch."""
    collator = PairCollator(processor, seed, crop_padding=0, flip_probability=0.0, erasing_probability=0.0)
    sampler = EpochSampler(len(dataset), seed, batch_size)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from DataLoader(
            TrainingRows(dataset), batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collator
        )


def hide_words(
    evidence: PatchEvidence,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    threshold: float,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> datasets.Dataset:
    """List, for each caption, the words that speak against its image.

    Args:
        evidence ([`PatchEvidence`]): trained patch evidence.
        processor ([`GADMSProcessor`]): processor of the model that it started from.
        dataset (`datasets.Dataset`): rows with an image, its path and captions.
        threshold (`float`): nats; a token is listed if it makes its image `exp(threshold)` times less likely.
        batch_size (`int`): images at a time.
        num_workers (`int`): processes that read and prepare images ahead.
        progress (`bool`): show a bar.

    Returns:
        `datasets.Dataset` with columns `caption1_hidden_spans`, ...: `[start, end]` characters, end excluded, of the
        caption as the tokenizer cleans it; adjacent tokens form one span. [`PairCollator`] hides them.

    Raises:
        ValueError: the threshold is not above 0.
        DataError: the data cannot be used.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, or words that say nothing are hidden too; got {threshold}")
    refuse_unfit(dataset)
    device, names = evidence.reference_keys.device, caption_columns(dataset.column_names)
    columns: dict[str, list[list[list[int]]]] = {f"{name}_{HIDDEN}": [] for name in names}
    prepare = functools.partial(_prepare, processor, dataset, names)
    indices = cast(Dataset[int], range(len(dataset)))  # a loader takes any sequence
    prepared = DataLoader(indices, batch_size, num_workers=num_workers, collate_fn=prepare)
    for pixel_values, captions in tqdm(prepared, "Looking for false words", disable=not progress):
        with torch.no_grad():
            keys = evidence.keys(pixel_values.to(device))
        for name, (input_ids, offsets) in captions.items():
            doubted = evidence.score(keys, input_ids.to(device)).cpu() < -threshold
            for spans, against in zip(offsets, doubted, strict=True):
                columns[f"{name}_{HIDDEN}"].append(_joined(spans[against].tolist()))
    feature = datasets.List(datasets.List(datasets.Value("int32")))
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=feature)
    return dataset


def _prepare(
    processor: GADMSProcessor, dataset: datasets.Dataset, names: Sequence[str], indices: Sequence[int]
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Pixels of the images, and ids and offsets of each caption column."""
    rows = [read_row(dataset, index) for index in indices]
    options = {"return_offsets_mapping": True, "return_tensors": "pt"}
    encoded = {
        name: processor.tokenizer(**processor.caption_options([row[name] for row in rows]), **options)
        for name in names
    }
    captions = {name: (one["input_ids"], one["offset_mapping"]) for name, one in encoded.items()}
    return processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"], captions


def _joined(spans: list[list[int]]) -> list[list[int]]:
    """Spans in order, adjacent ones merged."""
    joined: list[list[int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return joined
