"""Reads from an image which value of a word's family is true, having learnt it from captions that are partly false.

The word is hidden. The patches of the image, each in its place, give evidence for each value of each family, in a few
versions; the tokens around the word choose among these (a colour is that of the coat or of the shoes) and do no more,
for captions are learnt by heart where they can be. What is compared with the caption is not the evidence but what a
speaker makes of it, who says a false value with the share `r` of false words (forward correction: Patrini et al.,
arXiv 1609.03683):

    p(true = t) ~ f(t) exp(evidence of t)
    p(said = s) = (1 - r) p(true = s) + r f(s) sum over t != s of p(true = t) / (1 - f(t))

with `f` what the tokens around the word say of it without an image: "a" and "an" tell much, but nothing of what is
true. So the evidence is the image's alone, and no word weighs more than the odds of a mistake. `r` is not given: where
held-out rows are read most surely, it is how often the caption says something else (likelihood would not tell mistakes
of the speaker from doubts of the reader). What is not there at all has no true value: `mentions.py` says how likely.
This is not part of the paper; `examples/studies` measures its worth.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from dataset_webperson import DataError

from ..modeling_gadms import GADMSModel
from ..processing_gadms import GADMSProcessor
from ..training.samplers import EpochSampler
from .image_tower import OnImageTower, learning_steps
from .mentions import Mentions, mentioned_shares
from .patch_evidence import refuse_unfit
from .word_families import Family
from .word_places import REACH, Places, SaidBatch, said_batches

HELD_OUT, MOST_HELD_OUT = 0.1, 2000  # share of the rows, and rows
LOOKS = 4  # parts of the training, between which held-out rows are looked at
SUREST = 0.1  # share of the words, read most surely
FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.3, 0.01, 0.9  # of false words
TEMPERATURES = np.linspace(0.0, 2.0, 41)  # tried, of each family
LEAST_GAIN, LEAST_PROOF = 0.02, 5.0  # nats a word, and in all: answers that explain less of what is said are left out
UNSHOWN_DOUBT = 0.49  # at most: the word that is said stays the likeliest
DROPOUT, WEIGHT_DECAY = 0.3, 0.3
PATCH_WIDTH, VERSIONS = 32, 8  # numbers that are kept of each patch; versions of the evidence
NEVER = -1e9  # a logit beyond the word's own family
SHIFT = 1 / 32  # of the height, at most, that images are moved by


class ValueReader(OnImageTower):
    """Features of the patches of an image tower, copied from a model, and what they say of words; no text tower.

    Args:
        gadms ([`GADMSModel`]): its image tower and projection are copied.
        families (`Mapping[str, Family]`): by name; their order numbers them.
        embedding (`int`): width of the embeddings of tokens and families.
        hidden (`int`): width of the features of an image, and of the hidden layer that reads the tokens.
    """

    owner: torch.Tensor
    frequency: torch.Tensor
    temperature: torch.Tensor
    share_false: torch.Tensor

    def __init__(
        self, gadms: GADMSModel, families: Mapping[str, Family], embedding: int = 64, hidden: int = 512
    ) -> None:
        super().__init__(gadms)
        self.families = dict(families)
        sizes = [len(family.values) for family in families.values()]
        self.firsts = [0, *itertools.accumulate(sizes)]
        self.patch = nn.Linear(gadms.config.projection_dim, PATCH_WIDTH)
        self.image = nn.Sequential(
            nn.Flatten(),
            nn.Linear(self._patch_count() * PATCH_WIDTH, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
        )
        self.answer = nn.Linear(hidden, VERSIONS * self.firsts[-1])
        self.mentions = Mentions(hidden, len(sizes))
        self.vocabulary, around = gadms.config.text_config.vocab_size, (2 * REACH + 1) * embedding
        self.version = nn.Sequential(
            nn.Embedding(self.vocabulary + len(sizes), embedding),
            nn.Flatten(),
            nn.Dropout(DROPOUT),
            nn.Linear(around, VERSIONS),
        )
        self.text = nn.Sequential(
            nn.Embedding(self.vocabulary + len(sizes), embedding),
            nn.Flatten(),
            nn.Linear(around, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.firsts[-1]),
        )
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("frequency", torch.zeros(self.firsts[-1]))
        self.register_buffer("temperature", torch.ones(len(sizes)))
        self.register_buffer("share_false", torch.tensor(FIRST_SHARE))

    @torch.no_grad()
    def _patch_count(self) -> int:
        weight = self.tower.visual_projection.weight
        return self.patches(weight.new_zeros(1, 3, *self.tower.config.vision_config.image_size)).shape[1]

    def forward(self, pixel_values: torch.Tensor, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """What images say of the values of words, and of what captions may mention.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): images.
            places ([`Places`]): N words.

        Returns:
            `torch.Tensor` of shape `(N, V)`, float32: evidence for each value in nats, up to a constant, V the values
            of all families; very low beyond the word's own. And `torch.Tensor` of shape `(B, families)`, float32:
            logits for [`Mentions`].
        """
        features = self.image(self.patch(self.patches(pixel_values)))
        versions = self.answer(features).unflatten(1, (VERSIONS, -1))[places.rows]
        chosen = self.version(self._around(places)).softmax(dim=1)
        evidence = (versions * chosen[:, :, None]).sum(dim=1).float()
        return evidence.masked_fill(self._others(places), NEVER), self.mentions(features)

    def _around(self, places: Places) -> torch.Tensor:
        """`(N, 2 * REACH + 1)`: the tokens around each word and, numbered beyond them, its family."""
        return torch.cat([places.near, self.vocabulary + places.families[:, None]], dim=1)

    def _others(self, places: Places) -> torch.Tensor:
        return self.owner[None, :] != places.families[:, None]

    def shown(self, families: Iterable[str]) -> list[str]:
        """The families, given in the order of their numbers, of whose values the images say something."""
        return [name for name, one in zip(families, self.temperature.tolist(), strict=True) if one > 0]

    def said(self, places: Places) -> torch.Tensor:
        """Column of what each word says, `(N,)`."""
        return torch.tensor(self.firsts, device=places.said.device)[places.families] + places.said

    def expected(self, places: Places) -> torch.Tensor:
        """`(N, V)`: log-probability of each value to be said between these tokens, whatever the image."""
        return self.text(self._around(places)).float().masked_fill(self._others(places), NEVER).log_softmax(dim=1)

    def says(self, places: Places, log_expected: torch.Tensor) -> torch.Tensor:
        """`(N, V)`: how likely a speaker who errs as `log_expected` says the word, where each value is true."""
        said, share, chances = self.said(places)[:, None], self.share_false, log_expected.exp()
        chance = share * chances.gather(1, said) / (1 - chances).clamp_min(1e-6)
        return chance.scatter(1, said, (1 - share).expand_as(said).to(chance.dtype))

    def often(self, places: Places) -> torch.Tensor:
        """`(N, V)`: log-probability of each value to be said at all."""
        return self.frequency.log()[None].masked_fill(self._others(places), NEVER)

    def true(self, evidence: torch.Tensor, places: Places, log_prior: torch.Tensor) -> torch.Tensor:
        """`(N, V)`: log-probability of each value to be true, of evidence as far as it can be trusted."""
        logits = self.temperature[places.families, None] * evidence + log_prior
        return logits.masked_fill(self._others(places), NEVER).log_softmax(dim=1)

    @torch.no_grad()
    def probabilities(self, pixel_values: torch.Tensor, places: Places) -> list[np.ndarray]:
        """How likely each value of a word's family is true, given image and caption, by Bayes' rule.

        Of a family that the images do not show, every word is false with the share of false words, and none is
        replaced for being rare.

        Returns:
            For each word an array of shape `(V + 1,)`, float64: the values in the order of its family, and last that
            nothing of the kind is there. It sums to 1.
        """
        if not places.words:
            return []
        often, said = self.often(places), self.said(places)[:, None]
        evidence, mention = self(pixel_values, places)
        true = self.true(evidence, places, often).exp().double() * self.says(places, often).double()
        doubt = min(float(self.share_false), UNSHOWN_DOUBT)
        frequency = self.frequency.double()[None].masked_fill(self._others(places), 0.0)
        says = frequency.gather(1, said)
        unshown = doubt * frequency / (1 - says)
        unshown = says * unshown.scatter(1, said, torch.full_like(says, 1 - doubt))
        true = torch.where(self.temperature[places.families, None] > 0, true, unshown)  # each sums to p(said | there)

        own = places.rows, places.families
        there = self.mentions.there(mention)[own][:, None]
        lowest, highest = (
            one.double()[places.families, None] for one in (self.mentions.lowest, self.mentions.highest)
        )
        joint = torch.cat([there * highest * true, (1 - there) * lowest * says], dim=1)
        found = (joint / joint.sum(dim=1, keepdim=True)).cpu().numpy()
        return [
            np.append(row[self.firsts[family] : self.firsts[family + 1]], row[-1])
            for row, family in zip(found, places.families.tolist(), strict=True)
        ]


def said_loss(reader: ValueReader, evidence: torch.Tensor, places: Places, log_expected: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of what each word says, `(N,)`, by the formula of this file."""
    true = reader.true(evidence, places, log_expected).exp()
    return -(true * reader.says(places, log_expected)).sum(dim=1).clamp_min(1e-12).log()


