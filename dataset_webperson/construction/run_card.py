"""What the card of a release says of the run that made it: each sentence follows from the configuration or a count."""

from collections.abc import Mapping

from ..release_card import Made
from .captions.client import Captioner
from .captions.prompts import PROMPT_VERSION
from .captions.rules import CaptionRules
from .captions.templates import load_templates
from .config import BuildConfig
from .persons.detectors import DetectorOptions, PoseOptions
from .persons.rule import TWO_PERSONS
from .public_names import file_digest, public_name
from .stages.captioning import CaptionOptions
from .stages.crop import CropOptions
from .stages.duplicates import DedupOptions
from .stages.quality import QualityOptions
from .stages.select_urls import SelectOptions

Counts = Mapping[str, Mapping[str, int]]
_KINDS = {".tar": "tars", ".parquet": "parquet files", ".json": "plain files"}
_OF_IMAGES = {
    "not_downloaded": "not downloaded",
    "image_missing": "missing",
    "image_unreadable": "unreadable",
    "image_too_large": "with too many pixels",
    "reserved_robots_tag": "reserved by the header X-Robots-Tag",
    "reserved_tdm": "reserved by the header TDM-Reservation",
    "reserved_robots_txt": "reserved by robots.txt",
    "image_nsfw": "taken for unsafe by a classifier",
    "images_without_person": "without a person",
}
_OF_BOXES = {
    "box_score": "by their score",
    "box_side": "as too small",
    "box_ratio": "by their proportions",
    "keypoints_few": "for too few keypoints",
    "hips_hidden": "for hidden hips",
    "head_hidden": "for a hidden head",
    "second_person": "for a second person",
}
_COPIES = {
    "duplicate_bytes": "of the same bytes",
    "duplicate_phash": "by their hashes",
    "duplicate_embedding": "by their embeddings",
}


def describe_run(config: BuildConfig, counts: Counts, kind: str) -> Made:
    """The run, for the card of its release.

    Args:
        config: of the run.
        counts: of its stages, as in `counts.json`.
        kind: ending of a source shard, `.tar`, `.parquet` or `.json` (a list of plain files).
    """
    parts = {
        "Source": _source(config.select, counts, kind),
        "Persons": _persons(config.crop, counts["1_crop"]),
        "Near-duplicates": _near_duplicates(config.dedup, counts["2_dedup"]),
    }
    if config.caption:
        parts["Captions"] = _captions(config.caption, counts["3_caption"])
    if config.quality:
        parts["Checks"] = _checks(config.quality, counts["4_quality"])
    parts["Opt-out"] = _opt_out(config.opt_out is not None, counts)
    return Made(
        text="\n\n".join(f"**{name}.** {text}" for name, text in parts.items()),
        command="python -m dataset_webperson.build",
        not_in_it=(
            ""
            if config.crop.blur_faces
            else "Faces were not blurred, which the publisher chose (`blur_faces: false`).",
            "Images of benchmarks were not searched for.",
        ),
    )


