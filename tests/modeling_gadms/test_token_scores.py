"""The gradient-attention score against full autograd on an ordinary forward pass of the tower."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_captions, tiny_images, tiny_model

from modeling_gadms.token_scores_gadms import gradient_attention_scores, minmax, pooling_matrix

LENGTHS = [18, 7, 3, 2, 15, 12]


def scores_by_full_autograd(model, pixel_values, caption, num_layers):
    """The definition, for one unpadded caption `(T,)`: an ordinary forward, hooks, and the gradient of all of it."""
    layers = list(model.text_model.encoder.layers)[-num_layers:]
    kept = {}

    def keep(name):
        return lambda module, inputs, output: kept.setdefault(name, output)

    def keep_input(name):
        return lambda module, inputs: kept.setdefault(name, inputs[0])

    handles = []
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        for name in ("q", "k", "v"):
            handles.append(getattr(attention, f"{name}_proj").register_forward_hook(keep((name, index))))
        handles.append(attention.out_proj.register_forward_pre_hook(keep_input(("a", index))))
    image_embeds = model.get_image_features(pixel_values[None]).pooler_output.detach()
    text_embeds = model.get_text_features(caption[None]).pooler_output
    for handle in handles:
        handle.remove()
    similarity = F.cosine_similarity(image_embeds, text_embeds)[0]
    gradients = torch.autograd.grad(similarity, [kept["a", index] for index in range(num_layers)])

    eos, heads = len(caption) - 1, layers[0].self_attn.num_heads
    total = torch.zeros(len(caption))
    for index in range(num_layers):
        q, k, v = (kept[name, index][0].detach() for name in ("q", "k", "v"))
        attention = torch.zeros(len(caption))
        for head in range(heads):
            part = slice(head * 32, (head + 1) * 32)
            attention += (q[eos, part] @ k[:, part].T / 32**0.5).softmax(-1) / heads
        importance = F.cosine_similarity(multi_scale_pool(q)[eos][None], multi_scale_pool(k))
        importance = (importance - importance.min()) / (importance.max() - importance.min())
        attention_score = attention / attention[1:eos].sum()
        total += importance * (v @ gradients[index][0, eos]) * attention_score
    scores = torch.zeros(len(caption))
    valid = F.relu(total / num_layers)[1:eos]
    if len(valid) and valid.max() > valid.min():
        scores[1:eos] = (valid - valid.min()) / (valid.max() - valid.min())
    return scores


def multi_scale_pool(x):  # (T, D)
    pairs = F.avg_pool1d(x.T[None], 2)
    return (x + F.interpolate(pairs, size=len(x), mode="linear", align_corners=False)[0].T) / 2


@pytest.fixture
def pairs():
    return tiny_model().gadms, tiny_images(len(LENGTHS)), tiny_captions(LENGTHS)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_scores_equal_full_autograd_on_an_ordinary_forward(pairs, num_layers):
    model, pixel_values, input_ids = pairs
    scores = model.token_scores(pixel_values, input_ids, num_layers=num_layers)
    assert (scores > 0).sum() >= 8, "the example is too flat to test anything"
    for row, length in enumerate(LENGTHS):
        expected = scores_by_full_autograd(model, pixel_values[row], input_ids[row, :length], num_layers)
        torch.testing.assert_close(scores[row, :length], expected, atol=1e-5, rtol=0)
        assert (scores[row, length:] == 0).all()


def test_two_thirds_of_the_layers_are_used_by_default(pairs):
    model, pixel_values, input_ids = pairs
    expected = model.token_scores(pixel_values, input_ids, num_layers=2)
    assert torch.equal(model.token_scores(pixel_values, input_ids), expected)


def test_scores_do_not_depend_on_padding_or_on_the_other_captions(pairs):
    model, pixel_values, input_ids = pairs
    scores = model.token_scores(pixel_values, input_ids)
    padded = model.token_scores(pixel_values, F.pad(input_ids, (0, 8)))
    torch.testing.assert_close(padded[:, : input_ids.shape[1]], scores, atol=1e-5, rtol=0)
    assert (padded[:, input_ids.shape[1] :] == 0).all()
    for row in range(len(LENGTHS)):
        alone = model.token_scores(pixel_values[row : row + 1], input_ids[row : row + 1, : LENGTHS[row]])
        torch.testing.assert_close(alone[0], scores[row, : LENGTHS[row]], atol=1e-5, rtol=0)


def test_padding_with_eos_ids_as_clip_does_gives_the_same_scores(pairs):
    model, pixel_values, input_ids = pairs
    padded_with_eos = input_ids.masked_fill(input_ids == 0, 99)
    expected = model.token_scores(pixel_values, input_ids)
    torch.testing.assert_close(model.token_scores(pixel_values, padded_with_eos), expected, atol=1e-6, rtol=0)


def test_scores_do_not_depend_on_kernel_or_mode(pairs):
    model, pixel_values, input_ids = pairs
    expected = model.token_scores(pixel_values, input_ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model.token_scores(pixel_values, input_ids), expected, atol=1e-5, rtol=0)
    assert torch.equal(
        model.train().token_scores(pixel_values, input_ids), model.eval().token_scores(pixel_values, input_ids)
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_leave_no_gradient_and_no_hook_in_any_grad_mode(pairs, context):
    model, pixel_values, input_ids = pairs
    expected = model.token_scores(pixel_values, input_ids)
    with context():
        scores = model.token_scores(pixel_values, input_ids)
    assert torch.equal(scores, expected)
    assert not scores.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_scores_work_with_frozen_weights(pairs):
    model, pixel_values, input_ids = pairs
    expected = model.token_scores(pixel_values, input_ids)
    model.requires_grad_(False)
    assert torch.equal(model.token_scores(pixel_values, input_ids), expected)


def test_scores_under_bf16_autocast_stay_close(pairs):
    model, pixel_values, input_ids = pairs
    expected = model.token_scores(pixel_values, input_ids)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.token_scores(pixel_values, input_ids)
    assert scores.dtype == torch.float32
    difference = (scores - expected).abs()
    assert difference.mean() < 0.02, difference
    assert difference[0].max() < 0.1, "the longest caption"


def test_a_caption_of_one_word_or_none_scores_zero(pairs):
    model, pixel_values, input_ids = pairs
    scores = model.token_scores(pixel_values, input_ids)
    assert (scores[2] == 0).all() and (scores[3] == 0).all()


def test_wrong_depth_and_unpaired_batches_are_refused(pairs):
    model, pixel_values, input_ids = pairs
    with pytest.raises(ValueError, match="between 1 and 3"):
        model.token_scores(pixel_values, input_ids, num_layers=4)
    with pytest.raises(ValueError, match="2 images for 6 captions"):
        gradient_attention_scores(model.text_model, model.text_projection, torch.randn(2, 64), input_ids)


def test_pooling_matrix_equals_pooling_and_interpolation():
    lengths = list(range(2, 14))
    matrix = pooling_matrix(torch.tensor(lengths), 16)
    x = torch.randn(len(lengths), 16, 5, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(lengths):
        pooled = (matrix[row] @ x[row])[:length]
        torch.testing.assert_close(pooled, multi_scale_pool(x[row, :length]), atol=1e-6, rtol=0)
        assert (matrix[row, :length, length:] == 0).all()


def test_minmax_scales_kept_values_and_flattens_constant_rows():
    values = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 4.0, 4.0, 4.0], [9.0, 1.0, 2.0, 3.0]])
    keep = torch.tensor([[False, True, True, True], [False, True, True, True], [False] * 4])
    assert minmax(values, keep).tolist() == [[0, 0, 1, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_dropout_in_the_text_tower_does_not_reach_the_scores():
    """As an adapter brings it: in training mode, before the query and value projections."""
    model = tiny_model()
    inputs = tiny_images(3), tiny_captions([9, 7, 5])
    expected = model.gadms.token_scores(*inputs)
    for layer in model.gadms.text_model.encoder.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, torch.nn.Sequential(torch.nn.Dropout(0.5), getattr(layer.self_attn, name)))
    model.train()
    modes = [module.training for module in model.modules()]
    found = [model.gadms.token_scores(*inputs) for _ in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
    assert [module.training for module in model.modules()] == modes
