"""A vision-language model with random weights, for a captioning server where no real model is at hand.

The path from a conversation with pictures to text is real; the text is nonsense.
"""

import base64
import io
import threading

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..drawn.attributes import sample_person, sample_view
from ..drawn.captions import write_caption

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCABULARY = 1000


class TinyVLM:
    """Qwen2.5-VL, a thousand times smaller and without any training; reads a picture and writes whatever comes out."""

    def __init__(self, seed: int = 0) -> None:
        self.tokenizer = self._train_tokenizer()
        vocabulary = self.tokenizer.get_vocab()
        ids = {token: vocabulary[token] for token in SPECIAL}
        self.end, self.image_pad = ids["<|im_end|>"], ids["<|image_pad|>"]
        self.image_processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 32)
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        config = Qwen2_5_VLConfig(
            text_config={
                "vocab_size": self.tokenizer.get_vocab_size(),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "rope_scaling": rope,
                "rope_parameters": rope,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": self.end,
                "pad_token_id": ids["<|endoftext|>"],
            },
            vision_config={
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [1],
            },
            image_token_id=self.image_pad,
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        torch.manual_seed(seed)
        self.model = Qwen2_5_VLForConditionalGeneration(config).eval()
        self.lock = threading.Lock()

    @staticmethod
    def _train_tokenizer() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        captions = [
            write_caption(sample_person(0, "train", i), sample_view(0, "train", i, 0), 0.0, i).text for i in range(300)
        ]
        special = [AddedToken(token, special=True) for token in SPECIAL]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        return tokenizer

    def answer(self, messages: list[dict], max_tokens: int, temperature: float, seed: int) -> tuple[str, int, int]:
        """The text, the number of tokens read and the number written."""
        text, images = "", []
        for message in messages:
            text += f"<|im_start|>{message['role']}\n"
            for part in message["content"] if isinstance(message["content"], list) else [message["content"]]:
                if isinstance(part, dict) and part["type"] == "image_url":
                    images.append(Image.open(io.BytesIO(image_bytes(part))).convert("RGB"))
                    text += "<|vision_start|><|image_pad|><|vision_end|>"
                else:
                    text += part["text"] if isinstance(part, dict) else part
            text += "<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        inputs = dict(self.image_processor(images=images, return_tensors="pt")) if images else {}
        patches = [int(grid.prod()) // 4 for grid in inputs.get("image_grid_thw", [])]
        parts = text.split("<|image_pad|>")
        text = parts[0] + "".join(
            "<|image_pad|>" * count + part for count, part in zip(patches, parts[1:], strict=True)
        )
        input_ids = torch.tensor([self.tokenizer.encode(text).ids])
        inputs |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        inputs["mm_token_type_ids"] = input_ids.eq(self.image_pad).long()
        with self.lock, torch.inference_mode():
            torch.manual_seed(seed)
            output = self.model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=temperature > 0, temperature=temperature or 1.0
            )
        written = output[0, input_ids.shape[1] :].tolist()
        return self.tokenizer.decode(written, skip_special_tokens=True), input_ids.shape[1], len(written)


def image_bytes(part: dict) -> bytes:
    """The file in an `image_url` part."""
    return base64.b64decode(part["image_url"]["url"].partition(",")[2])
