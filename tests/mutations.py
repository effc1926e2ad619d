"""Wrong implementations of the numeric core, each of which a test must catch.

    python tests/mutations.py [--list] [word ...]        # with words, only the mutants whose name or file has one

Every mutant replaces one fragment of one file in a temporary copy of the tree, and the tests named beside it run:
it is caught if one of them fails. The exit code is 1 if one survives, and 2 if the list itself is wrong: a fragment
that does not stand in its file exactly once, tests that cannot be run, or that fail without a mutant too.

Each run is a fork of one interpreter that has imported the large packages, so that none imports them again.
"""

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("modeling_gadms", "dataset_webperson", "tests", "pyproject.toml")
# imported once; what else the project imports is small
IMPORTED = ("torch", "datasets", "transformers.trainer", "transformers.models.clip.modeling_clip", "peft", "pytest")
LIMIT = 300  # seconds that the tests of a mutant may take; one that hangs is caught


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS: list[Mutant] = []


def mutants(file: str, *changes: tuple) -> None:
    """Changes of a file under `modeling_gadms`: `(name, old, new, test, ...)`, tests under `tests/modeling_gadms`."""
    for name, old, new, *tests in changes:
        paths = tuple(f"tests/modeling_gadms/{test}" for test in tests)
        MUTANTS.append(Mutant(name, f"modeling_gadms/{file}", old, new, paths))


# tests, by the file they are in
LOSSES, MASKING, INDEPENDENT = "test_losses.py", "test_masking.py", "test_masks_are_independent.py"
DEFAULTS, PROCESSES = "test_defaults_of_a_step.py", "test_two_processes.py"
WORDS = "test_word_contributions.py"
STEP = "test_modeling.py::test_the_training_step_is_the_sum_of_its_documented_parts"
SHAPES = "test_modeling.py::test_features_and_logits_have_the_documented_shapes"
TEXTS = "test_towers.py::test_captions_have_the_embeddings_of_the_tower_they_come_from"
SEEN = "test_towers.py::test_siglip_sees_its_padding_so_captions_are_padded_as_it_was_trained"
ALIKE = "test_towers.py::test_embeddings_do_not_depend_on_padding_or_on_the_other_captions"
IN_SPACE = "test_towers.py::test_patches_lie_in_the_joint_space_behind_the_image_itself"
OF_TOWERS = "test_towers.py::test_scores_equal_full_autograd_on_an_ordinary_forward"
SELECTED = "evaluation/test_token_selection.py::test_both_sides_embed_the_selected_tokens_as_described"
SIGMOID = "test_losses.py::test_the_sigmoid_loss_equals_its_definition_with_gradients"
HIDDEN = "test_towers.py::test_masks_hide_own_tokens_alone_and_random_words_never_end_a_caption"
SCORES = "test_token_scores.py::test_scores_equal_full_autograd_on_an_ordinary_forward"
POOLING = "test_token_scores.py::test_pooling_matrix_equals_pooling_and_interpolation"
PADDING = "test_token_scores.py::test_scores_do_not_depend_on_padding_or_on_the_other_captions"
RELEASED = "test_released_scores.py::test_released_scores_equal_the_released_computation"
DECODER = "released/test_conversion.py::test_decoder_logits_of_captions_without_padding_are_the_released_ones"
WAITING, PLACES = "test_no_waiting.py", "test_places_are_the_true_ones_and_then_others"
ROOM = "test_there_is_room_for_all_that_is_drawn_even_where_every_score_is_highest"
SPANS = "noise/test_patch_evidence.py::test_named_spans_are_hidden_before_alignment_and_nothing_else"
COLLATOR, EPOCHS = "training/test_data_collator.py", "training/test_epochs_and_shares.py"
LATER = "training/test_augmentation.py"
SHARED, IN_TURN = "training/test_shared_batches.py", "test_batches_in_turn_are_given_back_when_the_next_is_asked_for"
BEFORE = "            self.give_back(place)\n            yield batch"
DECODING = "training/test_image_decoding.py"
FOR_BYTES = 'F.interpolate(pixels[None], size, mode="bicubic", antialias=True)'
FAST = "training/test_full_speed.py"
STEPS, ERASING, APART = "training/test_trainer_steps.py", "training/test_erasing.py", "training/test_rows_apart.py"
CHUNKS = "training/test_contrastive_accumulation.py::test_chunks_give_the_loss_and_gradient_of_one_batch_of_64"
DROPOUT = (
    "training/test_contrastive_accumulation.py::"
    "test_dropout_is_the_same_when_a_chunk_is_embedded_and_when_it_is_replayed"
)
RANKING, PERSONS = "person_retrieval/test_ranking.py", "evaluation/test_persons_as_groups.py"
DISTRIBUTION = "evaluation/test_similarity_distribution.py"
SIGNIFICANCE, ENCODING = "evaluation/test_significance.py", "evaluation/test_encoding.py"
EXACT = "gallery/test_gallery_search.py::test_exact_search_is_plain_arithmetic_ties_included"
GROUPS, FILTERS = "gallery/test_gallery_search.py::test_one_of_each_group_is_shown", "gallery/test_gallery_filters.py"
NO_MASK = "test_towers.py::test_a_vocabulary_without_a_mask_gets_one_with_the_mean_embedding"
PICTURES = "test_towers.py::test_images_have_the_embeddings_of_the_tower_they_come_from"
NON_SQUARE = "test_towers.py::test_non_square_images_are_taken_as_the_tower_itself_takes_them"
NOT_ITS_OWN = "test_fgclip2.py::test_weights_of_another_model_are_refused_by_name"
HALF = "test_towers.py::test_half_of_the_weights_are_named_and_counted"
UNUSED = "test_towers.py::test_a_processor_saved_before_its_first_use_prepares_captions_alike"
FOREIGN = "test_towers.py::test_a_tokenizer_of_another_tower_is_refused"
SPACES = "test_towers.py::test_words_are_what_stands_between_spaces_whatever_the_tokenizer_calls_a_word"
OPTIONS = "test_towers.py::test_options_given_as_those_of_texts_go_before_the_towers_own"
SIZES = "test_towers.py::test_image_sizes_that_patches_do_not_divide_are_refused_with_the_nearest"
VOCABULARY = "training/test_vocabulary.py::"
VOCABULARY += "test_captions_of_the_corpus_keep_their_embeddings_and_the_way_back_is_kept"
OPEN_CLIP = "released/test_open_clip.py"
PATCHES = "gallery/test_gallery_explaining.py::test_a_patch_contributes_what_the_cosine_falls_without_it"
SOURCES = "gallery/test_gallery_adding.py::test_lists_data_sets_parquet_and_tars_are_sources"
KNOWN = "gallery/test_gallery_adding.py::test_ids_that_end_in_zeros_are_known"
NO_ZEROS = "np.array([np.bytes_(bytes.fromhex(number)[:-1])])"
Z = "gallery/test_gallery_calibration.py::test_a_cosine_is_standardised_by_those_of_all_images"
HALVES = "gallery/test_gallery_calibration.py::test_a_half_is_judged_by_the_curve_of_the_other"
ANSWERS = "noise/test_repaired_captions.py::test_answers_losses_and_gradients_are_those_of_one_word_at_a_time"
BAYES = (
    "noise/test_repaired_captions.py::test_what_is_true_follows_by_bayes_rule_and_unshown_families_keep_their_words"
)
NUMBERS = "noise/test_repaired_captions.py::test_temperatures_and_the_share_of_false_words_are_found_blindly"
DRAWN_WORDS = "noise/test_repaired_captions.py::test_drawn_words_follow_seed_epoch_and_image_and_leave_the_rest_alone"
PUT_IN = "noise/test_repaired_captions.py::test_words_are_put_in_by_their_probability"
FEW_WORDS = "noise/test_repaired_captions.py::test_a_few_words_do_not_prove_that_images_show_a_family"
PLACES = "noise/test_repaired_captions.py::test_words_are_found_with_the_tokens_around_them"
QUALITY, PERSONS_DRAWN = "false_words/test_word_detection.py", "test_intervals_draw_whole_persons_and_hold_the_figure"
DETECTORS = "noise/test_detectors.py"
MATCHING = "test_matching.py"
RERANKING = [  # without the one that runs an example
    "evaluation/test_matching_rescoring.py::test_the_best_are_those_of_the_cosine_and_each_has_the_log_odds_of_its_own_pair",
    "evaluation/test_matching_rescoring.py::test_the_best_stay_in_front_in_the_order_of_cosine_and_log_odds",
]
LAYER_DECAY = "training/test_layer_decay.py"
BANK, JOINT, AVERAGING = "evaluation/test_caption_bank.py", "finetuning/test_joint.py", "training/test_averaging.py"
MODES, ROBUSTNESS = "evaluation/test_encoding_modes.py", "evaluation/test_robustness.py"

