"""Every kind of towers against the model it comes from, and its scores against full autograd."""

import copy
import functools
import json
import os

import forked
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_images, tiny_model, tiny_rows
from tiny_towers import (
    CONTEXT,
    KINDS,
    PATCH,
    ROTARY,
    SIDE,
    save_towers,
    set_by_arithmetic,
    tiny_rotary,
    tiny_tokenizer,
)
from transformers import Siglip2TextModel, SiglipVisionModel

from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor
from modeling_gadms.configuration_gadms import GADMSSiglipVisionConfig
from modeling_gadms.finetuning.model import GADMSForFineTuning
from modeling_gadms.masking_gadms import DualMasking, RandomMasking, draw_uniforms, mask_captions
from modeling_gadms.towers_gadms import random_ids, valid_tokens, whole_captions
from modeling_gadms.training.accumulation import plan_replays
from modeling_gadms.vision_gadms import GADMSSiglipVisionModel, resize_position_table

SIZE = (48, 16)
FROZEN = [0.153782, 0.094210, 0.116059, -0.068162, -0.039833, -0.281712]
CAPTIONS = ["a Person in a red coat", "someone wears blue trousers, a white shirt, and walks by", "red", "a dress"]


class Started:
    """A model of transformers, and the model and processor that start from it."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder
        self.source = save_towers(kind, folder)
        torch.manual_seed(0)
        self.model = GADMSForPreTraining.from_pretrained_towers(folder, image_size=SIZE)
        self.processor = GADMSProcessor.from_pretrained_towers(folder, image_size=SIZE)
        self.text_config = self.model.config.text_config
        self.ids = self.processor(text=CAPTIONS)["input_ids"]

    def alone(self, row):
        """The ids of one caption, BOS and EOS included, padding not."""
        ids = self.ids[row]
        if self.kind == "tipsv2":
            return ids[ids != 0]
        return ids[: (ids == self.text_config.eos_token_id).nonzero()[0, 0] + 1]

    def as_trained(self, ids):
        """One caption as the tower was trained: SigLIP's padded to its context length."""
        return F.pad(ids, (0, CONTEXT[self.kind] - len(ids)))[None] if "siglip" in self.kind else ids[None]


