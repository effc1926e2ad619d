"""Made-up checkpoints in the released layout, and the released computation on them, written out slowly."""

import torch
import torch.nn.functional as F

VOCAB_SIZE, CONTEXT_LENGTH, PATCH, IMAGE_SIZE = 100, 16, 4, (24, 8)
DEPTHS = {"visual.transformer": 2, "transformer": 3, "cross_modal_transformer": 2}
NUM_LAYERS = 3  # the released 8, or all where there are fewer


def block_shapes(prefix, depth, width):
    for index in range(depth):
        block = f"{prefix}.resblocks.{index}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield f"{block}.attn.out_proj.weight", (width, width)
        yield f"{block}.attn.out_proj.bias", (width,)
        yield from norm_shapes(f"{block}.ln_1", width)
        yield f"{block}.mlp.c_fc.weight", (4 * width, width)
        yield f"{block}.mlp.c_fc.bias", (4 * width,)
        yield f"{block}.mlp.c_proj.weight", (width, 4 * width)
        yield f"{block}.mlp.c_proj.bias", (width,)
        yield from norm_shapes(f"{block}.ln_2", width)


def norm_shapes(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def tower_shapes(vision_width, text_width, embed, num_patches):
    yield "positional_embedding", (CONTEXT_LENGTH, text_width)
    yield "text_projection", (text_width, embed)
    yield "visual.class_embedding", (vision_width,)
    yield "visual.positional_embedding", (num_patches + 1, vision_width)
    yield "visual.proj", (vision_width, embed)
    yield "visual.conv1.weight", (vision_width, 3, PATCH, PATCH)
    yield from norm_shapes("visual.ln_pre", vision_width)
    yield from block_shapes("visual.transformer", DEPTHS["visual.transformer"], vision_width)
    yield from norm_shapes("visual.ln_post", vision_width)
    yield from block_shapes("transformer", DEPTHS["transformer"], text_width)
    yield "token_embedding.weight", (VOCAB_SIZE, text_width)
    yield from norm_shapes("ln_final", text_width)


def decoder_shapes(embed):
    yield "cross_attn.in_proj_weight", (3 * embed, embed)
    yield "cross_attn.in_proj_bias", (3 * embed,)
    yield "cross_attn.out_proj.weight", (embed, embed)
    yield "cross_attn.out_proj.bias", (embed,)
    yield from block_shapes("cross_modal_transformer", DEPTHS["cross_modal_transformer"], embed)
    for name in ("ln_pre_t", "ln_pre_i", "ln_post"):
        yield from norm_shapes(name, embed)
    yield "mlm_head.dense.weight", (embed, embed)
    yield "mlm_head.dense.bias", (embed,)
    yield from norm_shapes("mlm_head.ln", embed)
    yield "mlm_head.fc.weight", (VOCAB_SIZE, embed)
    yield "mlm_head.fc.bias", (VOCAB_SIZE,)


def made_up_weights(shapes, seed) -> dict[str, torch.Tensor]:
    """Matrices that keep activations near unit size, biases and norms away from zero and one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes:
        values = torch.randn(shape, generator=generator)
        if name.endswith((".weight", "_weight", "proj", "projection")) and len(shape) > 1 and "token" not in name:
            fan_in = shape[0] if name.endswith(("proj", "projection")) else values[0].numel()
            values *= 1.5 * fan_in**-0.5
        elif len(shape) == 1 and "class" not in name:
            values = 0.2 * values + (1.0 if name.endswith(".weight") else 0.0)
        weights[name] = values
    return weights


def clip_weights(seed=0, num_patches=12) -> dict[str, torch.Tensor]:
    """A plain CLIP as OpenAI saved it: towers 128 and 192 wide, embeddings of 128."""
    return made_up_weights(tower_shapes(192, 128, 128, num_patches), seed)


def family_weights(seed=0, num_patches=12) -> dict[str, torch.Tensor]:
    """GA-DMS, IRRA or NAM with a decoder: the same towers under `base_model.`."""
    towers = {f"base_model.{name}": tensor for name, tensor in clip_weights(seed, num_patches).items()}
    return towers | made_up_weights(decoder_shapes(128), seed + 1)


def selection_weights(embed=128, wide=256) -> dict[str, torch.Tensor]:
    """The token selection of RDE: a layer and an MLP with batch norms over the chosen tokens of each side."""
    shapes = []
    for side, layers in (("visul_emb_layer", ("linear", "fc")), ("texual_emb_layer", ("linear",))):
        for layer in layers:
            shapes += [(f"{side}.{layer}.weight", (wide, embed)), (f"{side}.{layer}.bias", (wide,))]
        for number, (outputs, inputs) in enumerate([(wide // 2, embed), (wide, wide // 2)]):
            shapes += [(f"{side}.mlp.layers.{number}.weight", (outputs, inputs))]
            norms = ("weight", "bias", "running_mean", "running_var")
            shapes += [(f"{side}.mlp.layers.{number}.bias", (outputs,))]
            shapes += [(f"{side}.mlp.bns.{number}.{name}", (outputs,)) for name in norms]
    weights = made_up_weights(shapes, 3)
    weights = {
        name: tensor.abs() + 0.5 if name.endswith("running_var") else tensor for name, tensor in weights.items()
    }
    counts = {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in weights if "var" in name}
    return weights | counts


def captions(lengths, seed=0, width=CONTEXT_LENGTH) -> torch.Tensor:
    """BOS, random tokens, EOS, padding 0; `lengths` count BOS and EOS."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 1 : length - 1] = torch.randint(1, VOCAB_SIZE - 3, (length - 2,), generator=generator)
        ids[row, 0], ids[row, length - 1] = VOCAB_SIZE - 2, VOCAB_SIZE - 1
    return ids


def images(count, seed=0, image_size=IMAGE_SIZE) -> torch.Tensor:
    return torch.randn(count, 3, *image_size, generator=torch.Generator().manual_seed(seed))


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def heads_attention(query, key, value, num_heads, forbidden=None):
    """`(T, D)` queries, `(S, D)` keys and values of one sample, head by head; attention is the heads' mean."""
    outputs, mean_attention = [], 0
    for q, k, v in zip(query.chunk(num_heads, -1), key.chunk(num_heads, -1), value.chunk(num_heads, -1), strict=True):
        logits = q @ k.T / q.shape[-1] ** 0.5
        if forbidden is not None:
            logits = logits.masked_fill(forbidden, -torch.inf)
        attention = logits.softmax(-1)
        mean_attention = mean_attention + attention / num_heads
        outputs.append(attention @ v)
    return torch.cat(outputs, -1), mean_attention


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def block(weights, name, x, forbidden=None, num_heads=None, activation=quick_gelu):
    """One block on one sample `(T, D)`: its tokens, and the tensors inside its attention."""
    normed = norm(weights, f"{name}.ln_1", x)
    q, k, v = F.linear(normed, weights[f"{name}.attn.in_proj_weight"], weights[f"{name}.attn.in_proj_bias"]).chunk(
        3, -1
    )
    output, attention = heads_attention(q, k, v, num_heads or x.shape[-1] // 64, forbidden)
    x = x + F.linear(output, weights[f"{name}.attn.out_proj.weight"], weights[f"{name}.attn.out_proj.bias"])
    hidden = F.linear(
        norm(weights, f"{name}.ln_2", x), weights[f"{name}.mlp.c_fc.weight"], weights[f"{name}.mlp.c_fc.bias"]
    )
    hidden = activation(hidden)
    x = x + F.linear(hidden, weights[f"{name}.mlp.c_proj.weight"], weights[f"{name}.mlp.c_proj.bias"])
    return x, (q, k, v, output, attention)


def encode_image(weights, image, num_heads=None, activation=quick_gelu) -> torch.Tensor:
    """All tokens of one `(3, H, W)` image in the joint space, CLS first; the patches are cut by hand."""
    weights = towers_of(weights)
    kernel = weights["visual.conv1.weight"].flatten(1)
    rows = [weights["visual.class_embedding"]]
    for top in range(0, image.shape[1], PATCH):
        for left in range(0, image.shape[2], PATCH):
            rows.append(kernel @ image[:, top : top + PATCH, left : left + PATCH].flatten())
    x = norm(weights, "visual.ln_pre", torch.stack(rows) + weights["visual.positional_embedding"])
    for index in range(DEPTHS["visual.transformer"]):
        x, _ = block(weights, f"visual.transformer.resblocks.{index}", x, None, num_heads, activation)
    return norm(weights, "visual.ln_post", x) @ weights["visual.proj"]


def encode_text(weights, ids, num_heads=None, activation=quick_gelu) -> torch.Tensor:
    """All tokens of one caption `(T,)`, padding included, in the joint space."""
    weights = towers_of(weights)
    x, later = text_input(weights, ids)
    for index in range(DEPTHS["transformer"]):
        x, _ = block(weights, f"transformer.resblocks.{index}", x, later, num_heads, activation)
    return norm(weights, "ln_final", x) @ weights["text_projection"]


def text_input(weights, ids):
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: len(ids)]
    return x, torch.ones(len(ids), len(ids)).triu(1).bool()


def decode(weights, text_tokens, image_tokens, num_own=None) -> torch.Tensor:
    """Vocabulary logits at every position of one sample; the released code attends padding (`num_own=None`)."""
    query = norm(weights, "ln_pre_t", text_tokens)
    context = norm(weights, "ln_pre_i", image_tokens)
    (wq, wk, wv), (bq, bk, bv) = (
        weights["cross_attn.in_proj_weight"].chunk(3),
        weights["cross_attn.in_proj_bias"].chunk(3),
    )
    width = text_tokens.shape[-1]
    x, _ = heads_attention(query @ wq.T + bq, context @ wk.T + bk, context @ wv.T + bv, width // 64)
    x = F.linear(x, weights["cross_attn.out_proj.weight"], weights["cross_attn.out_proj.bias"])
    padding = None if num_own is None else (torch.arange(len(x)) >= num_own).expand(len(x), -1)
    for index in range(DEPTHS["cross_modal_transformer"]):
        x, _ = block(weights, f"cross_modal_transformer.resblocks.{index}", x, padding)
    x = F.linear(norm(weights, "ln_post", x), weights["mlm_head.dense.weight"], weights["mlm_head.dense.bias"])
    x = norm(weights, "mlm_head.ln", x * torch.sigmoid(1.702 * x))
    return F.linear(x, weights["mlm_head.fc.weight"], weights["mlm_head.fc.bias"])


def towers_of(weights) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base_model."): tensor for name, tensor in weights.items()}


def token_scores(weights, pixel_values, input_ids, num_layers=NUM_LAYERS) -> torch.Tensor:
    """The released score on captions padded to the context length: pair by pair, position by position.

    Per layer, with g the gradient of the cosine at EOS's attention output: w = minmax of the pooled cosines over all
    positions; Sg[j] = w[j] <g, v[j]>; Sa[j] = A[eos, j] / (sum of Sg over all positions + 1e-8). Layers are summed;
    ReLU; BOS, EOS and padding are set to 0; min-max over the whole batch.
    """
    towers = towers_of(weights)
    raw = []
    for image, ids in zip(pixel_values, input_ids, strict=True):
        eos = int(ids.argmax())
        image_embed = encode_image(weights, image)[0]
        x, later = text_input(towers, ids)
        passed = []
        for index in range(DEPTHS["transformer"]):
            single = index >= DEPTHS["transformer"] - num_layers
            x, inside = block(
                towers, f"transformer.resblocks.{index}", x.requires_grad_(), later, 1 if single else None
            )
            passed.append(inside)
        text_embed = (norm(towers, "ln_final", x) @ towers["text_projection"])[eos]
        similarity = image_embed @ text_embed / image_embed.norm() / text_embed.norm()
        total = [0.0] * len(ids)
        for q, k, v, output, attention in passed[-num_layers:]:
            gradient = torch.autograd.grad(similarity, output, retain_graph=True)[0][eos]
            pooled_query, pooled_keys = two_scales(q.detach())[eos], two_scales(k.detach())
            cosines = [float(pooled_query @ key / pooled_query.norm() / key.norm()) for key in pooled_keys]
            low, high = min(cosines), max(cosines)
            gradient_scores = [
                (cosine - low) / (high - low) * float(gradient @ value)
                for cosine, value in zip(cosines, v.detach(), strict=True)
            ]
            for position in range(len(ids)):
                attention_score = float(attention[eos, position].detach()) / (sum(gradient_scores) + 1e-8)
                total[position] += gradient_scores[position] * attention_score
        for position in range(len(ids)):
            if not 0 < position < eos:
                total[position] = 0.0
        raw.append([max(value, 0.0) for value in total])
    scores = torch.tensor(raw)
    return (scores - scores.min()) / (scores.max() - scores.min())


def two_scales(x):  # (T, D), T even: pairs, and half-pixel linear interpolation back
    pairs = x.unflatten(0, (-1, 2)).mean(1)
    back = []
    for position in range(len(x)):
        source = max((position + 0.5) / 2 - 0.5, 0)
        left = int(source)
        right = min(left + 1, len(pairs) - 1)
        back.append(pairs[left] * (1 - (source - left)) + pairs[right] * (source - left))
    return (x + torch.stack(back)) / 2
