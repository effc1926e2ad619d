"""Rules for captions, and the words of attributes."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_webperson.construction.captions import repeated
from dataset_webperson.construction.captions.repeated import caption_hash, find_repeated, load_repeated
from dataset_webperson.construction.captions.rules import PROBLEMS, CaptionRules, broken_rules, tidy_caption
from dataset_webperson.construction.captions.words import ATTRIBUTE_WORDS, find_attributes
from dataset_webperson.drawn.attributes import WORDS, sample_person, sample_view
from dataset_webperson.drawn.captions import write_caption

RULES = CaptionRules()
FINE = (
    "A man in a navy hooded sweatshirt, grey trousers and white sneakers carries a black backpack.",
    "The woman with long blonde hair wears a white blouse tucked into a black pleated skirt, with red heels.",
    "A person in a T-shirt with the print 'No. 23', light-blue jeans and sandals is walking, holding an umbrella.",
    "Wearing glasses and a café-brown beret, a lady in a striped top stands with hands in her pockets.",
)


@pytest.mark.parametrize("caption", FINE)
def test_good_captions_pass(caption):
    assert broken_rules(caption, RULES) == []


def test_true_captions_of_drawn_persons_pass():
    for index in range(500):
        person, view = sample_person(0, "train", index), sample_view(0, "train", index, 0)
        caption = write_caption(person, view, 0.3, 0, "train", index, 0, "caption1").text
        assert broken_rules(caption, RULES) == [], caption


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("A man in a red coat.", "too-short"),
        (FINE[0] + " He also wears a scarf, a watch, a belt, and gloves made of brown leather." * 4, "too-long"),
        ("一个穿着红色外套的男人站着 wearing a red coat and blue jeans with shoes.", "language"),
        ("Un homme avec une veste noire porte des chaussures blanches et un sac.", "language"),
        ("Ein Mann trägt eine schwarze Jacke und eine graue Hose mit weißen Schuhen.", "language"),
        ("Una mujer con el pelo largo lleva una camisa roja y los zapatos negros.", "language"),
        ("Mężczyzna nosi granatową kurtkę oraz szare spodnie i białe buty sportowe.", "language"),
        ("A man in a [colored top] and grey trousers carries a black backpack.", "placeholder"),
        ("A man in a {top} and grey trousers with shoes carries a black backpack.", "placeholder"),
        ("I'm sorry, but I can't describe the person in this picture for you.", "refusal"),
        ("Note: I followed the template and left out what I could not see.", "refusal"),
        ("This caption follows the template: a man in a navy coat and grey trousers.", "refusal"),
        ("As an AI model, a man in a navy coat and grey trousers can be described.", "refusal"),
        ("A man in a navy coat appears to be walking with a black bag in hand.", "speculation"),
        ("A man in a navy coat and dark trousers, possibly a student, carries a bag.", "speculation"),
        ("A man in a navy coat and dark trousers, suggesting cold weather, is walking.", "speculation"),
        ("A confident man in a navy coat and dark trousers is walking with a bag.", "mood"),
        ("A man in a navy coat and dark trousers is walking on a busy city street.", "background"),
        ("A man in a navy coat and dark trousers with shoes, against a white backdrop.", "background"),
        ("A man in a navy coat and dark trousers walks with another person in a hat.", "other-people"),
        ("A man in a navy coat and dark trousers, among people in winter clothes.", "other-people"),
        ("A man man man man in a navy coat and dark trousers is walking.", "garbage"),
        ("- A man in a navy coat\n- and dark trousers\n- with white shoes is walking.", "garbage"),
        ("**A man** in a navy coat and dark trousers with white shoes is walking.", "garbage"),
        ("The man wears var x = 1; && <b>navy</b> coat and dark trousers is walking.", "garbage"),
        ("the man in a coat, " * 10, "garbage"),
        ("A man in \ufffd navy coat and dark trousers with white shoes is walking.", "garbage"),
        ("%$§ 83 the !! 29 )( is // 33 $$ with && 0 ++ 12 a == 99 ?? and 4", "garbage"),
    ],
)
def test_each_fault_is_named(caption, problem):
    assert problem in broken_rules(caption, RULES)


def test_a_caption_that_ran_out_of_tokens_is_cut_off():
    assert broken_rules(FINE[0], RULES, cut_off=True) == ["cut-off"]


def test_problems_come_in_the_order_of_the_table():
    found = broken_rules("I'm sorry, a happy [man] possibly walks in a street with another man.", RULES)
    assert found == [name for name in PROBLEMS if name in found] and len(found) >= 5


@pytest.mark.parametrize(
    ("answer", "tidy"),
    [
        (f'"{FINE[0]}"', FINE[0]),
        (f"Here is the caption: {FINE[0]}", FINE[0]),
        (f"<think>He wears\na coat?</think>\n\n{FINE[0]}", FINE[0]),
        (f"He wears\na coat?</think>\n\n{FINE[0]}", FINE[0]),
        (f"<thinking>A coat?</thinking>{FINE[0]}", FINE[0]),
        (f"◁think▷A coat?◁/think▷{FINE[0]}", FINE[0]),
        (f"{FINE[0]}<|im_end|>", FINE[0]),
        (f"<|im_start|>assistant\n{FINE[0]}<|im_end|>\n<|im_start|>user\nAnd now?", FINE[0]),
        (f"<start_of_turn>model\n{FINE[0]}<end_of_turn>\n", FINE[0]),
        (f"<|start_header_id|>assistant<|end_header_id|>\n\n{FINE[0]}<|eot_id|>", FINE[0]),
        (f"<s> {FINE[0]}</s>", FINE[0]),
        (f"<think>A box.</think><answer><|begin_of_box|>{FINE[0]}<|end_of_box|></answer>", FINE[0]),
        (
            f"<|channel|>analysis<|message|>A coat?<|end|><|start|>assistant<|channel|>final<|message|>{FINE[0]}",
            FINE[0],
        ),
        ("<think>He wears a coat, or is it", ""),
        ("<|channel|>analysis<|message|>He wears a coat, or", ""),
        (FINE[0].replace(" grey", "\n  grey"), FINE[0]),
        (f"```\n{FINE[0]}\n```", FINE[0]),
        (f'```json\n{{"caption": "{FINE[0]}", "words": 15}}\n```\nLet me know.', FINE[0]),
        (f'{{"Description": "{FINE[0]}"}}', FINE[0]),
        (f'[{{"text": "{FINE[0]}"}}]', FINE[0]),
        (f"**Caption:** {FINE[0]}", FINE[0]),
        (f"**Final caption**: {FINE[0]}", FINE[0]),
        (f"### Caption\n\n{FINE[0]}", FINE[0]),
        (f"**{FINE[0]}**", FINE[0]),
        (f"- {FINE[0]}", FINE[0]),
        (FINE[0].replace("navy", "**navy**"), FINE[0]),
        (f"Note: I followed the template and left out the hat. {FINE[0]}", FINE[0]),
        (f"{FINE[0]}\n\n*Note: I followed the template; no shoes are visible.*", FINE[0]),
        (f"{FINE[0]} (Note: the hat is left out. The template was kept.)", FINE[0]),
        (f"{FINE[0]} I have followed the given sentence structure.", FINE[0]),
        (f"I used the provided template. {FINE[0]}", FINE[0]),
        ("Note: I followed the template.", "Note: I followed the template."),
        ("{not json, a man in a coat", "{not json, a man in a coat"),
        ("A man. He wears a [colored top] today.", "A man. He wears a [colored top] today."),
    ],
)
def test_form_is_mended_and_words_are_not(answer, tidy):
    assert tidy_caption(answer) == tidy


def test_a_coat_with_a_note_on_it_is_no_note_on_the_task():
    for caption in (
        "A man in a navy coat holds a note in one hand and a black bag in the other.",
        "A woman wears a T-shirt with the word 'template' on it, blue jeans and white sneakers.",
        "A man with a format of checks on his shirt wears jeans, and keeps his hands in his pockets.",
    ):
        assert tidy_caption(caption) == caption and broken_rules(caption, RULES) == []


def test_captions_on_too_many_images_are_found_as_by_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(repeated, "_IN_MEMORY", 7)
    random = np.random.default_rng(0)
    rows = [{f"caption{n}": f"A man, number {random.integers(1, 12) ** 2}." for n in (1, 2)} for _ in range(60)]
    rows += [{"caption1": "a MAN  number 1", "caption2": ""}]
    shards = []
    for number in range(3):
        shards.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows[number::3]), shards[-1])
    images = Counter(word for row in rows for word in {row[name].lower().rstrip(".").split(" ")[-1] for name in row})
    for limit in (5, 8, 100):
        expected = {f"A man, number {word}." for word, count in images.items() if word and count > limit}
        assert find_repeated(shards, str(tmp_path / "plan"), limit) == len(expected)
        assert load_repeated(str(tmp_path / "plan")) == {caption_hash(caption) for caption in expected}
    assert find_repeated([], str(tmp_path / "none"), 5) == 0 and load_repeated(str(tmp_path / "none")) == frozenset()
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == ["done.json", "repeated.npy"]


@pytest.mark.parametrize("limits", [(0, 5), (6, 5)])
def test_limits_that_leave_nothing_are_refused(limits):
    with pytest.raises(ValueError, match="min_words"):
        CaptionRules(*limits)


def test_long_answers_are_checked_fast():
    # Patterns that backtrack would take hours for this.
    for text in (
        "a " * 20_000,
        "in a " + "very-" * 20_000,
        "[" * 50_000,
        "A man on a " + "big " * 20_000,
        "<think>" * 20_000,
        "**a" * 20_000,
        "```" * 20_000,
        "note: (" * 20_000,
        '[{"a":' * 20_000,
    ):
        broken_rules(tidy_caption(text), RULES)


def test_attribute_words_are_found_with_their_places():
    text = "Two women in Navy-blue coats, a tank top with polka dots; flip-flops, glasses and the man's watch."
    found = find_attributes(text)
    assert [(kind, word) for kind, word, _, _ in found] == [
        ("gender", "women"),
        ("color", "navy-blue"),
        ("outerwear", "coats"),
        ("top", "tank top"),
        ("pattern", "polka dots"),
        ("shoes", "flip-flops"),
        ("glasses", "glasses"),
        ("gender", "man's"),
        ("accessory", "watch"),
    ]
    assert all(text[start:end].lower() == word for _, word, start, end in found)


def test_words_of_form_and_place_are_no_attributes():
    assert find_attributes("On top, with hair, the person has the outfit on the head and both hands below.") == []


def test_no_word_is_of_two_kinds():
    words = [word for words in ATTRIBUTE_WORDS.values() for word in words]
    assert len(words) == len(set(words))


def test_colours_and_garments_of_the_drawn_persons_are_known():
    for name in ("top.color", "lower.garment", "coat.garment", "shoes.kind", "bag.kind", "hat.kind", "person.gender"):
        for words in WORDS[name].values():
            for word in words:
                assert find_attributes(word), word