mutants(
    "losses_gadms.py",
    (
        "SDM one way only",
        "divergence(to_captions, target) + divergence(similarity.T / temperature, log_target)",
        "2 * divergence(to_captions, target)",
        LOSSES,
    ),
    (
        "KL the other way round",
        "(log_prediction.exp() * (log_prediction - log_target))",
        "(log_target.exp() * (log_target - log_prediction))",
        LOSSES,
    ),
    (
        "SDM's target not normalised",
        "matches / matches.sum(dim=1, keepdim=True) + eps",
        "matches + eps",
        LOSSES,
    ),
    ("SDM of dot products", "F.normalize(text_embeds.float(), dim=-1)", "text_embeds.float()", LOSSES),
    ("SDM summed over rows", ".sum(dim=1).mean()", ".sum(dim=1).sum()", LOSSES),
    ("SDM's default temperature", "0.02,", "0.03,", DEFAULTS),
    (
        "MTP's count of all processes dropped",
        "len(labels) if num_masked is None else num_masked",
        "len(labels)",
        LOSSES,
    ),
    ("identity loss not halved", "(2 * (len(labels)", "(1 * (len(labels)", DEFAULTS),
    (
        "identity loss without the batch's rows",
        "len(labels) if num_rows is None else num_rows",
        "len(labels)",
        DEFAULTS,
    ),
)

mutants(
    "masking_gadms.py",
    ("noise where scores are high", "((1 - scores) - self.gamma_noise)", "(scores - self.gamma_noise)", MASKING),
    ("other places before the true ones", "(~flags).byte()", "flags.byte()", f"{WAITING}::{PLACES}"),
    ("no room for what is drawn by chance", "+ 8 * math", "- 8 * math", f"{WAITING}::{ROOM}"),
    ("noise by the wrong alpha", "self.alpha_noise * torch", "self.alpha_info * torch", MASKING),
    ("both masks from one uniform", "(info_draw < masking", "(noise_draw < masking", INDEPENDENT),
    (
        "the action from the mask's uniform",
        "(action_draw < 0.8) | fallback",
        "(info_draw < 0.8) | fallback",
        INDEPENDENT,
    ),
    ("the random token from the action's uniform", "low + token_draw * ", "low + action_draw * ", INDEPENDENT),
    ("no token kept", "action_draw < 0.9", "action_draw < 1.0", MASKING),
    (
        "the only chosen token not always masked",
        "(action_draw < 0.8) | fallback",
        "action_draw < 0.8",
        MASKING,
        INDEPENDENT,
    ),
    ("nothing chosen stays nothing", "prediction_mask | fallback", "prediction_mask", MASKING),
    ("the best of all positions", "scores.masked_fill(~valid, -1).argmax", "scores.argmax", MASKING, INDEPENDENT),
    ("padding in the noise mask", "noise_mask = valid & (", "noise_mask = (", MASKING),
    ("padding in the prediction mask", "prediction_mask = valid & (", "prediction_mask = (", MASKING),
    (
        "80/10/10 in the noise view",
        "where(noise_mask, mask_token_id, input_ids)",
        "where(noise_mask, replacement, input_ids)",
        MASKING,
    ),
    ("in_place ignored", "if masking.in_place:", "if False:", INDEPENDENT),
    ("half as steep", "steepness: float = 20.0", "steepness: float = 10.0", MASKING),
)

mutants(
    "token_scores_gadms.py",
    ("all but one layer by default", "round(depth * 2 / 3)", "depth - 1", DEFAULTS),
    ("EOS's key is the kept one", "torch.where(walking[..., None], own_key, keys)", "keys", SCORES),
    ("EOS's value is the kept one", "torch.where(walking[..., None], own_value, values)", "values", SCORES),
    (
        "attention not divided by its sum",
        "attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)",
        "attention",
        SCORES,
    ),
    (
        "attention divided by all positions",
        "torch.where(valid[:, None], attention.float(), 0.0)",
        "attention.float()",
        SCORES,
    ),
    (
        "importance scaled over valid tokens",
        "minmax(importance, seen[:, None])",
        "minmax(importance, valid[:, None])",
        SCORES,
    ),
    ("no importance", "minmax(importance, seen[:, None])", "torch.ones_like(importance)", SCORES),
    ("negative scores kept", "F.relu(total / len(kept))", "(total / len(kept))", SCORES),
    ("absolute scores", "F.relu(total / len(kept))", "(total / len(kept)).abs()", SCORES),
    (
        "scaled over BOS and EOS too",
        "F.relu(total / len(kept)), valid)",
        "F.relu(total / len(kept)), seen)",
        SCORES,
    ),
    (
        "the query not pooled",
        "pooling = matrix[rows, pooled], matrix",
        "pooling = torch.eye(matrix.shape[1])[pooled], matrix",
        SCORES,
    ),
    ("the keys not pooled", "matrix @ keys.float()", "keys.float()", SCORES),
    (
        "interpolated past the last pair",
        "torch.minimum(left + 1, pairs - 1)",
        "left + 1",
        POOLING,
    ),
    (
        "pooled over the batch's width",
        "pooling_matrix(seen.sum(dim=1).clamp_min(2), ",
        "pooling_matrix(0 * seen.sum(dim=1) + input_ids.shape[1], ",
        SCORES,
        PADDING,
    ),
    ("more layers of a bidirectional tower by default", "if is_causal(config) else 1", "if True else 1", OF_TOWERS),
    (
        "all tokens taken as the pooled one",
        "if walking.shape != pooled.shape:",
        "if False:",
        OF_TOWERS,
    ),
    ("one head's attention", "output, attention.mean(dim=1)", "output, attention[:, 0]", SCORES),
    ("the first layers", "layers[-num_layers:],\n", "layers[:num_layers],\n", SCORES),
    ("not causal", "is_causal=causal", "is_causal=False", SCORES),
    (
        "padding attended by EOS",
        "masked_fill(hidden[:, None, None], -torch.inf)",
        "masked_fill(hidden[:, None, None], 0.0)",
        SCORES,
    ),
)

mutants(
    "towers_gadms.py",
    ("BOS is valid", "first = 1 if", "first = 0 if", MASKING),
    ("EOS is valid", "(positions < eos_positions", "(positions <= eos_positions", MASKING),
    (
        "the last EOS",
        "return input_ids.argmax(dim=-1)",
        "return input_ids.shape[1] - 1 - input_ids.flip(-1).argmax(dim=-1)",
        DEFAULTS,
    ),
    (
        "padding by id",
        "return positions <= last[:, None]",
        "return positions < (input_ids > 0).sum(dim=1, keepdim=True)",
        DEFAULTS,
    ),
    ("BOS alone is read", "return positions <= last[:, None]", "return positions < last[:, None]", STEP),
    ("embedded at the last position", "tokens[rows, pool_position(input_ids, text_config)]", "tokens[:, -1]", STEP),
    (
        "not pooled by the last norm",
        "return vision_model.post_layernorm(last_hidden_state)",
        "return last_hidden_state",
        DEFAULTS,
    ),
    (
        "EOS by the highest id everywhere",
        "if text_config is None or kind_of(text_config) == CLIP:\n        return input_ids.argmax",
        "if True:\n        return input_ids.argmax",
        TEXTS,
    ),
    ("SigLIP's captions as they come", "if kind_of(text_config) != SIGLIP:", "if True:", SEEN),
    ("SigLIP's other padding kept", "input_ids.masked_fill(after, padding)", "input_ids", SEEN),
    ("TIPSv2's padding seen", "if kind_of(text_config) == TIPSV2 else None", "if False else None", ALIKE),
    (
        "TIPSv2's mean over padding",
        "(tokens * own).sum(dim=1) / (own.sum(dim=1)",
        "tokens.sum(dim=1) / (own.sum(dim=1)",
        ALIKE,
    ),
    (
        "registers among the patches",
        "first_patch = 1 + vision_model.config.num_register_tokens",
        "first_patch = 1",
        IN_SPACE,
    ),
    ("random words of the low ids", "return low, high", "return 0, high", HIDDEN),
    (
        "attention to one token without its MLP",
        "return output + head.mlp(head.layernorm(output))",
        "return output",
        IN_SPACE,
    ),
)

