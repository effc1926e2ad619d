"""Why an image matches a sentence: what each word does to the match, and what each patch does."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dataset_webperson import DataError

from ..modeling_gadms import GADMSModel
from ..noise.kept_evidence import load_evidence
from ..tokenization_gadms import clean_caption

EVIDENCE = "patch_evidence.safetensors"  # beside the model; `examples/repair_captions.py` writes it
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
    encoded = processor.tokenizer(
        texts, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt"
    )
    input_ids = encoded["input_ids"].to(model.device)
    numbers = [encoded.word_ids(row) for row in range(len(texts))]
    word_ids = torch.tensor([[-1 if number is None else number for number in row] for row in numbers])
    with torch.no_grad():
        drops = model.word_contributions(
            pixels.expand(len(texts), -1, -1, -1), input_ids, word_ids=word_ids.to(model.device)
        ).cpu()
        queries = F.normalize(model.get_text_features(input_ids).pooler_output.float(), dim=-1)
        score, patches = patch_contributions(model, pixels, queries)
        against = _against(model, pixels, input_ids, folder)
    words, doubted = [], []
    for row, text in enumerate(texts):
        for word, first, last in _words(clean_caption(text), numbers[row], encoded["offset_mapping"][row].tolist()):
            words.append((word, float(drops[row, first])))
            if against is not None and (nats := float(against[row, first : last + 1].min())) < AGAINST:
                doubted.append((word, nats))
    return Explanation(score, words, patches, None if against is None else doubted)


def _words(text: str, numbers: list[int | None], offsets: list[list[int]]) -> list[tuple[str, int, int]]:
    """`(word, first token, last token)` of a cleaned text."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if number is not None:
            places.setdefault(number, []).append(place)
    found = []
    for held in places.values():
        word = text[offsets[held[0]][0] : offsets[held[-1]][1]].strip()
        if word:  # BOS and EOS cover no characters
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
    """How far the cosine falls when the class token may not look at a patch in the last layer of the image tower.

    Exact for that definition, and as cheap as one image: in the last layer only the class token counts, so that each
    patch costs one softmax and one feed-forward step. What other patches took over from the patch in earlier layers
    stays; leaving it out from the start would take one run of the tower per patch.

    Args:
        model ([`GADMSModel`]): the model, in evaluation mode.
        pixels (`torch.Tensor` of shape `(1, 3, height, width)`): the image.
        queries (`torch.Tensor` of shape `(Q, D)`): unit vectors.

    Returns:
        the mean cosine of the queries with the image, and its fall for each patch, float32 `(rows, columns)`.
    """
    tower = model.vision_model
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]  # (1, 1 + patches, width)
    layer = tower.encoder.layers[-1]
    attention, states = layer.self_attn, layer.layer_norm1(hidden)[0]
    heads, width = attention.num_heads, attention.head_dim
    query = attention.q_proj(states[:1]).view(heads, width)
    keys, values = (part(states).view(-1, heads, width) for part in (attention.k_proj, attention.v_proj))
    logits = torch.einsum("hd,shd->hs", query, keys).float() * attention.scale  # (heads, 1 + patches)
    count = len(states) - 1
    # row 0 sees everything, row p all but patch p
    hide = torch.cat([torch.zeros(1, 1 + count), torch.eye(1 + count)[1:]]).bool().to(logits.device)
    weights = logits[None].masked_fill(hide[:, None], -torch.inf).softmax(dim=-1).to(values.dtype)
    seen = torch.einsum("phs,shd->phd", weights, values).reshape(1 + count, -1)
    tokens = hidden[0, :1] + attention.out_proj(seen)
    tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    embeds = F.normalize(model.visual_projection(tower.post_layernorm(tokens)).float(), dim=-1)
    cosines = (embeds @ queries.T.to(embeds.device)).mean(dim=1)
    fall = (cosines[0] - cosines[1:]).view(model.config.vision_config.grid)
    return float(cosines[0]), fall.cpu().numpy().astype(np.float32)
