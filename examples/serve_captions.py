"""Serve captions on the loopback address as OpenAI does, for demonstrations and tests of the captioning stage.

    python examples/serve_captions.py [--port 8765] [--truth truth.json]

Its models: `tiny-vlm`, a Qwen2.5-VL with random weights, whose answers are nonsense and whose way to them is real; and
those of `--truth`, a JSON file of {model: {SHA-256 of an image: caption}}, which answer with the caption of a picture
they know and like `tiny-vlm` otherwise. For work use vLLM, Ollama, llama.cpp or `transformers serve`.
"""

import hashlib
import json
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.construction.tiny_vlm import TinyVLM, image_bytes


def known_caption(captions: dict[str, str], messages: list[dict]) -> str | None:
    """The caption of the picture in the conversation, if it is one of these."""
    parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
    digests = [hashlib.sha256(image_bytes(part)).hexdigest() for part in parts if part["type"] == "image_url"]
    return next((captions[digest] for digest in digests if digest in captions), None)


class Handler(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/chat/completions`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """One line a request would hide the progress bar."""

    def do_GET(self) -> None:
        names = [{"id": name, "object": "model"} for name in ("tiny-vlm", *self.server.truth)]
        self.send(200, {"object": "list", "data": names} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
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


def read_truth(path: str) -> dict[str, dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise DataError(
                f"{path}: not JSON ({error}); write {{model: {{SHA-256 of an image: caption}}}}"
            ) from error


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765, help="0 for any free one (default: %(default)s)")
    parser.add_argument("--truth", metavar="FILE.json", help="captions of pictures, by model and SHA-256")
    args = parser.parse_args(arguments)
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    server.vlm, server.truth = TinyVLM(), {}
    if args.truth:
        server.truth = read_truth(args.truth)
    print(f"listening on http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