mutants(
    "released/token_selection.py",
    ("selected: the mean of tokens", "-torch.inf).amax(dim=1)", "0.0).mean(dim=1)", SELECTED),
    ("selected: tokens of any length", "chosen], dim=-1)", "chosen], dim=-1) * 2", SELECTED),
    ("selected: the CLS too", "own[:, 0] = False", "own[:, 0] = True", SELECTED),
    ("selected: the weakest", ".masked_fill(~own, -1.0)", ".neg().masked_fill(~own, -2.0)", SELECTED),
    ("selected: by one head", ".softmax(-1).mean(dim=1)[:, 0]", ".softmax(-1)[:, 0, 0]", SELECTED),
    ("selected: by the count of tokens given", "model.config.text_config.max_position_embeddings - 2", "11", SELECTED),
    ("selected: exclamation marks", "& (input_ids != EXCLAMATION_MARK)", "", SELECTED),
)

mutants(
    "released_scores_gadms.py",
    ("released: many heads", "hidden_states, num_heads=1)", "hidden_states, layer.self_attn.num_heads)", RELEASED),
    ("released: divided by attention", "gradient_score.sum(dim=-1", "attention[rows, eos].sum(dim=-1", RELEASED),
    (
        "released: importance over the batch",
        "_pool(keys.float()), dim=-1), dim=-1)",
        "_pool(keys.float()), dim=-1))",
        RELEASED,
    ),
    (
        "released: scaled by caption",
        "F.relu(total[:, :num_positions]), 0.0))",
        "F.relu(total[:, :num_positions]), 0.0), dim=-1)",
        RELEASED,
    ),
    (
        "released: BOS and EOS kept",
        "torch.where(valid, F.relu(total[:, :num_positions]), 0.0)",
        "F.relu(total[:, :num_positions])",
        RELEASED,
    ),
    (
        "released: not padded",
        "max_position_embeddings - num_positions",
        "max_position_embeddings * 0",
        "test_released_scores.py",
    ),
    ("released: two thirds of the layers by default", "min(NUM_LAYERS, len(layers))", "None", DEFAULTS),
)

mutants(
    "distributed_gadms.py",
    ("gradients of other processes dropped", "dist.all_reduce(summed)", "summed.clone()", PROCESSES),
    ("the first process's gradient", "[dist.get_rank()]", "[0]", PROCESSES),
    ("a sum for a mean over processes", "return value / num_processes()", "return value", PROCESSES),
    ("nothing gathered", "return tensor if num_processes() == 1 else", "return tensor if True else", PROCESSES),
    ("scalars of one process", "if num_processes() > 1:", "if num_processes() > 2:", PROCESSES),
)

mutants(
    "modeling_gadms.py",
    (
        "the temperature not passed",
        "            self.config.temperature,\n            swap_logits",
        "            swap_logits",
        DEFAULTS,
    ),
    (
        "the rank left out of identities",
        "torch.distributed.get_rank() if num_processes() > 1 else 0",
        "0",
        PROCESSES,
    ),
    (
        "masked tokens counted in this process",
        "mean_over_processes(views.prediction_mask.sum()) if",
        "views.prediction_mask.sum() if",
        PROCESSES,
    ),
    ("another weight of MTP by default", "0.4,", "0.3,", DEFAULTS),
    (
        "labels from the masked caption",
        "labels = padded.masked_fill",
        "labels = F.pad(views.prediction_input_ids, (0, width - input_ids.shape[1])).masked_fill",
        STEP,
    ),
    (
        "padding ignored by a released decoder",
        "if self.config.decoder_attends_padding else own_tokens",
        "if False else own_tokens",
        "released/test_conversion.py",
    ),
    ("contributions of the other sign", "whole[rows] - without, whole", "without - whole[rows], whole", WORDS),
    (
        "tokens of a word masked apart",
        "same_word = (word_ids[:, :, None] ==",
        "same_word = (-word_ids[:, :, None] ==",
        WORDS,
    ),
    (
        "contributions compared with another image",
        "images = torch.cat([torch.arange(",
        "images = 0 * torch.cat([torch.arange(",
        WORDS,
    ),
    (
        "the views swapped",
        "torch.cat([views.noise_input_ids, views.prediction_input_ids])",
        "torch.cat([views.prediction_input_ids, views.noise_input_ids])",
        STEP,
    ),
    ("the mean of image tokens", "image_embeds = image_tokens[:, 0]", "image_embeds = image_tokens.mean(dim=1)", STEP),
    ("rates of all positions", "views.noise_mask.sum() / num_valid", "views.noise_mask.float().mean()", STEP),
    (
        "the rates swapped",
        "prediction_rate=views.prediction_mask.sum()",
        "prediction_rate=views.noise_mask.sum()",
        DEFAULTS,
    ),
    (
        "a residual around cross-attention",
        "hidden_states = self._read(self._seen(",
        "hidden_states = self._read(text_tokens + self._seen(",
        DECODER,
    ),
    ("image tokens not normalised", "self.image_norm(image_tokens)", "image_tokens", DECODER),
    (
        "the head's norm before its activation",
        "self.head_norm(self.activation(self.dense(hidden_states)))",
        "self.activation(self.head_norm(self.dense(hidden_states)))",
        DECODER,
    ),
    (
        "the decoder waits for the device",
        "allow_is_bidirectional_skip=on_host(hidden_states)",
        "allow_is_bidirectional_skip=True",
        WAITING,
    ),
    ("places to spare are labelled", "~views.prediction_mask, IGNORED)", "padded < 0, IGNORED)", WAITING),
    (
        "padding attended in the decoder",
        "inputs_embeds=hidden_states,\n            attention_mask=attention_mask,\n",
        "inputs_embeds=hidden_states,\n            attention_mask=None,\n",
        STEP,
    ),
    ("logits of lengths", "text_embeds = F.normalize(", "text_embeds = (lambda embeds, dim: embeds)(", SHAPES),
    ("times the temperature", ".to(text_embeds.device) / self", ".to(text_embeds.device) * self", SHAPES),
)

SWAPPED = "test_losses.py::test_swapped_captions_are_negatives_of_their_own_image_with_gradients"
SWAPS = "noise/test_swaps.py"

mutants(
    "losses_gadms.py",
    ("copies weigh alike", "+ weights.float().clamp_min", "+ 0 * weights.float().clamp_min", SWAPPED),
    ("copies match a little", "value=math.log(eps))", "value=math.log(0.1))", SWAPPED),
)

mutants(
    "noise/swaps.py",
    ("a word may stay as it is", "if value != word.value]", "if value]", SWAPS),
    ("one place again and again", "order[number % len(words)]", "order[0]", SWAPS),
    ("what is likely true weighs as much", "1.0 - believed.get(", "1.0 - 0 * believed.get(", SWAPS),
    ("drawn words are lost", "{**drawn, word.start", "{word.start", SWAPS),
)

mutants(
    "losses_gadms.py",
    (
        "sigmoid: matches by row",
        "image_ids[:, None] == text_ids[None]",
        "(image_ids[:, None] == text_ids[None]) & torch.eye(len(image_ids), len(text_ids)).bool()",
        SIGMOID,
    ),
    ("sigmoid: without the bias", "/ temperature + bias\n", "/ temperature\n", SIGMOID),
    ("sigmoid: mean over captions", "logits).sum() / len(logits)", "logits).mean()", SIGMOID),
    (
        "half precision under autocast",
        "with torch.autocast(image_embeds.device.type, enabled=False):",
        "if True:",
        LOSSES,
    ),
)
mutants(
    "modeling_gadms.py",
    (
        "sigmoid: captions of one process",
        "texts, ids = gather_batch(text_embeds), gather_batch(person_ids)",
        "texts, ids = text_embeds, person_ids",
        PROCESSES,
    ),
)

mutants(
    "chunk_gadms.py",
    (
        "a chunk's loss off by its linear part",
        "(self.batch_loss - linear).detach()",
        "self.batch_loss.detach()",
        "training/test_chunk_loss.py",
    ),
    ("no gradient to the captions", "(text_embeds.float() * self.text_gradient).sum()", "0", CHUNKS),
)

mutants(
    "rows.py",
    ("the same caption in every epoch", ' + row["epoch"]) %', ") %", COLLATOR),
    ("all images start with one caption", '(stable_hash(row["image_path"]) + row["epoch"])', 'row["epoch"]', COLLATOR),
    ("captions ordered by letter", "key=lambda n: int(n[7:])", "key=str", APART),
    ("parts of a hash run together", '"\\0".join', '"".join', COLLATOR),
    ("no identities in the data", "[stable_hash(path) for path", "[0 * stable_hash(path) for path", ENCODING),
)