def train_value_reader(
    model: GADMSModel,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    families: Mapping[str, Family],
    steps: int,
    tower_learning_rate: float,
    head_learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> ValueReader:
    """Learn to read values from captioned images, on the model's device; the model itself stays as it is.

    A tenth of the rows, 2,000 at most, is held out: the share of false words, and how far the answers of each family
    can be trusted, are estimated from them. Where the images show no family, no word is doubted. Images are mirrored,
    so that no family may tell left from right.

    Args:
        model ([`GADMSModel`]): the image tower starts from its own.
        processor ([`GADMSProcessor`]): its processor.
        dataset (`datasets.Dataset`): rows with an image, its path and captions; the captions may be noisy.
        families (`Mapping[str, Family]`): words that can stand in each other's place.
        steps (`int`): batches to learn from.
        tower_learning_rate (`float`): peak rate of the copied image tower; 0 leaves it as it is.
        head_learning_rate (`float`): peak rate of the rest.
        batch_size (`int`): images per batch.
        seed (`int`): seed of everything random; torch's global generators are left alone.
        num_workers (`int`): processes that read and prepare images ahead.
        progress (`bool`): show bars.

    Raises:
        DataError: there are fewer rows than a batch, a column is missing, an image cannot be read, or no caption names
            a value of a family.
        FloatingPointError: the loss is not finite; names the images.
    """
    refuse_unfit(dataset)
    device = next(model.parameters()).device
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    held = min(max(round(HELD_OUT * len(dataset)), 1), MOST_HELD_OUT)
    held_out, rows = dataset.select(sorted(order[:held])), dataset.select(sorted(order[held:]))
    if len(rows) < batch_size:
        raise DataError(
            f"{len(dataset)} rows do not fill one batch of {batch_size} beside those held out: give more, or a "
            "smaller batch_size"
        )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        reader = ValueReader(model, families).to(device)
        looks = list(said_batches(processor, held_out, families, batch_size, num_workers))
        reader.frequency.copy_(_frequencies(reader, looks))
        step = learning_steps(reader, head_learning_rate, tower_learning_rate, steps, WEIGHT_DECAY)
        batches = itertools.islice(_endless(processor, rows, families, batch_size, seed, num_workers), steps)
        for number, batch in enumerate(tqdm(batches, "Learning to read values", steps, disable=not progress)):
            if number and number % max(steps // LOOKS, 1) == 0:
                calibrate(reader.eval(), looks, device)
                reader.temperature.fill_(1.0)
                reader.train()
            loss = None
            if batch.places.words:
                places, mentioned = batch.places.to(device), mentioned_shares(batch, len(families)).to(device)
                evidence, mention = reader(_moved(batch.pixel_values).to(device), places)
                expected = reader.expected(places)
                loss = said_loss(reader, evidence, places, expected.detach()).mean()
                loss = loss - expected.gather(1, reader.said(places)[:, None]).mean()
                loss = loss + reader.mentions.loss(mention, mentioned).mean()
            step(loss, batch.image_paths)
        reader.eval()
        calibrate(reader, looks, device)
        if not (reader.temperature > 0).any():  # no share was estimated, and nothing speaks against a word
            reader.share_false.fill_(LEAST_SHARE)
    return reader


def _endless(
    processor: GADMSProcessor,
    rows: datasets.Dataset,
    families: Mapping[str, Family],
    batch_size: int,
    seed: int,
    num_workers: int,
) -> Iterator[SaidBatch]:
    """Full batches without end, in an order that follows from seed and epoch."""
    sampler = EpochSampler(len(rows), seed, batch_size)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        indices = (index for _, index in sampler)
        yield from said_batches(processor, rows, families, batch_size, num_workers, indices)


def _moved(pixel_values: torch.Tensor) -> torch.Tensor:
    """Half of the images mirrored, and all moved a little: no family speaks of left and right."""
    height, width = pixel_values.shape[-2:]
    mirrored = torch.rand(len(pixel_values)) < 0.5
    pixel_values = torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
    most = max(round(SHIFT * height), 1)
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    return F.pad(pixel_values, (most,) * 4)[..., down : down + height, right : right + width]


def read_values(
    reader: ValueReader,
    processor: GADMSProcessor,
    dataset: datasets.Dataset,
    families: Mapping[str, Family],
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Iterator[tuple[SaidBatch, list[np.ndarray]]]:
    """Each batch of rows, and for each of its words how likely every value of its family is true."""
    device = reader.frequency.device
    batches = said_batches(processor, dataset, families, batch_size, num_workers)
    for batch in tqdm(batches, "Looking for what is true", disable=not progress):
        yield batch, reader.probabilities(batch.pixel_values.to(device), batch.places.to(device))


def _frequencies(reader: ValueReader, looks: list[SaidBatch]) -> torch.Tensor:
    """Share of its family's words that say each value; half a word more, so that none is impossible."""
    said = torch.cat([reader.said(batch.places.to(reader.owner.device)) for batch in looks])
    if not len(said):
        raise DataError("no caption of the rows held out names a value of a family: give more rows or other families")
    counts = torch.bincount(said, minlength=len(reader.frequency)) + 0.5
    return counts / torch.zeros_like(reader.temperature).index_add(0, reader.owner, counts)[reader.owner]


@torch.no_grad()
def calibrate(reader: ValueReader, looks: list[SaidBatch], device: torch.device) -> None:
    """Estimate temperatures, the share of false words, and how often things are made up, from held-out rows.

    A family's temperature makes what is said likeliest. Where the evidence hardly makes it likelier than the tokens
    around it do, the images do not show the family, and they are left out: words would be replaced at random.
    """
    scored, mentions, mentioned = [], [], []
    for batch in looks:
        places = batch.places.to(device)
        evidence, mention = reader(batch.pixel_values.to(device), places)
        scored.append((places, evidence, reader.expected(places)))
        mentions.append(mention)
        mentioned.append(mentioned_shares(batch, len(reader.temperature)).to(device))
    reader.mentions.anchor(torch.cat(mentions), torch.cat(mentioned), len(looks[0].captions))
    for _ in range(3):  # each of the two depends on the other
        _fit_temperatures(reader, scored)
        if not (reader.temperature > 0).any():
            return
        read = [reader.true(evidence, places, reader.often(places)).max(dim=1) for places, evidence, _ in scored]
        sure = torch.cat([one.values for one in read])
        differs = torch.cat(
            [one.indices != reader.said(places) for one, (places, *_) in zip(read, scored, strict=True)]
        )
        surest = sure.topk(max(round(SUREST * len(sure)), 1)).indices
        reader.share_false.copy_(differs[surest].float().mean().clamp(LEAST_SHARE, MOST_SHARE))


def _fit_temperatures(reader: ValueReader, scored: list[tuple[Places, torch.Tensor, torch.Tensor]]) -> None:
    losses = reader.temperature.new_zeros(len(TEMPERATURES), len(reader.temperature))
    for number, temperature in enumerate(TEMPERATURES):
        reader.temperature.fill_(float(temperature))
        for places, evidence, expected in scored:
            loss = said_loss(reader, evidence, places, expected)
            losses[number].index_add_(0, places.families, loss)
    counts = torch.bincount(torch.cat([places.families for places, *_ in scored]), minlength=len(reader.temperature))
    proof = losses[0] - losses.amin(dim=0)
    shown = (proof >= LEAST_GAIN * counts) & (proof >= LEAST_PROOF)  # a few words prove nothing
    best = losses.argmin(dim=0)
    chosen = torch.from_numpy(TEMPERATURES).to(losses)[best]
    reader.temperature.copy_(torch.where(shown, chosen, 0.0))
