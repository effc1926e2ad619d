"""python examples/benchmark_rescoring.py --model runs/demo

The gain and the cost of each test-time step of text-to-image retrieval, on the synthetic set with two and with
five images per person; each difference with its p-value, persons as groups. Beside the steps of `rescoring.py` stands
one that is only measured here: the decoder of a pre-training checkpoint reads each caption, a quarter of its words
hidden at a time, in the light of each of its best ten images, and the mean log-likelihood of the hidden words, times
the weight that won most mAP on other persons, is added to the cosine.
"""

import argparse
import sys
import time

import datasets
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, ProcessorMixin

from dataset_webperson.command_line import CommandParser, command
from modeling_gadms import GADMSForPreTraining
from modeling_gadms.evaluation.benchmarks import load_evaluation_set
from modeling_gadms.evaluation.encoding import RetrievalSet, encode_retrieval_set
from modeling_gadms.evaluation.metrics import Evaluation, compare, evaluate_embeddings, evaluate_ranks
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.rescoring import RESCORINGS, rank_scores, rescore
from modeling_gadms.person_retrieval.ranking import QueryRanks
from modeling_gadms.rows import all_captions
from modeling_gadms.towers_gadms import eos_positions, valid_tokens

TOP, PARTS, CAPTIONS = 10, 4, 8  # images per caption, parts of its words hidden in turn, captions at a time
WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, renamed={"--images": "--num_images"})
    parser.add_argument("--model", required=True, help="folder or Hub id; with a decoder, that is measured too")
    parser.add_argument("--image_size", type=int, nargs=2, default=(64, 32), help="height and width in pixels")
    parser.add_argument("--num_images", type=int, default=800, help="images in the test set (default: %(default)s)")
    args = parser.parse_args(arguments)
    model, processor = load_retriever(args.model)
    with_decoder = "GADMSForPreTraining" in (AutoConfig.from_pretrained(args.model).architectures or [])
    columns = ["images per person", "step", "R@1", "R@5", "mAP", "mINP", "ms per query"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for views in (2, 5):
        test = load(args, views, "test")
        encoded = encode_retrieval_set(model, processor, test, progress=False)
        start = time.perf_counter()
        plain = evaluate_embeddings(encoded, num_resamples=1)
        show(views, "cosine", {name: f"{m.mean:.2f}" for name, m in plain.metrics["t2i"].items()}, start, encoded)
        for name in RESCORINGS:
            start = time.perf_counter()
            report(views, name, rescore(name, encoded, progress=False), start, plain, encoded)
        if with_decoder:
            whole = GADMSForPreTraining.from_pretrained(args.model).eval()
            validation = load(args, views, "validation")
            other = encode_retrieval_set(model, processor, validation, progress=False)
            scores = second_stage(whole, processor, validation, other)
            weight = max(WEIGHTS, key=lambda w: rank(other, scores, w).average_precision.mean())
            start = time.perf_counter()
            ranks = rank(encoded, second_stage(whole, processor, test, encoded), weight)
            report(views, f"decoder's likelihood x {weight}, top {TOP}", ranks, start, plain, encoded)


def load(args: argparse.Namespace, views: int, split: str) -> datasets.Dataset:
    persons = {f"num_{name}_persons": 2 for name in ("train", "validation", "test")}
    persons[f"num_{split}_persons"] = args.num_images // views
    options = {"image_size": tuple(args.image_size), "views_per_person": views, **persons}
    return load_evaluation_set("synthetic", split=split, synthetic_options=options)


def report(views: int, name: str, ranks: QueryRanks, start: float, plain: Evaluation, encoded: RetrievalSet) -> None:
    """The gain or loss of the step, with its p-value."""
    seconds = time.perf_counter()
    found = evaluate_ranks({"t2i": ranks}, plain.person_ids, num_resamples=1)
    differences = compare(found, plain)["t2i"]
    cells = {key: f"{d.mean:+.2f} (p {d.p_value:.4f})" for key, d in differences.items()}
    show(views, name, cells, start + time.perf_counter() - seconds, encoded)


def show(views: int, name: str, cells: dict[str, str], start: float, encoded: RetrievalSet) -> None:
    cost = 1000 * (time.perf_counter() - start) / len(encoded.text_embeds)
    cells = [cells[key] for key in ("R@1", "R@5", "mAP", "mINP")]
    print(f"| {views} | {name} | {' | '.join(cells)} | {cost:.2f} |", flush=True)


@torch.no_grad()
def second_stage(
    model: GADMSForPreTraining, processor: ProcessorMixin, dataset: datasets.Dataset, encoded: RetrievalSet
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `TOP` images of each caption, int64 `(M, TOP)`, and the likelihoods of it, float32 `(M, TOP)`."""
    best = (encoded.text_embeds @ encoded.image_embeds.T).topk(TOP, dim=1).indices
    tokens = []
    for first in range(0, len(dataset), 64):
        pixels = processor(images=dataset[first : first + 64]["image"], return_tensors="pt")["pixel_values"]
        tokens.append(model.gadms.project_image_tokens(model.gadms.vision_model(pixels).last_hidden_state))
    tokens = torch.cat(tokens)
    captions = all_captions(dataset)[0]
    likelihoods = []
    for first in range(0, len(captions), CAPTIONS):
        ids = processor(text=captions[first : first + CAPTIONS], return_tensors="pt", padding=True)["input_ids"]
        images = tokens[best[first : first + CAPTIONS].flatten()]
        likelihoods.append(likelihood(model, ids, images))
    return best, torch.cat(likelihoods)


def likelihood(model: GADMSForPreTraining, ids: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean log-likelihood of the words of captions `(B, L)` given each of their images `(B * TOP, T, D)`."""
    words = valid_tokens(ids)
    number = words.cumsum(dim=1) - 1
    own = torch.arange(ids.shape[1]) <= eos_positions(ids)[:, None]
    total = torch.zeros(len(images))
    for part in range(PARTS):
        hidden = words & (number % PARTS == part)
        masked = torch.where(hidden, model.config.mask_token_id, ids)
        texts = model.gadms.text_projection(model.gadms.text_model(masked).last_hidden_state)
        texts, own_each, hidden, labels = (x.repeat_interleave(TOP, dim=0) for x in (texts, own, hidden, ids))
        losses = cross_entropy(model.decoder(texts, images, own_each, hidden), labels[hidden], reduction="none")
        total.index_add_(0, hidden.nonzero()[:, 0], -losses)
    return total.view(len(ids), TOP) / words.sum(dim=1, keepdim=True)


def rank(encoded: RetrievalSet, scores: tuple[torch.Tensor, torch.Tensor], weight: float) -> QueryRanks:
    """Ranks with the best `TOP` images reordered; they stay in front of the others."""
    best, likelihoods = scores
    cosine = (encoded.text_embeds @ encoded.image_embeds.T).double()
    changed = cosine.gather(1, best) + weight * likelihoods.double()
    changed += 2 + weight * likelihoods.abs().amax()  # above every cosine
    final = cosine.scatter(1, best, changed).numpy()
    return rank_scores(
        lambda first, stop: final[first:stop], encoded.text_person_ids, encoded.image_person_ids, progress=False
    )


if __name__ == "__main__":
    sys.exit(main())