mutants(
    "training/collator.py",
    ("smaller boxes", "(0.02 + 0.38 * area)", "(0.02 + 0.31 * area)", ERASING),
    ("boxes from 4 %", "(0.02 + 0.38 * area)", "(0.04 + 0.36 * area)", ERASING),
    ("flatter shapes", "math.log(1 / 0.3)", "math.log(1 / 0.4)", ERASING),
    ("only upright boxes", "(2 * aspect - 1)", "aspect", ERASING),
    (
        "boxes in the upper half",
        "int(y * (height - box_height + 1))",
        "int(y * (height - box_height + 1) / 2)",
        ERASING,
    ),
    ("erased at the flip's draw", "erase < self.erasing", "flip < self.erasing", ERASING),
    ("copies of equal tokens count", "(padded[0] == padded[1]).all(dim=-1), 0.0", "padded[0].all(dim=-1), 0.0", SWAPS),
    ("the epoch not in a row's seed", 'row["epoch"], row["image_path"]))', 'row["image_path"]))', COLLATOR),
    ("the image not in a row's seed", 'row["epoch"], row["image_path"]))', 'row["epoch"]))', APART),
    ("flipped upside down", "pixels.flip(-1)", "pixels.flip(-2)", COLLATOR),
    ("one shift left out", "(2 * pad + 1)), int(", "(2 * pad)), int(", COLLATOR),
    (
        "another person in each epoch",
        'return stable_hash(row["image_path"])',
        'return stable_hash(row["image_path"], row["epoch"])',
        COLLATOR,
    ),
    ("hidden words in the prediction view", "uniforms[:, 0, :", "uniforms[:, 1, :", SPANS),
    ("the token after a span is hidden", "(offsets[:, 0] < end)", "(offsets[:, 0] <= end)", APART),
)

mutants(
    "training/shared_batches.py",
    ("a place is lent twice", "lent[slot] = number", "pass", SHARED),
    ("nothing is given back", "self._lent[worker, slot] = 0", "pass", f"{SHARED}::{IN_TURN}"),
    ("given back by any batch", "if self._lent[worker, slot] == number:", "if True:", SHARED),
    ("given back before it is used", "            yield batch\n            self.give_back(place)", BEFORE, SHARED),
    ("places of an earlier worker stay lent", "lent.zero_()", "pass", SHARED),
    ("without a worker memory is shared", "if worker is None or worker.id", "if worker and worker.id", SHARED),
    ("a tensor by the pipe is no tensor", "return torch.from_numpy, (", "return list, (", SHARED),
)

mutants(
    "training/image_decoding.py",
    ("rotated files are plain", "_OTHER_COLOURS = (0xE1, 0xEE)", "_OTHER_COLOURS = (0xEE,)", DECODING),
    ("CMYK is plain", "components in (1, 3)", "components in (1, 3, 4)", DECODING),
    ("files that are cut are plain", r' or data[-2:] != b"\xff\xd9"', "", DECODING),
    ("images of any number of pixels", "0 < height * width <= limit", "0 < height * width", DECODING),
    ("linear in place of bicubic", FOR_BYTES, FOR_BYTES.replace("bicubic", "bilinear"), DECODING),
    ("without antialiasing", FOR_BYTES, FOR_BYTES.replace("antialias=True", "antialias=False"), DECODING),
    ("floats are cut off", "wide.round_().clamp_(0, 255)", "wide.clamp_(0, 255)", DECODING),
    ("floats beyond white wrap", "wide.round_().clamp_(0, 255)", "wide.round_()", DECODING),
    ("resized though it fits", "if tuple(pixels.shape[1:]) == size:", "if False:", DECODING),
    ("all go to the device", "return data if is_plain_jpeg(data) else decoded(data, name)", "return data", DECODING),
    ("a broken file is not named", "except RuntimeError:  # of any", "except ValueError:  # of any", DECODING),
)

mutants(
    "training/augmentation.py",
    ("crops onto the mean colour", "return -mean / std", "return 0 * mean", COLLATOR),
    ("flipped after the crop", "torch.where(flips > 0, width - 1 - columns, columns)", "columns", LATER),
    ("black where it is erased", "erased[:, None], _MEAN", "erased[:, None], _BLACK", LATER),
    ("one table for all channels", " * table.shape[1]", " * 0", LATER),
)

mutants(
    "training/samplers.py",
    ("one order for all epochs", "stable_hash(self.seed, self.epoch)", "stable_hash(self.seed)", EPOCHS),
    ("one order for all seeds", "stable_hash(self.seed, self.epoch)", "stable_hash(self.epoch)", EPOCHS),
    ("rows left over are kept", "order[: len(self)]", "order", EPOCHS),
    ("the first epoch's name", "yield self.epoch, index", "yield 0, index", COLLATOR),
    ("shuffled in any case", "if self.shuffle else", "if True else", EPOCHS),
    (
        "a stream in one order",
        "self.dataset.set_epoch(epoch)",
        "pass",
        f"{EPOCHS}::test_streamed_rows_are_shuffled_again_in_each_epoch",
    ),
    (
        "a stream's part of a batch kept",
        "list(itertools.islice(rows, self.rows_per_step))) == self.rows_per_step:",
        "list(itertools.islice(rows, self.rows_per_step))):",
        f"{EPOCHS}::test_every_step_has_all_its_chunks_and_the_rest_of_a_pass_is_dropped",
    ),
    (
        "passes over a stream alike",
        "self.stream.set_epoch(epoch)",
        "self.stream.set_epoch(0)",
        f"{EPOCHS}::test_two_passes_over_a_stream_show_every_row_once_each_in_another_order",
    ),
    ("a stream's rows of the first epoch", "self.epoch.fill_(epoch)", "pass", COLLATOR),
)

mutants(
    "training/accumulation.py",
    ("the gradient not times the chunks", "len(chunks) * loss", "loss", CHUNKS),
    (
        "masked tokens summed over chunks",
        "torch.stack(counts).float().mean()",
        "torch.stack(counts).float().sum()",
        CHUNKS,
    ),
    ("rows of the first chunk", "sum(sizes) / len(sizes)", "sizes[0]", CHUNKS),
    ("other dropout in the replay", "set_random_states(self.random_states, self.device)", "pass", DROPOUT),
    ("the generator moved by a replay", "set_random_states(before, self.device)", "pass", DROPOUT),
)

mutants(
    "noise/patch_evidence.py",
    (
        "keys of the references with dropout",
        "    evidence.eval()  #",
        "    pass  #",
        "noise/test_patch_evidence.py::test_the_keys_of_the_reference_images_carry_no_dropout",
    ),
)

mutants(
    "training/watched_loss.py",
    (
        "only NaN stops training",
        "if math.isfinite(self.value.item()):",
        "if not math.isnan(self.value.item()):",
        APART,
    ),
    ("a late loss is read before it has come", "self.arrived.synchronize()", "pass", FAST),
)
mutants(
    "training/trainer.py",
    (
        "replays planned without autocast",
        "with self.accelerator.autocast():",
        "with nullcontext():",
        f"{STEPS}::test_a_chunk_is_embedded_under_the_autocast_that_it_is_trained_under",
    ),
    (
        "parts of the loss not cleared",
        "self._loss_parts.clear()",
        "pass",
        f"{STEPS}::test_every_logged_loss_is_the_sum_of_the_parts_logged_beside_it",
    ),
    (
        "parts of the loss over all chunks",
        "            self._summed_chunks = 0\n",
        "",
        f"{STEPS}::test_every_logged_loss_is_the_sum_of_the_parts_logged_beside_it",
    ),
    (
        "warm-up by num_train_epochs under max_steps",
        "epochs = num_training_steps * self.args.joint_batch_size() / len(self._get_train_sampler())",
        "pass",
        f"{EPOCHS}::test_warm_up_is_counted_in_epochs_also_where_the_steps_are_given",
    ),
    (
        "warm-up by chunks",
        "epochs = num_training_steps * self.args.joint_batch_size() / len",
        "epochs = num_training_steps * self.args.train_batch_size / len",
        f"{EPOCHS}::test_warm_up_is_counted_in_epochs_also_where_the_steps_are_given",
    ),
    (
        "warm-up from 0",
        "warmup_factor + (1 - warmup_factor) * step / warmup_steps",
        "step / warmup_steps",
        f"{EPOCHS}::test_warm_up_is_counted_in_epochs_also_where_the_steps_are_given",
    ),
    (
        "a straight decay",
        "0.5 * (1 + math.cos(math.pi * min(done, 1)))",
        "1 - min(done, 1)",
        f"{EPOCHS}::test_warm_up_is_counted_in_epochs_also_where_the_steps_are_given",
    ),
    (
        "a late loss is not looked at before saving",
        "if self.control.should_log or self",
        "if False and self",
        FAST,
    ),
    (
        "an epoch's last chunks are a step",
        "self.args.joint_batch_size() if self.args.dataloader_drop_last else 1",
        "1",
        f"{EPOCHS}::test_every_step_has_all_its_chunks_and_the_rest_of_a_pass_is_dropped",
    ),
    (
        "the seed dropped",
        "args.seed if args.data_seed is None else args.data_seed",
        "0",
        f"{STEPS}::test_rows_draw_from_the_seed_of_the_run_or_of_its_data",
    ),
    (
        "decoupled weight decay",
        "torch.optim.Adam(",
        "torch.optim.AdamW(",
        f"{STEPS}::test_weight_decay_is_a_part_of_the_gradient",
    ),
    (
        "the losses of chunks summed",
        "loss_is_scaled_for_ga = False",
        "loss_is_scaled_for_ga = True",
        f"{STEPS}::test_every_logged_loss_is_the_sum_of_the_parts_logged_beside_it",
    ),
    (
        "evaluation of the usual set",
        "self.eval_dataset if eval_dataset is None else eval_dataset",
        "self.eval_dataset",
        f"{STEPS}::test_evaluation_of_another_set_measures_that_set",
    ),
    (
        "flips at the erasing's rate",
        "flip_probability=args.flip_probability",
        "flip_probability=args.erasing_probability",
        f"{STEPS}::test_every_probability_of_augmentation_reaches_the_collator",
    ),
)

