"""Scores of words against slow arithmetic: one caption, one token and one rival text at a time."""

import copy
import io
import itertools
import json
import math

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from other_device import NAME, OtherDevice
from PIL import Image
from tiny import COLOURS, tiny_captions, tiny_images, tiny_model, tiny_processor, tiny_rows

from dataset_webperson import DataError
from dataset_webperson.drawn.attributes import WORDS
from dataset_webperson.drawn.rows import generate_rows
from modeling_gadms.false_words.word_detection import ranking_quality
from modeling_gadms.noise.attribute_oracle import VALUES, oracle_trust, train_oracle
from modeling_gadms.noise.caption_trust import phrase_around
from modeling_gadms.noise.detectors import METHODS, filled, refuse_method, scored_share, word_suspicions
from modeling_gadms.noise.joined_scores import logistic_weights, two_fold_probabilities
from modeling_gadms.noise.patch_evidence import PatchEvidence, train_patch_evidence
from modeling_gadms.noise.score_tables import figures, written
from modeling_gadms.noise.token_trust import clip4dm, nearest_patch, patch_concentration
from modeling_gadms.noise.value_reader import train_value_reader
from modeling_gadms.noise.word_families import Family, drawn_families
from modeling_gadms.noise.word_groups import by_group, word_groups


@pytest.fixture(scope="module")
def pretrained():
    processor = tiny_processor()
    return tiny_model(vocab_size=len(processor.tokenizer)), processor


@pytest.fixture(scope="module")
def rows():
    """A few captions of colours and of garments, "coat" among them, which no family knows."""

    def listed(row):
        found = {}
        for name in ("caption1", "caption2"):
            found[f"{name}_words"], start = [], 0
            for word in row[name].split(" "):
                kind = "color" if word.strip(",") in COLOURS else "garment"
                if kind == "color" or word.strip(",") in ("coat", "shirt"):
                    span = {"start": start, "end": start + len(word.strip(",")), "attribute": f"top.{kind}"}
                    found[f"{name}_words"].append({**span, "is_false": len(found[f"{name}_words"]) == 1})
                start += len(word) + 1
        return found

    return tiny_rows(8).map(listed)


def unit(model, processor, texts):
    """Embeddings of texts, each encoded alone."""
    with torch.no_grad():
        found = [model.gadms.get_text_features(processor(text=text)["input_ids"]).pooler_output for text in texts]
    return F.normalize(torch.cat(found), dim=-1)


def unit_images(model, processor, rows):
    with torch.no_grad():
        pixels = processor(images=rows["image"][:], return_tensors="pt")["pixel_values"]
        return F.normalize(model.gadms.get_image_features(pixels).pooler_output, dim=-1)


def places(rows):
    """Number of the image, caption, words: in the order of scores."""
    return [
        (number, row[name], row[f"{name}_words"])
        for number, row in enumerate(rows.remove_columns("image"))
        for name in ("caption1", "caption2")
    ]


def test_clip4dm_is_attention_times_its_gradient_as_autograd_finds_it():
    gadms, pixels, ids = tiny_model().gadms, tiny_images(3), tiny_captions([9, 14, 4])
    found = clip4dm(gadms, pixels, ids)
    gadms.text_model.set_attn_implementation("eager")
    image = gadms.get_image_features(pixels).pooler_output.detach()
    for row in range(3):
        end = int(ids[row].argmax())
        output = gadms.text_model(ids[row : row + 1, : end + 1], output_attentions=True)
        for attention in output.attentions:
            attention.retain_grad()
        text = gadms.text_projection(output.last_hidden_state[:, end])
        F.cosine_similarity(text, image[row : row + 1]).sum().backward()
        products = [(attention * attention.grad)[0, :, end].mean(dim=0) for attention in output.attentions[-3:]]
        expected = torch.stack(products).mean(dim=0).detach()
        torch.testing.assert_close(found[row, : end + 1], expected, rtol=1e-4, atol=1e-7)
    assert (found[:, 1:3] < 0).any() and (found[:, 1:3] > 0).any()


