"""What a word does to a match, against a twin that masks one word at a time in captions without padding."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_captions, tiny_images, tiny_model, tiny_processor, tiny_rows

LENGTHS = [18, 7, 3, 2, 15, 12]
MASK = 97


def cosine(model, image, ids):
    text = model.get_text_features(torch.tensor([ids])).pooler_output[0]
    image = model.get_image_features(image[None]).pooler_output[0]
    return float(image @ text / image.norm() / text.norm())


@torch.no_grad()
def one_word_at_a_time(model, image, ids, word_of=None):
    """For one caption, a list of ids from BOS to EOS: the drop of the cosine when the word of each token is masked."""
    word_of = word_of or list(range(len(ids)))
    inner = range(1, len(ids) - 1)
    drops = [0.0] * len(ids)
    for position in inner:
        word = [other for other in inner if word_of[other] == word_of[position]]
        masked = [MASK if index in word else token for index, token in enumerate(ids)]
        drops[position] = cosine(model, image, ids) - cosine(model, image, masked)
    return torch.tensor(drops)


@pytest.fixture
def pairs():
    return tiny_model().gadms, tiny_images(len(LENGTHS)), tiny_captions(LENGTHS)


def assert_equal_to_the_twin(drops, model, pixel_values, input_ids, words=None):
    assert drops.dtype == torch.float32 and drops.shape == input_ids.shape and not drops.requires_grad
    for row, length in enumerate(LENGTHS):
        ids = input_ids[row, :length].tolist()
        expected = one_word_at_a_time(model, pixel_values[row], ids, words and words[row][:length])
        torch.testing.assert_close(drops[row, :length], expected, atol=2e-6, rtol=0)
        assert (drops[row, length:] == 0).all()


@pytest.mark.parametrize("batch_size", [256, 7, 1])
def test_each_token_is_masked_alone_whatever_the_batches(pairs, batch_size):
    model, pixel_values, input_ids = pairs
    drops = model.word_contributions(pixel_values, input_ids, batch_size=batch_size)
    assert drops.max() > 0.05 and drops.min() < -0.05, "the example is too flat to test anything"
    assert_equal_to_the_twin(drops, model, pixel_values, input_ids)


def test_tokens_of_one_word_are_masked_together(pairs):
    model, pixel_values, input_ids = pairs
    # words of one to three tokens; BOS, EOS and padding carry the number of a word, which must not matter
    words = [[position // 3 for position in range(18)] for _ in LENGTHS]
    drops = model.word_contributions(pixel_values, input_ids, word_ids=torch.tensor(words))
    assert_equal_to_the_twin(drops, model, pixel_values, input_ids, words)
    assert (drops[0, 3:6] == drops[0, 3]).all()


def test_a_words_contribution_does_not_depend_on_padding_or_its_id(pairs):
    model, pixel_values, input_ids = pairs
    drops = model.word_contributions(pixel_values, input_ids)
    padded = model.word_contributions(pixel_values, F.pad(input_ids, (0, 8)))
    torch.testing.assert_close(padded, F.pad(drops, (0, 8)), atol=2e-6, rtol=0)
    with_eos = model.word_contributions(pixel_values, input_ids.masked_fill(input_ids == 0, 99))
    torch.testing.assert_close(with_eos, drops, atol=2e-6, rtol=0)


def test_the_cosine_drops_by_a_contribution_when_its_word_is_masked_in_the_text():
    """The numbers of the words are the tokenizer's own, so that a word in pieces is masked whole."""
    processor = tiny_processor()
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    row = tiny_rows(1)[0]
    caption = "someone in a zigzag coat"
    inputs, words = processor(images=row["image"], text=caption), processor.tokenizer(caption).word_ids()
    assert words.count(3) > 1, "the word has several pieces"
    numbers = torch.tensor([[-1 if word is None else word for word in words]])
    drops = model.word_contributions(**inputs, word_ids=numbers)[0]
    ids = inputs["input_ids"].clone()
    ids[numbers == 3] = processor.tokenizer.mask_token_id
    with torch.no_grad():
        whole, without = (
            model(text, inputs["pixel_values"]).logits_per_text * 0.02 for text in (inputs["input_ids"], ids)
        )
    torch.testing.assert_close(drops[numbers[0] == 3], (whole - without)[0].expand(words.count(3)), atol=2e-6, rtol=0)


def test_half_precision_gives_float32_that_is_close(pairs):
    model, pixel_values, input_ids = pairs
    expected = model.word_contributions(pixel_values, input_ids)
    half = model.to(torch.bfloat16).word_contributions(pixel_values, input_ids)
    assert half.dtype == torch.float32 and (half - expected).abs().mean() < 0.02


def test_unpaired_batches_and_words_of_another_shape_are_refused(pairs):
    model, pixel_values, input_ids = pairs
    with pytest.raises(ValueError, match="2 images for 6 captions"):
        model.word_contributions(pixel_values[:2], input_ids)
    with pytest.raises(ValueError, match=r"word_ids are \(6, 3\) but input_ids \(6, 18\)"):
        model.word_contributions(pixel_values, input_ids, word_ids=input_ids[:, :3])
