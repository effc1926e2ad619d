"""GA-DMS tokenizer: CLIP's byte-level BPE with `<|mask|>` in the place of the last BPE entry.

The ids are those of the tokenizer released with GA-DMS: a caption is cleaned (ftfy, `html.unescape` twice, white space
collapsed, lower case), split and merged as in CLIP, and framed by `<|startoftext|>` and `<|endoftext|>`. The last
three ids of the vocabulary are mask, BOS and EOS (49405, 49406 and 49407 in CLIP's), padding is id 0.
"""

import gzip
import html
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import CLIPTokenizer
from transformers.utils import cached_file, logging

try:
    import ftfy
except ImportError:
    ftfy = None

logger = logging.get_logger(__name__)

MASK_TOKEN, BOS_TOKEN, EOS_TOKEN = "<|mask|>", "<|startoftext|>", "<|endoftext|>"

# The file that CLIP was released with lists more merges than CLIP uses.
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
BPE_FILE_MERGES = 48894

# CLIP's pattern without `<|startoftext|>|<|endoftext|>`: typed in a caption they are plain text. The released pattern
# ignores case, by which the long s passes for s, and the iota subscript U+0345 is neither a letter nor another sign.
WORD_PATTERN = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


def clean_caption(caption: str) -> str:
    """
    The text that is tokenized: mended by ftfy, entities unescaped twice, single spaces, lower case.

    ftfy is optional: without it mojibake, curly quotes, ligatures and wide forms stay as they are and the ids of such
    captions differ from the released ones. Printable ASCII without `&` does not need it.

    >>> clean_caption("  A man &amp;amp; a DOG ")
    'a man & a dog'
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return " ".join(caption.lower().split())
    if ftfy is not None:
        caption = ftfy.fix_text(caption)
    else:
        logger.warning_once(
            "ftfy is not installed: ids of captions with characters outside ASCII may differ from the released "
            "tokenizer's. Cure: pip install ftfy"
        )
        # Lone surrogates cannot be encoded; ftfy puts the replacement character in their place too.
        caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(html.unescape(html.unescape(caption)).split()).lower()


def byte_symbols() -> list[str]:
    """The 512 symbols that every CLIP vocabulary begins with: one a byte, then the same at the end of a word."""
    # In code point order: the printable bytes stand for themselves, the others follow from U+0100 on.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    return symbols + [symbol + "</w>" for symbol in symbols]


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """Cuts a cleaned caption into words, contractions, single digits and runs of other signs, in byte symbols."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