def test_the_nearest_patch_and_the_spread_over_patches_are_those_of_loops(pretrained):
    model, _ = pretrained
    draw = torch.Generator().manual_seed(0)
    texts, images = torch.randn(2, 5, 7, generator=draw), torch.randn(2, 4, 7, generator=draw)
    found = nearest_patch(texts, images)
    for row, token in itertools.product(range(2), range(5)):
        cosines = [float(F.cosine_similarity(texts[row, token], patch, dim=0)) for patch in images[row, 1:]]
        assert found[row, token] == pytest.approx(max(cosines), abs=1e-6)

    torch.manual_seed(0)
    evidence = PatchEvidence(model.gadms)
    ids = tiny_captions([6, 9], vocab_size=model.config.text_config.vocab_size)
    with torch.no_grad():
        keys = 20 * evidence.keys(tiny_images(2))
        concentration = patch_concentration(evidence, keys, ids)
        for row, token in ((0, 1), (0, 4), (1, 7)):
            query = evidence.queries(ids, torch.tensor([row]), torch.tensor([token]))[0]
            weights = [math.exp(float(query @ key) / math.sqrt(keys.shape[-1] / 2)) for key in keys[row]]
            shares = [weight / sum(weights) for weight in weights]
            expected = sum(share * math.log(share) for share in shares)
            assert concentration[row, token] == pytest.approx(expected, abs=1e-4)
            assert -math.log(len(keys[row])) < expected < -0.01
    assert concentration[0, 0] == concentration[0, 5] == 0


@pytest.mark.parametrize(
    ("words", "number", "phrase"),
    [
        (["hair.length", "hair.color"], 0, "long black hair"),
        (["hair.length", "hair.color"], 1, "long black hair"),
        (["view.direction", "hair.color"], 0, "long"),
        (["top.color", "lower.color"], 1, "black hair"),
        (["top.garment", "top.color"], 1, "long black"),
    ],
)
def test_a_phrase_ends_with_its_noun(words, number, phrase):
    spans = [{"start": 2, "end": 6}, {"start": 7, "end": 12}]
    listed = [{**span, "attribute": attribute} for span, attribute in zip(spans, words, strict=True)]
    assert phrase_around("A long black hair, tied", listed, number) == phrase
    assert phrase_around("A long black", listed, number) == phrase.removesuffix(" hair")


def test_a_phrase_alone_has_the_cosine_of_its_text(pretrained, rows):
    model, processor = pretrained
    found = word_suspicions("phrase", model.gadms, processor, rows, batch_size=3)
    images = unit_images(model, processor, rows)
    for (image, caption, words), scores in zip(places(rows), found, strict=True):
        texts = [phrase_around(caption, words, number) for number in range(len(words))]
        expected = -(unit(model, processor, texts) @ images[image])
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_swap_is_judged_by_captions_with_each_other_value(pretrained, rows):
    model, processor = pretrained
    listed = [[{**words[0], "attribute": "other.color"}, *words[1:]] for words in rows["caption2_words"][:2]]
    rows = rows.select(range(2)).remove_columns("caption2_words").add_column("caption2_words", listed)
    found = word_suspicions("swap", model.gadms, processor, rows)
    images, unknown = unit_images(model, processor, rows), []
    for (image, caption, words), scores in zip(places(rows), found, strict=True):
        for word, score in zip(words, scores, strict=True):
            said = caption[word["start"] : word["end"]]
            if word["attribute"] not in WORDS:
                unknown.append(score)
                continue
            values = WORDS[word["attribute"]]
            others = [names[0] for names in values.values() if said not in names]
            texts = [caption[: word["start"]] + other + caption[word["end"] :] for other in others]
            texts = [text.replace("a orange", "an orange") for text in texts]
            own, *rivals = (unit(model, processor, [caption, *texts]) @ images[image] / 0.02).tolist()
            expected = own - math.log(sum(math.exp(rival) for rival in rivals) / len(rivals))
            assert score == pytest.approx(-expected, abs=1e-2)
    everything = [score for scores in found for score in scores]
    known = [score for score in everything if score is not None]
    assert unknown == [None] * len(unknown) and len(unknown) == len(everything) - len(known) > 0
    assert scored_share(found) == pytest.approx(len(known) / len(everything))
    for scores, whole in zip(found, filled(found), strict=True):
        assert whole == pytest.approx([np.mean(known) if score is None else score for score in scores])


