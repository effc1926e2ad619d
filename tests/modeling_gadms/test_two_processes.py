"""Two processes with half of a batch each, whose identities are left to the default, beside one with all of it."""

import os
from unittest import mock

import forked
import pytest
import torch
import torch.distributed as dist
from places import HELPERS
from tiny import tiny_captions, tiny_images, tiny_model
from torch.distributed.fsdp import fully_shard

from modeling_gadms import modeling_gadms
from modeling_gadms.distributed_gadms import gather_batch, mean_over_processes, num_processes
from modeling_gadms.losses_gadms import sdm_loss
from modeling_gadms.masking_gadms import draw_uniforms

LENGTHS = [12, 7, 3, 9, 4, 6]


def batch(rows=slice(None)):
    whole = {
        "pixel_values": tiny_images(len(LENGTHS)),
        "input_ids": tiny_captions(LENGTHS),
        "mask_uniforms": draw_uniforms(len(LENGTHS), 32, torch.Generator().manual_seed(0)),
    }
    return {name: tensor[rows] for name, tensor in whole.items()}


def losses_and_gradients(rows=slice(None)):
    model = tiny_model()
    outputs = model(**batch(rows))
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": outputs.loss.detach(), "sdm": outputs.sdm_loss, "mtp": outputs.mtp_loss, **gradients}


def sigmoid_and_gradients(rows=slice(None)):
    """Of the towers, with persons of which both halves have images."""
    model, persons = tiny_model(), torch.tensor([4, 7, 9, 7, 4, 4])[rows]
    outputs = model(**batch(rows), person_ids=persons, masking=None, sigmoid_bias=-3.0)
    outputs.loss.backward()
    assert outputs.sdm_loss is None and torch.equal(outputs.sigmoid_loss, outputs.loss)
    gradients = {name: parameter.grad for name, parameter in model.gadms.named_parameters()}
    return {"loss": outputs.loss.detach(), **gradients}


def half_precision(rows=slice(None)):
    """The loss under autocast, the gathered dtypes, and the gradient of the embeddings of these rows."""
    model, seen, gather = tiny_model(), [], modeling_gadms.gather_batch

    def spied(tensor):
        if tensor.requires_grad:
            tensor.retain_grad()
            seen.append(tensor)
        gathered = gather(tensor)
        assert gathered.dtype == tensor.dtype
        return gathered

    with mock.patch.object(modeling_gadms, "gather_batch", spied), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch(rows))
    outputs.loss.backward()
    assert [tensor.dtype for tensor in seen] == [torch.bfloat16] * 2
    return {"loss": outputs.loss.detach(), "images": seen[0].grad, "texts": seen[1].grad}


def matching_and_gradients(rows=slice(None)):
    """With persons of which both halves have images, captions of another width in each, and drawn negatives."""
    model, persons = tiny_model(matching_head=True), torch.tensor([4, 7, 9, 7, 4, 4])[rows]
    uniforms = torch.rand(len(LENGTHS), 2, generator=torch.Generator().manual_seed(5))[rows]
    whole = batch(rows)
    whole["input_ids"] = whole["input_ids"][:, : max(LENGTHS[rows])]
    outputs = model(**whole, person_ids=persons, masking=None, matching_weight=1.0, negative_uniforms=uniforms)
    outputs.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": outputs.matching_loss, **gradients}


def swaps_and_gradients(rows=slice(None)):
    """Of the towers, with persons of which both halves have images, and two copies a caption of another width."""
    model, persons = tiny_model(), torch.tensor([4, 7, 9, 7, 4, 4])[rows]
    whole, copies = batch(), tiny_captions([9, 11, 5, 8, 6, 7, 3, 10, 4, 12, 8, 5], seed=1).view(6, 2, -1)
    weights = torch.rand(len(LENGTHS), 2, generator=torch.Generator().manual_seed(5))
    whole |= {"swap_input_ids": copies, "swap_weights": weights}
    whole = {name: tensor[rows] for name, tensor in whole.items()}
    outputs = model(**whole, person_ids=persons, masking=None)
    outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.gadms.named_parameters()}
    return {"loss": outputs.sdm_loss, **gradients}


def divided(rows):
    """The loss, and the gradients that FSDP2 averages, of a model whose layers are divided over the processes."""
    model, mesh = tiny_model(), dist.device_mesh.init_device_mesh("cpu", (2,))
    for tower in (model.gadms.text_model, model.gadms.vision_model, model.decoder):
        for layer in tower.encoder.layers:
            fully_shard(layer, mesh=mesh)
    outputs = fully_shard(model, mesh=mesh)(**batch(rows))
    outputs.loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    return {"loss": outputs.loss.detach(), **gradients}


def compiled_loss_and_gradients(rows=slice(None)):
    """A loss of gathered embeddings that is one graph, and which the compiler does nothing to."""
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(6, 9, generator=generator)[rows].requires_grad_() for _ in range(2)]
    ids = torch.tensor([3, 3, 5, 6, 7, 8])
    compiled = torch.compile(lambda *both: sdm_loss(*map(gather_batch, both), ids), backend="eager", fullgraph=True)
    loss = compiled(*sides)
    loss.backward()
    return {"loss": loss.detach(), "images": sides[0].grad, "texts": sides[1].grad}


