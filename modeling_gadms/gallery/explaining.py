"""Why an image matches a sentence: what each word does to the match, and what each patch does."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dataset_webperson import DataError

from ..configuration_gadms import has_clip_text
from ..modeling_gadms import GADMSModel
from ..noise.kept_evidence import load_evidence
from ..rotary_vision_gadms import rotation_of
from ..tokenization_gadms import clean_caption

EVIDENCE = "patch_evidence.safetensors"  # beside the model; `examples/repair_captions.py --mode hide` writes it
AGAINST = -0.5  # nats; a word is named that makes its image exp(0.5) times less likely than other images


@dataclass(frozen=True)
class Explanation:
    """What makes a match.

    Attributes:
        score (`float`): cosine of the text and the image; of several texts the mean.
        words (`list[tuple[str, float]]`): each word, and how far the cosine of its text falls when it is masked; of
            several texts one after the other.
        patches (`np.ndarray` of shape `(rows, columns)`): float32; how far the cosine falls when the last layer of the
            image tower may not look at the patch; of several texts the mean.
        against (`list[tuple[str, float]]`, *optional*): words that patch evidence speaks against, in nats below 0;
            `None` where no `patch_evidence.safetensors` lies beside the model.
    """

    score: float
    words: list[tuple[str, float]]
    patches: np.ndarray
    against: list[tuple[str, float]] | None


def explain(model: Any, processor: Any, texts: list[str], image: Image.Image, folder: str | None) -> Explanation:
    """Explain a match; exact, by masking one word, or one patch, at a time.

    Args:
        model ([`GADMSModel`]): the model.
        processor ([`GADMSProcessor`]): its processor.
        texts (`list[str]`): one or several phrasings.
        image (`PIL.Image.Image`): the image.
        folder (`str`, *optional*): of the model; where patch evidence may lie.

    Raises:
        DataError: the model is no GA-DMS, or the patch evidence is not its own.
    """
    if not isinstance(model, GADMSModel):
        raise DataError(f"a {type(model).__name__} cannot explain its matches; make the gallery with a GA-DMS")
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    options = processor.caption_options(texts)
    encoded = processor.tokenizer(**options, return_offsets_mapping=True, return_tensors="pt")
    input_ids = encoded["input_ids"].to(model.device)
    width = input_ids.shape[1]
    numbers = [(processor.word_ids(text) + [-1] * width)[:width] for text in texts]
    word_ids = torch.tensor(numbers)
    with torch.no_grad():
        drops = model.word_contributions(
            pixels.expand(len(texts), -1, -1, -1), input_ids, word_ids=word_ids.to(model.device)
        ).cpu()
        queries = F.normalize(model.get_text_features(input_ids).pooler_output.float(), dim=-1)
        score, patches = patch_contributions(model, pixels, queries)
        against = _against(model, pixels, input_ids, folder)
    words, doubted = [], []
    for row, text in enumerate(options["text"]):
        read = clean_caption(text) if has_clip_text(processor.tower) else text  # what offsets count in
        for word, first, last in _words(read, numbers[row], encoded["offset_mapping"][row].tolist()):
            words.append((word, float(drops[row, first])))
            if against is not None and (nats := float(against[row, first : last + 1].min())) < AGAINST:
                doubted.append((word, nats))
    return Explanation(score, words, patches, None if against is None else doubted)


def _words(text: str, numbers: list[int], offsets: list[list[int]]) -> list[tuple[str, int, int]]:
    """`(word, first token, last token)` of a text as its tokenizer reads it."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if number >= 0:
            places.setdefault(number, []).append(place)
    found = []
    for held in places.values():
        word = text[offsets[held[0]][0] : offsets[held[-1]][1]].strip()
        if word:
            found.append((word, held[0], held[-1]))
    return found


def _against(model: GADMSModel, pixels: torch.Tensor, input_ids: torch.Tensor, folder: str | None) -> Any:
    file = os.path.join(folder or "", EVIDENCE)
    if not folder or not os.path.exists(file):
        return None
    evidence = load_evidence(model, file)
    keys = evidence.keys(pixels.float())
    return evidence.score(keys.expand(len(input_ids), -1, -1), input_ids).cpu()


