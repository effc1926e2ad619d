"""A small gallery of two-colour images for the tests of its server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from tiny import tiny_model, tiny_processor, tiny_rows

from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.server import create_app, listen
from modeling_gadms.gallery.server.protocol import PatientProtocol

HOSTILE = "<img src=x onerror=document.title='taken'> O'Hare & \"co\""


def tiny_gallery(folder: Path, count: int = 24) -> Gallery:
    """A gallery of `count` images with the columns camera, site, time and night, by a model of random weights."""
    processor = tiny_processor()
    gallery = Gallery.create(folder / "gallery", (tiny_model(vocab_size=len(processor.tokenizer)), processor))
    rows = tiny_rows(count)
    metadata = [
        {"camera": index % 4, "site": HOSTILE, "time": f"2024-01-{index + 1:02}", "night": index % 2 == 0}
        for index in range(count)
    ]
    gallery.add([row["image"] for row in rows], metadata)
    return gallery


@contextmanager
def running_server(gallery: Gallery, **options: Any) -> Iterator[tuple[str, int]]:
    """Host and port of a server of the gallery, in a thread; `options` are those of `create_app`."""
    listener = listen("127.0.0.1", 0)
    settings = {"http": PatientProtocol, "log_level": "error", "ws": "none", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(create_app(gallery, **options), **settings))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
