"""How much one client may send, how slowly, and how much work may run at once."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD = 10 * 2**20  # bytes of one request
_PATIENCE = 30.0  # seconds in which a request must have arrived whole
_TOO_LARGE = f"request: over {MAX_UPLOAD // 2**20} MB; send a smaller image"

Value = TypeVar("Value")


class BodyLimit:
    """ASGI middleware that refuses a request that is too large before reading it, and one that never ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > MAX_UPLOAD:
            return await JSONResponse({"error": _TOO_LARGE}, 413)(scope, receive, send)
        end = asyncio.get_running_loop().time() + _PATIENCE
        received, whole = 0, False

        async def receive_limited() -> Message:
            nonlocal received, whole
            if whole:  # what follows is only word that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"request: not whole after {_PATIENCE:.0f} s; send it again") from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > MAX_UPLOAD:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self._app(scope, receive_limited, send)


class Workers:
    """Threads for what computes, so that the server goes on listening meanwhile.

    Args:
        threads: how many run at once.
        waiting: how many calls may wait for one; further ones are refused.
    """

    def __init__(self, threads: int | None = None, waiting: int = 512) -> None:
        threads = threads or max(2, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "gallery")
        self._free = threads + waiting

    async def run(self, function: Callable[..., Value], *args: Any) -> Value:
        """Call a function in a thread.

        Raises:
            HTTPException: too many calls wait already (503).
        """
        if not self._free:
            raise HTTPException(503, "server: busy; ask again in a moment", {"Retry-After": "2"})
        self._free -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        finally:
            self._free += 1