def patch_contributions(model: GADMSModel, pixels: torch.Tensor, queries: torch.Tensor) -> tuple[float, np.ndarray]:
    """How far the cosine falls when what the image is read from may not look at a patch in the end.

    That is the class token in the last layer of the image tower, or, in SigLIP and PE-Core, the probe that pools.
    Exact for that definition, and as cheap as one image: there only one token counts, so that each patch costs one
    softmax and one feed-forward step. What other patches took over from the patch in earlier layers stays; leaving it
    out from the start would take one run of the tower per patch.

    Args:
        model ([`GADMSModel`]): the model, in evaluation mode.
        pixels (`torch.Tensor` of shape `(1, 3, height, width)`): the image.
        queries (`torch.Tensor` of shape `(Q, D)`): unit vectors.

    Returns:
        the mean cosine of the queries with the image, and its fall for each patch, float32 `(rows, columns)`.
    """
    without = {
        "eva02": _eva02_without_each,
        "pe_core": _pe_core_without_each,
        "siglip": _siglip_without_each,
        "tipsv2": _tipsv2_without_each,
    }
    states = without.get(model.config.tower, _clip_without_each)(model.vision_model, pixels)
    embeds = F.normalize(model.visual_projection(states).float(), dim=-1)
    cosines = (embeds @ queries.T.to(embeds.device)).mean(dim=1)
    fall = (cosines[0] - cosines[1:]).view(model.config.vision_config.grid)
    return float(cosines[0]), fall.cpu().numpy().astype(np.float32)


def _clip_without_each(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The pooled state of one image, and those without each of its patches: `(1 + patches, width)`."""
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]  # (1, 1 + patches, width)
    layer = tower.encoder.layers[-1]
    attention, states = layer.self_attn, layer.layer_norm1(hidden)[0]
    keys, values = attention.k_proj(states), attention.v_proj(states)
    seen = _look_past_each(attention.q_proj(states[:1]), keys, values, attention.num_heads, 1)
    tokens = hidden[0, :1] + attention.out_proj(seen)
    tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    return tower.post_layernorm(tokens)


def _eva02_without_each(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """As [`_clip_without_each`]; keys are turned by their place, and what is seen is normalised."""
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
    layer = tower.encoder.layers[-1]
    attention = layer.self_attn
    heads = attention.heads(layer.layer_norm1(hidden), rotation_of(tower, pixels))
    query, keys, values = (part[0].transpose(0, 1).flatten(1) for part in heads)
    tokens = hidden[0, :1] + attention.output(_look_past_each(query[:1], keys, values, attention.num_heads, 1))
    tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    return tower.post_layernorm(tokens)


def _tipsv2_without_each(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """As [`_clip_without_each`]; registers stand between the class token and the patches, and are looked at."""
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
    layer = tower.encoder.layer[-1]
    attention, states = layer.attention, layer.norm1(hidden)[0]
    keys, values = attention.k_proj(states), attention.v_proj(states)
    first = 1 + tower.config.num_register_tokens
    seen = _look_past_each(attention.q_proj(states[:1]), keys, values, attention.num_attention_heads, first)
    tokens = hidden[0, :1] + layer.layer_scale1(attention.o_proj(seen))
    tokens = tokens + layer.layer_scale2(layer.mlp(layer.norm2(tokens)))
    return tower.layernorm(tokens)


def _siglip_without_each(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """As [`_clip_without_each`]; there is no class token, and a probe looks at the patches after the last layer."""
    return _pooled_without_each(tower.head, tower(pixels).last_hidden_state[0], 0)


def _pe_core_without_each(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """As [`_siglip_without_each`]; the probe looks at the class token, too."""
    return _pooled_without_each(tower.head, tower.post_layernorm(tower(pixels).last_hidden_state[0]), 1)


def _pooled_without_each(head: Any, states: torch.Tensor, first: int) -> torch.Tensor:
    """What attention pools from tokens `(S, width)`, and then without each of them from `first` on."""
    weights, biases = (getattr(head.attention, f"in_proj_{part}").chunk(3) for part in ("weight", "bias"))
    given = (head.probe[0], states, states)
    query, keys, values = (F.linear(*one) for one in zip(given, weights, biases, strict=True))
    seen = head.attention.out_proj(_look_past_each(query, keys, values, head.attention.num_heads, first))
    return seen + head.mlp(head.layernorm(seen))


def _look_past_each(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_heads: int, first: int
) -> torch.Tensor:
    """What one query sees of all tokens, and then without each of them from `first` on, the heads side by side.

    Args:
        query (`torch.Tensor` of shape `(1, width)`), keys, values (`(S, width)`): of all heads.

    Returns:
        `torch.Tensor` of shape `(1 + S - first, width)`.
    """
    query, keys, values = (part.unflatten(-1, (num_heads, -1)) for part in (query, keys, values))
    logits = torch.einsum("qhd,shd->qhs", query, keys).float() * query.shape[-1] ** -0.5  # (1, heads, S)
    # row 0 sees everything, row 1 + p all but patch p
    hide = torch.cat([torch.zeros(1, len(keys)), torch.eye(len(keys))[first:]]).bool().to(logits.device)
    weights = logits.masked_fill(hide[:, None], -torch.inf).softmax(dim=-1).to(values.dtype)
    return torch.einsum("phs,shd->phd", weights, values).flatten(1)
