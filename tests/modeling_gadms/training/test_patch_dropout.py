"""Training on a part of each image's patches, and on whole images at the end."""

import pytest
import torch
from PIL import Image
from test_trainer import options, tiny_trainer
from tiny import tiny_batch, tiny_config, tiny_model, tiny_processor

from modeling_gadms.hub.run_facts import recipe_of
from modeling_gadms.training.accumulation import plan_replays
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.vision_gadms import GADMSSiglipVisionModel, patches_kept

LENGTHS = [9, 5, 7, 4]
KEPT = torch.tensor([[0, 3, 5, 7], [1, 2, 3, 4], [4, 5, 6, 7], [0, 1, 6, 7]])  # of 4 x 2 patches


def test_a_tower_sees_the_kept_patches_with_their_own_positions():
    """The slow way: each image alone, its tokens picked by hand and passed on by the layers."""
    vision, pixels = tiny_model().gadms.vision_model, tiny_batch(LENGTHS)["pixel_values"]
    with torch.no_grad(), patches_kept(vision, KEPT):
        found = vision(pixels).last_hidden_state
    assert found.shape == (4, 1 + 4, 64)
    for image, kept, states in zip(pixels, KEPT.tolist(), found, strict=True):
        with torch.no_grad():
            tokens = vision.embeddings(image[None])
            tokens = tokens[:, [0, *(1 + patch for patch in kept)]]
            for layer in vision.encoder.layers:
                tokens = layer(vision.pre_layrnorm(tokens) if layer is vision.encoder.layers[0] else tokens, None)
        torch.testing.assert_close(states, tokens[0], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert vision(pixels).last_hidden_state.shape == (4, 1 + 8, 64), "outside, the tower sees all"


def test_all_patches_are_the_whole_image_and_siglip_has_no_class_token():
    model, batch = tiny_model().train(), tiny_batch(LENGTHS)
    whole = model(**batch)
    same = model(**batch, kept_patches=torch.arange(8).expand(4, -1))
    torch.testing.assert_close(same.loss, whole.loss)
    config = tiny_config().vision_config.to_dict()
    config = {name: config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "image_size")}
    siglip = GADMSSiglipVisionModel._from_config(
        GADMSSiglipVisionModel.config_class(**config, num_hidden_layers=1, patch_size=8)
    )
    with patches_kept(siglip, KEPT), torch.no_grad():
        assert siglip(batch["pixel_values"]).last_hidden_state.shape == (4, 4, 64)


def test_chunks_of_dropped_images_give_the_gradient_of_the_whole_batch():
    model, batch = tiny_model().train(), {**tiny_batch(LENGTHS), "kept_patches": KEPT, "person_ids": torch.arange(4)}
    model(**batch).loss.backward()
    whole = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    chunks = [{name: tensor[part : part + 2] for name, tensor in batch.items()} for part in (0, 2)]
    masks = options("unused").masks()
    for chunk, replay in zip(chunks, plan_replays(model, chunks, masks), strict=True):
        (model(**chunk, masking=masks, chunk=replay.chunk).loss / 2).backward()
    for weight, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-4, rtol=1e-3)


def test_what_is_kept_follows_from_seed_epoch_and_image_and_changes_nothing_else():
    row = {"image": Image.new("RGB", (16, 32), "red"), "caption1": "a red coat", "epoch": 0, "image_path": "1.png"}
    processor = tiny_processor()

    def batch(*rows, seed=0, share=0.5):
        return PairCollator(processor, seed=seed, num_patches=8, patch_dropout=share)(list(rows))

    one = batch(row)
    numbers = one["kept_patches"][0].tolist()
    assert len(numbers) == 4 and numbers == sorted(set(numbers))
    plain = PairCollator(processor)([row])
    assert "kept_patches" not in plain
    assert all(torch.equal(plain[name], one[name]) for name in ("pixel_values", "mask_uniforms", "input_ids"))
    others = [{**row, "image_path": f"{number}.png"} for number in range(30)]
    assert torch.equal(batch(*others, row)["kept_patches"][-1], one["kept_patches"][0])
    kept = batch(*others)["kept_patches"]
    assert len({tuple(each) for each in kept.tolist()}) > 10
    assert (torch.bincount(kept.flatten(), minlength=8) > 5).all(), "every patch has its chance"
    for other in (batch({**row, "epoch": 1}), batch(row, seed=1)):
        assert not torch.equal(other["kept_patches"], one["kept_patches"])
    assert batch(row, share=0.99)["kept_patches"].shape == (1, 1)


def widths(trainer, **options):
    """Tokens that the image tower saw in each step."""
    seen, vision = [], trainer.model.gadms.vision_model
    hook = vision.encoder.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    trainer.train(**options)
    hook.remove()
    return seen


def test_the_last_share_of_the_steps_sees_whole_images_also_where_the_run_resumes(tmp_path):
    sizes = {"max_steps": 5, "patch_dropout": 0.5, "patch_dropout_until": 0.6, "save_strategy": "steps"}
    sizes["save_steps"] = 2
    whole = tiny_trainer(tmp_path / "whole", **sizes)
    assert widths(whole) == [5, 5, 5, 9, 9]
    resumed = tiny_trainer(tmp_path / "resumed", **sizes)
    assert widths(resumed, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")) == [5, 9, 9]
    weights = whole.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())


def test_shares_are_kept_with_the_run_and_refused_outside_their_range(tmp_path):
    args = options(tmp_path, patch_dropout=0.5)
    assert {"patch_dropout": 0.5, "patch_dropout_until": 0.8}.items() <= recipe_of(args).items()
    assert "patch_dropout" not in recipe_of(options(tmp_path))
    assert args.to_dict()["patch_dropout"] == 0.5 and options(tmp_path).patch_dropout == 0
    for values in ({"patch_dropout": 1.0}, {"patch_dropout": -0.1}, {"patch_dropout_until": 1.1}):
        with pytest.raises(ValueError, match="are shares"):
            options(tmp_path, **values)
