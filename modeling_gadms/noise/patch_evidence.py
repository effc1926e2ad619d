"""Patch evidence: how much likelier a word makes its image than others, and which words make it much less likely.

A word with its two neighbours is a query; an image answers with the log-sum-exp of the query's products with its
patches. The head is trained by telling, for each word of noisy captions, its image from the batch's others, so what it
gives estimates `log p(image | word) - log p(image)` (InfoNCE: van den Oord et al., arXiv 1807.03748): a false word is
one that speaks against its image. Not of the paper: see `examples/studies` for what it is worth.
"""

import copy
import functools
import itertools
import math

import datasets
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..rows import caption_columns, read_row
from ..token_scores_gadms import valid_tokens
from ..training.collator import PairCollator
from ..training.samplers import EpochSampler, TrainingRows

WORDS_A_STEP = 700  # of a batch, drawn at random
NEIGHBOURS = (-1, 0, 1)
NUM_REFERENCES = 100  # images that stand for all
HIDDEN = "hidden_spans"  # ending of the columns that `hide_words` adds


class PatchEvidence(nn.Module):
    """A head on the patches of an image tower of its own, a copy of a model's. Knows words, but no text tower.

    Args:
        gadms ([`GADMSModel`]): whose image tower is copied, with its projection.
    """

    def __init__(self, gadms, embedding=64, hidden=256):
        super().__init__()
        width = gadms.config.projection_dim
        self.tower = copy.deepcopy(gadms).float()
        self.tower.text_model = self.tower.text_projection = None
        self.embedding = nn.Embedding(gadms.config.text_config.vocab_size, embedding)
        self.query = nn.Sequential(
            nn.Linear(len(NEIGHBOURS) * embedding, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, width)
        )
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.register_buffer("reference_keys", torch.zeros(0, 1, width))

    def head_parameters(self) -> list[nn.Parameter]:
        return [*self.embedding.parameters(), *self.query.parameters(), *self.key.parameters()]

    def tower_parameters(self) -> list[nn.Parameter]:
        return [*self.tower.vision_model.parameters(), *self.tower.visual_projection.parameters()]

    def keys(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, height, width)` -> `(B, S, D)`, one key for each patch and CLS."""
        return self.key(self.tower.project_image_tokens(self.tower.vision_model(pixel_values).last_hidden_state))

    def queries(self, input_ids, rows, places) -> torch.Tensor:
        """Of the words at `places` of the captions `rows`, `(N,)` int64 each -> `(N, D)`."""
        last = input_ids.shape[1] - 1
        near = [self.embedding(input_ids[rows, (places + offset).clamp(0, last)]) for offset in NEIGHBOURS]
        return self.query(torch.cat(near, dim=-1))

    @staticmethod
    def logits(queries, keys) -> torch.Tensor:
        """`(N, D)`, `(B, S, D)` -> `(N, B)`: how well each word and image fit, up to a number for each word."""
        products = queries @ keys.flatten(0, 1).T / math.sqrt(queries.shape[-1] / 2)
        return products.unflatten(1, keys.shape[:2]).logsumexp(dim=-1)

    @torch.no_grad()
    def score(self, keys, input_ids) -> torch.Tensor:
        """Evidence of every token for its image, in nats.

        Args:
            keys (`torch.Tensor` of shape `(B, S, D)`): of images, from `keys`.
            input_ids (`torch.Tensor` of shape `(B, T)`): a caption of each.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float32: above 0 where the token speaks for its image rather than for
            the reference images, below 0 where it speaks against it; 0 at BOS, EOS and padding. Neither padding nor
            the rest of the batch enters it.
        """
        scores = torch.zeros(input_ids.shape, device=input_ids.device)
        rows, places = valid_tokens(input_ids).nonzero(as_tuple=True)
        queries = self.queries(input_ids, rows, places)
        own = torch.cat([self.logits(queries[rows == row], keys[row : row + 1])[:, 0] for row in range(len(keys))])
        others = self.logits(queries, self.reference_keys).logsumexp(dim=1) - math.log(len(self.reference_keys))
        scores[rows, places] = own - others
        return scores


def refuse_unfit(dataset) -> None:
    """Find out before anything is learnt what would stop it.

    Raises:
        ValueError: a column is missing, hidden words are there already, or a caption is; names the first row.
    """
    columns = dataset.column_names
    captions = caption_columns(columns)
    if missing := sorted({"image", "image_path"} - set(columns)):
        raise ValueError(f"the data set lacks {', '.join(missing)}; it has {columns}")
    if taken := [name for name in columns if name.endswith(f"_{HIDDEN}")]:
        raise ValueError(f"the data set has {', '.join(taken)} already: leave them out with `remove_columns`")
    texts = dataset.select_columns(captions).with_format("arrow")
    for first in range(0, len(texts), 10_000):
        part = texts[first : first + 10_000]
        for name in captions:
            if part[name].null_count:
                row = first + part[name].is_null().to_pylist().index(True)
                raise ValueError(f"row {row}: {name} is None; replace it by an empty string")


def train_patch_evidence(
    model,
    processor,
    dataset,
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
        model ([`GADMSModel`]): where the image tower starts from.
        processor ([`GADMSProcessor`]): its processor.
        dataset (`datasets.Dataset`): rows with an image, its path and captions, as noisy as they are.
        steps (`int`): batches to learn from; the captions of an image take turns.
        tower_learning_rate (`float`): peak rate of the image tower's copy; 0 leaves it as it is.
        head_learning_rate (`float`): peak rate of the head.
        batch_size (`int`): images that a word is told apart among.
        seed (`int`): of everything random; torch's global generator is left alone.
        num_workers (`int`): processes that read and prepare images ahead.
        progress (`bool`): show a bar.

    Raises:
        ValueError: fewer rows than a batch, a data set without the columns, an image that cannot be read, or a batch
            without words; names the images.
        FloatingPointError: a loss that is not finite.
    """
    refuse_unfit(dataset)
    if len(dataset) < batch_size:
        raise ValueError(f"{len(dataset)} rows do not fill one batch of {batch_size}: patch evidence needs more rows")
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):  # nothing is drawn on a GPU
        torch.default_generator.manual_seed(seed)
        batches = _batches(dataset, processor, batch_size, seed, num_workers)
        references = torch.randperm(len(dataset))[:NUM_REFERENCES].tolist()
        references = [read_row(dataset, index)["image"] for index in references]
        references = processor(images=references, return_tensors="pt")["pixel_values"].to(device)
        evidence = PatchEvidence(model).to(device)
        groups = [{"params": evidence.head_parameters()}]
        if tower_learning_rate > 0:
            groups.append({"params": evidence.tower_parameters()})
        evidence.tower.requires_grad_(tower_learning_rate > 0)
        optimizer = torch.optim.Adam(groups)
        rates = [head_learning_rate, tower_learning_rate][: len(groups)]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        for batch in tqdm(itertools.islice(batches, steps), "Learning patch evidence", steps, disable=not progress):
            pixel_values, input_ids = (batch[name].to(device) for name in ("pixel_values", "input_ids"))
            rows, places = valid_tokens(input_ids).nonzero(as_tuple=True)
            words = torch.randperm(len(rows))[:WORDS_A_STEP].to(device)
            rows, places = rows[words], places[words]
            if not len(rows):
                raise ValueError(f"no words in any caption of {', '.join(batch['image_paths'])}")
            logits = evidence.logits(evidence.queries(input_ids, rows, places), evidence.keys(pixel_values))
            loss = F.cross_entropy(logits, rows)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} on the images {', '.join(batch['image_paths'])}: look at them, or "
                    "lower tower_learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()
            for group in groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        evidence.reference_keys = evidence.keys(references)
    return evidence.eval()


def _batches(dataset, processor, batch_size, seed, num_workers):
    """Whole batches without end, in an order that seed and epoch decide."""
    collator = PairCollator(processor, seed, crop_padding=0, flip_probability=0.0, erasing_probability=0.0)
    sampler = EpochSampler(len(dataset), seed, batch_size)
    options = {"batch_size": batch_size, "sampler": sampler, "num_workers": num_workers, "collate_fn": collator}
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from DataLoader(TrainingRows(dataset), **options)


def hide_words(evidence, processor, dataset, threshold: float, batch_size=64, num_workers=0, progress=True):
    """A data set with the words of each caption that speak against its image.

    Args:
        evidence ([`PatchEvidence`]): as learnt.
        processor ([`GADMSProcessor`]): of the model it was learnt from.
        dataset (`datasets.Dataset`): rows with an image, its path and captions.
        threshold (`float`): nats; a token is meant if it makes its image `exp(threshold)` times less likely.
        batch_size (`int`): images at a time.
        num_workers (`int`): processes that read and prepare images ahead.
        progress (`bool`): show a bar.

    Returns:
        `datasets.Dataset` with columns `caption1_hidden_spans`, ...: `[start, end]` characters, end excluded, of the
        caption as the tokenizer cleans it; tokens that touch are one span. [`PairCollator`] hides them.

    Raises:
        ValueError: the threshold is not above 0, or the data cannot be used.
    """
    if threshold <= 0:
        raise ValueError(f"threshold must be above 0, or words that say nothing are hidden too; got {threshold}")
    refuse_unfit(dataset)
    device, names = evidence.reference_keys.device, caption_columns(dataset.column_names)
    columns = {f"{name}_{HIDDEN}": [] for name in names}
    prepare = functools.partial(_prepare, processor, dataset, names)
    prepared = DataLoader(range(len(dataset)), batch_size, num_workers=num_workers, collate_fn=prepare)
    for pixel_values, captions in tqdm(prepared, "Looking for false words", disable=not progress):
        with torch.no_grad():
            keys = evidence.keys(pixel_values.to(device))
        for name, (input_ids, offsets) in captions.items():
            doubted = evidence.score(keys, input_ids.to(device)).cpu() < -threshold
            columns[f"{name}_{HIDDEN}"] += [_joined(o[d].tolist()) for o, d in zip(offsets, doubted, strict=True)]
    spans = datasets.List(datasets.List(datasets.Value("int32")))
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=spans)
    return dataset


def _prepare(processor, dataset, names, indices):
    """Pixels of the images, and of each caption column ids and offsets."""
    rows = [read_row(dataset, index) for index in indices]
    options = {"padding": True, "truncation": True, "return_offsets_mapping": True, "return_tensors": "pt"}
    encoded = {name: processor.tokenizer([row[name] for row in rows], **options) for name in names}
    captions = {name: (one["input_ids"], one["offset_mapping"]) for name, one in encoded.items()}
    return processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"], captions


def _joined(spans: list[list[int]]) -> list[list[int]]:
    """Spans in order, those that touch made one."""
    joined: list[list[int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return joined
