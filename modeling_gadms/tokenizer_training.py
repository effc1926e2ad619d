"""Trains a small GA-DMS tokenizer on captions, for models that do not start from a CLIP vocabulary."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from .tokenization_gadms import GADMSTokenizer, byte_symbols, clean_caption, word_splitter


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> GADMSTokenizer:
    """
    A tokenizer of at most `vocab_size` entries whose merges are learnt from the captions; the same on every run.

    Args:
        captions: any number of captions; they are cleaned as the tokenizer cleans them.
        vocab_size: 512 byte symbols + merges + 3 special tokens. The vocabulary is smaller when the captions run out
            of pairs to merge: size the model by `len(tokenizer)`.

    Raises:
        ValueError: `vocab_size` leaves no room for a merge.
    """
    symbols = byte_symbols()
    if vocab_size <= len(symbols) + 3:
        raise ValueError(f"vocab_size is {vocab_size}; the bytes and special tokens alone take {len(symbols) + 3}.")
    backend = Tokenizer(BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = word_splitter()
    # Named in advance, the byte symbols keep their order. Otherwise those at a word's end are numbered as a hash map
    # yields the words, and pairs that occur equally often are ranked by these numbers.
    trainer = BpeTrainer(
        vocab_size=vocab_size - 3, special_tokens=symbols, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator((clean_caption(caption) for caption in captions), trainer)
    merges = json.loads(backend.to_str())["model"]["merges"]
    return GADMSTokenizer.from_merges(tuple(pair) for pair in merges)
