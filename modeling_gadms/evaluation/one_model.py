"""One model on one data set: its plain ranking, and what is asked for beside it."""

import os
import time
from typing import Any

import datasets
from accelerate import PartialState
from transformers import ProcessorMixin

from ..person_retrieval.ranking import QueryRanks
from ..released.token_selection import WithTokenSelection, load_selection
from .arguments import EvaluationArguments
from .breakdown import break_down
from .caption_bank import BANK_SCORINGS, PHRASINGS_NNN, CaptionBank, cached_gallery_bias, rescore_by_bank
from .embedding_cache import cached_retrieval_set
from .encoding import RetrievalSet
from .matching import load_matcher, rescore_by_matching
from .metrics import Evaluation, evaluate_embeddings, evaluate_ranks, mean_similarity_distribution
from .models import Retriever, load_retriever
from .rescoring import MATCHING, SCORINGS, TOKEN_SELECTION, refusal, rescore
from .robustness import measure_robustness
from .twins import twin_accuracy, twins_of


def measure(
    name: str, dataset: datasets.Dataset, bank: CaptionBank | None, args: EvaluationArguments
) -> tuple[list[dict], list[Evaluation], RetrievalSet]:
    """Encode and rank; each process encodes its share.

    Args:
        name (`str`): folder or Hub id of the model.
        bank (`CaptionBank`, *optional*): captions to normalise by, where `args.rescore` asks for it.

    Returns:
        What results.json says of each way to score, and its evaluation. The plain one is the first; its
        `not_rescored` says what was asked for and has no meaning here.
    """
    state = PartialState()
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "progress": state.is_main_process}
    model, processor = load_retriever(name, bf16=args.bf16, device=state.device)
    data = (processor, dataset, args.cache_dir)
    start = time.time()
    encoded, note = cached_retrieval_set(model, *data, limit=args.cache_limit, **options)
    result = {
        "model": os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "images": len(encoded.image_embeds),
        "captions": len(encoded.text_embeds),
        "processes": state.num_processes,
        "encoding_seconds": round(time.time() - start, 2),
        **note,
    }
    plain = evaluate_embeddings(encoded, seed=args.seed)
    results, evaluations = [{**result, "scoring": "cosine", "metrics": plain.metrics}], [plain]
    branch = load_selection(name) if TOKEN_SELECTION in args.rescore else None
    matcher = load_matcher(name, bf16=args.bf16, device=state.device) if MATCHING in args.rescore else None
    for scoring in args.rescore:
        by_bank = bank if scoring in (*BANK_SCORINGS, PHRASINGS_NNN) else None
        # another benchmark, or another model, may well have what is lacking here
        why_not = (by_bank and by_bank.refusal()) or refusal(scoring, encoded, result["model"], branch, matcher)
        if why_not:
            results[0].setdefault("not_rescored", []).append(why_not)
            continue
        start = time.time()
        about: dict[str, Any] = {}
        if by_bank:
            ranks, about = _ranks_by_bank(scoring, (model, processor), by_bank, encoded, note, args)
            found = evaluate_ranks({"t2i": ranks}, plain.person_ids, seed=args.seed)
        elif matcher is not None and scoring == MATCHING:
            settings = args.matching_settings()
            ranks = rescore_by_matching(matcher, processor, dataset, encoded, settings, **options)
            about = {"scoring": settings.words()}
            found = evaluate_ranks({"t2i": ranks}, plain.person_ids, seed=args.seed)
        elif branch is not None and scoring == TOKEN_SELECTION:
            both = WithTokenSelection(model, branch)
            fused, _ = cached_retrieval_set(both, *data, limit=args.cache_limit, **options)
            found = evaluate_embeddings(fused, seed=args.seed)
        else:
            ranks = rescore(scoring, encoded, state.is_main_process)
            found = evaluate_ranks({"t2i": ranks}, plain.person_ids, seed=args.seed)
        seconds = {"rescoring_seconds": round(time.time() - start, 2)}
        scored = {"scoring": SCORINGS.get(scoring), **about, **seconds, "metrics": found.metrics}
        results.append({**result, **scored})
        evaluations.append(found)
    if twins := twins_of(dataset):
        results[0]["twin_accuracy"] = twin_accuracy(encoded, twins, seed=args.seed)
    if args.similarity_distribution:
        results[0]["similarity_distribution"] = mean_similarity_distribution(encoded, seed=args.seed)
    if args.breakdown:
        results[0]["breakdown"] = break_down(dataset, plain, seed=args.seed)
    if args.robustness:
        results[0]["robustness"] = measure_robustness(model, processor, dataset, encoded, seed=args.seed, **options)
    return results, evaluations, encoded


def _ranks_by_bank(
    scoring: str,
    retriever: tuple[Retriever, ProcessorMixin],
    bank: CaptionBank,
    encoded: RetrievalSet,
    note: dict[str, Any],
    args: EvaluationArguments,
) -> tuple[QueryRanks, dict[str, Any]]:
    """Ranks by a bank of captions, and what results say of it."""
    settings, progress = args.bank_settings(), PartialState().is_main_process
    options = {"limit": args.cache_limit, "batch_size": args.batch_size, "progress": progress}
    bias, was_cached = cached_gallery_bias(*retriever, bank, encoded, note, settings, **options)
    size = len(bank.captions)
    about = {"captions": size, "shared": bank.shared, "repeated": bank.repeated, "was_cached": was_cached}
    ranks = rescore_by_bank(scoring, encoded, bias, settings, progress)
    return ranks, {"scoring": settings.words(scoring, size), "bank": about}
