"""Scores of captions, what is left out for them, and the report."""

import io
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import COLOURS, tiny_model, tiny_processor, tiny_rows

from dataset_webperson.construction import caption_statistics, caption_words
from dataset_webperson.construction.caption_statistics import (
    GROUPS,
    Diversity,
    Scores,
    Statistics,
    count_assessed,
    count_captioned,
    stage_statistics,
)
from dataset_webperson.construction.caption_words import CaptionWords, text_hash
from dataset_webperson.construction.captions.repeated import caption_hash, find_repeated
from dataset_webperson.construction.captions.words import find_attributes
from dataset_webperson.construction.distinct import Distinct
from dataset_webperson.construction.opt_out import OptOut
from dataset_webperson.construction.preflight import check_quality_model
from dataset_webperson.construction.quality_report import funnel, main, stage_counts, stage_folders, summarize
from dataset_webperson.construction.shards import read_rows, remove_opted_out, shard_counts, shard_writer
from dataset_webperson.construction.stages.captioning import NEW_COLUMNS as CAPTION_COLUMNS
from dataset_webperson.construction.stages.quality import (
    NEW_COLUMNS,
    CaptionScorer,
    QualityOptions,
    assess_shard,
    auc,
    share_of_sure_words,
    tokens_of_words,
)
from dataset_webperson.construction.stages.repair import CaptionRepairer
from dataset_webperson.findings import DataError
from modeling_gadms import GADMSModel
from modeling_gadms.noise.value_reader import ValueReader
from modeling_gadms.noise.word_families import Family, find_words, write_families
from modeling_gadms.noise.word_places import find_places

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_path", pa.string()),
        ("image_sha256", pa.string()),
        *CAPTION_COLUMNS.items(),
    ]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    tiny_model(vocab_size=len(processor.tokenizer)).gadms.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def write_captioned(path, problems=(), count=6) -> str:
    """A shard of the caption stage; `problems[row]` are those of its two captions, the first rows' only."""
    with shard_writer(str(path), SCHEMA) as shard:
        for number, row in enumerate(tiny_rows(count)):
            buffer = io.BytesIO()
            row["image"].save(buffer, "JPEG")
            found = problems[number] if number < len(problems) else ((), ())
            values = {
                "image": {"bytes": buffer.getvalue(), "path": row["image_path"]},
                "image_sha256": f"{number:064x}",
                "template_id": f"t{number % 2}",
            }
            values |= {"image_path": row["image_path"], "captioner1": "small", "captioner2": "large"}
            values |= {name: row[name] for name in ("caption1", "caption2")}
            shard.write(values | {f"caption{n}_problems": list(found[n - 1]) for n in (1, 2)})
            shard.counts["rows_in"] += 1
    return str(path)


def read(path) -> list[dict]:
    return list(read_rows(str(path)))


COLOUR_FAMILY = {"colour": Family({colour: (colour, f"deep {colour}") for colour in COLOURS})}


@pytest.fixture(scope="module")
def reader(model, tmp_path_factory):
    """A reader of colours with random weights, sure of itself, and the file of its families."""
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    made = ValueReader(GADMSModel.from_pretrained(model), COLOUR_FAMILY).eval()
    made.frequency.fill_(1 / len(COLOURS))
    made.temperature.fill_(4.0)
    made.share_false.fill_(0.8)
    save_file(made.state_dict(), folder / "reader.safetensors")
    write_families(COLOUR_FAMILY, folder / "families.json")
    return made, str(folder / "reader.safetensors"), str(folder / "families.json")


def likeliest(made, processor, row, caption):
    """Word by word: the colour that the reader thinks is true, and how likely that and the word itself are."""
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    found = []
    for word in find_words(caption, COLOUR_FAMILY):
        places = find_places(processor, [{"caption1": caption}], ["caption1"], COLOUR_FAMILY)
        number = [one.start for *_, one in places.words].index(word.start)
        shares = made.probabilities(pixels, places)[number]
        said = COLOURS.index(word.value)
        # the text of the word that stays is the first of equals
        best = max(range(len(shares)), key=lambda n: (shares[n] if shares[n] >= 0.01 else 0, n == said))
        kept = shares[(shares >= 0.01) | (np.arange(len(shares)) == said)].sum()
        found.append((word, COLOURS[best], shares[best] / kept, shares[said] / kept))
    return found


