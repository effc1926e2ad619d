"""Image towers that rotate queries and keys, against one that turns each pair of numbers as a complex number."""

import cmath
import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_images
from tiny_towers import ROTARY, tiny_rotary
from transformers import CLIPVisionModel

from modeling_gadms.configuration_gadms import GADMSEva02VisionConfig, GADMSPECoreVisionConfig
from modeling_gadms.masking_gadms import draw_uniforms
from modeling_gadms.rotary_vision_gadms import GADMSEva02VisionModel, GADMSPECoreVisionModel
from modeling_gadms.vision_gadms import patches_kept, resize_position_table

SIZE, GRID = (48, 16), (6, 2)
REFERENCE = 3


@pytest.fixture(scope="module", params=ROTARY)
def tiny(request):
    return tiny_rotary(request.param, SIZE)


@pytest.fixture(scope="module")
def gadms(tiny):
    return tiny[0].gadms


# ---- the tower written out: a token, a head and a pair of numbers at a time


def turned(vector, tower, row, column):
    """A head's vector at a patch: neighbouring numbers are a complex number, multiplied by one of length 1."""
    start = 0 if tower == "eva02" else 1
    down = (row + start) / GRID[0] * REFERENCE
    across = (column + start) / GRID[1] * REFERENCE
    first, second = (down, across) if tower == "eva02" else (across, down)
    bands = len(vector) // 4
    factors = [cmath.exp(1j * first * 10000 ** (-band / bands)) for band in range(bands)]
    factors += [cmath.exp(1j * second * 10000 ** (-band / bands)) for band in range(bands)]
    numbers = torch.complex(vector[0::2], vector[1::2]) * torch.tensor(factors)
    return torch.view_as_real(numbers).flatten()


def norm(states, layer):
    mean, variance = states.mean(-1, keepdim=True), states.var(-1, correction=0, keepdim=True)
    return (states - mean) / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def linear(states, layer):
    return states @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def attended(tower, attention, states):
    """`(T, D)` -> `(T, D)`; the class token, which comes first, is not turned."""
    query, key, value = (linear(states, getattr(attention, f"{letter}_proj")) for letter in "qkv")
    heads = []
    for part in (slice(0, 32), slice(32, 64)):
        both = []
        for given in (query, key):
            rows = [given[0, part]]
            for patch in range(GRID[0] * GRID[1]):
                rows.append(turned(given[1 + patch, part], tower, *divmod(patch, GRID[1])))
            both.append(torch.stack(rows))
        heads.append((both[0] @ both[1].T / 32**0.5).softmax(dim=-1) @ value[:, part])
    seen = torch.cat(heads, dim=-1)
    return linear(norm(seen, attention.norm) if tower == "eva02" else seen, attention.out_proj)


def activated(tower, mlp, states):
    if tower == "eva02":
        gate = linear(states, mlp.gate)
        return linear(norm(gate * torch.sigmoid(gate) * linear(states, mlp.fc1), mlp.norm), mlp.fc2)
    hidden = linear(states, mlp.fc1)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return linear(gelu, mlp.fc2)


def pooled(head, states):
    """What a learnt question sees of tokens `(S, D)`, by 8 heads of 8."""
    weights, biases = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    query = weights[0] @ head.probe[0, 0] + biases[0]
    key, value = (states @ weights[which].T + biases[which] for which in (1, 2))
    parts = [slice(8 * number, 8 * number + 8) for number in range(8)]
    seen = torch.cat([(key[:, part] @ query[part] / 8**0.5).softmax(0) @ value[:, part] for part in parts])
    seen = linear(seen, head.attention.out_proj)
    return seen + activated("pe_core", head.mlp, norm(seen, head.layernorm))


