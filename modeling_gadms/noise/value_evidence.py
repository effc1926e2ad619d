"""Patch evidence of every value that could stand in the place of a word."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..processing_gadms import GADMSProcessor
from .patch_evidence import PatchEvidence
from .word_families import Family, SaidWord

QUERIES = 4096  # at a time
KEPT = 200_000  # runs of three tokens; all are forgotten when there are more


class ValueEvidence:
    """Scores the values of a word's family in the word's place, between its neighbours.

    The evidence of a word of several tokens is their mean, that of a value the mean of its words. Three tokens in a
    row are encoded once, however often they occur.

    Args:
        evidence ([`PatchEvidence`]): trained.
        processor ([`GADMSProcessor`]): of the model that it started from.
        families (`Mapping[str, Family]`): by name.
    """

    def __init__(self, evidence: PatchEvidence, processor: GADMSProcessor, families: Mapping[str, Family]) -> None:
        self.evidence, self.tokenizer = evidence, processor.tokenizer
        self.parts = {name: self._parts_of(family) for name, family in families.items()}
        self._forget()

    @torch.no_grad()
    def __call__(
        self, keys: torch.Tensor, captions: Sequence[str], said: Sequence[Sequence[SaidWord]]
    ) -> list[list[np.ndarray | None]]:
        """Evidence of all values at each word, `(V,)` float32 nats, in the order of its family's values.

        Args:
            keys (`torch.Tensor` of shape `(B, S, D)`): of the images, from `PatchEvidence.keys`.
            captions (`Sequence[str]`): one per image, as the tokenizer cleans it.
            said (`Sequence[Sequence[SaidWord]]`): the words of each caption.

        Returns:
            A list for each caption; None for a word that the tokenizer cut off.
        """
        encoded = self.tokenizer(list(captions), return_offsets_mapping=True, truncation=True)
        if len(self.runs) > KEPT:
            self._forget()
        wanted = [
            [self._runs_at(ids, offsets, word) for word in words]
            for ids, offsets, words in zip(encoded["input_ids"], encoded["offset_mapping"], said, strict=True)
        ]
        self._encode_new_runs()
        found: list[list[np.ndarray | None]] = []
        for row, (runs, words) in enumerate(zip(wanted, said, strict=True)):
            own = [one for one in runs if one is not None]
            needed, place = np.unique(np.concatenate(own), return_inverse=True) if own else (np.zeros(0, int), None)
            chosen = torch.from_numpy(needed).to(keys.device)
            fit = self.evidence.logits(self.queries[chosen], keys[row : row + 1])[:, 0] - self.others[chosen]
            nats = iter(np.split(fit.cpu().numpy()[place], np.cumsum([len(one) for one in own])[:-1]) if own else ())
            pairs = zip(runs, words, strict=True)
            found.append([None if one is None else self._by_value(word.family, next(nats)) for one, word in pairs])
        return found

    def _forget(self) -> None:
        keys = self.evidence.reference_keys
        self.runs: dict[tuple[int, int, int], int] = {}  # three tokens in a row -> their number
        self.places: dict[tuple[str, int, int], np.ndarray] = {}  # family, token before, token after -> runs
        self.queries, self.others = keys.new_empty(0, keys.shape[-1]), keys.new_empty(0)

    def _parts_of(self, family: Family) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
        """Tokens of each word of a family; for each token in order its value, and its share in the value's mean."""
        words, values, shares = [], [], []
        for value, of_value in enumerate(family.values.values()):
            for word in of_value:
                words.append(self.tokenizer(word)["input_ids"][1:-1])
                values += [value] * len(words[-1])
                shares += [1 / (len(of_value) * len(words[-1]))] * len(words[-1])
        return words, np.array(values), np.array(shares)

    def _by_value(self, family: str, nats: np.ndarray) -> np.ndarray:
        _, values, shares = self.parts[family]
        return np.bincount(values, shares * nats).astype(np.float32)

    def _runs_at(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], word: SaidWord) -> np.ndarray | None:
        """Runs of three tokens around each token of the family's words, in the place of one; new ones get numbers."""
        inside = [
            token for token, (start, end) in enumerate(offsets) if word.start <= start < word.end and end > start
        ]
        if not inside or inside[-1] + 1 >= len(ids):
            return None
        place = (word.family, ids[inside[0] - 1], ids[inside[-1] + 1])
        if place not in self.places:
            rows = [[place[1], *tokens, place[2]] for tokens in self.parts[word.family][0]]
            triples = [(row[i - 1], row[i], row[i + 1]) for row in rows for i in range(1, len(row) - 1)]
            self.places[place] = np.array([self.runs.setdefault(triple, len(self.runs)) for triple in triples])
        return self.places[place]

    def _encode_new_runs(self) -> None:
        """Queries of the runs that have none yet, and how the reference images fit them."""
        new = list(self.runs)[len(self.queries) :]
        if not new:
            return
        queries, others = [self.queries], [self.others]
        for part in torch.tensor(new, device=self.queries.device).split(QUERIES):
            rows = torch.arange(len(part), device=part.device)
            queries.append(self.evidence.queries(part, rows, torch.ones_like(rows)))
            others.append(self.evidence.of_references(queries[-1]))
        self.queries, self.others = torch.cat(queries), torch.cat(others)