@pytest.fixture(scope="module")
def of(tmp_path_factory):
    return functools.cache(lambda kind: Started(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module", params=KINDS)
def started(request, of):
    return of(request.param)


# ---- embeddings


def naflex_inputs(pixels):
    """Images as SigLIP 2 takes those of any shape: flat patches, row by row, (patch, patch, channel)."""
    rows, columns = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    patches = [
        pixels[:, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(0, 2, 3, 1).flatten(1)
        for y in range(rows)
        for x in range(columns)
    ]
    count = len(pixels)
    return {
        "pixel_values": torch.stack(patches, dim=1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]] * count),
    }


@torch.no_grad()
def test_captions_have_the_embeddings_of_the_tower_they_come_from(started):
    found = started.model.gadms.get_text_features(started.ids).pooler_output
    for row in range(len(CAPTIONS)):
        ids = started.as_trained(started.alone(row))
        expected = started.source.get_text_features(ids).pooler_output[0]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
    assert F.normalize(found, dim=-1).std(dim=0).max() > 0.01, "the captions are too alike to test anything"


@torch.no_grad()
def test_images_have_the_embeddings_of_the_tower_they_come_from(started):
    model = GADMSModel.from_pretrained_towers(started.folder, image_size=(SIDE, SIDE))
    pixels = tiny_images(3, (SIDE, SIDE))
    inputs = naflex_inputs(pixels) if started.kind == "siglip2" else {"pixel_values": pixels}
    expected = started.source.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip2", "tipsv2"])
def test_non_square_images_are_taken_as_the_tower_itself_takes_them(of, kind):
    pixels = tiny_images(3, SIZE)
    inputs = naflex_inputs(pixels) if kind == "siglip2" else {"pixel_values": pixels}
    expected = of(kind).source.get_image_features(**inputs).pooler_output
    found = of(kind).model.gadms.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_position_table_without_a_class_row_is_resized_as_one_with_it():
    table = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    with_row = torch.cat([torch.zeros(1, 5), table])
    found = resize_position_table(table, (6, 2), class_rows=0)
    assert torch.equal(found, resize_position_table(with_row, (6, 2))[1:])


@torch.no_grad()
def test_patches_lie_in_the_joint_space_behind_the_image_itself(started):
    gadms = started.model.gadms
    states = gadms.vision_model(tiny_images(2, SIZE)).last_hidden_state
    tokens = gadms.project_image_tokens(states)
    rows, columns = gadms.config.vision_config.grid
    assert tokens.shape == (2, 1 + rows * columns, 64)
    expected = gadms.get_image_features(tiny_images(2, SIZE)).pooler_output
    torch.testing.assert_close(tokens[:, 0], expected, atol=1e-5, rtol=1e-5)
    if "siglip" in started.kind:  # each patch is what the pooling gives of it alone
        for patch in range(rows * columns):
            alone = gadms.vision_model.head(states[:, patch : patch + 1])
            torch.testing.assert_close(tokens[:, 1 + patch], alone, atol=1e-5, rtol=1e-5)
    elif started.kind == "tipsv2":
        assert torch.equal(tokens[:, 1:], states[:, 3:]), "two registers stand between"


@torch.no_grad()
def test_embeddings_do_not_depend_on_padding_or_on_the_other_captions(started):
    gadms, padding = started.model.gadms, started.text_config.pad_token_id
    whole = gadms.get_text_features(started.ids).pooler_output
    for row in range(len(CAPTIONS)):
        alone = started.alone(row)
        for width in (0, 3):
            ids = F.pad(alone, (0, width), value=padding)[None]
            found = gadms.get_text_features(ids).pooler_output[0]
            torch.testing.assert_close(found, whole[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_whether_a_pair_matches_does_not_depend_on_padding_or_on_the_other_pairs(started):
    model, padding = copy.deepcopy(started.model), started.text_config.pad_token_id
    model.set_matching_head(True)
    model.decoder.matching.weight.mul_(50)
    images = model.gadms.project_image_tokens(model.gadms.vision_model(tiny_images(4, SIZE)).last_hidden_state)

    def logits(ids, images):
        ids = whole_captions(ids, started.text_config)
        return model.match(ids, model.gadms.project_text_tokens(ids), images)

    whole = logits(started.ids, images)
    assert whole.std(dim=0).max() > 1e-2, "the pairs are too alike to test anything"
    for row in range(len(CAPTIONS)):
        for width in (0, 3):
            ids = F.pad(started.alone(row), (0, width), value=padding)[None]
            found = logits(ids, images[row : row + 1])[0]
            torch.testing.assert_close(found, whole[row], atol=1e-4, rtol=1e-4)


# ---- what each kind does in its own way


@torch.no_grad()
def test_eos_of_metaclip_2_is_not_the_highest_id(of):
    started = of("metaclip_2")
    ids = started.alone(1)
    assert ids.argmax() != len(ids) - 1 and ids[-1] == 2, "the example is not what it should be"
    gadms = started.model.gadms
    states = gadms.text_projection(gadms.text_model(ids[None]).last_hidden_state)[0]
    found = gadms.get_text_features(started.ids).pooler_output[1]
    torch.testing.assert_close(found, states[-1], atol=1e-5, rtol=1e-5)
    assert (found - states[ids.argmax()]).abs().max() > 0.01
    assert valid_tokens(started.ids, started.text_config)[1].sum() == len(ids) - 2
    assert gadms.config.mask_token_id == len(started.processor.tokenizer) - 1


@torch.no_grad()
def test_siglip_sees_its_padding_so_captions_are_padded_as_it_was_trained(of):
    started = of("siglip")
    tokenizer, gadms = started.processor.tokenizer, started.model.gadms
    assert started.ids.shape == (len(CAPTIONS), 64) and (started.ids[:, -1] == 0).all()
    assert torch.equal(started.ids, started.processor(text=[caption.upper() for caption in CAPTIONS])["input_ids"])
    expected = F.normalize(started.source.get_text_features(started.ids).pooler_output, dim=-1)
    found = F.normalize(gadms.get_text_features(started.ids).pooler_output, dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # what the tower makes of other padding is something else; here it comes out right
    short = started.alone(0)[None]
    left = torch.cat([torch.zeros(1, 64 - short.shape[1], dtype=torch.int64), short], dim=1)
    other = started.ids[:1].masked_fill(started.ids[:1] == 0, 1)  # EOS as padding, as the first SigLIP has it
    mask = (started.ids[:1] != 0).long()
    for inputs in ((short, None), (left, None), (other, None), (started.ids[:1], mask)):
        wrong = F.normalize(started.source.get_text_features(*inputs).pooler_output, dim=-1)
        assert (wrong - expected[0]).abs().max() > 0.01
    for ids in (short, other):
        torch.testing.assert_close(
            gadms.get_text_features(ids).pooler_output[0],
            gadms.get_text_features(started.ids).pooler_output[0],
            atol=1e-5,
            rtol=1e-5,
        )
    with pytest.raises(ValueError, match="padded on the left"):
        gadms.get_text_features(left)
    assert tokenizer.padding_side == "right" and tokenizer.model_max_length == 64
    lowered = [started.processor.caption_options(text)["text"] for text in ("A Coat", ["A Coat"])]
    assert lowered == ["a coat", ["a coat"]], "whatever the tokenizer does"


@torch.no_grad()
def test_the_vector_of_siglip_is_this_one(of):
    """Frozen: weights follow from their place, so that only the preparation or the tower can change it."""
    started = of("siglip")
    model = GADMSModel(started.model.config).eval()
    set_by_arithmetic(model)
    vector = model(input_ids=started.processor(text="A Red Coat")["input_ids"]).text_embeds[0]
    expected = torch.tensor(FROZEN)
    torch.testing.assert_close(vector[:6], expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_tipsv2_averages_the_captions_own_tokens(of):
    started, gadms = of("tipsv2"), of("tipsv2").model.gadms
    found = gadms.get_text_features(started.ids).pooler_output
    for row in range(len(CAPTIONS)):
        states = gadms.text_model(started.alone(row)[None]).last_hidden_state[0]
        torch.testing.assert_close(found[row], states.mean(dim=0), atol=1e-5, rtol=1e-5)
    empty = gadms.get_text_features(torch.zeros(1, 4, dtype=torch.int64)).pooler_output
    assert empty.isfinite().all()


def test_a_vocabulary_without_a_mask_gets_one_with_the_mean_embedding(of):
    started = of("tipsv2")
    embeddings = started.model.gadms.text_model.embeddings.token_embedding.weight
    before = started.source.text_model.embeddings.token_embedding.weight
    mask = started.processor.tokenizer.mask_token_id
    assert started.model.config.mask_token_id == mask == len(before) and len(embeddings) == mask + 1
    torch.testing.assert_close(embeddings[mask], before.mean(dim=0))


def test_a_new_image_tower_of_siglip_starts_as_its_own_does(of):
    config = of("siglip").source.config.vision_config
    torch.manual_seed(0)
    theirs = dict(SiglipVisionModel(config).named_parameters())
    ours = GADMSSiglipVisionModel(GADMSSiglipVisionConfig(**config.to_dict())).named_parameters()
    for name, weight in ours:
        assert weight.std().item() == pytest.approx(theirs.pop(name).std().item(), rel=0.15, abs=1e-6), name
    assert not theirs


def test_a_processor_saved_before_its_first_use_prepares_captions_alike(started, tmp_path):
    GADMSProcessor.from_pretrained_towers(started.folder, image_size=SIZE).save_pretrained(tmp_path)
    found = GADMSProcessor.from_pretrained(tmp_path)(text=CAPTIONS)["input_ids"]
    assert torch.equal(found, started.ids) and (found[:, 0] != started.text_config.pad_token_id).all()


def test_options_given_as_those_of_texts_go_before_the_towers_own(of):
    processor = of("siglip").processor
    options = {"padding": True, "truncation": True, "max_length": 10, "return_tensors": "pt"}
    found = processor(text=["A RED COAT"] * 2, text_kwargs=options)["input_ids"]
    assert torch.equal(found, processor(text=["a red coat"] * 2)["input_ids"][:, : found.shape[1]])
    assert found.shape[1] <= 10


def test_words_are_what_stands_between_spaces_whatever_the_tokenizer_calls_a_word(started):
    numbers = started.processor.word_ids("a person in red")
    offsets = started.processor.tokenizer("a person in red", return_offsets_mapping=True)["offset_mapping"]
    for number, (start, end) in zip(numbers, offsets, strict=False):
        word = "a person in red"[start:end].strip()
        assert (number == -1) if start == end else (not word or word in "a person in red".split()[number])
    assert {number for number in numbers if number >= 0} == {0, 1, 2, 3}
    assert set(numbers[len(offsets) :]) <= {-1}


# ---- scores and masks


def scores_by_full_autograd(gadms, pixels, ids, own, pooled, seen, num_layers):
    """The definition, for one caption as its tower takes it: an ordinary forward, hooks, and the gradient of it all.

    `own` are the tokens scored, `pooled` those each taken as `e`, and the first `seen` are attended to.
    """
    layers, kept, handles = list(gadms.text_model.encoder.layers)[-num_layers:], {}, []
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        for name in ("q", "k", "v"):
            projection = getattr(attention, f"{name}_proj")
            handles.append(projection.register_forward_hook(lambda *x, at=(name, index): kept.update({at: x[2]})))
        handles.append(
            attention.out_proj.register_forward_pre_hook(lambda *x, at=("a", index): kept.update({at: x[1][0]}))
        )
    image = gadms.get_image_features(pixels[None]).pooler_output.detach()
    text = gadms.get_text_features(ids[None]).pooler_output
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(F.cosine_similarity(image, text)[0], [kept["a", i] for i in range(num_layers)])
    total = torch.zeros(len(ids))
    for index in range(num_layers):
        q, k, v = (kept[name, index][0, :seen].detach() for name in ("q", "k", "v"))
        for e in pooled:
            attention = torch.zeros(seen)
            for part in (slice(0, 32), slice(32, 64)):  # two heads
                attention += (q[e, part] @ k[:, part].T / 32**0.5).softmax(-1) / 2
            importance = F.cosine_similarity(both_scales(q)[e][None], both_scales(k))
            importance = (importance - importance.min()) / (importance.max() - importance.min()).clamp_min(1e-30)
            total[:seen] += importance * (v @ gradients[index][0, e]) * attention / attention[own].sum()
    scores, values = torch.zeros(len(ids)), F.relu(total)[own]
    if values.max() > values.min():
        scores[own] = (values - values.min()) / (values.max() - values.min())
    return scores


def both_scales(x):  # (T, D)
    if len(x) < 2:
        return x
    pairs = F.avg_pool1d(x.T[None], 2)
    return (x + F.interpolate(pairs, size=len(x), mode="linear", align_corners=False)[0].T) / 2


@pytest.mark.parametrize("num_layers", [None, 2])
def test_scores_equal_full_autograd_on_an_ordinary_forward(started, num_layers):
    gadms, pixels = started.model.gadms, tiny_images(len(CAPTIONS), SIZE)
    scores = gadms.token_scores(pixels, started.ids, num_layers=num_layers)
    layers = num_layers or (2 if started.kind == "metaclip_2" else 1)
    assert (scores > 0).sum() >= 3, "the example is too flat to test anything"
    for row in range(len(CAPTIONS)):
        alone, first = started.alone(row), int(started.kind == "metaclip_2")
        length = len(alone)
        own = list(range(first, length if started.kind == "tipsv2" else length - 1))
        ids = started.as_trained(alone)[0]
        pooled = own if started.kind == "tipsv2" else [len(ids) - 1]
        expected = scores_by_full_autograd(gadms, pixels[row], ids, own, pooled, len(ids), layers)
        torch.testing.assert_close(scores[row, :length], expected[:length], atol=1e-4, rtol=0)
        assert (scores[row, length:] == 0).all()


def test_scores_do_not_depend_on_padding_or_on_the_other_captions(started):
    gadms, pixels = started.model.gadms, tiny_images(len(CAPTIONS), SIZE)
    scores = gadms.token_scores(pixels, started.ids)
    for row in range(len(CAPTIONS)):
        alone = started.alone(row)[None]
        found = gadms.token_scores(pixels[row : row + 1], alone)
        assert found.shape == alone.shape
        torch.testing.assert_close(found[0], scores[row, : alone.shape[1]], atol=1e-4, rtol=0)


def test_the_released_recipe_is_refused_for_other_towers(of):
    started = of("tipsv2")
    with pytest.raises(ValueError, match="for CLIP's text tower alone"):
        started.model.gadms.token_scores(tiny_images(4, SIZE), started.ids, recipe="released")


def test_masks_hide_own_tokens_alone_and_random_words_never_end_a_caption(started):
    config, ids = started.model.config, started.ids.repeat(40, 1)
    valid = valid_tokens(ids, config.text_config)
    uniforms = draw_uniforms(len(ids), ids.shape[1], torch.Generator().manual_seed(0))
    masking = DualMasking(alpha_noise=0.9, alpha_info=0.9)
    views = mask_captions(ids, torch.rand(ids.shape), uniforms, masking, config.mask_token_id, config.text_config)
    changed = (views.prediction_input_ids != ids) | (views.noise_input_ids != ids)
    assert changed[valid].float().mean() > 0.3 and not changed[~valid].any()
    assert torch.equal(valid_tokens(views.prediction_input_ids, config.text_config), valid)
    low, high = random_ids(config.mask_token_id, config.text_config)
    tokenizer = started.processor.tokenizer
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
    assert all(not low <= token < high for token in named if token is not None)
    assert high - low > len(tokenizer) - 8


# ---- training, saving, loading


def test_a_training_step_moves_every_weight_of_both_towers(started):
    torch.manual_seed(0)
    model = GADMSForPreTraining.from_pretrained_towers(started.folder, image_size=SIZE)
    rows = tiny_rows(4)
    batch = started.processor(images=list(rows["image"]), text=CAPTIONS)
    outputs = model(**batch, mask_uniforms=draw_uniforms(4, 77, torch.Generator().manual_seed(0)))
    assert outputs.no_valid_tokens == 0 and 0 < outputs.prediction_rate < 1
    outputs.loss.backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    # TIPSv2's image tower has a mask token that only its own pre-training uses
    assert still <= {"gadms.vision_model.embeddings.mask_token"}, still


def test_fine_tuning_and_chunks_of_a_batch_take_every_kind(started):
    torch.manual_seed(0)
    model = GADMSForFineTuning.from_pre_training(started.model, num_persons=3)
    batch = dict(started.processor(images=list(tiny_rows(4)["image"]), text=CAPTIONS))
    batch |= {"person_ids": torch.tensor([0, 1, 2, 0])}
    batch["mask_uniforms"] = draw_uniforms(4, 77, torch.Generator().manual_seed(0))
    whole = model(**batch, masking=RandomMasking(0.3))
    chunks = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    replays = plan_replays(model, chunks, RandomMasking(0.3))
    losses = []
    for chunk, replay in zip(chunks, replays, strict=True):
        losses.append(model(**chunk, masking=RandomMasking(0.3), chunk=replay.chunk).loss)
    assert whole.id_loss > 0 and whole.prediction_rate > 0
    torch.testing.assert_close(sum(losses) / 2, whole.loss, atol=1e-4, rtol=1e-4)


RELOAD = """
import json, sys
sys.modules["modeling_gadms"] = sys.modules["dataset_webperson"] = None
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

found = {}
for folder in sys.argv[2:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    batch = processor(images=[Image.new("RGB", (20, 40), "red")] * 4, text=json.loads(sys.argv[1]))
    with torch.no_grad():
        outputs = model(**batch)
    kept = [outputs.image_embeds, outputs.text_embeds, model.token_scores(**batch), batch["input_ids"]]
    found[folder] = [tensor.tolist() for tensor in kept]
sys.stdout.write(json.dumps(found))
"""


def test_what_is_saved_gives_the_same_where_this_package_is_not_installed(of, tmp_path):
    folders = {
        kind: str(tmp_path / kind) for kind in ("metaclip_2", "siglip", "tipsv2")
    }  # SigLIP 2 is saved as SigLIP
    for kind, folder in folders.items():
        of(kind).model.gadms.save_pretrained(folder)
        of(kind).processor.save_pretrained(folder)
    rotary = {tower: tiny_rotary(tower, SIZE) for tower in ROTARY}
    for tower, (model, processor) in rotary.items():
        folders[tower] = str(tmp_path / tower)
        model.gadms.save_pretrained(folders[tower])
        processor.save_pretrained(folders[tower])
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    process = forked.run(["-c", RELOAD, json.dumps(CAPTIONS), *folders.values()], env=environment, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout)
    for kind, folder in folders.items():
        model, processor = rotary.get(kind) or (of(kind).model, of(kind).processor)
        batch = processor(images=[Image.new("RGB", (20, 40), "red")] * 4, text=CAPTIONS)
        with torch.no_grad():
            outputs = model.gadms(**batch)
        scores = model.gadms.token_scores(**batch)
        expected = [outputs.image_embeds, outputs.text_embeds, scores, batch["input_ids"]]
        for ours, theirs in zip(expected, found[folder], strict=True):
            assert torch.equal(ours, torch.tensor(theirs)), kind


# ---- what cannot be started from


def test_another_family_is_refused_with_those_that_work(tmp_path):
    Siglip2TextModel.config_class().save_pretrained(tmp_path / "text")
    with pytest.raises(
        ValueError, match="of type siglip2_text_model.*one of clip, metaclip_2, siglip, siglip2, tipsv2"
    ):
        GADMSModel.from_pretrained_towers(str(tmp_path / "text"))
    tiny_model().config.save_pretrained(tmp_path / "gadms")
    with pytest.raises(ValueError, match="of type gadms.*load a GA-DMS with from_pretrained"):
        GADMSModel.from_pretrained_towers(str(tmp_path / "gadms"))


def test_image_sizes_that_patches_do_not_divide_are_refused_with_the_nearest(of):
    with pytest.raises(ValueError, match=r"\(50, 16\) is not a multiple of patch_size 8; the nearest is \(48, 16\)"):
        GADMSModel.from_pretrained_towers(of("siglip").folder, image_size=(50, 16))
    again = (
        r"pixel_values are 32x32 .* but the model takes 48x16: .*load .* from_pretrained_towers\(.*size=\(32, 32\)\)"
    )
    for kind in ("siglip2", "tipsv2"):
        with pytest.raises(ValueError, match=again):
            of(kind).model.gadms.get_image_features(tiny_images(1, (32, 32)))


@pytest.mark.parametrize(
    "kind, other, reason",
    [
        ("siglip", "metaclip_2", "has .* ids, but the text tower only .* embeddings"),
        ("metaclip_2", "siglip", "writes captions without BOS and with EOS, but metaclip_2 reads them with BOS"),
        (
            "siglip",
            "tipsv2",
            "writes captions without BOS and without EOS, but siglip reads them without BOS and with",
        ),
    ],
)
def test_a_tokenizer_of_another_tower_is_refused(of, tmp_path, kind, other, reason):
    of(kind).source.config.save_pretrained(tmp_path)
    tiny_tokenizer(other).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"its tokenizer.*{reason}.*save the tower's own tokenizer there"):
        GADMSProcessor.from_pretrained_towers(str(tmp_path))


def test_half_of_the_weights_are_named_and_counted(of, tmp_path):
    of("siglip").source.vision_model.save_pretrained(tmp_path)
    of("siglip").source.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not a whole siglip model: \d+ of \d+ weights are missing \("):
        GADMSModel.from_pretrained_towers(str(tmp_path))
