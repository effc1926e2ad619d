"""Released checkpoints in and out, against the released computation written out on their own weights."""

import argparse
import hashlib
import json
import os
import re
import warnings

import forked
import pytest
import released_twin as twin
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_processor

from modeling_gadms import GADMSForPreTraining, GADMSModel, GADMSProcessor
from modeling_gadms.convert_gadms_to_hf import RELEASED_FILE, convert_checkpoint, main
from modeling_gadms.masking_gadms import DualMasking, draw_uniforms, mask_captions
from modeling_gadms.released.checkpoints import load_converted, load_released, save_released
from modeling_gadms.released.layout import image_size_from
from modeling_gadms.released.reading import read_checkpoint


def save(content, folder, name="best.pth"):
    path = folder / name
    torch.save(content, path)
    return path


def small_weights(vocab_size):
    """A released checkpoint for a vocabulary of another size."""
    weights = twin.family_weights()
    generator = torch.Generator().manual_seed(9)
    for name in ("base_model.token_embedding.weight", "mlm_head.fc.weight"):
        weights[name] = torch.randn(vocab_size, 128, generator=generator)
    weights["mlm_head.fc.bias"] = torch.randn(vocab_size, generator=generator)
    return weights


def text_tokens(model, input_ids):
    return model.text_projection(model.text_model(input_ids).last_hidden_state)


def image_tokens(model, pixel_values):
    return model.project_image_tokens(model.vision_model(pixel_values).last_hidden_state)


class Traced(torch.nn.Module):
    """Holds weights under dotted names, as the modules of OpenAI's archives do."""

    def __init__(self, weights):
        super().__init__()
        for name, tensor in weights.items():
            *parents, leaf = name.split(".")
            module = self
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, torch.nn.Module())
                module = module._modules[parent]
            module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))

    def forward(self, x):
        return x


class RunsOnLoading(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]


# the released computation


@pytest.fixture(scope="module")
def weights():
    return twin.family_weights()


@pytest.fixture(scope="module")
def model(weights, tmp_path_factory):
    return load_released(save({"model": weights}, tmp_path_factory.mktemp("family")))[0]