def test_a_reader_repairs_captions_before_they_are_scored_and_the_old_ones_are_kept(model, reader, tmp_path):
    made, file, families = reader
    source = write_captioned(tmp_path / "3_caption" / "a.parquet", [(["short"], [])])
    options = QualityOptions(model, file, families, marked="keep")
    counts = assess_shard(source, str(tmp_path / "4.parquet"), replace(options, batch_size=4))
    assess_shard(source, str(tmp_path / "1.parquet"), replace(options, batch_size=1))
    processor = CaptionScorer(model)._processor
    repaired = 0
    rows = list(zip(read(source), read(tmp_path / "4.parquet"), read(tmp_path / "1.parquet"), strict=True))
    for before, row, alone in rows:
        for name in ("caption1", "caption2"):
            assert row[name] == alone[name] and row[f"{name}_as_found"] == before[name]
            expected, repairs, shift = before[name], [], 0
            for word, best, probability, of_said in likeliest(made, processor, before, before[name]):
                if best != word.value:
                    one = row[f"{name}_repairs"][len(repairs)]
                    new = row[name][one["start"] : one["end"]]
                    assert new in COLOUR_FAMILY["colour"].values[best] and one["start"] == word.start + shift
                    assert one["found"] == before[name][word.start : word.end] and one["family"] == "colour"
                    assert (one["probability"], one["found_probability"]) == pytest.approx(
                        (probability, of_said), abs=1e-5
                    )
                    expected = expected[: word.start + shift] + new + expected[word.end + shift :]
                    shift += len(new) - (word.end - word.start)
                    repairs.append(one)
            assert row[name] == expected and row[f"{name}_repairs"] == repairs
            assert [(word["start"], word["end"]) for word in row[f"{name}_words"]] == [
                (start, end) for _, _, start, end in find_attributes(row[name])
            ]
            repaired += len(repairs)
    assert repaired == counts["words_repaired"] > 3
    assert counts["captions_repaired"] == sum(bool(row[f"caption{n}_repairs"]) for _, row, _ in rows for n in (1, 2))

    counts = assess_shard(source, str(tmp_path / "drop.parquet"), replace(options, marked="drop"))
    settled = read(tmp_path / "drop.parquet")[0]  # its first caption broke a rule
    assert counts["captions_replaced"] == 1 and settled["caption1"] == settled["caption2"]
    for part in ("as_found", "repairs"):
        assert settled[f"caption1_{part}"] == settled[f"caption2_{part}"]
    written = [row[f"caption{n}_repairs"] for row in read(tmp_path / "drop.parquet") for n in (1, 2)]
    assert counts["words_repaired"] == sum(map(len, written))
    assert counts["captions_repaired"] == sum(map(bool, written))
    source = write_captioned(tmp_path / "3_caption" / "b.parquet", [(["short"], ["short"])])
    fewer = assess_shard(source, str(tmp_path / "fewer.parquet"), replace(options, marked="drop"))
    written = [row[f"caption{n}_repairs"] for row in read(tmp_path / "fewer.parquet") for n in (1, 2)]
    assert fewer["both_captions_marked"] == 1 and fewer["words_repaired"] == sum(map(len, written)) < repaired


def test_captions_are_repeated_as_they_were_found(model, reader, tmp_path):
    source = write_captioned(tmp_path / "3_caption" / "a.parquet")
    plan = tmp_path / "plan"
    plan.mkdir()
    np.save(plan / "repeated.npy", np.array([caption_hash(read(source)[0]["caption1"])], np.uint64))
    target = str(tmp_path / "a.parquet")
    assess_shard(source, target, QualityOptions(model, *reader[1:], marked="keep", plan=str(plan)))
    assert "repeated" in read(target)[0]["caption1_problems"]


