"""Put a gallery's server under load: many clients that search and fetch pictures, for a minute.

    python examples/benchmark_gallery_server.py runs/search/drawings
    python examples/benchmark_gallery_server.py runs/search/drawings --clients 50 --seconds 60

The server runs in a process of its own on this machine, so clients and server share its cores. Printed are requests/s,
median and 99th percentile of the time to an answer, errors, and the server's memory before and after.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "brown", "pink")
GARMENTS = ("coat", "shirt", "dress", "jacket", "skirt")
PICTURES = 4  # that a client fetches after each search


def start_server(gallery: str) -> tuple[subprocess.Popen, str, int]:
    """A server of the gallery on a free port: its process, host and port."""
    words = [sys.executable, "-m", "modeling_gadms.gallery", "serve", gallery, "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    if "http://" not in line:
        raise DataError(f"{gallery}: its server did not start; the message is above")
    host, _, port = line.rpartition("http://")[2].strip().rpartition(":")
    return server, host, int(port)


def memory(process: subprocess.Popen) -> float:
    """Resident memory of a process in MB."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024


class Client(threading.Thread):
    """One person who searches, looks at pictures, and searches again until `end`."""

    def __init__(self, host: str, port: int, number: int, end: float) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection(host, port, timeout=60)
        self.chance, self.end = random.Random(number), end
        self.times: dict[str, list[float]] = {"search": [], "picture": []}
        self.errors: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.end:
            try:
                self.search()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self.connection.close()

    def search(self) -> None:
        top, lower = self.chance.choices(COLOURS, k=2)
        text = f"a person in a {top} {self.chance.choice(GARMENTS)} and {lower} trousers"
        body = json.dumps({"texts": [text], "k": 24})
        hits = json.loads(self.ask("search", "POST", "/api/search", body))["hits"]
        for hit in self.chance.sample(hits, min(PICTURES, len(hits))):
            self.ask("picture", "GET", f"{hit['image']}?size=320")

    def ask(self, kind: str, method: str, path: str, body: str | None = None) -> bytes:
        start = time.perf_counter()
        self.connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = self.connection.getresponse()
        content = answer.read()
        self.times[kind].append(time.perf_counter() - start)
        if answer.status != 200:
            raise ValueError(f"{path}: {answer.status} {content[:200]!r}")
        return content


def load(host: str, port: int, clients: int, seconds: float) -> tuple[dict[str, list[float]], list[str]]:
    """Times of all answers by kind, and what went wrong."""
    end = time.monotonic() + seconds
    threads = [Client(host, port, number, end) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = {kind: [value for thread in threads for value in thread.times[kind]] for kind in ("search", "picture")}
    return times, [error for thread in threads for error in thread.errors]


def report(times: dict[str, list[float]], errors: list[str], seconds: float, sizes: list[float], args: Any) -> None:
    print(f"{args.clients} clients, {seconds:.0f} s    requests/s    p50 ms    p99 ms")
    for kind, values in times.items():
        p50, p99 = 1000 * np.quantile(values, [0.5, 0.99]) if values else (np.nan, np.nan)
        print(f"{kind:<22}{len(values) / seconds:>14.1f}{p50:>10.0f}{p99:>10.0f}")
    print(f"errors {len(errors)}" + (f", the first: {errors[0]}" if errors else ""))
    before, between, after = sizes
    print(f"memory of the server: {before:.0f} MB before, {between:.0f} MB half-way, {after:.0f} MB after")


@command
def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("gallery", help="folder of a gallery")
    parser.add_argument("--clients", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)s)")
    args: argparse.Namespace = parser.parse_args(arguments)
    if args.clients < 1 or args.seconds <= 0:
        parser.error("--clients and --seconds must be above 0")
    server, host, port = start_server(args.gallery)
    try:
        load(host, port, 1, 0.1)
        sizes = [memory(server)]
        start = time.monotonic()
        first, early = load(host, port, args.clients, args.seconds / 2)
        sizes.append(memory(server))
        second, late = load(host, port, args.clients, args.seconds / 2)
        sizes.append(memory(server))
        times = {kind: first[kind] + second[kind] for kind in first}
        report(times, early + late, time.monotonic() - start, sizes, args)
    finally:
        server.terminate()
        server.communicate()  # waits, and closes what it printed
    return int(bool(early + late))


if __name__ == "__main__":
    sys.exit(main())