def test_surprise_masks_a_quarter_of_the_words_at_a_time(pretrained, rows):
    model, processor = pretrained
    found = word_suspicions("surprise", model.gadms, processor, rows, decoder=model)
    for (image, caption, words), scores in itertools.islice(zip(places(rows), found, strict=True), 4):
        encoded = processor.tokenizer([caption], return_offsets_mapping=True, return_tensors="pt")
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"][0].tolist()
        tokens = [
            [n for n, (start, end) in enumerate(offsets) if word["start"] <= start < end <= word["end"]]
            for word in words
        ]
        assert all(tokens)
        with torch.no_grad():
            pixels = processor(images=[rows[image]["image"]], return_tensors="pt")["pixel_values"]
            seen = model.gadms.project_image_tokens(model.gadms.vision_model(pixels).last_hidden_state)
            for number, own in enumerate(tokens):
                hidden = torch.zeros_like(ids, dtype=torch.bool)
                hidden[0, [place for other in tokens[number % 4 :: 4] for place in other]] = True
                masked = ids.masked_fill(hidden, model.config.mask_token_id)
                text = model.gadms.text_projection(model.gadms.text_model(masked).last_hidden_state)
                surprise = []
                for place in own:
                    here = torch.zeros_like(hidden)
                    here[0, place] = True
                    logits = model.decoder(text, seen, torch.ones_like(hidden), here)[0]
                    surprise.append(float(logits.max() - logits[ids[0, place]]))
                assert scores[number] == pytest.approx(np.mean(surprise), abs=1e-4)


def test_a_prefix_moves_no_word(pretrained, rows, monkeypatch):
    model, processor = pretrained
    for prefix in ("", "a person, a shirt: "):
        monkeypatch.setattr("modeling_gadms.noise.detectors.PREFIXES", {"clip4dm": prefix})
        found = word_suspicions("clip4dm", model.gadms, processor, rows.select(range(2)))
        for (image, caption, words), scores in zip(places(rows.select(range(2))), found, strict=True):
            encoded = processor.tokenizer([prefix + caption], return_offsets_mapping=True, return_tensors="pt")
            pixels = processor(images=[rows[image]["image"]], return_tensors="pt")["pixel_values"]
            trust = clip4dm(model.gadms, pixels, encoded["input_ids"])[0]
            for word, score in zip(words, scores, strict=True):
                first, last = (len(prefix) + word[end] for end in ("start", "end"))
                assert (prefix + caption)[first:last] in (*COLOURS, "coat", "shirt")
                offsets = encoded["offset_mapping"][0].tolist()
                inside = [n for n, (start, end) in enumerate(offsets) if first <= start < end <= last]
                assert score == pytest.approx(-float(trust[inside].mean()), abs=1e-6)


@pytest.mark.parametrize(
    "caption",
    [
        "a man.  he wears\n a red coat",
        "tom &amp; jerry in a red coat",
        "\u0130n a red coat",
        "a \u201cred\u201d coat",
        "a red coat ",
    ],
)
def test_captions_that_the_tokenizer_changes_are_refused_before_their_places_are_looked_up(pretrained, rows, caption):
    """Where cleaning moves characters, the tokens at a word's place are those of another word."""
    model, processor = pretrained
    changed = rows.map(lambda row, n: {"caption2": caption if n == 3 else row["caption2"].upper()}, with_indices=True)
    for method in ("random", "swap", "posterior"):
        with pytest.raises(DataError, match=rf"{rows[3]['image_path']}: caption2 is read as .*clean_caption.*_words"):
            word_suspicions(method, model.gadms, processor, changed)
    kept = changed.select([number for number in range(len(rows)) if number != 3])
    assert word_suspicions("masked", model.gadms, processor, kept)  # capitals move nothing


