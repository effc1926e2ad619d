"""GA-DMS tokenizer: CLIP's byte-level BPE with `<|mask|>` in place of the last BPE entry.

The ids are those of the tokenizer released with GA-DMS: a caption is cleaned (ftfy, `html.unescape` twice, white space
collapsed, lower case), split and merged as in CLIP, and framed by `<|startoftext|>` and `<|endoftext|>`. The last
three ids of the vocabulary are mask, BOS and EOS (49405, 49406 and 49407 in CLIP's); padding is id 0.
"""

from .requirements_gadms import MINIMUM_TRANSFORMERS  # noqa: F401 - first, or the next imports fail without a cure

# isort: split
import gzip
import html
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import BatchEncoding, CLIPTokenizer, utils

try:
    import ftfy
except ImportError:
    ftfy = None  # type: ignore[assignment]  # optional

logger = utils.logging.get_logger(__name__)

MASK_TOKEN, BOS_TOKEN, EOS_TOKEN = "<|mask|>", "<|startoftext|>", "<|endoftext|>"

# the file released with CLIP lists more merges than CLIP uses
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
BPE_FILE_MERGES = 48894

# CLIP's pattern without `<|startoftext|>|<|endoftext|>`, which are plain text when typed in a caption. The released
# pattern ignores case, so a long s counts as s, and the iota subscript U+0345 as neither a letter nor another sign.
WORD_PATTERN = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


def clean_caption(caption: str) -> str:
    """
    The text that is tokenized: repaired by ftfy, entities unescaped twice, single spaces, lower case.

    ftfy is optional: without it mojibake, curly quotes, ligatures and wide forms stay as they are, and the ids of such
    captions differ from the released ones. Printable ASCII without `&` needs no ftfy.

    >>> clean_caption("  A man &amp;amp; a DOG ")
    'a man & a dog'
    """
    return clean_with_capitals(caption).lower()


