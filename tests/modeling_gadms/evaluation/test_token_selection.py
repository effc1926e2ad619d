"""RDE's second branch against its description, token by token, and as a scoring of the evaluation."""

import importlib.util
import json

import pytest
import released_twin as twin
import torch
import torch.nn.functional as F
from places import REPO
from tiny import tiny_processor, tiny_rows

from modeling_gadms.convert_gadms_to_hf import convert_checkpoint
from modeling_gadms.evaluation.encoding import encode_retrieval_set
from modeling_gadms.evaluation.metrics import evaluate_embeddings
from modeling_gadms.evaluation.models import load_retriever
from modeling_gadms.evaluation.rescoring import SCORINGS, TOKEN_SELECTION
from modeling_gadms.hub.listings import MODEL
from modeling_gadms.released.checkpoints import load_released
from modeling_gadms.released.token_selection import SELECTION_FILE, WithTokenSelection, load_selection

# ---- the description: of each side the tokens that the global one attends to most in the last layer, three in ten of
# those that there are places for, of unit length; through an MLP and, beside it, one layer; the maximum over tokens.


def last_tokens(weights, side, given):
    """Tokens of one image or caption in the joint space, and how the last layer's tokens attend, mean over heads."""
    if side == "visul_emb_layer":
        tokens = twin.encode_image(weights, given)
        kernel = weights["visual.conv1.weight"].flatten(1)
        patches = [
            kernel @ given[:, top : top + twin.PATCH, left : left + twin.PATCH].flatten()
            for top in range(0, given.shape[1], twin.PATCH)
            for left in range(0, given.shape[2], twin.PATCH)
        ]
        x = torch.stack([weights["visual.class_embedding"], *patches]) + weights["visual.positional_embedding"]
        x, later, blocks = twin.norm(weights, "visual.ln_pre", x), None, "visual.transformer"
    else:
        tokens, blocks = twin.encode_text(weights, given), "transformer"
        x, later = twin.text_input(weights, given)
    for index in range(twin.DEPTHS[blocks]):
        x, inside = twin.block(weights, f"{blocks}.resblocks.{index}", x, later)
    return tokens, inside[-1]


def selection(weights, side, given):
    tokens, attention = last_tokens(weights, side, given)
    if side == "visul_emb_layer":
        own, at, places, beside = range(1, len(tokens)), 0, len(tokens) - 1, "fc"
    else:
        eos = int(given.argmax())
        # "!", id 0, is padding to RDE
        own, at, places = [token for token in range(1, eos) if given[token]], eos, twin.CONTEXT_LENGTH - 2
        beside = "linear"
    chosen = sorted(own, key=lambda token: -float(attention[at, token]))[: int(0.3 * places)]
    outputs = []
    for token in chosen:
        x = tokens[token] / tokens[token].norm()
        hidden = F.linear(x, weights[f"{side}.mlp.layers.0.weight"], weights[f"{side}.mlp.layers.0.bias"])
        mean, variance = (weights[f"{side}.mlp.bns.0.running_{name}"] for name in ("mean", "var"))
        hidden = (hidden - mean) / (variance + 1e-5).sqrt()
        hidden = (hidden * weights[f"{side}.mlp.bns.0.weight"] + weights[f"{side}.mlp.bns.0.bias"]).clamp_min(0)
        deep = F.linear(hidden, weights[f"{side}.mlp.layers.1.weight"], weights[f"{side}.mlp.layers.1.bias"])
        outputs.append(deep + F.linear(x, weights[f"{side}.{beside}.weight"], weights[f"{side}.{beside}.bias"]))
    return torch.stack(outputs).amax(dim=0)


def released(vocab_size=twin.VOCAB_SIZE):
    weights = twin.clip_weights()
    if vocab_size != twin.VOCAB_SIZE:
        generator = torch.Generator().manual_seed(9)
        weights["token_embedding.weight"] = torch.randn(vocab_size, 128, generator=generator)
    return weights | twin.selection_weights()


def save(weights, folder):
    path = str(folder / "best.pth")
    torch.save(
        {"model": {f"base_model.{name}" if "emb_layer" not in name else name: w for name, w in weights.items()}}, path
    )
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rde")
    processor = tiny_processor((24, 8), twin.CONTEXT_LENGTH)
    processor.save_pretrained(folder / "tokenizer")
    path = save(released(len(processor.tokenizer)), folder)
    convert_checkpoint(path, str(folder / "model"), tokenizer=str(folder / "tokenizer"))
    return str(folder / "model")


