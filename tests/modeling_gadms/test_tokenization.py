"""The tokenizer against a slow twin of the released one, and on captions that could break it."""

import copy
import gzip
import html
import importlib.metadata
import itertools
import json
import os
import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import forked
import ftfy
import pytest
import regex
from transformers import CLIPTokenizer

from modeling_gadms import tokenization_gadms
from modeling_gadms.tokenization_gadms import GADMSTokenizer, byte_symbols
from modeling_gadms.training.tokenizers import train_tokenizer

WORDS = (
    "a the man woman pedestrian wears is wearing dark blue T-shirt jacket, trousers. backpack; shoulder-length hair "
    'white/grey sneakers (brown) "NIKE" carries an umbrella, looking at his phone... hoodie sandals checkered skirt'
).split()
SPECIAL = ["<|mask|>", "<|startoftext|>", "<|endoftext|>"]


def clip_bpe_file() -> Path:
    """CLIP's vocabulary as shipped in a PyPI package, which is not imported."""
    try:
        files = importlib.metadata.files("open_clip_torch")
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError("CLIP's vocabulary is missing: pip install --no-deps open_clip_torch==3.3.0") from None
    return Path(next(file for file in files if file.name == "bpe_simple_vocab_16e6.txt.gz").locate())


@pytest.fixture(scope="module")
def tokenizer() -> GADMSTokenizer:
    return GADMSTokenizer.from_clip_vocabulary(clip_bpe_file())


@pytest.fixture(scope="module")
def tiny() -> GADMSTokenizer:
    return train_tokenizer([" ".join(WORDS)], 600)


@pytest.fixture(scope="module")
def released_ids() -> Callable[[str], list[int]]:
    """The released tokenizer written out: clean, split, merge the pair of lowest rank until none is left, frame."""
    lines = gzip.decompress(clip_bpe_file().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbol_of = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in symbol_of:
            symbol_of[byte] = chr(256 + len(symbol_of) - len(printable))
    symbols = list(symbol_of.values())
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    vocabulary = vocabulary[:-1] + SPECIAL
    id_of = {token: index for index, token in enumerate(vocabulary)}
    rank_of = {merge: rank for rank, merge in enumerate(merges)}
    pattern = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def merged(word: str) -> list[str]:
        parts = [symbol_of[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, at = min((rank_of.get(pair, len(merges)), at) for at, pair in enumerate(itertools.pairwise(parts)))
            if rank == len(merges):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

    def ids(caption: str) -> list[int]:
        text = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        tokens = [id_of[part] for word in regex.findall(pattern, text) for part in merged(word)]
        tokens = [49406, *tokens, 49407]
        return tokens if len(tokens) <= 77 else [*tokens[:76], 49407]

    return ids


def many_captions() -> list[str]:
    """3,700 captions of every kind, the same in every run."""
    rng = random.Random(0)
    assigned = [
        chr(code)
        for code in range(0x20000)
        if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs") and chr(code) not in "\x1c\x1d\x1e\x1f"
    ]
    entities = (
        "&amp; &amp;amp; &amp;lt;b&amp;gt; &#39; &quot; &nbsp; &eacute; &EACUTE; &#x1F600; &bogus; &lt;br/&gt; &#150; "
        "& <b> &"
    )
    apostrophes = (
        "man's they're he'd we'll I'm I've isn't 'tis '70s boys' ’s woman’s ‘quoted’ 's 'S ''' 'ſ x'ſt 're're"
    )
    digits = "3 42 1,000 3.14 2nd 50% ½ ² ٣٤ Ⅷ ① １２ size-38 10:30 007 v2.0"
    emoji = "😀 👩\u200d💻 🇫🇷 👍🏽 ❤\ufe0f 🧥👟 ☀ :-)"
    foreign = (
        "élégante İstanbul ΣΙΣΥΦΟΣ straße ﬁne “quoted” — 一个男人 рюкзак حقيبة เสื้อ नीला ＷＩＤＥ cafÃ© itâ€™s Â£ ᾳ "
        "e\u0301 \u0345 \u212a \ud83d\ude00 \ud83d \ufeff \u00ad \x1b[31m \x07 \x85"
    )

    def sentence(*pools: str, n: int) -> str:
        return " ".join(rng.choice(rng.choice([WORDS, *(pool.split(" ") for pool in pools)])) for _ in range(n))

    captions = [
        "",
        " ",
        "\t\n",
        "\u00a0",
        "\u2003\u3000",
        "\r\n\r\n",
        "!",
        "!!!",
        ".",
        "'",
        "&",
        "\x00",
        "a",
        "\u0345",
        "\ufeff",
    ]
    captions += [sentence(n=rng.randint(1, 45)).capitalize() for _ in range(1000)]
    for pool in (entities, apostrophes, digits, emoji, foreign):
        captions += [sentence(pool, n=rng.randint(1, 20)) for _ in range(300)]
    captions += [sentence(entities, apostrophes, digits, emoji, foreign, n=12).upper() for _ in range(200)]
    captions += ["".join(rng.choices(assigned, k=rng.randint(1, 20))) for _ in range(400)]
    captions += ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=40)) for _ in range(200)]
    captions += ["".join(rng.choices("ab'19.-&;#\t\n !<|>", k=30)) for _ in range(200)]
    captions += [sentence(foreign, n=rng.randint(60, 200)) for _ in range(200)]
    return captions