mutants(
    "training/arguments.py",
    (
        "the gammas swapped",
        "self.gamma_noise, self.gamma_info)",
        "self.gamma_info, self.gamma_noise)",
        f"{STEPS}::test_each_constant_of_the_arguments_reaches_its_own_mask",
    ),
    (
        "the alphas swapped",
        "DualMasking(alpha_noise, self.alpha_info,",
        "DualMasking(self.alpha_info, alpha_noise,",
        f"{STEPS}::test_each_constant_of_the_arguments_reaches_its_own_mask",
    ),
    (
        "noise by score beside named spans",
        "self.alpha_noise if self.hidden_spans is None else 0.0",
        "self.alpha_noise",
        f"{STEPS}::test_the_arguments_masks_are_the_paper_s_by_default",
    ),
    ("a batch of one chunk", " * self.gradient_accumulation_steps", "", APART),
    (
        "any weight of MTP is 0.4",
        '"mtp_weight": self.mtp_weight',
        '"mtp_weight": 0.4',
        f"{STEPS}::test_every_logged_loss_is_the_sum_of_the_parts_logged_beside_it",
    ),
    ("an epoch without a batch", "num_rows < self.joint_batch_size()", "num_rows < self.train_batch_size", APART),
    (
        "the oldest checkpoint",
        "sorted(steps, reverse=True)",
        "sorted(steps)",
        f"{STEPS}::test_the_last_checkpoint_is_the_one_of_most_steps_that_is_whole",
    ),
)

mutants(
    "person_retrieval/ranking.py",
    (
        "ties in favour of the match",
        "scores >= limit if self.pessimistic else scores > limit",
        "scores > limit",
        RANKING,
    ),
    (
        "ties of a whole block in favour",
        "torch.nextafter(limit, torch.full_like(limit, -torch.inf))",
        "limit",
        RANKING,
    ),
    (
        "precision over the widest row",
        "precision.sum(dim=1) / num_matches)",
        "precision.sum(dim=1) / above.shape[1])",
        RANKING,
    ),
    ("mINP of one match", "num_matches.double() / rank[:, 0]", "1.0 / rank[:, 0].double()", RANKING),
    ("ranks without the matches above", "rank = above + place", "rank = above + 1", RANKING),
    ("R@k below k", "[kept] <= k", "[kept] < k", RANKING),
    ("queries without a match count", "kept = ranks.num_matches > 0", "kept = ranks.num_matches >= 0", RANKING),
    ("a rough device trusted", " + 8 * error", "", RANKING),
    ("normalised in any case", "normalize, pool, order", "True, pool, order", RANKING),
    ("another person's image of the camera left out", "same & (query_cameras", "(query_cameras", RANKING),
    ("at the limit is above", "limit.contiguous(), right=True", "limit.contiguous(), right=False", RANKING),
    (
        "excluded pairs ranked",
        "scores.masked_fill_(self.exclude(queries, self.gallery.order[cols]), -torch.inf)",
        "pass",
        RANKING,
    ),
)

mutants(
    "evaluation/metrics.py",
    ("intervals of single queries", "groups=person_ids[way], ", "", PERSONS),
    ("differences of single queries", "groups=persons, seed=seed", "seed=seed", PERSONS),
    ("b - a", "paired_difference(of_a[name], of_b[name]", "paired_difference(of_b[name], of_a[name]", PERSONS),
    ("hits below k", "ranks.first_match_rank <= int", "ranks.first_match_rank < int", PERSONS),
    ("mINP for mAP", "100.0 * ranks.average_precision", "100.0 * ranks.inverse_negative_penalty", PERSONS),
)

mutants(
    "evaluation/similarity_distribution.py",
    ("equals stand behind a match", 'side="right"', 'side="left"', DISTRIBUTION),
    ("without the distance", " * -np.expm1(-ratio)", "", DISTRIBUTION),
    ("cosines as they are", ".add_(1).div_(2)", "", DISTRIBUTION),
    ("matches among the others", "of_query[~matches]", "of_query", DISTRIBUTION),
)

mutants(
    "evaluation/caption_bank.py",
    ("a bank keeps captions that are measured", "elif words not in held_out:", "elif True:", BANK),
    ("a bank tells captions apart by case", '" ".join(caption.split()).casefold()', '" ".join(caption.split())', BANK),
    ("the nearest captions of the last block only", "torch.cat([nearest, scores], dim=1)", "scores", BANK),
    ("what is near to many is found more often", "cosines - settings.alpha", "cosines + settings.alpha", BANK),
    ("every query is normalised", "torch.where(by_hub[:, None], normalised, cosines)", "normalised", BANK),
    ("phrasings apart before a bank", "average_phrasings(texts, encoded.text_image_index), NNN", "texts, NNN", BANK),
    ("another number of neighbours is the same", "settings.neighbours, settings.beta])", "settings.beta])", BANK),
)
mutants(
    "training/averaging.py",
    (
        "the average begins after the first step",
        "self.weights = {name: weight.detach().float().clone()",
        "self.weights = {name: weight.detach().float().clone() * 0",
        AVERAGING,
    ),
    ("a resumed average begins anew", "if self.checkpoint is not None:", "if False:", AVERAGING),
    ("the model keeps the average it was measured with", "weight.copy_(kept)", "pass", AVERAGING),
    ("the last model for the mean", ".mean(dim=0)", "[-1]", AVERAGING),
)
mutants(
    "training/trainer.py",
    (
        "measured without the average",
        "nullcontext() if self._average is None else",
        "nullcontext() if True else",
        AVERAGING,
    ),
    (
        "the best epoch's weights, the last one's average",
        "self._average.load(self.state.best_model_checkpoint)",
        "pass",
        AVERAGING,
    ),
    ("ends without the average", "average.put_into(self._trained())", "pass", AVERAGING),
)
mutants(
    "matching_gadms.py",
    (
        "negatives of the same person",
        "masked_fill(~other, -torch.inf)",
        "masked_fill(~other & False, -torch.inf)",
        MATCHING,
    ),
    ("negatives whatever their likeness", "logits.double()", "0 * logits.double()", MATCHING),
    ("pairs without a negative count", "(losses * counted)", "losses", MATCHING),
)
mutants(
    "modeling_gadms.py",
    (
        "matching in the sight of padding",
        "self.decoder.compare(text_tokens, image_tokens, caption_tokens(input_ids, text_config))",
        "self.decoder.compare(text_tokens, image_tokens, torch.ones_like(input_ids).bool())",
        MATCHING,
    ),
    (
        "the negative caption's own image",
        "torch.cat([images, all_images[image], images])",
        "torch.cat([images, images, images])",
        MATCHING,
    ),
    (
        "negatives of one process",
        "all_texts, all_images = gather_batch(input_ids), gather_batch(texts), gather_batch(images)",
        "all_texts, all_images = gather_batch(input_ids), gather_batch(texts), images.repeat(num_processes(), 1, 1)",
        PROCESSES,
    ),
)
mutants(
    "evaluation/matching.py",
    ("the head's last word turned round", "logits[:, 1] - logits[:, 0]", "logits[:, 0] - logits[:, 1]", *RERANKING),
    ("the best sink behind the others", "keepdim=True) + 2)", "keepdim=True) - 2)", *RERANKING),
    ("the log odds alone", "cosines.gather(1, own) + factor", "0 + factor", *RERANKING),
)
mutants(
    "training/layer_decay.py",
    ("the last layer at the full rate", "_height(found) + 1)", "_height(found))", LAYER_DECAY),
    ("the lowest layer like the embeddings", "int(found[2]) + 1", "int(found[2])", LAYER_DECAY),
    ("the deepest tower decides", "tops[found[1]] - ", "max(tops.values()) - ", LAYER_DECAY),
    ("the norm before the layers is a head", "embeddings|pre_layrnorm", "embeddings", LAYER_DECAY),
)
mutants(
    "training/trainer.py",
    ("one rate for all layers", "factor * by_layer[name], decay", "factor, decay", LAYER_DECAY),
)
mutants(
    "finetuning/joint.py",
    ("two sets share persons", "shift = free - min(known)", "shift = -min(known)", JOINT),
    ("rows of two sets share their randomness", 'f"{name}/{path}"', "path", JOINT),
    ("temperature the other way", "[size ** (1 / temperature)", "[size**temperature", JOINT),
    (
        "each epoch begins a pass",
        "first, last = self.epoch * count, (self.epoch + 1) * count",
        "first, last = 0, count",
        JOINT,
    ),
    ("the same augmentation when a pair comes again", "drawn += [(turn, pairs", "drawn += [(self.epoch, pairs", JOINT),
    ("sets one after the other", "torch.randperm(len(drawn), generator=generator)", "torch.arange(len(drawn))", JOINT),
)
mutants(
    "evaluation/significance.py",
    ("a one-sided interval", "tail = (1 - confidence) / 2", "tail = 1 - confidence", PERSONS),
    (
        "groups weighed alike",
        "sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)",
        "(sums[drawn] / sizes[drawn]).mean(axis=1)",
        PERSONS,
    ),
    ("a p-value of one side", "np.abs(signs @ sums) >=", "(signs @ sums) >=", PERSONS),
    ("a p-value of 0", "(1 + extreme) / (1 + num_resamples)", "extreme / num_resamples", PERSONS),
    ("rounding is a difference", "np.where(np.abs(a - b) < ROUNDING, 0.0, a - b)", "a - b", SIGNIFICANCE),
    ("groups ignored", "if groups is None:", "if True:", PERSONS),
    ("equal sums do not count", "observed - tolerance", "observed + tolerance", SIGNIFICANCE),
    ("one seed for all", "drawn = rng.integers(", "drawn = np.random.default_rng(0).integers(", SIGNIFICANCE),
)

