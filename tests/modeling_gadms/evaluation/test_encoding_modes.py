"""Encoding in the middle of training: without dropout and gradient, and every module afterwards as it was."""

import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.evaluation.encoding import encode_captions, encode_images, encode_retrieval_set

CAPTIONS = ["a person in a red coat", "someone in blue trousers", "a person"]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def model_with_dropout(processor):
    model = tiny_model(vocab_size=len(processor.tokenizer)).gadms
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5
    return model


def encodings(processor):
    rows = tiny_rows(5)
    return {
        "images": lambda model: encode_images(model, processor, rows, progress=False),
        "captions": lambda model: encode_captions(model, processor, CAPTIONS, progress=False),
        "set": lambda model: encode_retrieval_set(model, processor, rows, progress=False).image_embeds,
    }


@pytest.mark.parametrize("what", ["images", "captions", "set"])
@pytest.mark.parametrize("training", [False, True])
def test_every_module_is_in_the_mode_it_was_in(processor, what, training):
    model = model_with_dropout(processor).train(training)
    encodings(processor)[what](model)
    assert [name for name, module in model.named_modules() if module.training != training] == []


@pytest.mark.parametrize("what", ["images", "captions", "set"])
def test_a_model_in_training_encodes_without_dropout_and_gradient(processor, what):
    model, encode = model_with_dropout(processor), encodings(processor)[what]
    expected = encode(model.eval())
    found = encode(model.train())
    assert torch.equal(found, expected) and not found.requires_grad
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))