def test_ids_are_those_of_the_released_tokenizer_for_every_kind_of_caption(tokenizer, released_ids):
    captions = many_captions()
    ids = tokenizer(captions, truncation=True)["input_ids"]
    wrong = [(c, ours) for c, ours in zip(captions, ids, strict=True) if ours != released_ids(c)]
    assert len(captions) > 3000 and max(map(len, ids)) == 77
    assert not wrong, f"{len(wrong)} captions differ, among them {wrong[0][0]!r}"


def test_a_caption_has_the_same_ids_alone_and_in_a_batch(tokenizer):
    captions = many_captions()[::37]
    assert [tokenizer(c)["input_ids"] for c in captions] == tokenizer(captions)["input_ids"]
    assert tokenizer.encode(captions[3]) == tokenizer(captions[3])["input_ids"]


def test_mask_bos_and_eos_are_the_last_three_ids_and_no_other_is_special(tokenizer, tiny):
    assert [tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [49405, 49406, 49407]
    assert len(tokenizer) == tokenizer.vocab_size == 49408
    for each in (tokenizer, tiny):
        assert sorted(each.all_special_ids) == [len(each) - 3, len(each) - 2, len(each) - 1]
        assert each.convert_tokens_to_ids(SPECIAL) == [len(each) - 3, len(each) - 2, len(each) - 1]


def test_padding_is_id_0_on_the_right_and_exclamation_marks_stay_words(tokenizer):
    batch = tokenizer(["hey!", "!", "a man in a hat"], padding=True)
    assert batch["input_ids"][1] == [49406, 256, 49407, 0, 0, 0, 0]
    assert batch["attention_mask"][1] == [1, 1, 1, 0, 0, 0, 0]
    inner = tokenizer("!a", return_special_tokens_mask=True)
    assert tokenizer.convert_ids_to_tokens(0) == "!" and inner["special_tokens_mask"] == [1, 0, 0, 1]
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "hey !"
    padded = tokenizer.pad([{"input_ids": [49406, 49407]}, {"input_ids": [49406, 320, 49407]}])
    assert padded["input_ids"] == [[49406, 49407, 0], [49406, 320, 49407]]
    assert padded["attention_mask"] == [[1, 1, 0], [1, 1, 1]]


def test_padding_on_the_left_is_refused_wherever_it_is_asked_for(tiny):
    captions = ["a man in a hat", "a man"]
    pieces = [{"input_ids": tiny(caption)["input_ids"]} for caption in captions]
    left = GADMSTokenizer(tiny.get_vocab(), [], padding_side="left")
    changed = GADMSTokenizer(tiny.get_vocab(), [])
    changed.padding_side = "left"
    for wrong in (
        lambda: tiny(captions, padding=True, padding_side="left"),
        lambda: tiny.pad(pieces, padding_side="left"),
        lambda: left(captions, padding=True),
        lambda: changed(captions, padding=True),
        lambda: changed.pad(pieces),
    ):
        with pytest.raises(ValueError, match='padding_side="left" would change the embeddings'):
            wrong()
    assert changed(captions, padding=True, padding_side="right")["attention_mask"][1][-1] == 0


@pytest.mark.parametrize("length", [2, 3, 20, 77])
def test_truncation_keeps_eos_as_the_last_token(tokenizer, length):
    ids = tokenizer("a man " * 100, truncation=True, max_length=length)["input_ids"]
    assert len(ids) == length and ids[0] == 49406 and ids[-1] == 49407 and ids.count(49407) == 1


def test_jekyll_whose_entry_became_the_mask_is_split_into_pieces(tokenizer, released_ids):
    ids = tokenizer("Jekyll and Hyde")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "jekyll and hyde"
    assert tokenizer.mask_token_id not in ids and tokenizer("jekyll")["input_ids"][1:-1] == ids[1:-3]
    with pytest.raises(KeyError):
        released_ids("jekyll")


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_typed_in_a_caption_are_plain_text(tokenizer, token):
    for caption in (token, f"a man {token} in red", token.upper(), token.replace("<", "&lt;"), f"{token} " * 40):
        ids = tokenizer(caption, truncation=True)["input_ids"]
        assert ids[0] == 49406 and ids.index(max(ids)) == len(ids) - 1
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    asked_for = tokenizer(f"a {token} coat", split_special_tokens=False)["input_ids"]
    assert asked_for[2] == tokenizer.convert_tokens_to_ids(token)
    assert tokenizer(token)["input_ids"][1] != tokenizer.convert_tokens_to_ids(token)


def test_offsets_cut_the_words_out_of_a_plain_caption(tokenizer):
    caption = "A Man's jekyll-like COAT, 2 shoes!"
    batch = tokenizer(caption, return_offsets_mapping=True)
    pieces = [caption[start:end] for start, end in batch["offset_mapping"][1:-1]]
    assert "".join(pieces) == caption.replace(" ", "")
    assert [tokenizer.convert_ids_to_tokens(i) for i in batch["input_ids"][1:3]] == ["a</w>", "man</w>"]
    assert pieces[:3] == ["A", "Man", "'s"] and pieces[-5:] == ["COAT", ",", "2", "shoes", "!"]
    assert batch["offset_mapping"][0] == batch["offset_mapping"][-1] == (0, 0)


@pytest.mark.parametrize("value", [None, 3, 2.5, b"man", ["a"]])
def test_a_caption_that_is_not_a_string_is_named_by_index_and_value(tokenizer, value):
    with pytest.raises(TypeError, match=rf"Caption 1 is {regex.escape(repr(value))}, not a string"):
        tokenizer(["a man", value])


def test_no_captions_and_pairs_are_refused(tokenizer):
    with pytest.raises(ValueError, match="list is empty"):
        tokenizer([])
    with pytest.raises(ValueError, match="not pairs"):
        tokenizer("a man", "a woman")


def test_without_ftfy_captions_that_it_would_not_change_keep_their_ids(tokenizer, released_ids, monkeypatch):
    monkeypatch.setattr(tokenization_gadms, "ftfy", None)
    captions = ["A man &amp;amp; a dog", " two\t spaces ", "\u00e9l\u00e9gante", "\U0001f600 smiles"]
    assert [tokenizer(c)["input_ids"] for c in captions] == [released_ids(c) for c in captions]
    assert tokenizer("\ud83d")["input_ids"] == released_ids("\ufffd")


def test_a_copy_of_the_tokenizer_gives_the_same_ids(tiny):
    assert copy.deepcopy(tiny)("a man <|endoftext|>!")["input_ids"] == tiny("a man <|endoftext|>!")["input_ids"]


def test_every_form_of_a_clip_vocabulary_gives_the_same_tokenizer(tmp_path, tiny):
    merges = [tuple(pair) for pair in json.loads(tiny.backend_tokenizer.to_str())["model"]["merges"]] + [
        ("a", "b</w>")
    ]
    tokens = byte_symbols() + ["".join(pair) for pair in merges] + SPECIAL[1:]
    vocab = {token: index for index, token in enumerate(tokens)}
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""])
    (tmp_path / "merges").mkdir()
    (tmp_path / "merges/merges.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "merges/vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz/bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(lines.encode()))
    CLIPTokenizer(vocab, merges).save_pretrained(tmp_path / "json")
    assert not (tmp_path / "json/merges.txt").exists()
    for source in ("merges", "gz", "json", "gz/bpe_simple_vocab_16e6.txt.gz"):
        built = GADMSTokenizer.from_clip_vocabulary(tmp_path / source)
        assert built.get_vocab() == tiny.get_vocab(), source
        assert built(" ".join(WORDS))["input_ids"] == tiny(" ".join(WORDS))["input_ids"], source
    with pytest.raises(ValueError, match="from_clip_vocabulary"):
        GADMSTokenizer.from_pretrained(tmp_path / "json")