def test_readers_that_do_not_fit_are_refused(model, reader, tmp_path):
    with pytest.raises(ValueError, match="needs the model that it was learnt on"):
        QualityOptions("", reader[1])
    with pytest.raises(ValueError, match="families=words.json are of a reader"):
        QualityOptions(model, families="words.json")
    with pytest.raises(DataError, match="none.safetensors: no such reader of values"):
        CaptionRepairer(model, str(tmp_path / "none.safetensors"))
    with pytest.raises(DataError, match="gone.safetensors: no such reader"):  # before the first stage
        check_quality_model(SimpleNamespace(quality=QualityOptions(model, str(tmp_path / "gone.safetensors"))))
    with pytest.raises(DataError, match="reader.safetensors: broken, or not learnt from this model"):
        CaptionRepairer(model, reader[1])  # with the families of another


def test_the_tokens_of_a_word_are_those_that_share_a_character_with_it():
    rng = np.random.default_rng(0)
    text = "a woman in a red coat and navy-blue trousers"
    words = find_attributes(text)
    for _ in range(50):
        cuts = np.sort(rng.choice(np.arange(1, len(text) - 3), rng.integers(3, 12), replace=False)).tolist()
        spans = [(0, 0), *zip([0, *cuts[:-1]], cuts, strict=True), (0, 0)]  # the text's end was cut off
        slow = [
            [bool(set(range(low, high)) & set(range(start, end))) for low, high in spans] for _, _, start, end in words
        ]
        assert tokens_of_words(spans, words).tolist() == slow
    assert tokens_of_words(spans, []).shape == (0, len(spans))


def test_a_caption_s_word_score_is_the_share_of_words_that_are_not_doubtful():
    assert share_of_sure_words([0.5, 0.1, 0.09, float("nan")], 0.1) == pytest.approx(2 / 3)
    assert share_of_sure_words([], 0.1) == share_of_sure_words([float("nan")], 0.1) == 0.0


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_is_the_share_of_ordered_pairs_with_ties_as_half(levels):
    rng = np.random.default_rng(levels)
    false, true = rng.integers(0, levels, 40) / levels, rng.integers(0, levels, 60) / levels
    slow = np.mean([1.0 if t > f else 0.5 if t == f else 0.0 for t in true for f in false])
    assert auc(false, true) == pytest.approx(slow)
    assert np.isnan(auc(false[:0], true))


def test_scores_are_those_of_the_model_whatever_the_batch(model, tmp_path):
    source = write_captioned(tmp_path / "3_caption" / "a.parquet")
    for size in (1, 4):
        options = QualityOptions(model, marked="keep", batch_size=size)
        assess_shard(source, str(tmp_path / f"{size}.parquet"), options)
    one, four = read(tmp_path / "1.parquet"), read(tmp_path / "4.parquet")
    scorer = CaptionScorer(model)
    for row, other in zip(one, four, strict=True):
        for number in (1, 2):
            caption, words = row[f"caption{number}"], row[f"caption{number}_words"]
            inputs = scorer._processor(
                images=[Image.open(io.BytesIO(row["image"]["bytes"]))], text=[caption], return_tensors="pt"
            )
            spans = scorer._processor.tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
            found = find_attributes(caption)
            assert [(word["kind"], word["start"], word["end"]) for word in words] == [
                (kind, start, end) for kind, _, start, end in found
            ]
            # the model's own words, where they are the attribute words
            ids = torch.arange(len(spans))[None] + len(found)
            for place, (_, _, start, end) in enumerate(found):
                for token, (low, high) in enumerate(spans):
                    if low < high and low < end and start < high:
                        ids[0, token] = place
            drops = scorer._model.word_contributions(**inputs, word_ids=ids)[0]
            expected = [drops[ids[0] == place][0].item() for place in range(len(found))]
            assert [word["score"] for word in words] == pytest.approx(expected, abs=1e-5)
            assert any(abs(drop) > 1e-4 for drop in expected)
            assert [word["score"] for word in words] == pytest.approx(
                [word["score"] for word in other[f"caption{number}_words"]], abs=1e-5
            )
            assert row[f"caption{number}_word_score"] == pytest.approx(share_of_sure_words(expected, 0.0), abs=1e-6)
            with torch.no_grad():
                outputs = scorer._model(**inputs)
            cosine = (
                torch.nn.functional.normalize(outputs.image_embeds)
                @ torch.nn.functional.normalize(outputs.text_embeds).T
            )
            assert row[f"caption{number}_score"] == pytest.approx(cosine.item(), abs=1e-5)
    assert len({row["caption1_score"] for row in one} | {row["caption2_score"] for row in one}) > 1


