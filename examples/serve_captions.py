"""A small OpenAI-compatible server on the loopback address, for demonstrations and tests of the captioning stage.

python examples/serve_captions.py [--port 8765] [--truth truth.json]

Its models: `tiny-vlm`, a Qwen2.5-VL with random weights, whose answers are nonsense and whose way to them is real; and
those of `--truth`, a json of {model: {SHA-256 of an image: caption}}, which tell the caption of a picture that they
know and do as `tiny-vlm` for others. For work use vLLM, Ollama, llama.cpp or `transformers serve`.
"""

import argparse
import base64
import hashlib
import io
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dataset_webperson.attributes import sample_person, sample_view
from dataset_webperson.captions import write_caption

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
VOCABULARY = 1000


class TinyVLM:
    """Qwen2.5-VL, a thousand times smaller and without any training; reads the picture and writes what comes."""

    def __init__(self, seed: int = 0):
        self.tokenizer = self._train_tokenizer()
        ids = {token: self.tokenizer.token_to_id(token) for token in SPECIAL}
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
        """Text, tokens read and tokens written."""
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
        inputs["mm_token_type_ids"] = (input_ids == self.image_pad).long()
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


def known_caption(captions: dict[str, str], messages: list[dict]) -> str | None:
    """The caption of the picture in the conversation, if it is one of these."""
    parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
    digests = [hashlib.sha256(image_bytes(part)).hexdigest() for part in parts if part["type"] == "image_url"]
    return next((captions[digest] for digest in digests if digest in captions), None)


class Handler(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/chat/completions`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """One line a request would hide the progress bar."""

    def do_GET(self):
        names = [{"id": name, "object": "model"} for name in ("tiny-vlm", *self.server.truth)]
        self.send(200, {"object": "list", "data": names} if self.path == "/v1/models" else {})

    def do_POST(self):
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, messages, limit = request["model"], request["messages"], request.get("max_tokens", 100)
            if name != "tiny-vlm" and name not in self.server.truth:
                self.send(404, {"error": {"message": f"no model {name!r} here"}})
                return
            text = known_caption(self.server.truth.get(name, {}), messages)
            read, written = 0, len((text or "").split())
            if text is None:
                seed = random.Random(f"{request.get('seed', 0)}-{json.dumps(messages)}").getrandbits(31)
                text, read, written = self.server.vlm.answer(messages, limit, request.get("temperature", 1.0), seed)
        except Exception as error:
            self.send(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
            return
        finish = "length" if written >= limit else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        answer = {"id": "answer", "object": "chat.completion", "created": 0, "model": name}
        self.send(200, answer | {"choices": [choice], "usage": usage})

    def send(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8765, help="0 for any free one")
    parser.add_argument("--truth", metavar="FILE.json", help="captions of pictures, by model and SHA-256")
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    server.vlm, server.truth = TinyVLM(), {}
    if args.truth:
        with open(args.truth, encoding="utf-8") as file:
            server.truth = json.load(file)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