mutants(
    "evaluation/robustness.py",
    (
        "the plain interval of single captions",
        "bootstrap_interval(plain, groups=persons)",
        "bootstrap_interval(plain)",
        PERSONS,
    ),
    (
        "a changed interval of single captions",
        "bootstrap_interval(values, groups=persons)",
        "bootstrap_interval(values)",
        PERSONS,
    ),
    (
        "a loss of single captions",
        "paired_difference(values, plain, groups=persons)",
        "paired_difference(values, plain)",
        PERSONS,
    ),
    ("a loss of the other sign", "paired_difference(values, plain", "paired_difference(plain, values", PERSONS),
    ("every word lost", "len(words) - 1)", "len(words))", ROBUSTNESS),
    ("words stay", "words[places[number - 1]]", "words[place]", ROBUSTNESS),
    ("a box by its sides", "strength**0.5 * side", "strength * side", ROBUSTNESS),
    ("brightness for darkness", "enhance(1 - strength)", "enhance(strength)", ROBUSTNESS),
    ("all captions of an image changed alike", "paths[image], number))", "paths[image]))", ROBUSTNESS),
    (
        "one change for all seeds",
        "random.Random(stable_hash(seed, name, row",
        "random.Random(stable_hash(0, name, row",
        ROBUSTNESS,
    ),
)

mutants(
    "evaluation/report_page.py",
    ("whiskers of single captions", "groups=persons[inside], ", "", PERSONS),
    ("words of single captions", "groups=persons[holders], ", "", PERSONS),
)

mutants(
    "evaluation/encoding.py",
    (
        "undescribed images are queries",
        "images[0][kept], texts[0], images[1][kept]",
        "images[0], texts[0], images[1]",
        ENCODING,
    ),
    (
        "undescribed images are not searched",
        "texts[0], images[0], texts[1], images[1])\n            i2t",
        "texts[0], images[0][kept], texts[1], images[1][kept])\n            i2t",
        ENCODING,
    ),
    ("encoded with dropout", "model.eval()", "pass", MODES),
    (
        "left in evaluation mode",
        "model.train(was_training)",
        "pass",
        MODES,
        f"{STEPS}::test_training_goes_on_in_training_mode_after_an_evaluation",
    ),
    ("put in training mode", "model.train(was_training)", "model.train()", MODES),
    (
        "lengths kept",
        "F.normalize(features, dim=-1)",
        "features",
        ENCODING,
    ),
    ("captions in another order", "places[caption] for caption in captions", "*range(len(captions))", ENCODING),
    ("the last batches forgotten", "parts += [part.cpu() for part in waiting]\n    model", "model", ENCODING),
    (
        "persons of the captions by place",
        "image_person_ids[text_image_index]",
        "image_person_ids[text_image_index.flip(0)]",
        ENCODING,
    ),
)

mutants(
    "gallery/searching.py",
    ("the engine's order believed", "ENGINE_ERROR = 1e-3", "ENGINE_ERROR = -1.0", EXACT),
    ("ties as they come", "np.lexsort((ids.astype(str), -cosines))", "np.argsort(-cosines)", EXACT),
    ("near-duplicates of the last one only", "hashes[kept] ^", "hashes[kept[-1:]] ^", GROUPS),
)

mutants(
    "gallery/filters.py",
    ("at least as more than", '">=": ">="', '">=": ">"', FILTERS),
    ("a quote ends a text", 'text.replace("\'", "\'\'")', "text", FILTERS),
)

mutants(
    "noise/value_reader.py",
    (
        "a false word may say the truth",
        "/ (1 - chances).clamp_min(1e-6)",
        "/ torch.ones_like(chances)",
        ANSWERS,
    ),
    ("the versions of another image", "(VERSIONS, -1))[places.rows]", "(VERSIONS, -1))[0 * places.rows]", ANSWERS),
    (
        "what is made up is as false as other words",
        "(1 - there) * lowest * says",
        "(1 - there) * highest * says",
        BAYES,
    ),
    ("what is said does not count", ".exp().double() * self.says(places, often).double()", ".exp().double()", BAYES),
    ("rare words of unshown families give way", "UNSHOWN_DOUBT = 0.49", "UNSHOWN_DOUBT = 0.9", BAYES),
    (
        "families that images do not show",
        "LEAST_GAIN, LEAST_PROOF = 0.02",
        "LEAST_GAIN, LEAST_PROOF = 0.0",
        NUMBERS,
    ),
    ("a few words are proof", "LEAST_PROOF = 0.02, 5.0", "LEAST_PROOF = 0.02, 0.0", FEW_WORDS),
    ("the worst temperature", "best = losses.argmin(dim=0)", "best = losses.argmax(dim=0)", NUMBERS),
)

MADE_UP = "noise/test_repaired_captions.py::test_things_that_are_made_up_are_found_blindly"

mutants(
    "noise/mentions.py",
    ("absent where most name it", "logits.argsort(dim=0, stable=True)", "(-logits).argsort(dim=0)", MADE_UP),
    ("a thing that is left out is absent", "MOST_LOWEST = 0.5", "MOST_LOWEST = 1.0", MADE_UP),
    ("a few captions are proof", "LEAST_PROOF = 0.01, 5.0", "LEAST_PROOF = 0.01, 0.0", MADE_UP),
    (
        "a caption counts for each word",
        "naming = {(row, name, number) for (row, name, _), number in zip(words, numbers, strict=True)}",
        "naming = [(row, name, number) for (row, name, _), number in zip(words, numbers, strict=True)]",
        "noise/test_repaired_captions.py::test_shares_of_captions_that_name_a_family_count_each_caption_once",
    ),
)

mutants(
    "noise/word_places.py",
    ("the word itself", "ids[: inside[0]][-REACH:]", "ids[: inside[0] + 1][-REACH:]", PLACES),
    ("the far end of the caption", "ids[inside[-1] + 1 :][:REACH]", "ids[inside[-1] + 1 :][-REACH:]", PLACES),
)

mutants(
    "noise/rewriting.py",
    ("the least likely word", "probabilities.argmax()", "probabilities.argmin()", PUT_IN),
    ("draws the other way round", "draw, side", "1 - draw, side", PUT_IN),
)