def test_a_word_that_was_cut_off_has_no_score_and_the_others_keep_theirs(model):
    scorer, image = CaptionScorer(model), tiny_rows(1)[0]["image"]
    long, short = "a red coat" + " and" * 100 + " a bag", "a red coat"
    inputs = scorer.prepare([image], [long, short, "nobody"], [0, 0, 0], list(map(find_attributes, (long, short, ""))))
    cut, whole, nothing = scorer(inputs)[0]
    assert np.isnan(cut).tolist() == [False, False, True] and not np.isnan(whole).any() and nothing == []


def test_without_a_model_scores_are_null_and_words_stay(tmp_path):
    source = write_captioned(tmp_path / "a.parquet")
    counts = assess_shard(source, str(tmp_path / "b.parquet"), QualityOptions())
    row = read(tmp_path / "b.parquet")[0]
    assert row["caption1_score"] is None and row["caption1_words"][0]["score"] is None
    assert counts["captions_scored"] == 0 and counts["rows_out"] == 6


PROBLEMS = ((("mood",), ()), ((), ("garbage",)), (("mood",), ("empty",)))


def test_a_marked_caption_gives_way_to_the_other_and_rows_of_two_marked_ones_go(tmp_path):
    source = write_captioned(tmp_path / "a.parquet", PROBLEMS)
    counts = assess_shard(source, str(tmp_path / "b.parquet"), QualityOptions())
    before, rows = read(source), read(tmp_path / "b.parquet")
    assert counts == shard_counts(str(tmp_path / "b.parquet"))
    assert (counts["rows_in"], counts["rows_out"]) == (6, 5)
    assert (counts["captions_replaced"], counts["both_captions_marked"]) == (2, 1)
    assert [row["image_path"] for row in rows] == [row["image_path"] for row in before if row is not before[2]]
    assert rows[0]["caption1"] == rows[0]["caption2"] == before[0]["caption2"]
    assert rows[0]["captioner1"] == "large" and rows[0]["caption1_problems"] == []
    assert rows[1]["caption1"] == rows[1]["caption2"] == before[1]["caption1"]
    assert rows[2]["caption1"] == before[3]["caption1"] != rows[2]["caption2"]


def test_a_sentence_on_too_many_images_is_marked_and_its_plan_is_asked_for(tmp_path):
    source, plan = str(tmp_path / "a.parquet"), str(tmp_path / "plan")
    with shard_writer(source, SCHEMA) as shard:
        for number, row in enumerate(read(write_captioned(tmp_path / "before.parquet"))):
            shard.write(row | ({"caption1": "A man in a coat."} if number < 3 else {}))
    with pytest.raises(DataError, match="run `find_repeated` on all caption shards first"):
        assess_shard(source, str(tmp_path / "b.parquet"), QualityOptions(plan=plan))
    for limit, marked in ((3, 0), (2, 3)):
        find_repeated([source], plan, limit)
        options = QualityOptions(marked="keep", max_same_caption=limit, plan=plan)
        counts = assess_shard(source, str(tmp_path / "b.parquet"), options)
        problems = [row["caption1_problems"] for row in read(tmp_path / "b.parquet")]
        assert problems == marked * [["repeated"]] + (6 - marked) * [[]]
        assert counts.get("captions_repeated", 0) == marked


