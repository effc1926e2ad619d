"""What the tests of galleries share."""

import pytest
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    processor = tiny_processor()
    return tiny_model(vocab_size=len(processor.tokenizer)), processor