def test_folders_that_hold_no_clip_vocabulary_are_refused_with_the_cure(tmp_path, tiny):
    with pytest.raises(OSError, match="no merges.txt, no tokenizer.json"):
        GADMSTokenizer.from_clip_vocabulary(tmp_path)
    tiny.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GADMSTokenizer.from_pretrained"):
        GADMSTokenizer.from_clip_vocabulary(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    with pytest.raises(ValueError, match="not laid out as CLIP's"):
        GADMSTokenizer.from_clip_vocabulary(tmp_path)
    (tmp_path / "words.txt").write_text("a man\n")
    with pytest.raises(ValueError, match="words.txt is not a BPE file"):
        GADMSTokenizer.from_clip_vocabulary(tmp_path / "words.txt")


def test_a_saved_tokenizer_reloads_with_the_same_ids(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    reloaded = GADMSTokenizer.from_pretrained(tmp_path)
    captions = many_captions()[::5] + ["jekyll", *SPECIAL]
    assert reloaded(captions, padding=True)["input_ids"] == tokenizer(captions, padding=True)["input_ids"]
    assert reloaded.get_vocab() == tokenizer.get_vocab() and reloaded.model_max_length == 77


def test_a_trained_tokenizer_has_the_merges_of_a_slow_trainer_in_the_layout_of_clip():
    captions = [" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(50)] + ["aab aab abab a baab"] * 9
    # Count pairs in all words, merge the commonest (of equals the one with the smaller ids), and again.
    vocabulary = byte_symbols()
    words = [[*w[:-1], w[-1] + "</w>"] for c in captions for w in regex.findall(r"[a-z]+|[^\sa-z]+", c.lower())]
    while len(vocabulary) < 900 - 3:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], *map(vocabulary.index, pair)))
        vocabulary += [] if "".join(best) in vocabulary else ["".join(best)]
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    trained = train_tokenizer(captions, 900)
    assert trained.convert_ids_to_tokens(list(range(len(trained)))) == vocabulary + SPECIAL
    assert 515 < len(trained) < 900 and trained.tokenize("Backpack, MAN") == ["backpack</w>", ",</w>", "man</w>"]
    assert len(train_tokenizer(captions, 600)) == 600
    assert train_tokenizer(captions, 600).get_vocab().items() >= {t: i for i, t in enumerate(vocabulary[:597])}.items()


def test_training_is_the_same_in_every_process_and_in_any_order(tiny, tmp_path):
    captions = [" ".join(random.Random(seed).sample(WORDS, 12)) for seed in range(200)]
    vocab = train_tokenizer(captions, 700).get_vocab()
    assert train_tokenizer(reversed(captions), 700).get_vocab() == vocab
    code = (
        "import json, sys; from modeling_gadms.training.tokenizers import train_tokenizer;"
        "sys.stdout.write(json.dumps(train_tokenizer(json.load(open(sys.argv[1])), 700).get_vocab()))"
    )
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    # the parent of the fork was started after this process, and has a seed of its own for the order of sets
    run = forked.run(["-c", code, tmp_path / "captions.json"], env={**os.environ, "RAYON_NUM_THREADS": "1"})
    run.check_returncode()
    assert json.loads(run.stdout) == vocab


def test_a_vocabulary_without_room_for_a_merge_is_refused():
    with pytest.raises(ValueError, match="515"):
        train_tokenizer(["a man"], 515)