MOVED = "noise/test_repaired_captions.py::test_places_of_repaired_words_are_where_the_words_stand"
LISTED = (
    "noise/test_repaired_captions.py::"
    "test_listed_words_of_repaired_captions_say_where_they_stand_and_whether_they_are_false_now"
)
WITHIN = "noise/test_repaired_captions.py::test_what_is_judged_may_be_more_or_less_than_a_listed_word"
LETTERS = "noise/test_repaired_captions.py::test_letters_that_have_another_length_in_lower_case_move_no_word"
KEPT = "noise/test_repaired_captions.py::test_splits_that_are_left_alone_get_the_columns_of_the_others"
UNSHOWN = "noise/test_repaired_captions.py::test_words_that_images_do_not_show_are_not_listed"
CLEANED = "noise/test_repaired_captions.py::test_captions_that_are_cleaned_keep_their_capitals"
OF_HAIR = "noise/test_repaired_captions.py::test_what_is_said_of_hair_is_known_by_its_noun"
TWO = "noise/test_repaired_captions.py::test_a_word_of_two_families_is_of_the_one_whose_noun_follows"
INSIDE = "noise/test_repaired_captions.py::test_a_longer_word_that_is_not_meant_hides_no_shorter_one"
READ = "noise/test_repaired_captions.py::test_families_are_read_as_written_and_what_is_wrong_is_named"
BUILT = "noise/test_repaired_captions.py::test_what_a_construction_says_of_a_caption_stays_with_the_old_one"
mutants(
    "noise/rewriting.py",
    (
        "places of the old caption",
        "return caption, [(end - length, end)",
        "return caption, [(end - length, end - 1)",
        MOVED,
    ),
    ("old lengths", "if chosen else end - start)", "if False else end - start)", MOVED),
    ("capitals of another length", "if len(tidy.lower()) == len(tidy) else tidy.lower()", "", LETTERS),
    ("capitals lost where captions are cleaned", "return tidy if", "return caption if caption == tidy and", CLEANED),
)
mutants("noise/kept_evidence.py", ("any values fit", "learnt == given:", "True:", KEPT))
mutants(
    "noise/repaired_captions.py",
    ("unshown families listed", "if word.family in shown:", "if True:", UNSHOWN),
    ("false words stay false", "is_false = _says_otherwise(", "is_false = is_false or _says_otherwise(", LISTED),
    ("old probabilities stay with new captions", "FALSE_SPANS, POSTERIOR,", "FALSE_SPANS,", LISTED),
    ("a listed word begins with what is judged", "start -= max(", "start -= 0 * max(", WITHIN),
    ("a listed word ends with what is judged", "end += max(", "end += 0 * max(", WITHIN),
    ("scores stay with new captions", '"score", "word_score"  # of', "  # of", BUILT),
)
mutants(
    "noise/word_families.py",
    ("letters of another length", "letter.lower() if len(letter.lower()) == 1 else letter", "letter.lower()", LETTERS),
    ("nouns of hair anywhere", ".match(lower, end))", ".search(lower))", OF_HAIR),
    ("commas of clothes", "not _WORN.search(", "True or _WORN.search(", OF_HAIR),
    (
        "a longer word hides those in it",
        "for word in _beginnings(match[0], owners):",
        "for word in [match[0]]:",
        INSIDE,
    ),
    (
        "the search goes on behind",
        "place = match.start(), match.start() + 1",
        "place = match.start(), match.end()",
        INSIDE,
    ),
    ("nouns past a break", "(?!(?:{'|'.join(_BREAKS)})\\b)", "", OF_HAIR),
    ("the first family has the word", "key=lambda item: not item[1].before)", "key=lambda item: 0)", TWO),
    ("names of a file stand twice", ", object_pairs_hook=_named_once", "", READ),
    ("words of a construction taken for attributes", ' and f"{caption}_word_score" not in columns', "", BUILT),
)
FOUND = "noise/test_found_families.py"
mutants(
    "noise/found_families.py",
    ("neighbours of one side", "range(-REACH, 0), *range(1,", "range(0, 0), *range(1,", FOUND),
    (
        "expected counts of rows alone",
        "* table.sum(axis=0, keepdims=True) /",
        "* np.ones((1, table.shape[1])) /",
        FOUND,
    ),
    ("synonyms whatever they meet", ">= SYNONYMS * own).all()", ">= 0 * own).all()", FOUND),
    (
        "captions meet themselves",
        "itertools.permutations(range(end - len(of_image), end), 2)",
        "itertools.product(range(end - len(of_image), end), repeat=2)",
        FOUND,
    ),
    ("words that hardly stand apart stay apart", "if found and (found[-1], word) in joined:", "if False:", FOUND),
)
mutants(
    "noise/token_trust.py",
    ("CLIP4DM of two layers", "CLIP4DM_LAYERS = 3", "CLIP4DM_LAYERS = 2", DETECTORS),
    (
        "a ReLU on CLIP4DM",
        "(attention * (slope @ value.transpose(-1, -2)))",
        "(attention * (slope @ value.transpose(-1, -2)).relu())",
        DETECTORS,
    ),
    ("CLS as a patch", "F.normalize(image_tokens[:, 1:], dim=-1)", "F.normalize(image_tokens, dim=-1)", DETECTORS),
    (
        "spread for concentration",
        "(shares.exp() * shares).sum(dim=-1)",
        "-(shares.exp() * shares).sum(dim=-1)",
        DETECTORS,
    ),
)

mutants(
    "noise/caption_trust.py",
    (
        "the phrase ends before its noun",
        "if all(kind[-1] in ADJECTIVES",
        "if not all(kind[-1] in ADJECTIVES",
        DETECTORS,
    ),
    ("the sum of the rivals", "others.logsumexp(dim=0) - math.log(len(others))", "others.logsumexp(dim=0)", DETECTORS),
)

mutants(
    "noise/joined_scores.py",
    ("learnt from those who are judged", "learnt = ~held_out", "learnt = held_out", DETECTORS),
    (
        "words are halved, not persons",
        "np.unique(np.asarray(persons), return_inverse=True)[1]",
        "np.arange(len(persons))",
        DETECTORS,
    ),
    ("no ridge", "RIDGE = 1.0", "RIDGE = 0.0", DETECTORS),
)

mutants(
    "noise/word_groups.py",
    ("true words of one caption alone", "named & (both | ~is_false)", "both | ~is_false", DETECTORS),
    ("all true words beside what is made up", "may_be & (made_up | ~is_false)", "made_up | ~is_false", DETECTORS),
)

mutants(
    "false_words/word_detection.py",
    ("ties are wins", "(false_so_far - false / 2)", "false_so_far", QUALITY),
    (
        "precision among the true",
        "false_so_far / (false_so_far + true_so_far))\n        average",
        "false_so_far / (1 + true_so_far))\n        average",
        QUALITY,
    ),
    ("the share of the true words", "called = false_so_far + true_so_far", "called = true_so_far", QUALITY),
    ("bins count alike", "np.abs(surplus).sum(axis=1) / counts.sum(axis=1)", "np.abs(surplus).mean(axis=1)", QUALITY),
    (
        "words are drawn, not persons",
        "np.unique(groups, return_inverse=True)[1]",
        "np.arange(len(groups))",
        f"{QUALITY}::{PERSONS_DRAWN}",
    ),
    ("F1 without the words missed", "true_so_far + false_so_far[:, -1:]))", "true_so_far + false_so_far))", QUALITY),
)

mutants(
    "gallery/explaining.py",
    ("the patch before", "torch.eye(len(keys))[first:]", "torch.eye(len(keys))[first:].roll(1, dims=0)", PATCHES),
    ("TIPSv2 without its scales", "layer.layer_scale1(attention.o_proj(seen))", "attention.o_proj(seen)", PATCHES),
    ("the pooled without its MLP", "return seen + head.mlp(head.layernorm(seen))", "return seen", PATCHES),
    ("the cosine without the patch", "(cosines[0] - cosines[1:])", "cosines[1:]", PATCHES),
)

mutants(
    "gallery/adding.py",
    ("an image twice", "items.folder is None and item.id in offered", "False", SOURCES),
    ("zeros at the end of an id", 'np.frombuffer(bytes.fromhex(number), dtype="S16")', NO_ZEROS, KNOWN),
)

mutants(
    "gallery/calibration.py",
    ("a spread of squares", "np.sqrt(max(float(query @ covariance @ query), 1e-12))", "query @ covariance @ query", Z),
    ("judged by its own half", "fit_curve(z[~own], is_true[~own])", "fit_curve(z[own], is_true[own])", HALVES),
)


MOBILE = "released/test_mobile_clip.py::test_both_towers_compute_what_mobile_clip_does"
mutants(
    "released/mobile_clip.py",
    (
        "a class token with a place",
        "torch.cat([torch.zeros_like(table[:1]), table])",
        "torch.cat([table[:1], table])",
        MOBILE,
    ),
    ("means forgotten", "(bias - mean * scale)", "bias", MOBILE),
    ("a projection without its bias", " + reached_by(projection, bias)", "", MOBILE),
)