def slow_tokens(gadms, pixels):
    """An image's tokens after the last norm, `(1 + patches, D)`."""
    tower, vision = gadms.config.tower, gadms.vision_model
    embeddings = vision.embeddings
    patches = [
        pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] for row in range(GRID[0]) for column in range(2)
    ]
    kernel, bias = embeddings.patch_embedding.weight.flatten(1), embeddings.patch_embedding.bias
    states = torch.stack([kernel @ patch.flatten() + (0 if bias is None else bias) for patch in patches])
    states = torch.cat([embeddings.class_embedding[None], states]) + embeddings.position_embedding.weight
    if tower == "pe_core":
        states = norm(states, vision.pre_layrnorm)
    for layer in vision.encoder.layers:
        states = states + attended(tower, layer.self_attn, norm(states, layer.layer_norm1))
        states = states + activated(tower, layer.mlp, norm(states, layer.layer_norm2))
    return norm(states, vision.post_layernorm)


def slow_embedding(gadms, pixels):
    states = slow_tokens(gadms, pixels)
    state = states[0] if gadms.config.tower == "eva02" else pooled(gadms.vision_model.head, states)
    return linear(state, gadms.visual_projection)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_tower_gives_what_it_gives_written_out_and_so_do_its_gradients(gadms, implementation):
    gadms.set_attn_implementation(implementation)
    pixels = tiny_images(1, SIZE)
    found = gadms.get_image_features(pixels).pooler_output[0]
    expected = slow_embedding(gadms, pixels[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weights = {**dict(gadms.vision_model.named_parameters()), **dict(gadms.visual_projection.named_parameters())}
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    gradients = [torch.autograd.grad(embed @ direction, list(weights.values())) for embed in (found, expected)]
    for name, ours, theirs in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=name)
        # one bias of all keys changes no softmax, but where keys are turned
        assert theirs.abs().max() > 1e-6, name


@torch.no_grad()
def test_patches_lie_in_the_joint_space_behind_the_image_itself(gadms):
    pixels = tiny_images(2, SIZE)
    tokens = gadms.project_image_tokens(gadms.vision_model(pixels).last_hidden_state)
    assert tokens.shape == (2, 13, 64)
    torch.testing.assert_close(tokens[:, 0], gadms.get_image_features(pixels).pooler_output, atol=1e-5, rtol=1e-5)
    for image, found in zip(pixels, tokens, strict=True):
        states = slow_tokens(gadms, image)[1:]
        if gadms.config.tower == "pe_core":  # what the pooling gives of this patch alone
            states = torch.stack([pooled(gadms.vision_model.head, state[None]) for state in states])
        torch.testing.assert_close(found[1:], linear(states, gadms.visual_projection), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_images_of_another_size_are_stretched_to_the_reference_grid(gadms):
    """The same scene at half the resolution has the same places: rows 0, 2, 4 of six are rows 0, 1, 2 of three."""
    vision = gadms.vision_model
    fine, coarse = (vision.rotation(grid, torch.device("cpu"))[0] for grid in ((6, 2), (3, 1)))
    if gadms.config.tower == "eva02":
        torch.testing.assert_close(fine[1:].view(6, 2, -1)[::2, ::2], coarse[1:].view(3, 1, -1))
    else:  # which counts from 1: the last row and column are those of the end
        torch.testing.assert_close(fine[1:].view(6, 2, -1)[1::2, 1::2], coarse[1:].view(3, 1, -1))
    assert (fine[0] == 0).all()
    pixels = tiny_images(1, (32, 32))
    with pytest.raises(ValueError, match="pixel_values are 32x32 .* but the model takes 48x16"):
        gadms.get_image_features(pixels)
    other = copy.deepcopy(gadms)
    other.config.vision_config.image_size = (32, 32)
    embeddings = other.vision_model.embeddings
    embeddings.position_embedding.weight = torch.nn.Parameter(
        resize_position_table(embeddings.position_embedding.weight, (4, 4), GRID)
    )
    embeddings.position_ids = torch.arange(17)[None]
    found = gadms.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(found, other.get_image_features(pixels).pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_kept_patches_keep_their_own_places(gadms):
    """All others masked in every layer, by the layer's own code, is the same as their absence."""
    vision, pixels = gadms.vision_model, tiny_images(2, SIZE)
    kept = torch.tensor([[0, 3, 7], [2, 5, 11]])
    with patches_kept(vision, kept):
        found = vision(pixels).last_hidden_state
    assert found.shape == (2, 4, 64)
    for image, places, states in zip(pixels, kept, found, strict=True):
        mask = torch.full((1, 1, 13, 13), -torch.inf)
        mask[..., [0, *(1 + places).tolist()]] = 0
        tokens = vision.pre_layrnorm(vision.embeddings(image[None]))
        angles = vision.rotation(GRID, torch.device("cpu"))[:, None]
        for layer in vision.encoder.layers:
            tokens = layer(tokens, mask, rotation=(angles.cos(), angles.sin()))
        torch.testing.assert_close(states, tokens[0, [0, *(1 + places).tolist()]], atol=1e-5, rtol=1e-4)
    assert vision(pixels).last_hidden_state.shape == (2, 13, 64)


def test_a_training_step_moves_every_weight_and_checkpointing_changes_no_gradient(tiny):
    model, processor = copy.deepcopy(tiny[0]).train(), tiny[1]
    inputs = processor(text=["a person in a red coat", "someone wears blue trousers"])
    batch = {"pixel_values": tiny_images(2, SIZE), "input_ids": inputs["input_ids"]}
    batch["mask_uniforms"] = draw_uniforms(2, 32, torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    whole, checkpointed = gradients
    still = {name for name, gradient in whole.items() if gradient is None or not gradient.any()}
    assert not still, still
    for name, gradient in whole.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@torch.no_grad()
def test_bfloat16_turns_by_angles_of_float32(gadms):
    """Angles go up to the reference side, 24 in PE-Core's largest: bfloat16 would have them to 0.06."""
    small, pixels = copy.deepcopy(gadms).to(torch.bfloat16), tiny_images(2, SIZE)
    assert small.vision_model.rotation(GRID, torch.device("cpu")).dtype == torch.float32
    exact = copy.deepcopy(small).float()  # the same rounded weights
    found = small.get_image_features(pixels.bfloat16()).pooler_output
    assert found.dtype == torch.bfloat16
    expected = exact.get_image_features(pixels.bfloat16().float()).pooler_output
    assert F.cosine_similarity(found.float(), expected).min() > 0.999
    with torch.autocast("cpu", torch.bfloat16):
        found = gadms.get_image_features(pixels).pooler_output
    assert F.cosine_similarity(found.float(), gadms.get_image_features(pixels).pooler_output).min() > 0.999


@torch.no_grad()
def test_a_compiled_layer_gives_the_same():
    gadms = tiny_rotary("eva02", SIZE)[0].gadms
    layer = gadms.vision_model.encoder.layers[0]
    states = torch.randn(2, 13, 64, generator=torch.Generator().manual_seed(0))
    angles = gadms.vision_model.rotation(GRID, torch.device("cpu"))[:, None]
    turn = angles.cos(), angles.sin()
    graph = torch.compile(layer, backend="eager", fullgraph=True)  # one graph, without a break
    torch.testing.assert_close(graph(states, None, rotation=turn), layer(states, None, rotation=turn))


def test_a_new_tower_starts_as_clips_does_where_it_has_the_same_weights():
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 256}
    for kind, config in (
        (GADMSEva02VisionModel, GADMSEva02VisionConfig(**sizes, image_size=(32, 32))),
        (GADMSPECoreVisionModel, GADMSPECoreVisionConfig(**sizes, image_size=(32, 32))),
    ):
        torch.manual_seed(0)
        theirs = dict(
            CLIPVisionModel(CLIPVisionModel.config_class(**sizes, image_size=32, patch_size=16)).named_parameters()
        )
        for name, weight in kind(config).named_parameters():
            gated, std = kind is GADMSEva02VisionModel and ".mlp.fc" in name, weight.std().item()
            if name in theirs and not gated:
                assert std == pytest.approx(theirs[name].std().item(), rel=0.25, abs=1e-6), name
            elif name == "head.probe":
                assert std == pytest.approx(128**-0.5, rel=0.25)
            elif weight.dim() > 1 and "in_proj" not in name:  # as in timm
                assert std == pytest.approx(0.02, rel=0.1), name
