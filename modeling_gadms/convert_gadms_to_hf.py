"""Convert released checkpoints (CLIP, open_clip, GA-DMS, IRRA, NAM, RDE, HAM) to a Hub-ready folder, and back.

    python -m modeling_gadms.convert_gadms_to_hf --checkpoint FILE --output_dir DIR [--tokenizer CLIP]
    python -m modeling_gadms.convert_gadms_to_hf --reverse --checkpoint DIR --output_dir DIR

Of RDE the global branch is converted; its second branch, token selection, is written beside the model, for
`examples/evaluate_retrieval.py --rescore token-selection`.
Of open_clip plain ViTs of any size (LAION, DataComp, DFN), MobileCLIP-B (1 and 2), EVA02-CLIP (B, L) and PE-Core (T,
S, B, L) are taken, with the model's `open_clip_config.json` beside the weights. `--image_size 384 128`, or 378 126 in
patches of 14, resizes the position table of these and of OpenAI's. Weights do not tell the activation: without that
file a CLIP up to ViT-L needs `--activation gelu` or `quick_gelu`, if not in OpenAI's archive.
CLIP names the vocabulary: openai/clip-vit-base-patch16, a folder, or bpe_simple_vocab_16e6.txt.gz.
"""

import hashlib
import os
import shutil
import sys

import torch
from transformers import CLIPTextConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from dataset_webperson.command_line import CommandParser, command

from .image_processing_gadms import GADMSImageProcessor
from .modeling_gadms import GADMSForPreTraining, GADMSModel
from .processing_gadms import GADMSProcessor
from .released.checkpoints import Conversion, load_converted, load_released, save_released
from .released.open_clip import ACTIVATIONS
from .released.token_selection import save_selection
from .tokenization_gadms import GADMSTokenizer

RELEASED_FILE = "gadms_released.pth"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

NO_VOCABULARY = (
    "no tokenizer was written: the checkpoint does not hold its vocabulary, and without it the folder has no "
    "processor. Give --tokenizer, for example openai/clip-vit-base-patch16 or bpe_simple_vocab_16e6.txt.gz"
)

MODEL_CARD = """\
---
library_name: transformers
tags:
- gadms
- text-to-person-retrieval
---

# {name}

{architecture}.

Converted from `{source}` (sha256 `{sha256}`), {num_used} weights, nothing missing.
{left}
```python
from transformers import {auto_class}, {processor_class}

model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)
processor = {processor_class}.from_pretrained("{name}", trust_remote_code=True)
```

Before sharing it, add: the checkpoint's origin and licence, its training data, retrieval results, and the uses that \
are out of bounds: it finds people in pictures.
"""


def convert_checkpoint(
    checkpoint: str,
    output_dir: str,
    tokenizer: str | None = None,
    image_size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    activation: str | None = None,
) -> Conversion:
    """Write a folder that `from_pretrained` loads, here or from the Hub: weights, config, code, card, processor.

    Args:
        checkpoint (`str`): a released file, see [`load_released`].
        output_dir (`str`): must not exist, or be empty; it appears complete or not at all.
        tokenizer (`str`, *optional*): the vocabulary: a CLIP or GA-DMS model (folder or Hub id), or OpenAI's BPE file.
            Without it only the image processor is written, as the checkpoint does not hold the vocabulary.
        image_size, dtype, activation: see [`load_released`].

    Raises:
        FileExistsError: the folder already holds files.
        FileNotFoundError, OSError, ValueError: the errors of [`load_released`], or a vocabulary of another size.
    """
    _refuse_used_folder(output_dir)
    model, conversion = load_released(checkpoint, image_size, dtype, activation)
    height, width = model.config.vision_config.image_size
    image_processor = GADMSImageProcessor(size={"height": height, "width": width}, **conversion.image_options)
    processor: GADMSImageProcessor | GADMSProcessor = image_processor
    if tokenizer is not None:
        processor = GADMSProcessor(
            image_processor, _load_tokenizer(tokenizer, model.config.text_config), model.config.tower
        )

    output_dir = os.path.abspath(output_dir)
    name = os.path.basename(output_dir)
    temporary = os.path.join(os.path.dirname(output_dir), f".writing-{name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a conversion that was killed
    os.makedirs(temporary)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if conversion.selection is not None:
            save_selection(conversion.selection, temporary)
        with open(os.path.join(temporary, "README.md"), "w", encoding="utf-8") as file:
            file.write(_model_card(name, checkpoint, model, processor, conversion))
        os.replace(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return conversion


def _load_tokenizer(path: str, text_config: CLIPTextConfig) -> GADMSTokenizer:
    if not os.path.isfile(path) and "mask_token" in get_tokenizer_config(path):
        tokenizer = GADMSTokenizer.from_pretrained(path)
    else:
        tokenizer = GADMSTokenizer.from_clip_vocabulary(path)
    if len(tokenizer) != text_config.vocab_size:
        raise ValueError(
            f"the vocabulary in {path} has {len(tokenizer)} entries, the checkpoint {text_config.vocab_size}: give "
            "--tokenizer the one it was trained with"
        )
    tokenizer.model_max_length = text_config.max_position_embeddings
    return tokenizer


def _model_card(
    name: str,
    checkpoint: str,
    model: GADMSModel | GADMSForPreTraining,
    processor: GADMSImageProcessor | GADMSProcessor,
    conversion: Conversion,
) -> str:
    with open(checkpoint, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    left = "".join(f"\n- left out: `{part}`, {reason}" for part, reason in conversion.left.items())
    return MODEL_CARD.format(
        name=name,
        architecture=conversion.architecture,
        source=os.path.basename(checkpoint),
        sha256=sha256,
        num_used=len(conversion.used),
        left=left + "\n" if left else "",
        auto_class="AutoModelForPreTraining" if isinstance(model, GADMSForPreTraining) else "AutoModel",
        processor_class="AutoProcessor" if isinstance(processor, GADMSProcessor) else "AutoImageProcessor",
    )


def _refuse_used_folder(folder: str) -> None:
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise FileExistsError(f"{folder} already exists and is not an empty folder: choose another --output_dir")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog="python -m modeling_gadms.convert_gadms_to_hf", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="released file; with --reverse a model folder")
    parser.add_argument("--output_dir", required=True, help="folder to write; it must not exist, or be empty")
    parser.add_argument("--tokenizer", help="vocabulary: CLIP or GA-DMS folder, Hub id, or OpenAI's BPE file")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="for grids neither square nor 3:1; of a CLIP, to resize its square",
    )
    parser.add_argument("--activation", choices=ACTIVATIONS, help="of a CLIP without its open_clip_config.json")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights (default: float32)")
    parser.add_argument("--reverse", action="store_true", help=f"write OUTPUT_DIR/{RELEASED_FILE} from a model folder")
    args = parser.parse_args(arguments)
    dtype = DTYPES[args.dtype]
    if args.reverse:
        _refuse_used_folder(args.output_dir)
        path = os.path.join(args.output_dir, RELEASED_FILE)
        count = save_released(load_converted(args.checkpoint, dtype), path)
        sys.stdout.write(f"wrote {path}: {count} weights\n")
        return
    image_size = args.image_size and tuple(args.image_size)
    conversion = convert_checkpoint(
        args.checkpoint, args.output_dir, args.tokenizer, image_size, dtype, args.activation
    )
    sys.stdout.write(f"{conversion}\nwrote {args.output_dir}\n")
    if args.tokenizer is None:
        sys.stdout.write(f"note: {NO_VOCABULARY}\n")


if __name__ == "__main__":
    sys.exit(main())
