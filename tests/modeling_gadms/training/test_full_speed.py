"""What makes steps fast on a GPU changes nothing: compiled layers, padding to a multiple, losses looked at late."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_trainer import tiny_trainer
from tiny import tiny_batch, tiny_captions, tiny_model, tiny_processor
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from modeling_gadms.losses_gadms import id_loss, mtp_loss, sdm_loss, sigmoid_loss
from modeling_gadms.masking_gadms import DualMasking, draw_uniforms, mask_captions
from modeling_gadms.training.collator import PairCollator
from modeling_gadms.training.compiling import PAD_TO_MULTIPLE_OF, compile_layers
from modeling_gadms.training.watched_loss import WatchedLoss


def test_compiled_layers_take_the_same_step_in_few_graphs():
    """Layers of one kind share a graph, the second length makes the length a variable, and a third makes no graph."""
    torch._dynamo.reset()
    counters.clear()
    plain, counter = tiny_model().train(), CompileCounter()
    model = copy.deepcopy(plain)
    compile_layers(model, counter)
    graphs = []
    for longest in (16, 24, 32):
        found = []
        for each in (plain, model):
            each.zero_grad()
            outputs = each(**tiny_batch([longest, 7, 3, 5]))
            outputs.loss.backward()
            found.append([outputs.loss, outputs.token_scores, *(weight.grad for weight in each.parameters())])
        for eager, compiled in zip(*found, strict=True):
            torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)
        graphs.append(counter.frame_count)
    # of the layers: the image's, the text's and the decoder's; of the score: five functions
    assert graphs[0] == 3 + 5 and graphs[2] == graphs[1] <= 14, graphs
    assert not counters["graph_break"]
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.slow  # a minute of C++
def test_layers_compiled_by_inductor_take_the_same_step():
    torch._dynamo.reset()
    plain = tiny_model().train()
    model = copy.deepcopy(plain)
    compile_layers(model)
    found = []
    for each in (plain, model):
        outputs = each(**tiny_batch([16, 7, 3, 5]))
        outputs.loss.backward()
        found.append([outputs.loss, outputs.token_scores, *(weight.grad for weight in each.parameters())])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-3)


def test_losses_and_masks_are_one_graph_each():
    generator = torch.Generator().manual_seed(0)
    images, texts, logits = (torch.randn(6, 9, generator=generator) for _ in range(3))
    ids, labels = torch.tensor([3, 3, 5, 6, 7, 8]), torch.tensor([0, 1, 2, 3, 4, 5])
    captions, uniforms = tiny_captions([9, 5, 7]), draw_uniforms(3, 16, generator)
    scores = torch.rand(captions.shape, generator=generator)

    def masks():
        views = mask_captions(captions, scores, uniforms, DualMasking(), 97)
        return views.noise_input_ids, views.prediction_input_ids, views.prediction_mask

    for function in (
        lambda: sdm_loss(images, texts, ids),
        lambda: sigmoid_loss(images, texts, ids, ids, 0.1, -10.0),
        lambda: mtp_loss(logits, labels, torch.tensor(5.0)),
        lambda: id_loss(images, texts, labels),
        masks,
    ):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(), function())


def test_captions_of_compiled_layers_are_padded_to_a_multiple_and_never_past_the_context(tmp_path):
    processor = tiny_processor()
    row = {"image": Image.new("RGB", (16, 32)), "image_path": "1.png", "epoch": 0}
    widths = set()
    for words in range(1, 14):
        rows = [{**row, "caption1": " ".join(["coat"] * words)}]
        plain = PairCollator(processor)(rows)
        padded = PairCollator(processor, pad_to_multiple_of=12)(rows)
        width = plain["input_ids"].shape[1]
        full = processor(text=[rows[0]["caption1"]], padding="max_length")
        assert padded["input_ids"].shape[1] == min(12 * math.ceil(width / 12), 32)
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(padded[name], full[name][:, : padded[name].shape[1]])
            assert torch.equal(padded[name][:, :width], plain[name])
        assert torch.equal(padded["mask_uniforms"], plain["mask_uniforms"])
        widths.add(padded["input_ids"].shape[1])
    assert {12, 24} <= widths
    for compile_layers_ in (False, True):
        trainer = tiny_trainer(tmp_path, compile_layers=compile_layers_)
        assert trainer.data_collator.pad_to_multiple_of == (PAD_TO_MULTIPLE_OF if compile_layers_ else 1)
        assert (trainer.model.score_compiler == "inductor") == compile_layers_
        assert all((layer._compiled_call_impl is not None) == compile_layers_ for layer in layers(trainer.model))


def test_on_a_gpu_the_optimiser_is_one_kernel(tmp_path, monkeypatch):
    trainer, fused = tiny_trainer(tmp_path), []
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, **options: fused.append(options["fused"]))
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(type(trainer.args), "device", torch.device(device))
        trainer.make_optimizer([])
    assert fused == [None, True], "elsewhere torch chooses"


def test_attention_of_the_towers_and_the_score_has_no_mask_that_flash_would_refuse(monkeypatch):
    """Padding follows EOS, and a causal tower never looks there: what is asked for is causal or whole attention."""
    attend, asked = torch.nn.functional.scaled_dot_product_attention, []

    def spied(query, *others, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        asked.append((attn_mask is not None, dropout_p, bool(is_causal), query.shape[-2]))
        return attend(query, *others, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    model, batch = tiny_model().train(), tiny_batch([16, 7, 3, 5])
    model(**batch).loss.backward()
    text, image = len(model.gadms.text_model.encoder.layers), len(model.gadms.vision_model.encoder.layers)
    patches = model.gadms.vision_model.embeddings.num_positions
    of_image = [one for one in asked if one[3] == patches]
    of_text = [one for one in asked if one[3] == batch["input_ids"].shape[1] and one[2]]
    assert of_image == [(False, 0.0, False, patches)] * image
    # the views together, and the score's pass, which needs no output of the last layer
    assert of_text == [(False, 0.0, True, 16)] * (text + text - 1)


def layers(model):
    towers = model.gadms.text_model, model.gadms.vision_model, model.decoder
    return [layer for tower in towers for layer in tower.encoder.layers]


class Event:
    """Of a device: what happened to it is kept."""

    happened: list[str] = []

    def record(self):
        self.happened.append("recorded")

    def synchronize(self):
        self.happened.append("waited for")


@pytest.fixture
def a_device(monkeypatch):
    """The CPU taken for a device."""
    monkeypatch.setattr("modeling_gadms.training.trainer.on_host", lambda tensor: False)
    monkeypatch.setattr("modeling_gadms.training.watched_loss.on_host", lambda tensor: False)
    module = SimpleNamespace(Event=Event, is_available=lambda: False)  # which torch asks for as well
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(Event, "happened", [])


def test_a_loss_of_a_device_is_waited_for_when_it_is_looked_at(a_device):
    watched = WatchedLoss(torch.tensor(math.inf, requires_grad=True), 3, ["1.png"])
    assert Event.happened == ["recorded"]
    with pytest.raises(FloatingPointError, match="inf at step 3, on .* 1.png. Weights were not updated; .*none"):
        watched.refuse_not_finite(2, lambda: None)
    assert Event.happened == ["recorded", "waited for"]
    with pytest.raises(FloatingPointError, match="Weights were updated with it; last checkpoint: at-2"):
        watched.refuse_not_finite(3, lambda: "at-2")
    WatchedLoss(torch.tensor(1.0), 3, ["1.png"]).refuse_not_finite(3, lambda: None)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("saving", [False, True])
def test_on_a_device_a_loss_that_is_not_finite_stops_before_the_next_step_or_checkpoint(
    tmp_path, a_device, saving, last
):
    trainer = tiny_trainer(tmp_path, max_steps=2 if last else 4, save_strategy="steps", save_steps=2 if saving else 9)
    compute_loss, steps = trainer.compute_loss, []

    def poison(model, inputs, **kwargs):
        steps.append(trainer.state.global_step + 1)
        if steps[-1] == 2:
            inputs["pixel_values"][0, 0, 0, 0] = math.nan
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = poison
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2, on .*\d+\.png.*were updated with it"):
        trainer.train()
    assert steps == [1, 2] + [3] * (not last and not saving), "the third finds it before it runs, a checkpoint sooner"
    assert not (tmp_path / "checkpoint-2").exists()


def test_every_loss_is_looked_at_once(tmp_path, a_device):
    tiny_trainer(tmp_path, max_steps=3).train()
    assert Event.happened.count("waited for") == Event.happened.count("recorded") == 3