@torch.no_grad()
def test_both_sides_embed_the_selected_tokens_as_described(tmp_path):
    weights = released()
    model, conversion = load_released(save(weights, tmp_path))
    both = WithTokenSelection(model, conversion.selection)
    captions, pictures = twin.captions([9, 5, 3, 16, 12, 9, 7, 9]), twin.images(8)
    captions[0, 2:6:2] = captions[4, 1:7] = 0
    texts = both.get_text_features(captions).pooler_output
    images = both.get_image_features(pictures).pooler_output
    for row in range(8):
        globals_ = (
            twin.encode_text(weights, captions[row])[captions[row].argmax()],
            twin.encode_image(weights, pictures[row])[0],
        )
        selected = (
            selection(weights, "texual_emb_layer", captions[row]),
            selection(weights, "visul_emb_layer", pictures[row]),
        )
        for found, whole, chosen in zip((texts[row], images[row]), globals_, selected, strict=True):
            assert len(found) == 128 + 256
            torch.testing.assert_close(found[:128] * 2**0.5, F.normalize(whole, dim=0), atol=1e-4, rtol=0)
            torch.testing.assert_close(found[128:] * 2**0.5, F.normalize(chosen, dim=0), atol=1e-4, rtol=0)
    short = both.get_text_features(captions[1:2, :5]).pooler_output
    torch.testing.assert_close(short, texts[1:2], atol=1e-5, rtol=0)
    assert both.get_text_features(twin.captions([2])).pooler_output[0, 128:].eq(0).all(), "nothing to select"


def test_the_similarity_is_the_mean_of_two_cosines_and_a_scoring_of_the_evaluation(converted, tmp_path, capsys):
    model, processor = load_retriever(converted)
    both, rows = WithTokenSelection(model, load_selection(converted)), tiny_rows(8)
    fused = encode_retrieval_set(both, processor, rows, progress=False)
    plain = encode_retrieval_set(model, processor, rows, progress=False)
    parts = [fused.text_embeds[:, part] @ fused.image_embeds[:, part].T for part in (slice(128), slice(128, None))]
    torch.testing.assert_close(2 * parts[0], plain.text_embeds @ plain.image_embeds.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused.text_embeds @ fused.image_embeds.T, parts[0] + parts[1], atol=1e-6, rtol=0)
    assert (2 * parts[1]).abs().max() <= 1.0001 and (parts[0] - parts[1]).abs().max() > 0.01

    rows.to_parquet(tmp_path / "data" / "test.parquet")
    spec = importlib.util.spec_from_file_location("evaluate_retrieval", REPO / "examples" / "evaluate_retrieval.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    options = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--use_cpu", "True"]
    options += ["--model", converted, "--benchmark", str(tmp_path / "data"), "--rescore", TOKEN_SELECTION]
    assert example.main(options) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    found = content["results"][1]
    assert found["scoring"] == SCORINGS[TOKEN_SELECTION] and set(found["metrics"]) == {"t2i", "i2t"}
    expected = evaluate_embeddings(fused, num_resamples=2).metrics
    for way, metrics in expected.items():
        assert {name: value["mean"] for name, value in found["metrics"][way].items()} == pytest.approx(
            {name: interval.mean for name, interval in metrics.items()}
        )
    assert SCORINGS[TOKEN_SELECTION] in content["comparisons"][0]["model"]


def test_what_has_no_second_branch_says_so_and_half_of_one_is_refused(converted, tmp_path):
    assert MODEL.owns(SELECTION_FILE), "it goes to the Hub with the model"
    weights = released()
    half = {name: tensor for name, tensor in weights.items() if "texual_emb_layer.mlp.bns.0.running" not in name}
    with pytest.raises(ValueError, match="best.pth: 2 weights of RDE's token selection are missing"):
        load_released(save(half, tmp_path))
    weights["visul_emb_layer.fc.weight"] = torch.zeros(256, 64)
    with pytest.raises(ValueError, match="token selection do not fit each other"):
        load_released(save(weights, tmp_path))
    assert load_released(save(twin.clip_weights(), tmp_path))[1].selection is None
    assert load_selection(str(tmp_path)) is None
    (tmp_path / SELECTION_FILE).write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{SELECTION_FILE}: is cut short or no token selection"):
        load_selection(str(tmp_path))
