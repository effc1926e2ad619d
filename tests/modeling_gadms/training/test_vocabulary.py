"""Trimmed vocabularies: captions of the corpus keep their embeddings, and most of the weights go."""

import pytest
import torch
from places import REPO
from tiny import tiny_model, tiny_processor, tiny_rows
from tiny_towers import save_towers

from dataset_webperson import DataError
from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor
from modeling_gadms.training.vocabulary import trim_vocabulary

CORPUS = ["a red coat", "A red dress, and a red coat", "wears red"]
# of the tokenizers in `tiny_towers`: what the corpus is not made of, with a word that the corpus has no piece for
GONE = {"metaclip_2": "▁blue", "siglip": "▁blue", "tipsv2": "k"}


def start(kind, folder):
    save_towers(kind, folder)
    torch.manual_seed(0)
    model = GADMSForPreTraining.from_pretrained_towers(folder, image_size=(32, 16))
    return model, GADMSProcessor.from_pretrained_towers(folder, image_size=(32, 16))


@torch.no_grad()
@pytest.mark.parametrize("kind", GONE)
def test_captions_of_the_corpus_keep_their_embeddings_and_the_way_back_is_kept(kind, tmp_path):
    model, processor = start(kind, tmp_path / "towers")
    ids = processor(text=CORPUS)["input_ids"]
    embeds = model.gadms.get_text_features(ids).pooler_output
    embeddings = model.gadms.text_model.embeddings.token_embedding.weight.clone()
    torch.nn.init.normal_(model.decoder.vocabulary.bias)
    biases = model.decoder.vocabulary.bias.clone()
    accented = processor(text="\u00e9")["input_ids"]
    layer, mask, weights = model.decoder.vocabulary.weight.clone(), model.config.mask_token_id, model.num_parameters()
    assert GONE[kind] in processor.tokenizer.get_vocab(), "the example is not what it should be"

    old_ids = trim_vocabulary(model, processor, iter(CORPUS))
    new = processor(text=CORPUS)["input_ids"]
    assert torch.equal(old_ids[new], ids)
    assert torch.equal(model.gadms.get_text_features(new).pooler_output, embeds)
    assert torch.equal(model.gadms.text_model.embeddings.token_embedding.weight, embeddings[old_ids])
    assert torch.equal(model.decoder.vocabulary.weight, layer[old_ids])
    assert torch.equal(model.decoder.vocabulary.bias, biases[old_ids])
    assert torch.equal(old_ids[processor(text="\u00e9")["input_ids"]], accented), "bytes are kept, and what is unknown"
    assert (
        old_ids[model.config.mask_token_id] == mask and processor.tokenizer.mask_token_id == model.config.mask_token_id
    )
    pieces = processor.tokenizer.get_vocab()
    assert GONE[kind] not in pieces and len(pieces) == len(old_ids) < len(embeddings)
    spared = (len(embeddings) - len(old_ids)) * (64 + 64 + 1)  # embeddings, and the decoder's layer with its biases
    assert model.num_parameters() == weights - spared

    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, tokens = GADMSModel.from_pretrained(tmp_path / "saved"), GADMSProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(tokens(text=CORPUS)["input_ids"], new)
    assert torch.equal(again.get_text_features(new).pooler_output, embeds)
    other = tokens(text="a blue coat")  # cut into smaller pieces, all of which exist
    assert other["input_ids"].max() < len(old_ids) and again.get_text_features(**other).pooler_output.isfinite().all()


def test_a_trimmed_model_trains(tmp_path):
    model, processor = start("siglip", tmp_path)
    rows = tiny_rows(4)
    trim_vocabulary(model, processor, rows["caption1"])
    loss = model(**processor(images=list(rows["image"]), text=list(rows["caption1"]))).loss
    loss.backward()
    assert loss.isfinite() and model.gadms.text_model.embeddings.token_embedding.weight.grad.any()


def test_clips_vocabulary_and_an_empty_corpus_are_refused(tmp_path):
    processor = tiny_processor()
    with pytest.raises(DataError, match="the vocabulary of CLIP's tower is not trimmed"):
        trim_vocabulary(tiny_model(vocab_size=len(processor.tokenizer)), processor, CORPUS)
    with pytest.raises(DataError, match="no captions to keep the pieces of"):
        trim_vocabulary(*start("tipsv2", tmp_path), [])


def test_the_example_prints_the_share_saved_and_leaves_a_model_that_loads(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(REPO / "examples")
    import trim_vocabulary as example  # here, for mutants are tried in a tree without examples

    save_towers("siglip", tmp_path / "towers")
    (tmp_path / "data").mkdir()
    tiny_rows(6).to_parquet(tmp_path / "data" / "train-0.parquet")
    options = {"model_name_or_path": "towers", "dataset_name": "data", "output_dir": "out"}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(tmp_path / value))]
    assert not example.main([*argv, "--image_size", "32", "16"])
    assert "% of the weights saved" in capsys.readouterr().out
    model = GADMSForPreTraining.from_pretrained(tmp_path / "out")
    assert model.config.text_config.vocab_size == len(GADMSProcessor.from_pretrained(tmp_path / "out").tokenizer)
    assert (tmp_path / "out" / "kept_ids.json").exists()
