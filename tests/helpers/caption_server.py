"""An OpenAI-compatible server on the loopback address that answers as a test wants, faults included."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = "A man in a navy hooded sweatshirt, grey trousers and white sneakers carries a black backpack."


class CaptionServer:
    """What the server does.

    Attributes:
        reply: conversation -> text of the answer.
        faults: what happens to the next requests, one each, in the place of an answer: a status (429, 500, ...),
            "html", "half", "drop", "hang", "dribble", "empty", "null", "length", or fields of the answer's message and
            `finish_reason`. `None` is an answer.
        always: a fault for all requests.
        fault_of: conversation -> a fault or `None`.
        requests: conversations, in order of arrival.
        most_at_once: requests under way at a time, the most there were.
        delay: seconds before an answer.
        models: names of the list at `/v1/models`; without one the server has no list.
    """

    def __init__(self):
        self.reply: Callable[[list], str] = lambda messages: GOOD
        self.fault_of: Callable[[list], object] = lambda messages: None
        self.faults: list = []
        self.always = None
        self.requests: list[dict] = []
        self.under_way = self.most_at_once = 0
        self.delay = 0.0
        self.models: list[str] | None = None
        self.retry_after = "0"
        self.lock = threading.Lock()
        self.port = 0
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # as many connections may come at once; of 5, a busy machine would lose some

    def handle_error(self, request, client_address):
        """Clients that were killed are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        models = self.server.state.models
        if self.path != "/v1/models" or models is None:
            self.send(404, json.dumps({"error": {"message": "no list here"}}))
            return
        listed = [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in models]
        self.send(200, json.dumps({"object": "list", "data": listed}))

    def do_POST(self):
        state: CaptionServer = self.server.state
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not data:
            return  # the client was killed
        body = json.loads(data)
        with state.lock:
            state.requests.append(body)
            state.under_way += 1
            state.most_at_once = max(state.most_at_once, state.under_way)
            fault = state.faults.pop(0) if state.faults else state.always or state.fault_of(body["messages"])
        try:
            state.stopping.wait(state.delay)
            self.answer(state, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with state.lock:
                state.under_way -= 1

    def answer(self, state, body, fault):
        message = {"role": "assistant", "content": state.reply(body["messages"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        if isinstance(fault, dict):
            choice["finish_reason"] = fault.get("finish_reason", "stop")
            message |= {name: value for name, value in fault.items() if name != "finish_reason"}
            self.send(200, json.dumps(answer))
        elif isinstance(fault, int):
            self.send(fault, json.dumps({"error": {"message": f"fault {fault}"}}))
        elif fault == "html":
            self.send(200, "<html><body>Gateway</body></html>", "text/html")
        elif fault == "drop":
            self.break_off()
        elif fault == "hang":
            state.stopping.wait(30)
        elif fault in ("half", "dribble"):
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if fault == "half":
                self.wfile.write(text[: len(text) // 2])
                self.wfile.flush()
                self.break_off()
                return
            for place in range(len(text)):  # a byte at a time: no time-out between two bytes ever strikes
                self.wfile.write(text[place : place + 1])
                self.wfile.flush()
                if state.stopping.wait(0.1):
                    return
        else:
            if fault == "empty":
                answer["choices"] = []
            elif fault == "null":
                message["content"] = None
            elif fault == "length":
                choice["finish_reason"] = "length"
            self.send(200, json.dumps(answer))

    def break_off(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status, text, kind="application/json"):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status in (429, 503):
            self.send_header("Retry-After", self.server.state.retry_after)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(state: CaptionServer, port: int = 0):
    """The server at work, on a free port or on `port`."""
    state.stopping.clear()
    server = _Server(("127.0.0.1", port), _Handler)
    server.state, state.port = state, server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)