@torch.no_grad()
def test_image_and_patch_embeddings_are_the_released_ones(model, weights):
    pixel_values = twin.images(3)
    expected = torch.stack([twin.encode_image(weights, image) for image in pixel_values])
    torch.testing.assert_close(image_tokens(model.gadms, pixel_values), expected, atol=1e-4, rtol=0)
    embeddings = model.gadms.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(embeddings, expected[:, 0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_text_embeddings_are_the_released_ones_at_the_highest_id(model, weights):
    input_ids = twin.captions([16, 9, 2, 12])
    expected = torch.stack([twin.encode_text(weights, ids) for ids in input_ids])
    torch.testing.assert_close(text_tokens(model.gadms, input_ids), expected, atol=1e-4, rtol=0)
    embeddings = model.gadms.get_text_features(input_ids).pooler_output
    at_eos = expected[torch.arange(4), input_ids.argmax(1)]
    torch.testing.assert_close(embeddings, at_eos, atol=1e-4, rtol=0)


@torch.no_grad()
def decoder_logits(model, pixel_values, input_ids):
    """Ours at every position, `(B, T, vocabulary)`."""
    own = torch.arange(input_ids.shape[1]) <= input_ids.argmax(1)[:, None]
    everywhere = torch.ones_like(own)
    tokens = text_tokens(model.gadms, input_ids), image_tokens(model.gadms, pixel_values)
    return model.decoder(*tokens, own, everywhere).unflatten(0, input_ids.shape)


@torch.no_grad()
def released_logits(weights, image, ids, num_own=None):
    return twin.decode(weights, twin.encode_text(weights, ids), twin.encode_image(weights, image), num_own)


def test_decoder_logits_of_captions_without_padding_are_the_released_ones(model, weights):
    pixel_values, input_ids = twin.images(2), twin.captions([16, 16])
    logits = decoder_logits(model, pixel_values, input_ids)
    for row in range(2):
        expected = released_logits(weights, pixel_values[row], input_ids[row])
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=0)


def test_decoder_logits_of_padded_captions_differ_from_the_released_ones_by_its_attention_to_padding_alone(
    model, weights
):
    pixel_values, input_ids = twin.images(2), twin.captions([9, 12])
    logits = decoder_logits(model, pixel_values, input_ids)
    for row, length in enumerate([9, 12]):
        masked = released_logits(weights, pixel_values[row], input_ids[row], num_own=length)
        torch.testing.assert_close(logits[row, :length], masked[:length], atol=1e-4, rtol=0)
        as_released = released_logits(weights, pixel_values[row], input_ids[row])
        assert (as_released[:length] - masked[:length]).abs().max() > 0.1


@pytest.mark.parametrize("pad_id", [0, twin.VOCAB_SIZE - 1])
def test_a_converted_decoder_attends_to_padding_up_to_the_context_length_as_the_released_one(
    model, weights, pad_id, monkeypatch
):
    """The loss of a batch padded to its longest caption is the released one, which pads to the context length."""
    lengths = [9, 12, 5]
    pixel_values, input_ids = twin.images(3), twin.captions(lengths)
    uniforms = draw_uniforms(3, twin.CONTEXT_LENGTH, torch.Generator().manual_seed(0))
    masking = DualMasking(alpha_info=0.6)
    batch = input_ids[:, :12].clone()
    for row, length in enumerate(lengths):
        batch[row, length:] = pad_id
    with torch.no_grad():
        outputs = model(pixel_values, batch, mask_uniforms=uniforms, masking=masking)
    assert outputs.token_scores.shape == batch.shape

    losses, ignoring = [], []
    views = mask_captions(batch, outputs.token_scores, uniforms, masking, model.config.mask_token_id)
    for row, length in enumerate(lengths):
        ids = input_ids[row].clone()
        ids[:length] = views.prediction_input_ids[row, :length]
        for found, num_own in ((losses, None), (ignoring, length)):
            logits = released_logits(weights, pixel_values[row], ids, num_own)
            for position in views.prediction_mask[row].nonzero().flatten():
                found.append(torch.nn.functional.cross_entropy(logits[position], input_ids[row, position]))
    torch.testing.assert_close(outputs.mtp_loss, torch.stack(losses).mean(), atol=1e-4, rtol=0)
    assert (torch.stack(losses).mean() - torch.stack(ignoring).mean()).abs() > 1e-3

    monkeypatch.setattr(model.config, "decoder_attends_padding", False)
    with torch.no_grad():
        again = model(pixel_values, batch, mask_uniforms=uniforms, masking=masking)
    torch.testing.assert_close(again.mtp_loss, torch.stack(ignoring).mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(again.sdm_loss, outputs.sdm_loss)


def test_only_a_released_decoder_attends_to_padding(model, tmp_path):
    assert model.config.decoder_attends_padding
    clip, _ = load_released(save({"model": twin.clip_weights()}, tmp_path), activation="quick_gelu")
    assert not clip.config.decoder_attends_padding and not tiny_model().config.decoder_attends_padding
    model.save_pretrained(tmp_path / "folder")
    assert load_converted(str(tmp_path / "folder")).config.decoder_attends_padding


# what files may look like


@pytest.mark.parametrize("form", ["model", "state_dict", "bare", "module", "run"])
def test_every_form_of_the_family_gives_the_same_model(weights, model, tmp_path, form):
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    content = {
        "model": {"model": weights},
        "state_dict": {"state_dict": wrapped},
        "bare": weights,
        "module": wrapped,
        "run": {"model": wrapped, "optimizer": {"state": {}}, "epoch": 3},
    }[form]
    found, conversion = load_released(save(content, tmp_path))
    assert isinstance(found, GADMSForPreTraining) and not found.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert set(conversion.left) == ({"optimizer", "epoch"} if form == "run" else set())
    assert conversion.used and set(conversion.used) == set(weights)


def openai_archive(weights, path):
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(Traced(weights)).save(str(path))
    return path


@pytest.mark.parametrize("form", ["torchscript", "state dict"])
def test_openais_clip_gives_a_retriever(tmp_path, form):
    plain = twin.clip_weights(num_patches=16)
    saved = plain | {"logit_scale": torch.tensor(4.6)}
    if form == "torchscript":
        saved |= {name: torch.tensor(1.0) for name in ("input_resolution", "context_length", "vocab_size")}
        path = openai_archive(saved, tmp_path / "ViT-B-16.pt")
    else:
        path = save(saved, tmp_path)
    model, conversion = load_released(path, activation=None if form == "torchscript" else "quick_gelu")
    assert isinstance(model, GADMSModel)
    assert model.config.vision_config.image_size == (16, 16)
    assert set(conversion.used) == set(plain) and set(conversion.left) == set(saved) - set(plain)
    pixel_values = twin.images(2, image_size=(16, 16))
    with torch.no_grad():
        expected = torch.stack([twin.encode_image(plain, image) for image in pixel_values])
        torch.testing.assert_close(image_tokens(model, pixel_values), expected, atol=1e-4, rtol=0)


def test_the_architecture_is_read_from_the_shapes(model):
    text, vision = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_hidden_layers) == (
        128,
        512,
        2,
        3,
    )
    assert (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) == (192, 768, 3)
    assert (vision.num_hidden_layers, vision.patch_size, vision.image_size) == (2, 4, (24, 8))
    assert (text.max_position_embeddings, text.vocab_size) == (16, 100)
    assert (model.config.mask_token_id, text.bos_token_id, text.eos_token_id) == (97, 98, 99)
    assert (model.config.projection_dim, model.config.decoder_num_layers) == (128, 2)


@pytest.mark.parametrize(
    ("num_patches", "patch", "given", "expected"),
    [
        (192, 16, None, (384, 128)),
        (196, 16, None, (224, 224)),
        (48, 32, None, (384, 128)),
        (256, 14, None, (224, 224)),
        (243, 14, None, (378, 126)),
        (128, 16, (256, 128), (256, 128)),
        (144, 16, (384, 96), (384, 96)),
    ],
)
def test_the_image_size_follows_from_the_position_table(num_patches, patch, given, expected):
    assert image_size_from(num_patches, patch, given) == expected


@pytest.mark.parametrize(
    ("num_patches", "given", "message"),
    [
        (128, None, "128 patches, neither a square nor a 3:1 grid: give .* --image_size"),
        (310, (384, 128), "310 patches, but 384x128 .* 24 x 8 = 192; overlapping patches"),
        (192, (128, 380), "192 patches, but 128x380 .* 8 x 23.75 = 190"),
        (0, None, "0 patches"),
    ],
)
def test_a_position_table_that_is_not_the_grid_it_should_be_is_refused(num_patches, given, message):
    with pytest.raises(ValueError, match=message):
        image_size_from(num_patches, 16, given)


def test_a_grid_that_is_neither_square_nor_of_pedestrians_takes_image_size(tmp_path, capsys):
    weights = twin.family_weights(num_patches=8)
    path = save(weights, tmp_path)
    assert run("--checkpoint", path, "--output_dir", tmp_path / "converted") == 2
    assert re.search(r"error: .*best.pth: the position table has 8 patches, neither", capsys.readouterr().err)
    run("--checkpoint", path, "--output_dir", tmp_path / "converted", "--image_size", 16, 8)
    model = load_converted(str(tmp_path / "converted"))
    pixel_values = twin.images(1, image_size=(16, 8))
    with torch.no_grad():
        expected = twin.encode_image(weights, pixel_values[0])
        torch.testing.assert_close(image_tokens(model.gadms, pixel_values)[0], expected, atol=1e-4, rtol=0)


def test_half_precision_is_welcome_and_dtype_is_a_choice(weights, tmp_path):
    # as released: matrices in half precision, norms and embeddings in single
    half = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    path = save({"model": half}, tmp_path)
    single = load_released(path)[0].state_dict()
    assert {tensor.dtype for tensor in single.values()} == {torch.float32}
    name = "base_model.visual.proj"
    assert torch.equal(single["gadms.visual_projection.weight"], half[name].float().T)
    kept = load_released(path, dtype=torch.float16)[0].state_dict()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
    assert torch.equal(kept["gadms.visual_projection.weight"], half[name].T)


def test_the_classifier_of_fine_tuning_is_left_with_a_reason(weights, tmp_path):
    classifier = {"classifier.weight": torch.randn(11, 128), "classifier.bias": torch.zeros(11)}
    left = load_released(save({"model": weights | classifier}, tmp_path))[1].left
    assert set(left) == set(classifier) and all("retrieval does not use it" in reason for reason in left.values())


@pytest.mark.parametrize("method", ["IRRA", "NAM", "HAM", "HAM, fine-tuned", "RDE"])
def test_each_method_of_the_family_gives_its_towers_and_lists_what_is_left(weights, tmp_path, method):
    towers = {name: tensor for name, tensor in weights.items() if name.startswith("base_model.")}
    classifier = {"classifier.weight": torch.randn(11, 128), "classifier.bias": torch.zeros(11)}
    given = {"HAM": towers, "RDE": towers | twin.selection_weights()}.get(method, weights | classifier)
    model, conversion = load_released(save({"model": given, "epoch": 60}, tmp_path))
    assert isinstance(model, GADMSModel if method in ("HAM", "RDE") else GADMSForPreTraining)
    assert set(conversion.used) | set(conversion.left) == {*given, "epoch"}
    if method == "RDE":
        reasons = {conversion.left[name] for name in twin.selection_weights()}
        assert len(reasons) == 2 and any("--rescore token-selection" in reason for reason in reasons)
    captions, pictures = twin.captions([9, 5]), twin.images(2)
    for row in range(2):
        text = twin.encode_text(given, captions[row])[captions[row].argmax()]
        image = twin.encode_image(given, pictures[row])[0]
        retriever = model.base_model
        found = retriever.get_text_features(captions).pooler_output[row]
        torch.testing.assert_close(found, text, atol=1e-4, rtol=1e-4)
        found = retriever.get_image_features(pictures).pooler_output[row]
        torch.testing.assert_close(found, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("missing", ["base_model.visual.proj", "base_model.ln_final.weight"])
def test_half_of_an_rde_is_refused_by_the_names_of_what_is_missing(weights, tmp_path, missing):
    towers = {name: tensor for name, tensor in weights.items() if name.startswith("base_model.") and name != missing}
    with pytest.raises(ValueError, match=rf"probably a checkpoint of RDE.*1 missing \({missing}\)"):
        load_released(save(towers | twin.selection_weights(), tmp_path))


# bad input


@pytest.mark.parametrize(
    ("strange", "method"),
    [
        ("encode_text.positional_embedding", "TBPS-CLIP, by its encode_text"),
        ("text_encoder.bert.embeddings.weight", "RaSa, or another descendant of ALBEF"),
        ("visual_encoder.cls_token", "BLIP or ALBEF"),
        ("vision_model.embeddings.class_embedding", "Hugging Face's CLIP"),
        ("visual.layer1.0.conv1.weight", "a CLIP with a ResNet"),
        ("something.else", "not a checkpoint of OpenAI's CLIP, GA-DMS, IRRA, NAM, RDE or HAM"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_another_methods_checkpoint_is_refused_in_one_line_that_names_it(weights, tmp_path, strange, method, alone):
    extra = {strange: torch.zeros(2)}
    path = save({"model": extra if alone else weights | extra}, tmp_path)
    with pytest.raises(ValueError) as caught:
        load_released(path)
    message = str(caught.value)
    assert str(path) in message and method in message and "\n" not in message
    assert "1 missing" in message if alone else f"1 unexplained ({strange})" in message


def test_missing_weights_and_wrong_shapes_are_refused_by_name(weights, tmp_path):
    for name in ("ln_post.bias", "base_model.transformer.resblocks.1.attn.in_proj_weight"):
        path = save({key: tensor for key, tensor in weights.items() if key != name}, tmp_path)
        with pytest.raises(ValueError, match=rf"1 missing \({name}\)"):
            load_released(path)
    path = save(weights | {"mlm_head.fc.bias": torch.zeros(7)}, tmp_path)
    with pytest.raises(ValueError, match=r"mlm_head.fc.bias is torch.float32 of shape \(7,\)"):
        load_released(path)
    path = save(weights | {"base_model.ln_final.bias": torch.zeros(128, dtype=torch.long)}, tmp_path)
    with pytest.raises(ValueError, match="base_model.ln_final.bias is torch.int64"):
        load_released(path)


def test_a_file_that_needs_arbitrary_pickle_is_refused_with_the_reason(weights, tmp_path):
    path = save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path)
    with pytest.raises(ValueError, match=r"arbitrary pickle \(argparse.Namespace\).* Cure"):
        load_released(path)
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return open, (str(marker), "w")

    with pytest.raises(ValueError, match="arbitrary pickle"):
        load_released(save({"model": Runs()}, tmp_path))
    assert not marker.exists()


def test_a_torchscript_archive_that_brings_code_for_loading_is_refused(tmp_path):
    path = tmp_path / "runs.pt"
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.script(RunsOnLoading()).save(str(path))
    with pytest.raises(ValueError, match="runs on loading"):
        load_released(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_short_empty_and_foreign_files_are_refused_in_one_line(weights, tmp_path, legacy):
    path = tmp_path / "best.pth"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=not legacy)
    assert len(read_checkpoint(path)[0]) == len(weights)
    whole = path.read_bytes()
    cut = [whole[:length] for length in (len(whole) // 2, *range(1, 400, 7), *range(300, 320))]
    for content in (*cut, b"", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a PyTorch checkpoint, or is cut short|is refused") as caught:
            load_released(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        load_released(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError, match="--reverse"):
        load_released(tmp_path)
    for content, message in (
        (torch.zeros(3), "holds Tensor"),
        ({"model": {}}, "an empty dict"),
        ({"epoch": 3, "loss": 0.1}, "2 of 2 entries are not tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            load_released(save(content, tmp_path))


# folders, and back


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_folder_loads_in_a_fresh_process_without_the_package(tmp_path, capsys):
    tokenizer = tiny_processor(context_length=16).tokenizer
    tokenizer.save_pretrained(tmp_path / "vocabulary")
    path = save({"model": small_weights(len(tokenizer)), "epoch": 1}, tmp_path)
    folder = tmp_path / "converted"
    run("--checkpoint", path, "--output_dir", folder, "--tokenizer", tmp_path / "vocabulary")
    printed = capsys.readouterr().out
    assert "missing: none" in printed and "epoch: the state of a training run" in printed
    assert "  mlm_head.fc.weight\n" in printed

    card = (folder / "README.md").read_text()
    assert "`best.pth`" in card and hashlib.sha256(path.read_bytes()).hexdigest() in card
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert {"modeling_gadms.py", "released_scores_gadms.py", "tokenization_gadms.py"} <= names
    assert json.loads((folder / "config.json").read_text())["vision_config"]["image_size"] == [24, 8]

    script = (
        "import sys; sys.modules['modeling_gadms'] = None; import torch\n"
        "from transformers import AutoModel, AutoProcessor\n"
        f"model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "from PIL import Image\n"
        "inputs = processor(images=Image.new('RGB', (9, 30), 'red'), text='a person in a red coat')\n"
        "torch.save(dict(inputs, text_embeds=model(**inputs).text_embeds), sys.argv[1])\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    forked.run(["-c", script, tmp_path / "out.pt"], cwd=tmp_path, env=offline).check_returncode()
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["pixel_values"].shape == (1, 3, 24, 8)
    expected = load_converted(folder).gadms(input_ids=out["input_ids"], pixel_values=out["pixel_values"]).text_embeds
    torch.testing.assert_close(out["text_embeds"], expected, atol=1e-6, rtol=0)


def test_without_a_vocabulary_the_missing_processor_is_announced(weights, tmp_path, capsys):
    folder = tmp_path / "converted"
    run("--checkpoint", save({"model": weights}, tmp_path), "--output_dir", folder)
    assert "no tokenizer was written" in capsys.readouterr().out
    assert not (folder / "tokenizer.json").exists() and (folder / "preprocessor_config.json").exists()
    assert "AutoImageProcessor" in (folder / "README.md").read_text()


def test_a_clip_vocabulary_gets_its_mask_and_the_checkpoints_length(tmp_path):
    gadms = tiny_processor().tokenizer
    merges = [tuple(merge) for merge in json.loads(gadms.backend_tokenizer.to_str())["model"]["merges"]]
    clip = tmp_path / "clip"
    clip.mkdir()
    # CLIP has one more merge, whose place the mask takes
    (clip / "merges.txt").write_text("\n".join(["#version", *(" ".join(merge) for merge in merges), "q q</w>"]) + "\n")
    path = save({"model": small_weights(len(gadms))}, tmp_path)
    convert_checkpoint(str(path), str(tmp_path / "converted"), tokenizer=str(clip))
    processor = GADMSProcessor.from_pretrained(tmp_path / "converted")
    assert processor.tokenizer.mask_token_id == len(gadms) - 3
    assert processor.tokenizer.model_max_length == twin.CONTEXT_LENGTH
    caption = "a person in a red coat"
    assert processor.tokenizer(caption).input_ids == gadms(caption).input_ids


def test_a_vocabulary_of_another_size_leaves_no_folder_behind(weights, tmp_path, capsys):
    tiny_processor().tokenizer.save_pretrained(tmp_path / "vocabulary")
    path = save({"model": weights}, tmp_path)
    assert run("--checkpoint", path, "--output_dir", tmp_path / "new", "--tokenizer", tmp_path / "vocabulary") == 2
    assert re.search(r"entries, the checkpoint 100", capsys.readouterr().err)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best.pth", "vocabulary"]


def test_a_folder_with_files_is_not_written_into(weights, tmp_path, capsys):
    path = save({"model": weights}, tmp_path)
    assert run("--checkpoint", path, "--output_dir", tmp_path) == 2
    assert re.search(r"error: .* is not an empty folder", capsys.readouterr().err)
    assert run("--reverse", "--checkpoint", path, "--output_dir", tmp_path) == 2
    assert re.search(r"error: .* is not an empty folder", capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["family", "clip"])
def test_released_to_ours_and_back_is_bit_equal(tmp_path, kind):
    weights = twin.family_weights() if kind == "family" else twin.clip_weights()
    decided = [] if kind == "family" else ["--activation", "quick_gelu"]
    run("--checkpoint", save(weights, tmp_path), "--output_dir", tmp_path / "converted", *decided)
    run("--reverse", "--checkpoint", tmp_path / "converted", "--output_dir", tmp_path / "back")
    back = torch.load(tmp_path / "back" / RELEASED_FILE, weights_only=True)["model"]
    prefix = "" if kind == "family" else "base_model."
    assert set(back) == {prefix + name for name in weights}
    for name, tensor in weights.items():
        assert torch.equal(back[prefix + name], tensor), name


def test_half_precision_comes_back_bit_equal(tmp_path):
    half = {name: tensor.half() for name, tensor in twin.family_weights().items()}
    run("--checkpoint", save(half, tmp_path), "--output_dir", tmp_path / "converted")
    run("--reverse", "--checkpoint", tmp_path / "converted", "--output_dir", tmp_path / "back", "--dtype", "float16")
    back = torch.load(tmp_path / "back" / RELEASED_FILE, weights_only=True)["model"]
    assert all(torch.equal(back[name], tensor) and back[name].dtype == torch.float16 for name, tensor in half.items())


@pytest.mark.parametrize("model_class", [GADMSForPreTraining, GADMSModel])
def test_ours_to_released_and_back_is_bit_equal(model, tmp_path, model_class):
    start = model if model_class is GADMSForPreTraining else model.gadms
    start.save_pretrained(tmp_path / "ours")
    run("--reverse", "--checkpoint", tmp_path / "ours", "--output_dir", tmp_path / "released")
    run("--checkpoint", tmp_path / "released" / RELEASED_FILE, "--output_dir", tmp_path / "again")
    before = load_file(tmp_path / "ours" / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "again")]
    if model_class is GADMSModel:  # what describes a decoder that is not there cannot come back
        configs = [config | {"decoder_num_layers": 4, "decoder_attends_padding": False} for config in configs]
    assert configs[0] == configs[1]


def test_models_that_the_released_code_cannot_hold_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="text tower has heads 32 wide"):
        save_released(tiny_model(), tmp_path / RELEASED_FILE)
    assert not list(tmp_path.iterdir())


def test_reverse_refuses_a_folder_of_another_model(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert run("--reverse", "--checkpoint", tmp_path, "--output_dir", tmp_path / "released") == 2
    assert re.search(r"holds a clip model, not GA-DMS", capsys.readouterr().err)
