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
        self.evidence, self.tokenizer, self.families = evidence, processor.tokenizer, families
        self.runs: dict[tuple[int, int, int], int] = {}  # three tokens in a row -> their number
        width = evidence.reference_keys.shape[-1]
        self.queries = torch.empty(0, width, device=evidence.reference_keys.device)
        self.others = torch.empty(0, device=evidence.reference_keys.device)
        self.tokens = {
            word: self.tokenizer(word)["input_ids"][1:-1]
            for family in families.values()
            for words in family.values.values()
            for word in words
        }

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
            self.runs, self.queries, self.others = {}, self.queries[:0], self.others[:0]
        wanted = [
            [self._runs_of(ids, offsets, word) for word in words]
            for ids, offsets, words in zip(encoded["input_ids"], encoded["offset_mapping"], said, strict=True)
        ]
        self._encode_new_runs()
        found: list[list[np.ndarray | None]] = []
        for row, words in enumerate(wanted):
            needed = sorted({run for word in words if word for value in word for one in value for run in one})
            place = {run: number for number, run in enumerate(needed)}
            chosen = torch.tensor(needed, dtype=torch.long, device=keys.device)
            fit = self.evidence.logits(self.queries[chosen], keys[row : row + 1])[:, 0] - self.others[chosen]
            nats = fit.cpu().numpy()
            found.append(
                [
                    word
                    and np.array(
                        [np.mean([np.mean([nats[place[run]] for run in one]) for one in value]) for value in word],
                        dtype=np.float32,
                    )
                    for word in words
                ]
            )
        return found

    def _runs_of(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        word: SaidWord,
    ) -> list[list[list[int]]] | None:
        """For each value, for each of its words, the runs of three tokens around its tokens; new ones are numbered."""
        inside = [
            token for token, (start, end) in enumerate(offsets) if word.start <= start < word.end and end > start
        ]
        if not inside or inside[-1] + 1 >= len(ids):
            return None
        before, after = ids[inside[0] - 1], ids[inside[-1] + 1]
        found = []
        for words in self.families[word.family].values.values():
            of_value = []
            for one in words:
                row = [before, *self.tokens[one], after]
                triples = [(row[i - 1], row[i], row[i + 1]) for i in range(1, len(row) - 1)]
                of_value.append([self.runs.setdefault(triple, len(self.runs)) for triple in triples])
            found.append(of_value)
        return found

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
