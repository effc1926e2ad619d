"""Trains small tokenizers on captions: one for GA-DMS, or one for a CLIP that GA-DMS starts from."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from ..tokenization_gadms import BOS_TOKEN, EOS_TOKEN, GADMSTokenizer, byte_symbols, clean_caption, word_splitter


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> GADMSTokenizer:
    """
    A tokenizer of at most `vocab_size` entries whose merges are learnt from the captions; every run gives the same.

    Args:
        captions: any number of captions, which are cleaned as the tokenizer cleans them.
        vocab_size: 512 byte symbols + merges + 3 special tokens. The vocabulary is smaller if the captions run out of
            pairs to merge, so size the model by `len(tokenizer)`.

    Raises:
        ValueError: `vocab_size` leaves no room for a merge.
    """
    return GADMSTokenizer.from_merges(learn_merges(captions, vocab_size))


def train_clip_tokenizer(captions: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """
    A tokenizer laid out as CLIP's: without a mask token, and with a dispensable last merge in its place.

    Saved and read by [`GADMSTokenizer.from_clip_vocabulary`] it becomes the tokenizer of [`train_tokenizer`], whose
    arguments and errors it shares.
    """
    merges = learn_merges(captions, vocab_size)
    tokens = byte_symbols() + ["".join(merge) for merge in merges]
    spare = next((byte, byte) for byte in byte_symbols() if byte + byte not in tokens)
    tokens += ["".join(spare), BOS_TOKEN, EOS_TOKEN]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges.append(spare)
    return CLIPTokenizer(vocab, merges)  # type: ignore[arg-type]  # pairs are taken too


def learn_merges(captions: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """The merges of a vocabulary with three special tokens, by rank; see [`train_tokenizer`]."""
    symbols = byte_symbols()
    if vocab_size <= len(symbols) + 3:
        raise ValueError(f"vocab_size is {vocab_size}; the bytes and special tokens alone take {len(symbols) + 3}")
    backend = Tokenizer(BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = word_splitter()
    # Named in advance, byte symbols keep their order. Otherwise those at a word's end would be numbered in hash map
    # order, and these numbers rank pairs that occur equally often.
    trainer = BpeTrainer(
        vocab_size=vocab_size - 3, special_tokens=symbols, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator((clean_caption(caption) for caption in captions), trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]