class GADMSTokenizer(CLIPTokenizer):
    """
    CLIP's tokenizer with a mask token, the released cleaning, and padding id 0.

    Build it from a CLIP vocabulary with [`GADMSTokenizer.from_clip_vocabulary`], or load a saved one with
    `from_pretrained`. Differences from [`CLIPTokenizer`]:

    - captions are cleaned by [`clean_caption`]; `return_offsets_mapping=True` gives positions in the cleaned caption,
      which are positions in the caption itself when cleaning only changes the case of ASCII letters;
    - `pad_token_id` is 0, as in the released checkpoints, though id 0 is also "!", which stays an ordinary token; the
      attention mask tells them apart, and `decode` stops at the first EOS;
    - `<|mask|>`, `<|startoftext|>` and `<|endoftext|>` typed in a caption are plain text, so that EOS keeps its place
      as the one highest id (the released tokenizer lets the last two through). To mask a word by hand put
      `mask_token_id` into the ids, or pass `split_special_tokens=False`, which lets all three through.

    Args:
        vocab (`dict[str, int]`): token to id; the last three must be `<|mask|>`, `<|startoftext|>`, `<|endoftext|>`.
        merges (`list[tuple[str, str]]`): the BPE merges, by rank.
        model_max_length (`int`, defaults to 77): length of the text tower; truncation keeps EOS as the last token.

    Raises:
        ValueError: the last three ids are others, as in a plain CLIP vocabulary.
    """

    def __init__(self, vocab=None, merges=None, mask_token=MASK_TOKEN, model_max_length=77, **kwargs):
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(vocab, merges, mask_token=mask_token, model_max_length=model_max_length, **kwargs)
        last = [self.mask_token_id, self.bos_token_id, self.eos_token_id]
        if last != list(range(len(self) - 3, len(self))):
            raise ValueError(
                f"{mask_token}, {self.bos_token} and {self.eos_token} must be the last three ids of a vocabulary; of "
                f"{len(self)} ids they are {last}. For a CLIP vocabulary use GADMSTokenizer.from_clip_vocabulary(...)."
            )
        # Captions come cleaned; CLIP's own normalizer would compose characters anew, its splitter cut at quotes twice.
        self._tokenizer.normalizer = normalizers.Sequence([])
        self._tokenizer.pre_tokenizer = word_splitter()

    @classmethod
    def from_clip_vocabulary(cls, path, **hub_kwargs) -> "GADMSTokenizer":
        """
        The tokenizer on a CLIP vocabulary: the last BPE entry (`jekyll</w>`) and its merge make room for the mask.

        Args:
            path (`str` or `os.PathLike`): a CLIP model on the Hub (`openai/clip-vit-base-patch16`) or a local folder,
                with `merges.txt`, `tokenizer.json` or `bpe_simple_vocab_16e6.txt.gz`; or that last file itself.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

        Raises:
            OSError: no such file there.
            ValueError: the vocabulary is not laid out as CLIP's.
        """
        tokenizer = cls.from_merges(_read_clip_merges(path, hub_kwargs)[:-1])
        if not Path(path).is_file():
            name = cached_file(
                path, "tokenizer_config.json", **hub_kwargs, _raise_exceptions_for_missing_entries=False
            )
            options = {} if name is None else json.loads(Path(name).read_text(encoding="utf-8"))
            tokenizer.model_max_length = options.get("model_max_length", tokenizer.model_max_length)
        return tokenizer

    @classmethod
    def from_merges(cls, merges: Iterable[tuple[str, str]]) -> "GADMSTokenizer":
        """The tokenizer whose vocabulary is 512 byte symbols, what the merges yield, and the three special tokens."""
        merges = list(merges)
        tokens = byte_symbols() + ["".join(merge) for merge in merges] + [MASK_TOKEN, BOS_TOKEN, EOS_TOKEN]
        # Two merges may yield the same token; it gets one id.
        return cls({token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges)

    @property
    def pad_token_id(self) -> int:
        """0, whatever the name of `pad_token`; a `pad_token` of id 0 would make every "!" a special token."""
        return 0

    def _encode_plus(self, text, text_pair=None, **kwargs):
        # Every way into the tokenizer (call, encode, tokenize, the processor) comes through here.
        if text_pair is not None:
            raise ValueError("GADMSTokenizer encodes single captions, not pairs of texts: pass a list of captions.")
        captions = check_captions(text)
        cleaned = [clean_caption(caption) for caption in captions]
        return super()._encode_plus(cleaned[0] if isinstance(text, str) else cleaned, **kwargs)

    def _decode(self, token_ids, **kwargs) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if self.eos_token_id in token_ids:
            token_ids = token_ids[: token_ids.index(self.eos_token_id) + 1]
        return super()._decode(token_ids, **kwargs)


def check_captions(text) -> list[str]:
    """
    The caption, or each of the captions, in a list.

    Raises:
        TypeError: one of them is not a string; the message gives its index and value.
        ValueError: there are none.
    """
    captions = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"Caption {index} is {caption!r}, not a string. Drop it, or replace it by an empty string."
            )
    if not captions:
        raise ValueError("No captions were given: the list is empty.")
    return captions


def _read_clip_merges(path, hub_kwargs) -> list[tuple[str, str]]:
    """The merges of a CLIP vocabulary, in order of rank, checked against the ids that lie beside them."""

    def find(name):
        found = cached_file(path, name, **hub_kwargs, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    path, vocab = str(path), None
    if Path(path).is_file():
        try:
            lines = gzip.decompress(Path(path).read_bytes()).decode().split("\n")
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise ValueError(f"{path} is not a BPE file like {BPE_FILE}: {error}") from None
        merges = _merges_of_lines(lines[: BPE_FILE_MERGES + 1])
    elif file := find("merges.txt"):
        merges = _merges_of_lines(file.read_text(encoding="utf-8").split("\n"))
        vocab = json.loads(vocab_file.read_text(encoding="utf-8")) if (vocab_file := find("vocab.json")) else None
    elif file := find("tokenizer.json"):
        model = json.loads(file.read_text(encoding="utf-8"))["model"]
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        vocab = model["vocab"]
    elif file := find(BPE_FILE):
        return _read_clip_merges(file, hub_kwargs)
    else:
        raise OSError(f"No CLIP vocabulary in {path}: it has no merges.txt, no tokenizer.json and no {BPE_FILE}.")

    if vocab is not None and MASK_TOKEN in vocab:
        raise ValueError(
            f"The vocabulary in {path} has a mask token already: load it with GADMSTokenizer.from_pretrained."
        )
    tokens = byte_symbols() + ["".join(merge) for merge in merges] + [BOS_TOKEN, EOS_TOKEN]
    if (
        not merges
        or {len(merge) for merge in merges} != {2}
        or (vocab is not None and vocab != {token: index for index, token in enumerate(tokens)})
    ):
        raise ValueError(f"The vocabulary in {path} is not laid out as CLIP's: bytes, merges by rank, BOS, EOS.")
    return merges


def _merges_of_lines(lines: list[str]) -> list[tuple[str, str]]:
    """`a b` a line after the first, which names the version."""
    return [tuple(line.split(" ")) for line in lines[1:] if line]


GADMSTokenizer.register_for_auto_class("AutoTokenizer")