def test_marked_captions_stay_where_the_options_say_so(tmp_path):
    source = write_captioned(tmp_path / "a.parquet", PROBLEMS)
    assess_shard(source, str(tmp_path / "b.parquet"), QualityOptions(marked="keep"))
    names = ["caption1", "caption2", "caption1_problems", "caption2_problems", "image"]
    for row, other in zip(read(source), read(tmp_path / "b.parquet"), strict=True):
        assert {name: row[name] for name in names} == {name: other[name] for name in names}


def test_captions_below_the_least_score_are_marked(model, tmp_path):
    source = write_captioned(tmp_path / "a.parquet", count=12)
    assess_shard(source, str(tmp_path / "all.parquet"), QualityOptions(model, marked="keep"))
    scores = [row[f"caption{n}_score"] for row in read(tmp_path / "all.parquet") for n in (1, 2)]
    least = float(np.median(scores)) + 1e-6
    counts = assess_shard(source, str(tmp_path / "b.parquet"), QualityOptions(model, marked="keep", min_score=least))
    low = [row[f"caption{n}_problems"] == ["low-score"] for row in read(tmp_path / "b.parquet") for n in (1, 2)]
    assert low == [score < least for score in scores] and 0 < sum(low) < 24
    assert counts["captions_low-score"] == sum(low)