def _named(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    return ", ".join(f"{counts[name]:,} {text}" for name, text in words.items() if counts.get(name))


def _source(select: SelectOptions | None, counts: Counts, kind: str) -> str:
    crop = counts["1_crop"]
    text = f"{crop['rows_in']:,} images in {_KINDS[kind]}."
    if left := _named(crop, _OF_IMAGES):
        text += f" Of these: {left}."
    if select:
        read, chosen = counts["0_select"]["rows_in"], counts["0_urls"]["rows_out"]
        text += (
            f" {chosen:,} of {read:,} addresses were chosen by metadata of COYO-700M: a shorter side of at least "
            f"{select.min_side} px, a watermark score up to {select.max_watermark:g}, NSFW scores up to "
            f"{select.max_nsfw_opennsfw2:g} (OpenNSFW2) and {select.max_nsfw_gantman:g} (GantMan), pictures with "
            f"fewer than {select.min_faces} faces up to a share of {select.faceless_share:g}, one address per "
            "perceptual hash."
        )
    return text


def _model(options: DetectorOptions | PoseOptions) -> str:
    facts = [options.backend]
    if options.revision:
        facts.append(f"revision {options.revision}")
    if digest := file_digest(options.model):
        facts.append(f"SHA-256 {digest}")
    return f"`{public_name(options.model)}` ({', '.join(facts)})"


def _persons(options: CropOptions, counts: Mapping[str, int]) -> str:
    rule = options.rule
    text = (
        f"Detector: {_model(options.detector)}, boxes with a score over {options.detector.min_score:g}. Pose: "
        f"{_model(options.pose)}, a keypoint is visible from a score of {options.pose.min_score:g}. A box is kept if "
        f"its shorter side has at least {rule.min_side:g} px, its height is {rule.min_ratio:g} to {rule.max_ratio:g} "
        f"times its width, and in the crop at least {rule.min_keypoints} of COCO's 17 keypoints are visible, among "
        f"them {rule.min_hips} of the hips and {rule.min_head} of nose, eyes and ears. "
    )
    if rule.max_overlap < 1:
        text += f"No more than {rule.max_overlap:.0%} of it may lie in another person's box. "
    if options.nsfw:
        name = public_name(options.nsfw.model)
        text += (
            f"Images that `{name}` gave the label `{options.nsfw.label}` with a probability over "
            f"{options.nsfw.max_score:g} were not looked at. "
        )
    text += (
        f"Crops extend their box by "
        f"{options.margin:.0%} on each side. {counts.get('boxes', 0):,} boxes were found and "
        f"{counts['rows_out']:,} kept"
    )
    if left := _named(counts, _OF_BOXES):
        text += f"; left out: {left}"
    if shared := counts.get("crops_with_two_persons", 0):
        text += f". In {shared:,} of the kept ones another person's box covers {TWO_PERSONS:.0%} or more"
    if options.blur_faces:
        text += (
            f". Heads were made unrecognisable in {counts.get('heads_blurred', 0):,} of them, by an ellipse around "
            "the keypoints of nose, eyes and ears, before they were captioned, and with them the heads of others in "
            "the crop whom the detector found; it may have missed some"
        )
    return f"{text}."


def _near_duplicates(options: DedupOptions, counts: Mapping[str, int]) -> str:
    text = (
        f"Of crops with the same bytes, or with perceptual hashes that differ in at most {options.max_distance} of 64 "
        "bits, one was kept"
    )
    if options.embedding:
        text += (
            f", and of those whose embeddings by `{public_name(options.embedding.model)}` have a cosine of at least "
            f"{options.embedding.min_cosine:g}"
        )
    return f"{text}. Removed: {_named(counts, _COPIES) or 'none'}."


def _captioner(captioner: Captioner) -> str:
    return f"`{captioner.name}` (temperature {captioner.temperature:g}, seed {captioner.seed})"


def _captions(options: CaptionOptions, counts: Mapping[str, int]) -> str:
    templates = len(load_templates(options.templates or None))
    whose = "of a file of the publisher's" if options.templates else "that ship with the software"
    rules: CaptionRules = options.rules
    return (
        f"Two per image, both generated: one by {_captioner(options.captioner1)} and one by "
        f"{_captioner(options.captioner2)}, asked to follow one of {templates:,} sentence templates {whose}, drawn "
        f"for each image (prompt version {PROMPT_VERSION}). Rules check each caption: {rules.min_words} to "
        f"{rules.max_words} words of English, without guesses, mood, background or other people. Of "
        f"{counts['captions']:,} captions {counts['captions_asked_again']:,} broke a rule and were asked for once "
        f"more, and {counts['captions_marked']:,} still broke one."
    )


def _checks(options: QualityOptions, counts: Mapping[str, int]) -> str:
    text = "Captions were not scored by a model."
    if options.model:
        name, scored = public_name(options.model), counts["captions_scored"]
        text = f"`{name}` scored {scored:,} captions by their cosine with the image"
        if options.min_score is not None:
            text += (
                f"; {counts['captions_low-score']:,} lie below {options.min_score:g}, which counts as a broken rule"
            )
        text += "."
    if options.reader:
        text += (
            f" {counts['words_repaired']:,} words of {counts['captions_repaired']:,} captions, which the picture "
            f"speaks against, were replaced by others of their kind, by the reader `{public_name(options.reader)}`, "
            "which learnt from captions with mistakes: `caption1_repairs` and `caption2_repairs` list them, and "
            "`caption1_as_found` and `caption2_as_found` keep the captions as they were."
        )
    if repeated := counts.get("captions_repeated", 0):
        text += f" {repeated:,} captions stood on more than {options.max_same_caption:,} images, which breaks a rule."
    if options.marked == "keep":
        return f"{text} Captions that break a rule were kept."
    return (
        f"{text} {counts['captions_replaced']:,} captions that break a rule were replaced by the image's other one, "
        f"and {counts['both_captions_marked']:,} images left out because both do."
    )


def _opt_out(listed: bool, counts: Counts) -> str:
    if not listed:
        return "No opt-out list was given to this run."
    stages = (number for name, stage in counts.items() if not name.startswith("0_") for number in [_opted_out(stage)])
    return f"An opt-out list was applied to every stage; up to {max(stages, default=0):,} images or rows went in one."


def _opted_out(counts: Mapping[str, int]) -> int:
    return sum(number for name, number in counts.items() if name.startswith("opted_out_"))