def test_every_method_gives_a_number_for_each_word_and_refuses_what_it_cannot_read(pretrained, rows):
    model, processor = pretrained
    for method in ("random", "cosine", "nam", "gass", "gass-released", "masked"):
        found = word_suspicions(method, model.gadms, processor, rows, batch_size=8)
        assert [len(scores) for scores in found] == [len(words) for *_, words in places(rows)]
        assert np.isfinite([score for scores in found for score in scores]).all()
    for method, reason in (("surprise", "asks the decoder"), ("oracle", "no column attributes")):
        with pytest.raises(DataError, match=reason):
            refuse_method(method, model.gadms, rows, None)
    mixed = rows.map(lambda row, n: {"image": row["image"].resize((16 + n % 2, 40))}, with_indices=True)
    with pytest.raises(DataError, match="oracle is taught drawn persons of one size"):
        refuse_method("oracle", model.gadms, mixed.add_column("attributes", ["{}"] * len(mixed)), None)
    model.gadms.config.text_config.model_type, kept = "siglip_text_model", model.gadms.config.text_config.model_type
    try:
        for method in ("clip4dm", "gass-released"):
            with pytest.raises(DataError, match=f"{method} is for"):
                refuse_method(method, model.gadms, rows, None)
    finally:
        model.gadms.config.text_config.model_type = kept
    assert {"phrase", "swap", "entropy", "evidence", "posterior"} < set(METHODS)


def renamed(rows, attribute):
    """The rows, all of whose words are of this attribute."""
    names = "caption1_words", "caption2_words"
    return rows.map(lambda row: {name: [{**word, "attribute": attribute} for word in row[name]] for name in names})


def test_a_method_that_would_know_no_word_is_refused_before_it_is_asked(pretrained, rows):
    model, _ = pretrained
    elsewhere, labelled = renamed(rows, "upper.color"), rows.add_column("attributes", ["{}"] * len(rows))
    for method, data, families, reason in (
        (
            "swap",
            elsewhere,
            None,
            "no listed word of the test captions says a value of the families .*: give families",
        ),
        ("posterior", elsewhere, None, "posterior asks what else of a family could be said"),
        ("swap", rows, {"verbs": Family({"is": ("is",), "was": ("was",)})}, "of the families verbs: give"),
        ("oracle", renamed(labelled, "upper.color"), None, "no listed word is of any"),
    ):
        with pytest.raises(DataError, match=reason):
            refuse_method(method, model.gadms, data, None, families)
    colors = {"colors": Family({color: (color,) for color in COLOURS})}
    for method, data in (("swap", elsewhere), ("posterior", elsewhere), ("oracle", labelled)):
        refuse_method(method, model.gadms, data, None, None if method == "oracle" else colors)


def test_words_that_all_lie_beyond_what_the_model_reads_are_not_scored_at_all(pretrained, rows):
    model, processor = pretrained
    caption, start = "a coat " * 200 + "red", 7 * 200
    word = {"start": start, "end": start + 3, "attribute": "top.color", "is_false": True}
    names = "caption1", "caption2"
    late = rows.map(lambda row: {name: caption for name in names} | {f"{name}_words": [word] for name in names})
    with pytest.raises(DataError, match="masked scores no listed word: all lie beyond what the model reads"):
        word_suspicions("masked", model.gadms, processor, late.select(range(2)))