def work(path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mine = slice(3 * rank, 3 * rank + 3)
    found = losses_and_gradients(mine)
    found |= {f"sigmoid {name}": value for name, value in sigmoid_and_gradients(mine).items()}
    found |= {f"swaps {name}": value for name, value in swaps_and_gradients(mine).items()}
    found |= {f"divided {name}": value for name, value in divided(mine).items()}
    found |= {f"half {name}": value for name, value in half_precision(mine).items()}
    found |= {f"compiled {name}": value for name, value in compiled_loss_and_gradients(mine).items()}
    found |= {f"matching {name}": value for name, value in matching_and_gradients(mine).items()}
    numbers = torch.tensor([[1.0 + rank], [10.0 + rank]], requires_grad=True)
    gathered = gather_batch(numbers)
    # either process weighs the rows by its own numbers
    (gathered[:, 0] * torch.tensor([1.0, 2.0, 3.0, 4.0]) * (1 + 9 * rank)).sum().backward()
    found |= {"gathered": gathered.detach(), "gathered_gradient": numbers.grad}
    found |= {"mean": mean_over_processes(torch.tensor(3 + 4 * rank)), "processes": torch.tensor(num_processes())}
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    code = "import sys; sys.path[:0] = {!r}; from test_two_processes import work; work(sys.argv[1])"
    done = forked.run(["-c", code.format([os.path.dirname(__file__), str(HELPERS)]), path], processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


def test_each_image_of_the_joint_batch_is_its_own_identity_by_default(by_two):
    one = losses_and_gradients()
    for found in by_two:
        torch.testing.assert_close(found["sdm"], one["sdm"], atol=1e-4, rtol=1e-5)
    joint = tiny_model()(**batch(), person_ids=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert abs(joint.sdm_loss - one["sdm"]) > 0.1, "rows of equal number are no matches"


def test_the_means_over_processes_are_the_loss_and_gradient_of_the_joint_batch(by_two):
    one = losses_and_gradients()
    for name, expected in one.items():
        mean = (by_two[0][name] + by_two[1][name]) / 2
        torch.testing.assert_close(mean, expected, atol=2e-4, rtol=1e-3, msg=name)


def test_the_mean_sigmoid_loss_over_processes_is_that_of_the_joint_batch_with_its_gradient(by_two):
    for name, expected in sigmoid_and_gradients().items():
        halves = [found[f"sigmoid {name}"] for found in by_two]
        torch.testing.assert_close(sum(halves) / 2, expected, atol=2e-4, rtol=1e-3, msg=name)
    assert by_two[0]["sigmoid loss"] != by_two[1]["sigmoid loss"], "each has the rows of its own images"


def test_swapped_captions_of_both_processes_are_in_the_loss_of_the_joint_batch_with_its_gradient(by_two):
    one = swaps_and_gradients()
    for name, expected in one.items():
        halves = [found[f"swaps {name}"] for found in by_two]
        torch.testing.assert_close(sum(halves) / 2, expected, atol=2e-4, rtol=1e-3, msg=name)
    plain = tiny_model()(**batch(), person_ids=torch.tensor([4, 7, 9, 7, 4, 4]), masking=None)
    assert one["loss"] > plain.loss + 0.1


def test_divided_layers_give_the_loss_and_gradient_of_the_joint_batch(by_two):
    for name, expected in losses_and_gradients().items():
        halves = [found.get(f"divided {name}") for found in by_two]
        if name == "loss":
            torch.testing.assert_close(sum(halves) / 2, expected, atol=2e-4, rtol=1e-3)
        elif name not in ("sdm", "mtp"):
            for gradient in halves:
                torch.testing.assert_close(gradient, expected, atol=2e-4, rtol=1e-3, msg=name)


def test_half_precision_travels_as_it_is_and_gives_the_loss_and_gradient_of_the_joint_batch(by_two):
    one = half_precision()
    half = [{name: found[f"half {name}"] for name in one} for found in by_two]
    torch.testing.assert_close((half[0]["loss"] + half[1]["loss"]) / 2, one["loss"], atol=2e-3, rtol=2e-3)
    for name in ("images", "texts"):
        # each process has the whole loss, whose gradient is summed here and averaged over the weights later
        joint, expected = torch.cat([found[name] for found in half]).float() / 2, one[name].float()
        assert (joint - expected).abs().max() <= 2**-8 * expected.abs().max(), f"{name}: more than one rounding"


def test_a_gathered_loss_is_one_graph_with_the_gradient_of_the_joint_batch(by_two):
    one = compiled_loss_and_gradients()
    for name, expected in one.items():
        halves = [found[f"compiled {name}"] for found in by_two]
        if name == "loss":
            assert torch.equal(halves[0], expected) and torch.equal(halves[1], expected)
        else:  # of both processes, which have the whole loss, summed
            torch.testing.assert_close(torch.cat(halves) / 2, expected)


def test_the_mean_loss_of_matching_over_processes_is_that_of_the_joint_batch_with_its_gradient(by_two):
    expected = matching_and_gradients()
    assert "decoder.matching.weight" in expected
    for name, gradient in expected.items():
        halves = [found[f"matching {name}"] for found in by_two]
        torch.testing.assert_close(sum(halves) / 2, gradient, atol=2e-4, rtol=1e-3, msg=name)
    assert by_two[0]["matching loss"] != by_two[1]["matching loss"], "each has the negatives of its own pairs"


def test_rows_are_gathered_in_the_order_of_ranks_and_gradients_of_all_are_summed(by_two):
    for rank, found in enumerate(by_two):
        assert found["gathered"].flatten().tolist() == [1, 10, 2, 11]
        assert found["gathered_gradient"].flatten().tolist() == [[11, 22], [33, 44]][rank]


def test_scalars_are_averaged_and_processes_counted(by_two):
    for found in by_two:
        assert found["mean"] == 5 and found["mean"].dtype == torch.float32 and found["processes"] == 2
    assert mean_over_processes(torch.tensor(3)) == 3 and num_processes() == 1