@pytest.mark.parametrize(
    "fields",
    [
        {"doubtful_below": 2.5},
        {"min_score": 0.5},
        {"min_score": 2.0, "model": "m"},
        {"marked": "burn"},
        {"batch_size": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        QualityOptions(**fields)


def diversity_of(captions):
    words = CaptionWords.of(pa.chunked_array([captions], pa.string()))
    return Diversity.of(words, np.ones(len(captions), bool))


def test_diversity_counts_what_it_says():
    diversity = diversity_of(["A man in red walks.", "a man in Red walks."])
    diversity.add(diversity_of(["A woman stands in blue."]))
    assert diversity.figures() == {
        "captions": "3",
        "mean words": "5.0",
        "different captions": "66.7 %",
        "vocabulary": "8",
        "different openings (three words)": "2",
        "commonest opening": "a man in (66.7 %)",
        "different pairs of words": "66.7 %",
    }


def test_different_texts_are_counted_exactly_and_then_estimated_whatever_the_parts():
    hashes = np.array([text_hash(f"text {number}") for number in range(20_000)], np.uint64)
    for count in (0, 1, 700):
        assert len(Distinct.of(hashes[:count]) | Distinct.of(hashes[: count // 2])) == count
    whole, parts = Distinct.of(hashes), Distinct()
    for start in range(0, 20_000, 3_000):
        parts |= Distinct.of(hashes[max(0, start - 500) : start + 3_000])
    assert parts.least == whole.least and not whole.is_exact and abs(len(whole) - 20_000) < 4 * 0.03 * 20_000
    twice = np.append(hashes[:1_500], hashes[:1_500])
    assert Distinct.of(twice).least == Distinct.of(hashes[:1_500]).least == sorted(hashes[:1_500].tolist())[:1_024]


PIECES = "A man, Woman young navy-blue jeans/shirt t-shirt. tank top Tank TOP flip flops polka dot dots body".split()
PIECES += ["warmer", "man’s", "lady's", "ΣΑΣ", "über", "a_b", "3rd", "-", "", "top\ntank", "coats", "glasses", "(bag)"]
PIECES += ["dress", "İ"]


def slow_statistics(rows):
    """Twin of `count_assessed`, caption by caption, with the tools that the stages use."""
    found = {name: Counter() for name in ("groups", "templates", "vocabulary")}
    captions, sums, scores = {}, {}, []
    for row in rows:
        said = [(kind, word) for n in (1, 2) for kind, word, _, _ in find_attributes(row[f"caption{n}"])]
        for name, of in GROUPS.items():
            found["groups"][name] += any(kind == of if isinstance(of, str) else word in of for kind, word in said)
        found["templates"][row["template_id"]] += 1
        for n in (1, 2) if row["caption1"] != row["caption2"] else (1,):
            captions.setdefault(row[f"captioner{n}"], []).append(row[f"caption{n}"])
            scores.append((row[f"caption{n}_score"], row["image_path"], n))
            found["vocabulary"].update((kind, word) for kind, word, _, _ in find_attributes(row[f"caption{n}"]))
            for word in row[f"caption{n}_words"]:
                mine = sums.setdefault(word["kind"], [0, 0.0, 0])
                mine[:] = [mine[0] + 1, mine[1] + word["score"], mine[2] + (word["score"] < 0)]
    diversity = {}
    for captioner, texts in captions.items():
        words = [re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", text.lower()) for text in texts]
        openings = Counter(" ".join(found[:3]) for found in words)
        pairs = [pair for found in words for pair in zip(found, found[1:], strict=False)]
        different = {"captions": len({text.lower() for text in texts}), "openings": len(openings)}
        different |= {"words": len({word for found in words for word in found}), "pairs": len(set(pairs))}
        diversity[captioner] = (len(texts), sum(map(len, words)), len(pairs), different, openings)
    return {**found, "sums": sums, "scores": scores, "diversity": diversity}


def test_statistics_of_a_shard_are_those_of_counting_caption_by_caption(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_words, "_BLOCK", 64)  # many blocks of captions, and a smaller last one
    random = np.random.default_rng(0)
    schema = SCHEMA
    for name, kind in NEW_COLUMNS.items():
        schema = schema.append(pa.field(name, kind))
    rows = []
    for number in range(300):
        row = {"image_path": f"{number}.jpg", "template_id": f"t{number % 3}", "captioner1": "small"}
        row["captioner2"] = "large" if number % 4 else "small"
        for n in (1, 2):
            row[f"caption{n}"] = " ".join(random.choice(PIECES, random.integers(0, 9)))
            row[f"caption{n}_score"] = float(np.float32(random.integers(-9, 9) / 10))
        if number % 7 == 0:
            row |= {"caption2": row["caption1"], "caption2_score": row["caption1_score"]}
        for n in (1, 2):
            row[f"caption{n}_words"] = [
                {"start": start, "end": end, "kind": kind, "score": float(np.float32(random.normal()))}
                for kind, _, start, end in find_attributes(row[f"caption{n}"])
            ]
        rows.append(row)
    shard = str(tmp_path / "a.parquet")
    with shard_writer(shard, schema) as writer:
        for row in rows:
            writer.write(row)
    found, slow = count_assessed(shard), slow_statistics(rows)
    assert found.rows == 300 and +slow["groups"] == found.groups and slow["templates"] == found.templates
    assert len(found.groups) == 6  # there is no child and no hat
    said = Counter({(kind, w.replace("’", "'")): n for kind, ws in found.vocabulary.items() for w, n in ws.items()})
    assert said == slow["vocabulary"] and ("top", "tank top") in said and ("gender", "man's") in said
    assert found.word_sums.keys() == slow["sums"].keys()
    for kind, sums in slow["sums"].items():
        assert found.word_sums[kind] == pytest.approx(sums)
    for captioner, (captions, words, pairs, different, openings) in slow["diversity"].items():
        mine = found.diversity[captioner]
        assert (mine.captions, mine.words, mine.pairs) == (captions, words, pairs)
        assert {name: len(part) for name, part in mine.different.items()} == different
        assert mine.openings == openings
        assert len(found.samples[captioner]) == min(20, captions)
    assert [case[:3] for case in found.lowest] == sorted(slow["scores"])[:12]
    highest = sorted(slow["scores"], key=lambda case: (-case[0], *case[1:]))[:12]
    assert [case[:3] for case in found.highest] == highest
    before = count_captioned(shard)
    assert (before.rows, before.groups) == (found.rows, found.groups)
    # The random captions that are shown do not depend on how rows lie in shards.
    whole = Statistics()
    for part in range(3):
        path = str(tmp_path / f"{part}.parquet")
        with shard_writer(path, schema) as writer:
            for row in rows[part::3]:
                writer.write(row)
        whole.add(count_assessed(path))
    for captioner, cases in found.samples.items():
        assert [case[:3] for case in whole.samples[captioner]] == [case[:3] for case in cases]
    assert whole.diversity["small"].different["pairs"].least == found.diversity["small"].different["pairs"].least
    with shard_writer(shard, schema):
        pass
    assert (count_assessed(shard).rows, count_captioned(shard).rows) == (0, 0)


def test_scores_in_bins_are_those_of_a_count():
    values = np.random.default_rng(0).normal(0.3, 0.2, 500).clip(-1, 1).tolist()
    scores = Scores.of(np.array(values[:200]))
    scores.add(Scores.of(np.array(values[200:])))
    scores.add(Scores.of(np.array([])))
    assert (scores.count, scores.least, scores.greatest) == (500, min(values), max(values))
    assert scores.total == pytest.approx(sum(values))
    for low, high in ((-1.0, 0.25), (0.1, 0.5), (0.0, 2.0)):
        assert abs(scores.between(low, high) - sum(low <= value < high for value in values)) <= 5


def test_statistics_of_shards_add_up_and_are_counted_again_only_for_what_changed(model, tmp_path, monkeypatch):
    shards = []
    for name, count in (("a", 4), ("b", 6)):
        source = write_captioned(tmp_path / "3_caption" / f"{name}.parquet", count=count)
        shards.append(str(tmp_path / "4_quality" / f"{name}.parquet"))
        assess_shard(source, shards[-1], QualityOptions(model))
    found = stage_statistics(str(tmp_path), "quality", shards)
    rows = [row for shard in shards for row in read(shard)]
    captions = [(row["caption1"], row["captioner1"], row["caption1_score"]) for row in rows]
    captions += [
        (row["caption2"], row["captioner2"], row["caption2_score"])
        for row in rows
        if row["caption1"] != row["caption2"]
    ]
    assert found.rows == 10 and found.templates == Counter(row["template_id"] for row in rows)
    for captioner, diversity in found.diversity.items():
        mine = [caption for caption, by, _ in captions if by == captioner]
        assert diversity.captions == len(mine) and len(diversity.different["captions"]) == len(set(mine))
        assert len(found.samples[captioner]) == len(mine)
    assert [case[0] for case in found.lowest] == sorted(score for *_, score in captions)[:12]
    assert [case[0] for case in found.highest] == sorted((score for *_, score in captions), reverse=True)[:12]
    said = [row["caption1_words"] for row in rows]
    said += [row["caption2_words"] for row in rows if row["caption1"] != row["caption2"]]
    kinds = Counter(word["kind"] for words in said for word in words)
    assert {kind: words.total() for kind, words in found.vocabulary.items()} == kinds and kinds

    counted = []
    count = caption_statistics.count_shard
    monkeypatch.setattr(caption_statistics, "count_shard", lambda *args: (counted.append(args[0]), count(*args)))
    assert stage_statistics(str(tmp_path), "quality", shards).as_json() == found.as_json() and counted == []
    remove_opted_out(shards[1], OptOut(sha256s=[rows[-1]["image_sha256"]]))
    assert stage_statistics(str(tmp_path), "quality", shards).rows == 9 and counted == [shards[1]]


def test_the_funnel_goes_from_images_to_boxes_to_crops():
    steps = [
        (step.name, step.count, step.whole) for step in funnel({"crop": CROP, "dedup": DEDUP, "quality": QUALITY})
    ]
    assert steps == [
        ("images", 100, ""),
        ("after not downloaded or missing", 92, "images"),
        ("after without a person", 72, "images"),
        ("boxes", 622, ""),
        ("after score", 322, "boxes"),
        ("after shorter side", 172, "boxes"),
        ("after head", 170, "boxes"),
        ("crops", 60, ""),
        ("after close hashes", 57, "crops"),
        ("after the stage dedup", 57, "crops"),
        ("after the stage quality", 57, "crops"),
    ]
    assert funnel({"quality": QUALITY}) == []


CROP = {"rows_in": 100, "not_downloaded": 8, "images_without_person": 20, "opted_out_sha256": 110, "boxes": 622}
CROP |= {"box_score": 300, "box_side": 150, "head_hidden": 2, "rows_out": 60}
DEDUP = {"rows_in": 60, "duplicate_phash": 3, "rows_out": 57}
CAPTION = {"rows_in": 60, "rows_fine": 50, "captions": 120, "captions_marked": 70, "caption_mood": 65, "rows_out": 60}
QUALITY = {"rows_in": 60, "captions_scored": 118, "captions_low-score": 61, "captions_replaced": 40}
QUALITY |= {"both_captions_marked": 3, "rows_out": 57}


def test_every_count_of_a_stage_is_a_share_of_a_whole_that_holds_it():
    for counts in (CROP, CAPTION, QUALITY):
        shown = stage_counts("stage", counts)
        assert sorted(item.count for item in shown.counts) == sorted(counts.values())
        assert all(item.count <= item.whole_count for item in shown.counts if item.whole)
        assert (shown.kept.count, shown.counts[0].count) == (counts["rows_out"], counts["rows_in"])
    wholes = {item.name: (item.whole, item.whole_count) for item in stage_counts("crop", CROP).counts}
    assert wholes["images in"] == wholes["boxes"] == ("", 0)
    assert wholes["images without person"] == ("images", 100)
    assert wholes["box score"] == wholes["head hidden"] == wholes["crops out"] == ("boxes", 622)
    # asked about each image and, once more, about each crop
    assert wholes["opted out sha256"] == ("images and boxes", 722)
    wholes = {item.name: (item.whole, item.whole_count) for item in stage_counts("caption", CAPTION).counts}
    assert wholes["rows fine"] == ("rows", 60) and wholes["captions marked"] == ("captions", 120)
    assert wholes["caption mood"] == ("captions", 120) and wholes["captions"] == ("", 0)
    wholes = {item.name: (item.whole, item.whole_count) for item in stage_counts("quality", QUALITY).counts}
    assert wholes["captions scored"] == wholes["captions replaced"] == ("captions", 120)
    assert wholes["captions low-score"] == ("captions scored", 118)
    assert wholes["both captions marked"] == ("rows", 60)


def test_the_report_shows_survivors_scores_shares_and_pictures(model, tmp_path, capsys):
    source = write_captioned(tmp_path / "3_caption" / "a.parquet", PROBLEMS)
    assess_shard(source, str(tmp_path / "4_quality" / "a.parquet"), QualityOptions(model))
    (tmp_path / "caption_cache").mkdir()
    assert list(stage_folders(str(tmp_path))) == ["caption", "quality"]
    assert main([str(tmp_path), "--output_file", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img src=") >= 6 and 'src="http' not in page
    for words in ("both captions marked", "captions replaced", "Who is in the data", "coat or jacket", "small: mean"):
        assert words in page
    summary = summarize(str(tmp_path))
    assert (summary.before.rows, summary.after.rows) == (6, 5)
    said = [
        bool({"coat", "jacket"} & set(re.findall(r"\w+", row["caption1"] + " " + row["caption2"])))
        for row in read(tmp_path / "4_quality" / "a.parquet")
    ]
    assert summary.after.groups["coat or jacket"] == sum(said) > 0
    assert sum(map(sum, (found.values() for found in summary.after.vocabulary.values()))) > 0
    assert summary.after.lowest[0][0] <= summary.after.highest[0][0]


def test_captions_cannot_break_the_page(tmp_path):
    source = write_captioned(tmp_path / "3_caption" / "a.parquet", count=2)
    rows = read(source)
    with shard_writer(source, SCHEMA) as shard:
        for row in rows:
            row["caption1"] = 'A man in red <script>alert("x")</script> & a coat'
            row["captioner1"] = "<b>model</b>"
            shard.write(row)
    assess_shard(source, str(tmp_path / "4_quality" / "a.parquet"), QualityOptions())
    assert main([str(tmp_path), "--output_file", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1 and "<script>alert" not in page and "<b>model" not in page


def test_a_folder_without_the_stage_is_named(tmp_path, capsys):
    assert main([str(tmp_path), "--output_file", str(tmp_path / "report.html")]) == 2
    assert "no shards of the quality stage" in capsys.readouterr().err