def test_every_method_gives_the_same_on_another_device(pretrained, rows, monkeypatch):
    """What is learnt for them is learnt there as well."""
    monkeypatch.setattr("modeling_gadms.noise.detectors.ORACLE_EPOCHS", 1)
    processor, rows = pretrained[1], rows.add_column("attributes", ["{}"] * len(rows))
    families = drawn_families()

    def scores(device):
        model = copy.deepcopy(pretrained[0]).to(device)
        learning = {"steps": 2, "tower_learning_rate": 1e-3, "batch_size": 4, "progress": False}
        reader = train_value_reader(model.gadms, processor, rows, families, **learning)
        evidence = train_patch_evidence(model.gadms, processor, rows, **learning)
        assert {one.device.type for one in (model.gadms, evidence.tower, reader.tower)} == {device}
        options = {"decoder": model, "oracle_persons": 64, "families": families}
        return {
            method: word_suspicions(method, model.gadms, processor, rows, evidence, reader, **options)
            for method in METHODS
        }

    expected = scores("cpu")
    with OtherDevice():
        found = scores(NAME)
    for method in METHODS:
        for one, other in zip(found[method], expected[method], strict=True):
            assert one == pytest.approx(other, abs=1e-5), method


def some_scores(count=120, seed=0):
    draw = np.random.default_rng(seed)
    is_false = draw.random(count) < 0.3
    scores = np.column_stack([is_false + draw.normal(size=count), 9 + 5 * draw.normal(size=count), np.ones(count)])
    return scores, is_false, draw.integers(0, 20, size=count)


def test_weights_are_where_slow_descent_ends():
    scores, is_false, _ = some_scores()
    inputs = np.column_stack([scores[:, :1], np.ones(len(scores))])
    weights = np.zeros(2)
    for _ in range(3000):
        slope = np.zeros(2)
        for values, target in zip(inputs, is_false, strict=True):
            slope += (1 / (1 + math.exp(-values @ weights)) - target) * values
        weights -= 0.02 * (slope + [weights[0], 0.0])
        if np.abs(slope + [weights[0], 0.0]).max() < 1e-7:
            break
    assert logistic_weights(inputs, is_false) == pytest.approx(weights, abs=1e-5)


def test_a_half_is_judged_by_the_truth_of_the_other_alone():
    scores, is_false, persons = some_scores()
    second = np.isin(persons, np.unique(persons)[1::2])
    found = two_fold_probabilities(scores, is_false, persons)
    other = is_false.copy()
    other[second] = ~other[second]
    changed = two_fold_probabilities(scores, other, persons)
    assert np.array_equal(found[second], changed[second]) and not np.allclose(found[~second], changed[~second])
    assert ranking_quality(found, is_false)[0] > 0.65
    inputs = (scores - scores[second].mean(axis=0)) / np.array([*scores[second, :2].std(axis=0), 1.0])
    weights = logistic_weights(np.column_stack([inputs, np.ones(len(inputs))])[second], is_false[second])
    expected = 1 / (1 + np.exp(-(inputs @ weights[:-1] + weights[-1])))
    assert found[~second] == pytest.approx(expected[~second])
    with pytest.raises(ValueError, match="too few to learn from"):
        two_fold_probabilities(scores, is_false & second, persons)


def word(caption, text, attribute, is_false):
    start = caption.index(text)
    return {"start": start, "end": start + len(text), "attribute": attribute, "is_false": is_false}


