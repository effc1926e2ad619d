"""A server of captions that takes its time, and what plain connections get from it."""

import http.client
import itertools
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.queues import Queue

from dataset_webperson.construction.captions.prompts import caption_messages
from dataset_webperson.construction.captions.templates import load_templates
from dataset_webperson.construction.shards import read_rows

LATENCY_S, IN_FLIGHT = 0.2, 16
CAPTION = "A man in a navy hooded sweatshirt, grey trousers and white sneakers carries a black backpack."


class Handler(BaseHTTPRequestHandler):
    """Answers each question with one caption, after a while."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Not a line a request."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(LATENCY_S)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": CAPTION}}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "fixed", "choices": [choice]}
        data = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)  # at once: two packets would wait for each other


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of 5, which is Python's, connections that come at once are lost


def serve(port: Queue) -> None:
    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


def server_rate(port: int, shard: str, connections: int, questions: int = 20) -> float:
    """Answers per second of the server to this many connections at a time, halved: an image has two captions."""
    template = load_templates(None)[0]
    images = [row["image"]["bytes"] for row in itertools.islice(read_rows(shard), questions)]
    bodies = [
        json.dumps({"model": "fixed", "messages": caption_messages(image, template.text, 60)}) for image in images
    ]

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for body in bodies:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(connections)]
    began = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return connections * len(bodies) / 2 / (time.time() - began)
