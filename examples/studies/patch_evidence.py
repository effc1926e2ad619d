"""Patch evidence: how much likelier a word makes this image than others, by a small head on the model's own tokens.

A word with its two neighbours is a query; an image answers with the log-sum-exp of the query's products with its patch
tokens. The head is trained by telling, for each word of the noisy captions, its image from the batch's others; what it
then gives estimates `log p(image | word) - log p(image)` (InfoNCE: van den Oord et al., arXiv 1807.03748). The text
tower has no part: one product of words and patches scores a caption. The image tower is frozen, or a copy of it learns
with the head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from modeling_gadms.token_scores_gadms import valid_tokens

WORDS_A_STEP = 700  # of a batch, drawn at random: most are no attributes
NEIGHBOURS = (-1, 0, 1)
HEAD_RATE, TOWER_RATE = 2e-3, 5e-4


class PatchEvidence(nn.Module):
    """Scores words against images.

    Args:
        vocab_size, width: of the tokenizer, and of the image tokens.
    """

    def __init__(self, vocab_size, width, embedding=64, hidden=256):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.query = nn.Sequential(
            nn.Linear(len(NEIGHBOURS) * embedding, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, width)
        )
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.register_buffer("reference_keys", torch.zeros(0, 1, width))

    def keys(self, image_tokens) -> torch.Tensor:
        """Image tokens `(B, S, D)` -> keys `(B, S, D)`."""
        return self.key(image_tokens)

    def queries(self, input_ids, rows, places) -> torch.Tensor:
        """Of the words at `places` of the captions `rows`, `(N,)` each -> `(N, D)`."""
        last = input_ids.shape[1] - 1
        near = [self.embedding(input_ids[rows, (places + offset).clamp(0, last)]) for offset in NEIGHBOURS]
        return self.query(torch.cat(near, dim=-1))

    @staticmethod
    def logits(queries, keys) -> torch.Tensor:
        """`(N, D)`, `(B, S, D)` -> `(N, B)`."""
        products = queries @ keys.flatten(0, 1).T / math.sqrt(queries.shape[-1] / 2)
        return products.view(len(queries), len(keys), -1).logsumexp(dim=-1)

    @torch.no_grad()
    def score(self, image_tokens, input_ids) -> torch.Tensor:
        """`(B, S, D)`, `(B, T)` -> `(B, T)`: the image beside fixed reference images, 0 at BOS, EOS and padding."""
        scores = torch.zeros(input_ids.shape)
        rows, places = valid_tokens(input_ids).nonzero(as_tuple=True)
        queries, keys = self.queries(input_ids, rows, places), self.keys(image_tokens)
        own = torch.cat([self.logits(queries[rows == row], keys[row : row + 1])[:, 0] for row in range(len(keys))])
        others = self.logits(queries, self.reference_keys).logsumexp(dim=1) - math.log(len(self.reference_keys))
        scores[rows, places] = own - others
        return scores


def train_patch_evidence(
    images, captions, vocab_size, steps, seed=0, batch_size=64, progress=True, encode=torch.Tensor.float, tower=()
):
    """A head that learns from captioned images, false words included.

    Args:
        images (`torch.Tensor` of shape `(R, ...)`): of the training images what `encode` makes image tokens of.
        captions (`torch.Tensor` of shape `(C, R, T)`): ids of the `C` captions of each.
        encode (`Callable`): `(B, ...)` -> `(B, S, D)`; by default `images` are the image tokens of a frozen tower.
        tower (`list[torch.nn.Parameter]`): what of `encode` learns with the head.

    Returns:
        The head, with 100 of the images as reference.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with torch.no_grad():
            width = encode(images[:1]).shape[-1]
        head = PatchEvidence(vocab_size, width)
        groups = [{"params": list(head.parameters())}, *([{"params": list(tower)}] if tower else [])]
        optimizer, rates = torch.optim.Adam(groups), [HEAD_RATE, TOWER_RATE][: len(groups)]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        for step in tqdm(range(steps), desc="Training patch evidence", disable=not progress):
            chosen = torch.randperm(len(images))[:batch_size]
            input_ids = captions[step % len(captions)][chosen]
            rows, places = valid_tokens(input_ids).nonzero(as_tuple=True)
            words = torch.randperm(len(rows))[:WORDS_A_STEP]
            rows, places = rows[words], places[words]
            logits = head.logits(head.queries(input_ids, rows, places), head.keys(encode(images[chosen])))
            loss = F.cross_entropy(logits, rows)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        head.reference_keys = head.keys(encode(images[torch.randperm(len(images))[:100]]))
    return head.eval()