PLAIN_SIGLIP = "evaluation/test_encoding.py::"
PLAIN_SIGLIP += "test_captions_of_a_plain_siglip_2_are_prepared_as_it_was_trained_whatever_its_tokenizer_does"
mutants(
    "evaluation/encoding.py",
    ("SigLIP padded where its tokenizer does", ' "padding_side": "right",', "", PLAIN_SIGLIP),
    ("SigLIP with a mask", ', "return_attention_mask": False}', "}", PLAIN_SIGLIP),
)

TURNED = "test_rotary_vision.py::test_a_tower_gives_what_it_gives_written_out_and_so_do_its_gradients"
STRETCHED = "test_rotary_vision.py::test_images_of_another_size_are_stretched_to_the_reference_grid"
OF_TIMM = "released/test_rotary_towers.py"
mutants(
    "rotary_vision_gadms.py",
    ("turned the other way", "even * cosines - odd * sines", "even * cosines + odd * sines", TURNED),
    ("a class token that turns", "[torch.zeros_like(patches[:1]), patches]", "[patches[:1], patches]", TURNED),
    ("coordinates of pixels", "+ self.first) / count * self.side", "+ self.first)", STRETCHED),
    ("values turned, not keys", "rotate(key, *rotation), value", "key, value", TURNED),
    ("rows first in PE-Core", "first=1, columns_first=True", "first=1, columns_first=False", TURNED),
    ("counted from 0 in PE-Core", "first=1, columns_first=True", "first=0, columns_first=True", TURNED),
    ("a gate that is not one", "nn.functional.silu(self.gate(hidden_states))", "self.gate(hidden_states)", TURNED),
    ("pooled before the norm", "self.head(self.post_layernorm(outputs", "self.head((outputs", TURNED),
)

mutants(
    "released/rotary_towers.py",
    (
        "another reference grid",
        '"eva02_base_patch16_clip_224": ("eva02", 16)',
        '"eva02_base_patch16_clip_224": ("eva02", 14)',
        OF_TIMM,
    ),
    (
        "gate and input exchanged",
        '{"mlp.fc1_x": "mlp.c_fc", "mlp.fc1_g": "mlp.c_gate"}',
        '{"mlp.fc1_g": "mlp.c_fc", "mlp.fc1_x": "mlp.c_gate"}',
        OF_TIMM,
    ),
    ("PE-Core's eps in EVA02", '{"eva02": 1e-6,', '{"eva02": 1e-3,', OF_TIMM),
)

mutants(
    "starting_towers_gadms.py",
    ("a mask of zeros", "weights[tokens].mean(dim=0, keepdim=True)", "0 * weights[tokens][:1]", NO_MASK),
    ("patches on their sides", "flat.permute(0, 3, 1, 2)", "flat.permute(0, 3, 2, 1)", PICTURES),
    (
        "the ids that configurations name",
        "text |= {name: getattr(tokenizer, name)",
        "text |= {} or {name: text.get(name)",
        TEXTS,
    ),
    ("NaFlex resized without averages", 'antialias=kind == "siglip2"', "antialias=False", NON_SQUARE),
    (
        "TIPSv2 resized without averages",
        "weights[table][0], grid, antialias=True)",
        "weights[table][0], grid)",
        NON_SQUARE,
    ),
    ("no weight is missing", "    if names:\n", "    if False:\n", HALF),
    ("any weight may be left out", "if strange := sorted(beside.difference(left)):", "if strange := []:", NOT_ITS_OWN),
)

mutants(
    "tower_tokenizers_gadms.py",
    ("padded where the family does", 'padding_side="right", ', "", UNUSED),
    ("more ids than embeddings", "if len(tokenizer) > vocab_size:", "if False:", FOREIGN),
    ("frames of other towers", "elif (begins, ends) != expected:", "elif False:", FOREIGN),
    ("captions of any length", "tokenizer.model_max_length = text_config.max_position_embeddings", "pass", SEEN),
)

mutants(
    "processing_gadms.py",
    ("SigLIP's capitals kept", "[caption.lower() for caption in captions]", "list(captions)", SEEN),
    ("a word after each space token", 'caption[:first].count(" ")', 'caption[:start].count(" ")', SPACES),
    ("the tower's options come first", "if name not in given}", "}", OPTIONS),
)

mutants(
    "vision_gadms.py",
    (
        "TIPSv2 takes any size",
        "        grid_of(pixel_values, self.config, interpolate_pos_encoding)  # refuses",
        "        # refuses",
        SIZES,
    ),
)

mutants(
    "training/vocabulary.py",
    ("merges without their parts", "    return {numbers[piece] for piece in found}", "    return set()", VOCABULARY),
    ("letters without a piece", "kept.update(numbers[piece] for piece in BYTES & numbers.keys())", "pass", VOCABULARY),
    ("biases of other words", "layer.bias[old_ids]", "layer.bias[: len(old_ids)]", VOCABULARY),
    ("the old mask", "config.mask_token_id = new_ids[config.mask_token_id]", "pass", VOCABULARY),
)

mutants(
    "released/open_clip.py",
    ("always QuickGELU", '"quick_gelu" if model.get("quick_gelu") else "gelu"', '"quick_gelu"', OPEN_CLIP),
    ("heads of 64", 'vision["width"] // vision["head_width"]', 'vision["width"] // 64', OPEN_CLIP),
    ("another model's configuration", "if said != is_so:", "if False:", OPEN_CLIP),
    ("a guessed activation", "if activation is None:", "if False:", OPEN_CLIP),
    ("heads of 64 in any width", "if width > WIDEST_OF_64:", "if False:", OPEN_CLIP),
    ("any option is plain", "if not known and value not in", "if False and value not in", OPEN_CLIP),
    ("off is not plain", '(None, False, 0, 0.0, "", {})', "()", OPEN_CLIP),
)


def copied_tree(folder: str) -> Path:
    tree = Path(folder) / "tree"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


def passed(tree: Path, tests: tuple[str, ...], log: Path) -> bool:
    """Whether the tests pass in `tree`; they run in a fork of this process.

    Raises:
        RuntimeError: they could not be run.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # with whatever it starts
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        sys.path.insert(0, str(tree))
        code = 3
        try:
            import pytest

            options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly"]
            code = int(pytest.main([*options, "--basetemp", str(tree.parent / "tmp"), *tests]))
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + LIMIT
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1):
        raise RuntimeError(f"{' '.join(tests)} ended with {code}:\n{log.read_text()[-2000:]}")
    return code == 0


def faults(chosen: list[Mutant]) -> list[str]:
    found = []
    for mutant in chosen:
        count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            found.append(f"{mutant.file}: {mutant.name}: the fragment stands there {count} times: {mutant.old!r}")
        if mutant.old == mutant.new:
            found.append(f"{mutant.file}: {mutant.name}: nothing is changed")
    return found


def survivors(chosen: list[Mutant], tree: Path) -> list[Mutant]:
    """Runs every mutant, one line each, and gives those that no test catches."""
    left, log = [], tree.parent / "log.txt"
    for mutant in chosen:
        path = tree / mutant.file
        text, start = path.read_text(encoding="utf-8"), time.monotonic()
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            survived = passed(tree, mutant.tests, log)
        finally:
            path.write_text(text, encoding="utf-8")
        left += [mutant] if survived else []
        verdict = "SURVIVED" if survived else "caught"
        seconds = time.monotonic() - start
        sys.stdout.write(f"{verdict:8} {seconds:5.1f} s  {mutant.file}: {mutant.name}\n")
        sys.stdout.flush()
    return left


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Wrong implementations that the tests must catch.")
    parser.add_argument("words", nargs="*", help="only the mutants whose name or file has one of these")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    options = parser.parse_args(arguments)
    chosen = [
        mutant
        for mutant in MUTANTS
        if not options.words or any(word in f"{mutant.file}: {mutant.name}" for word in options.words)
    ]
    if found := faults(chosen):
        sys.stderr.write("\n".join(found) + "\n")
        return 2
    if options.list or not chosen:
        sys.stdout.writelines(f"{mutant.file}: {mutant.name}\n" for mutant in chosen)
        return 0 if chosen else 2

    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    start = time.monotonic()
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(folder)
        try:
            tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
            if not passed(tree, tests, tree.parent / "log.txt"):
                raise RuntimeError(f"tests fail without a mutant:\n{(tree.parent / 'log.txt').read_text()[-2000:]}")
            left = survivors(chosen, tree)
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 2
    minutes = (time.monotonic() - start) / 60
    sys.stdout.write(f"{len(chosen) - len(left)} of {len(chosen)} mutants caught in {minutes:.1f} minutes\n")
    return 1 if left else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