def test_groups_of_words_are_those_that_their_names_say():
    first, second = "a red coat with a blue bag, a cap", "a red coat, no more"
    truth = json.dumps({"coat.color": "green", "coat.kind": "coat", "bag.color": "none", "bag.kind": "none"})
    row = {
        "caption1": first,
        "caption1_words": [
            word(first, "red", "coat.color", True),
            word(first, "coat", "coat.kind", False),
            word(first, "blue", "bag.color", True),
            word(first, "bag", "bag.kind", True),
        ],
        "caption2": second,
        "caption2_words": [word(second, "red", "coat.color", True), word(second, "coat", "coat.kind", True)],
        "attributes": truth,
    }
    other = {**row, "caption2": first, "caption2_words": [word(first, "blue", "bag.color", False)]}
    other |= {"caption1_words": [word(first, "bag", "bag.color", True), word(first, "cap", "hat.kind", False)]}
    other["attributes"] = json.dumps({"bag.color": "red", "hat.kind": "cap"})
    found = word_groups(datasets.Dataset.from_list([row, other]))
    #          red1   coat1  blue1  bag1   red2   coat2  bag3   cap3   blue4
    expected = {
        "first third": [1, 1, 0, 0, 1, 1, 0, 0, 0],
        "middle third": [0, 0, 1, 0, 0, 0, 0, 0, 1],
        "last third": [0, 0, 0, 1, 0, 0, 1, 1, 0],
        "rare words": [0, 0, 0, 0, 0, 0, 1, 0, 0],
        "common words": [1, 1, 1, 1, 1, 1, 0, 1, 1],
        "wrong in both": [1, 1, 0, 0, 1, 0, 0, 0, 1],
        "wrong in one": [0, 1, 0, 0, 0, 1, 1, 0, 1],
        "things made up": [0, 0, 1, 1, 0, 0, 0, 0, 1],
        "things of wrong value": [0, 0, 0, 0, 0, 0, 1, 0, 1],
    }
    assert {name: chosen.astype(int).tolist() for name, chosen in found.items()} == expected
    assert "things made up" not in word_groups(datasets.Dataset.from_list([row, other]).remove_columns("attributes"))
    is_false = np.array([1, 0, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    shares = by_group(np.arange(9.0), is_false, found)
    assert shares["things made up"] == {"AUROC": 0.0, "num_words": 3, "num_false": 2}
    assert shares["rare words"]["AUROC"] is None


def test_the_oracle_gives_what_is_said_the_probability_that_its_pixels_leave():
    oracle = train_oracle((32, 16), 70, 1)
    again = train_oracle((32, 16), 70, 1)
    assert all(torch.equal(a, b) for a, b in zip(oracle.parameters(), again.parameters(), strict=True))
    image = Image.effect_noise((16, 32), 80).convert("RGB")
    caption = "Jet-black hair, a chair"
    words = [{"start": 0, "end": 9, "attribute": "hair.color"}, {"start": 18, "end": 23, "attribute": "bag.kind"}]
    found = oracle_trust(
        oracle, [image, image], {"caption1": [caption] * 2, "caption1_words": [words, []]}, "caption1"
    )
    assert found[0][1] is None and found[1] == []
    pixels = torch.tensor(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    head = list(VALUES).index("hair.color")
    with torch.no_grad():
        both = [oracle(view)[head].softmax(dim=-1)[0, 1] for view in (pixels, pixels.flip(-1))]
    # it learns: of the persons that it was taught, what is true is likelier than by guessing
    oracle, likely = train_oracle((32, 16), 64, 50), []
    rows = generate_rows("validation", 0, 64, image_size=(32, 16), views_per_person=1, noise_rate=0.0, seed=0)
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        likely += oracle_trust(
            oracle, [image], {name: [row[name]] for name in ("caption1", "caption1_words")}, "caption1"
        )[0]
    assert np.mean(likely) > 0.4
    assert VALUES["hair.color"][1] == "black" and found[0][0] == pytest.approx(float(sum(both)) / 2, abs=1e-6)


def test_what_the_oracle_sees_is_the_ceiling_of_the_others():
    words = [
        [{"start": 0, "end": 1, "attribute": "seen" if n % 2 else "unseen", "is_false": n % 3 == 0}] for n in range(30)
    ]
    truth = [[1.0 * one[0]["is_false"]] if one[0]["attribute"] == "seen" else [0.5] for one in words]
    half = [[score[0] if n % 4 == 1 else 0.5] for n, score in enumerate(truth)]
    results = figures({"half": half, "oracle": truth}, words, list(range(30)), {"every word": np.ones(30, dtype=bool)})
    seen = [n for n in range(30) if n % 2]
    expected = ranking_quality(np.array([half[n][0] for n in seen]), np.array([n % 3 == 0 for n in seen]))[0]
    assert results["half"]["visible"] == {"AUROC": pytest.approx(expected), "of_oracle": pytest.approx(expected)}
    text = written(results)
    assert f"| half | {expected:.3f} | {expected:.3f} |" in text and "at least 0.9: seen." in text
    assert "`oracle` reads labels" in text and "| every word (10 false of 30) |" in text
    without = figures({"half": half}, words, list(range(30)), {})
    assert "visible" not in without["half"]
