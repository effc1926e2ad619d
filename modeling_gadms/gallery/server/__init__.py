"""The server of a gallery: a page and a JSON API, for this machine alone unless a token guards them."""

import ipaddress
import os
import socket
import sys
import threading

import uvicorn
from fastapi import FastAPI

from dataset_webperson import DataError

from ..gallery import Gallery
from .app import create_app
from .protocol import PatientProtocol

__all__ = ["address_of", "create_app", "listen", "run_app", "serve"]


def serve(
    place: Gallery | str | os.PathLike,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    audit: bool = False,
) -> None:
    """Serve a gallery until interrupted; the address of its page is printed when it answers.

    Args:
        place: the gallery, open, or its folder, or the address of a copy on object storage.
        host: address to listen on; any but a loopback address needs a token.
        port: 0 takes a free one.
        token: what a client must know.
        audit: switch the gallery's log of queries on, which asks for the purpose of each.

    Raises:
        DataError: the address needs a token, it is taken, or there is no gallery.
    """
    refuse_open_address(host, token)
    gallery = place if isinstance(place, Gallery) else Gallery.open(place)
    if audit:
        gallery.audit.switch(True)
    with listen(host, port) as listener:
        address = address_of(listener)
        # the first query need not wait for the model; what keeps it from loading is said to that query
        threading.Thread(target=_warm, args=(gallery,), daemon=True).start()
        sys.stdout.write(f"gallery {gallery.path}: {len(gallery):,} images at {address}\n")
        sys.stdout.flush()
        run_app(create_app(gallery, token=token), listener)


def run_app(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests that come through a listening socket, until interrupted."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_level="warning",
        access_log=False,  # queries are recorded where the owner wants it, and nowhere else
        proxy_headers=False,  # clients are known by the address that connects; a header could claim any other
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run([listener])


def refuse_open_address(host: str, token: str | None) -> None:
    """Stop before others than this machine can reach a gallery that has no token."""
    if token is not None and not token.strip():
        raise DataError("--token: is empty; choose a long one, such as `openssl rand -hex 16` prints")
    if token is None and not is_loopback(host):
        raise DataError(
            f"--host {host}: others can reach this address, and a token must keep them out; give --token as well, or "
            "leave --host out"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone. Names other than `localhost` may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises `DataError` if it cannot be had."""
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{host} port {port}: {reason}; choose another by --host and --port") from error


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warm(gallery: Gallery) -> None:
    try:
        gallery.search("a person", k=1)
    except DataError:
        pass