def clean_with_capitals(caption: str) -> str:
    """
    What [`clean_caption`] gives, with capitals kept.

    >>> clean_with_capitals("  A man &amp;amp; a DOG ")
    'A man & a DOG'
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return " ".join(caption.split())
    if ftfy is not None:
        caption = ftfy.fix_text(caption)
    else:
        logger.warning_once(
            "ftfy is not installed: ids of captions with characters outside ASCII may differ from the released "
            "tokenizer's; pip install ftfy"
        )
        # lone surrogates cannot be encoded; ftfy too replaces them by the replacement character
        caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(html.unescape(html.unescape(caption)).split())


def byte_symbols() -> list[str]:
    """The 512 symbols that every CLIP vocabulary begins with: one per byte, then the same at the end of a word."""
    # by code point: printable bytes stand for themselves, the others are mapped to U+0100 and above
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    return symbols + [symbol + "</w>" for symbol in symbols]


def word_splitter() -> pre_tokenizers.PreTokenizer:
    """Splits a cleaned caption into words, contractions, single digits and runs of other signs, in byte symbols."""
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
      which equal those in the original if cleaning only changed the case of ASCII letters;
    - padding stands on the right, where the model expects it: `padding_side="left"` is refused;
    - `pad_token_id` is 0, as in the released checkpoints, though id 0 is also "!", an ordinary token; the attention
      mask tells them apart, and `decode` stops at the first EOS;
    - `<|mask|>`, `<|startoftext|>` and `<|endoftext|>` typed in a caption are plain text, so that EOS remains the one
      highest id (the released tokenizer encodes all three as special tokens). To mask a word by hand put
      `mask_token_id` among the ids, or pass `split_special_tokens=False`, which makes all three special.

    Args:
        vocab (`dict[str, int]`): token to id; the last three must be `<|mask|>`, `<|startoftext|>`, `<|endoftext|>`.
        merges (`list[tuple[str, str]]`): the BPE merges, by rank.
        model_max_length (`int`, defaults to 77): context length of the text tower; truncation keeps EOS.

    Raises:
        ValueError: the last three ids are others, as in a plain CLIP vocabulary.
    """

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: list[tuple[str, str]] | None = None,
        mask_token: str = MASK_TOKEN,
        model_max_length: int = 77,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(
            vocab,
            merges,  # type: ignore[arg-type]  # pairs are taken too
            mask_token=mask_token,
            model_max_length=model_max_length,
            **kwargs,
        )
        last = [self.mask_token_id, self.bos_token_id, self.eos_token_id]
        if last != list(range(len(self) - 3, len(self))):
            raise ValueError(
                f"{mask_token}, {self.bos_token} and {self.eos_token} must be the last three ids of a vocabulary; of "
                f"{len(self)} ids they are {last}. For a CLIP vocabulary use GADMSTokenizer.from_clip_vocabulary(...)"
            )
        # captions arrive cleaned; CLIP's own normalizer would recompose characters, its splitter cut at quotes twice
        self.backend_tokenizer.normalizer = normalizers.Sequence([])
        self.backend_tokenizer.pre_tokenizer = word_splitter()

    @classmethod
    def from_clip_vocabulary(cls, path: str | Path, **hub_kwargs: Any) -> Self:
        """
        Build the tokenizer on a CLIP vocabulary: the mask takes the place of the last BPE entry, `jekyll</w>`.

        Args:
            path (`str` or `Path`): a CLIP model on the Hub (`openai/clip-vit-base-patch16`) or a local folder,
                with `merges.txt`, `tokenizer.json` or `bpe_simple_vocab_16e6.txt.gz`; or that last file itself.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

        Raises:
            OSError: no such file exists there.
            ValueError: the vocabulary is not laid out as CLIP's.
        """
        tokenizer = cls.from_merges(_read_clip_merges(path, hub_kwargs)[:-1])
        if not Path(path).is_file():
            name = utils.cached_file(
                path, "tokenizer_config.json", **hub_kwargs, _raise_exceptions_for_missing_entries=False
            )
            options = {} if name is None else _json_of(Path(name))
            tokenizer.model_max_length = options.get("model_max_length", tokenizer.model_max_length)
        return tokenizer

    @classmethod
    def from_merges(cls, merges: Iterable[tuple[str, str]]) -> Self:
        """Build the tokenizer on 512 byte symbols, the tokens that the merges yield, and three special tokens."""
        merges = list(merges)
        tokens = byte_symbols() + ["".join(merge) for merge in merges] + [MASK_TOKEN, BOS_TOKEN, EOS_TOKEN]
        # two merges may yield the same token, which gets a single id
        return cls({token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges)

    @property
    def pad_token_id(self) -> int:
        """0, whatever `pad_token` is; a `pad_token` of id 0 would make every "!" a special token."""
        return 0

    def _encode_plus(self, text: object, text_pair: object = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        # every entry point (call, encode, tokenize, the processor) passes here
        if text_pair is not None:
            raise ValueError("GADMSTokenizer encodes single captions, not pairs of texts: pass a list of captions")
        self._refuse_left_padding(kwargs.get("padding_side"))
        cleaned = [clean_caption(caption) for caption in check_captions(text)]
        return super()._encode_plus(cleaned[0] if isinstance(text, str) else cleaned, None, *args, **kwargs)

    def _pad(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._refuse_left_padding(kwargs.get("padding_side"))
        return super()._pad(*args, **kwargs)

    def _refuse_left_padding(self, padding_side: str | None) -> None:
        if (padding_side or self.padding_side) == "left":
            raise ValueError(
                'padding_side="left" would change the embeddings, for a caption begins at the first position: leave '
                'it "right"'
            )

    def _decode(self, token_ids: int | list[int], *args: Any, **kwargs: Any) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if self.eos_token_id in token_ids:
            token_ids = token_ids[: token_ids.index(self.eos_token_id) + 1]
        return super()._decode(token_ids, *args, **kwargs)


def check_captions(text: object) -> list[str]:
    """
    Return the caption, or the captions, as a list.

    Raises:
        TypeError: one of them is not a string; the message gives its index and value.
        ValueError: there is none.
    """
    given = [text] if isinstance(text, str) or not isinstance(text, Iterable) else text
    captions: list[str] = []
    for index, caption in enumerate(given):
        if not isinstance(caption, str):
            raise TypeError(f"Caption {index} is {caption!r}, not a string: drop it, or replace it by an empty string")
        captions.append(caption)
    if not captions:
        raise ValueError("no captions were given: the list is empty")
    return captions


def _read_clip_merges(path: str | Path, hub_kwargs: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a CLIP vocabulary by rank, checked against the ids stored beside them."""
    merges, vocab = _read_vocabulary(str(path), hub_kwargs)
    if vocab is not None and MASK_TOKEN in vocab:
        raise ValueError(
            f"the vocabulary in {path} already has a mask token: load it with GADMSTokenizer.from_pretrained"
        )
    tokens = byte_symbols() + ["".join(merge) for merge in merges] + [BOS_TOKEN, EOS_TOKEN]
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    fits = vocab is None or vocab == {token: index for index, token in enumerate(tokens)}
    if not pairs or len(pairs) < len(merges) or not fits:
        raise ValueError(f"the vocabulary in {path} is not laid out as CLIP's: bytes, merges by rank, BOS, EOS")
    return pairs


def _read_vocabulary(path: str, hub_kwargs: dict[str, Any]) -> tuple[Sequence[Sequence[str]], dict[str, int] | None]:
    """Merges as they are stored, and the id of each token where the files give it."""

    def find(name: str) -> Path | None:
        found = utils.cached_file(path, name, **hub_kwargs, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    if Path(path).is_file():
        return _read_bpe_file(Path(path)), None
    if file := find("merges.txt"):
        merges = _merges_of_lines(_text_of(file).split("\n"))
        vocab_file = find("vocab.json")
        return merges, None if vocab_file is None else _json_of(vocab_file)
    if file := find("tokenizer.json"):
        try:
            model = _json_of(file)["model"]
            merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            return merges, model["vocab"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a BPE tokenizer: it lacks {error}") from None
    if file := find(BPE_FILE):
        return _read_bpe_file(file), None
    raise OSError(f"no CLIP vocabulary in {path}: it has no merges.txt, no tokenizer.json and no {BPE_FILE}")


def _read_bpe_file(file: Path) -> list[list[str]]:
    try:
        lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{file} is not a BPE file like {BPE_FILE}: {error}") from None
    return _merges_of_lines(lines[: BPE_FILE_MERGES + 1])


def _merges_of_lines(lines: list[str]) -> list[list[str]]:
    """One merge, `a b`, per line; the first line names the version."""
    return [line.split(" ") for line in lines[1:] if line]


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not text in UTF-8 ({error}); download it again") from None


def _json_of(file: Path) -> Any:
    try:
        return json.loads(_text_of(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON, or cut off ({error}); download it again") from None


GADMSTokenizer.register_for_auto_class("AutoTokenizer")
