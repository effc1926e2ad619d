"""Asks any OpenAI-compatible server (vLLM, Ollama, llama.cpp, `transformers serve`), and outlasts its bad hours.

| what the server does | what happens |
|---|---|
| cannot be reached, 429, 503 | wait, as long as `Retry-After` says, up to `patience_s` since its last good answer |
| hangs or dribbles past `timeout_s`, 500, HTML, half an answer | `max_attempts` times, then this request fails |
| 400, 413, 422, a content filter | this request fails at once: the server will not have this image |
| thinks until its tokens are spent | this request fails at once: there is no caption in the answer |
| 401, 403, 404 | everything stops: key, model or address are wrong |
| `max_failures` requests in a row fail | everything stops: it is not the images |

What stops everything is a `CaptionServerError` of one line. The pauses between attempts double from 0.5 s to 30 s.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..public_names import public_name
from ..shards import CHANGEABLE
from .cache import Answer
from .markup import text_of, without_markup

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# reasons to finish, as servers spell them: the answer is not whole, or not to be shown
CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "token_limit"})
_FILTERED = frozenset({"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "image_safety"})
_BUSY = (429, 503)
_REFUSED = (400, 413, 422)
_MISCONFIGURED = (401, 403, 404)


class CaptionServerError(RuntimeError):
    """A server that cannot be used any longer. The message names it, what it did and the cure."""


class RequestFailed(Exception):
    """One request that the server, otherwise well, does not answer. `problem` names it: `no-answer` or `refused`."""

    def __init__(self, problem: str, message: str):
        super().__init__(problem, message)
        self.problem, self.message = problem, message


@dataclass(frozen=True)
class Captioner:
    """A model behind a server, and how to ask it.

    Args:
        base_url: address of the API, as in `http://localhost:8000/v1`, or a list of addresses that serve one model;
            each request goes to the one with the least to do, and passes by one that is away.
        model: its name there.
        api_key_env: environment variable that holds the key; servers of one's own need none.
        temperature, max_tokens, seed: of the generation. Same seed, same answer, where the server keeps its word.
        max_in_flight: requests at a time, for each address.
        extra_body: further fields of each request, such as `{chat_template_kwargs: {enable_thinking: false}}`.
        timeout_s: seconds until an attempt is given up, the whole answer included.
        max_attempts: of a request whose answers are broken.
        max_failures: requests that fail in a row before the run stops.
        patience_s: seconds to wait for a server that is away or busy.
        input_price, output_price: dollars for a million tokens, for the cost in the progress bar.

    Raises:
        ValueError: no address or model, or a limit below 1.
    """

    base_url: str | tuple[str, ...] = field(metadata=CHANGEABLE)
    model: str
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=CHANGEABLE)
    temperature: float = 0.7
    max_tokens: int = 200
    seed: int = 0
    extra_body: dict[str, Any] = field(default_factory=dict)
    max_in_flight: int = field(default=16, metadata=CHANGEABLE)
    timeout_s: float = field(default=120.0, metadata=CHANGEABLE)
    max_attempts: int = field(default=5, metadata=CHANGEABLE)
    max_failures: int = field(default=8, metadata=CHANGEABLE)
    patience_s: float = field(default=900.0, metadata=CHANGEABLE)
    input_price: float = field(default=0.0, metadata=CHANGEABLE)
    output_price: float = field(default=0.0, metadata=CHANGEABLE)

    def __post_init__(self) -> None:
        is_http = [address.startswith(("http://", "https://")) for address in self.addresses]
        if not is_http or not all(is_http) or not self.model:
            raise ValueError(f"base_url={self.base_url!r}, model={self.model!r}: give http(s)://.../v1 and a model")
        for name in ("max_tokens", "max_in_flight", "max_attempts", "max_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is at least 1")
        if self.timeout_s <= 0 or self.patience_s < 0:
            raise ValueError(f"timeout_s={self.timeout_s} is above 0, patience_s={self.patience_s} not below it")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the model is served."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @property
    def where(self) -> str:
        """The address, or the first of several, for messages."""
        others = len(self.addresses) - 1
        return self.addresses[0] + (f" and {others} more" if others else "")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1e6

    @property
    def name(self) -> str:
        """The model, as a release may name it."""
        return public_name(self.model)


def load_openai() -> Any:
    """The `openai` package. Raises `CaptionServerError` where it is missing."""
    try:
        import openai
    except ImportError as error:
        raise CaptionServerError("captioning needs the client of the servers' API: pip install openai") from error
    return openai


def served_models(captioner: Captioner, address: str) -> list[str]:
    """The names of the models that a server of a captioner says it has; empty where it gives no list.

    Raises:
        CaptionServerError: it cannot be reached, or does not accept the key.
    """
    openai, key = load_openai(), os.environ.get(captioner.api_key_env) or "none"
    with openai.OpenAI(base_url=address, api_key=key, max_retries=1, timeout=20.0) as client:
        try:
            return [str(model.id) for model in client.models.list()]
        except openai.APIConnectionError as error:
            raise CaptionServerError(
                f"{address}: cannot be reached ({error.__cause__ or error}); start the server, or check `base_url`"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise CaptionServerError(
                    f"{address}: status {error.status_code}, {_in_short(error)}; check the key in "
                    f"${captioner.api_key_env}"
                ) from error
            return []  # not every server has a list; what else is wrong shows with the first request
        except (openai.APIError, ValueError, TypeError, AttributeError):
            return []


class ServerClient:
    """Requests to one captioner, within a running event loop; use it in an `async with` block.

    Attributes:
        waiting (`str`): what the client waits for; "" when all is well.
        last_failure (`str`): why the last request that failed did so.
        on_wait: called when a wait begins.
        on_waste: called with the tokens, prompt and completion, of a reply of no use.
        answered, failed (`int`): requests so far.
    """

    def __init__(self, captioner: Captioner):
        self.captioner = captioner
        self.waiting = self.last_failure = ""
        self.on_wait: Callable[[], None] = lambda: None
        self.on_waste: Callable[[int, int], None] = lambda prompt, completion: None
        self.answered = self.failed = 0
        self._openai = load_openai()
        self._failures_in_a_row = 0
        self._good_until = time.monotonic()
        addresses = captioner.addresses
        self._places = asyncio.Semaphore(captioner.max_in_flight * len(addresses))
        self._under_way = dict.fromkeys(addresses, 0)
        self._away_until = dict.fromkeys(addresses, 0.0)
        self._jitter = random.Random(0)

    async def __aenter__(self) -> "ServerClient":
        key = os.environ.get(self.captioner.api_key_env) or "none"
        # Its own retries are off: ours know a busy server from a broken answer.
        self._clients = {
            address: self._openai.AsyncOpenAI(
                base_url=address, api_key=key, max_retries=0, timeout=self.captioner.timeout_s
            )
            for address in self.captioner.addresses
        }
        return self

    async def __aexit__(self, *exception: object) -> None:
        for client in self._clients.values():
            await client.close()

    async def ask(self, messages: list[dict[str, Any]]) -> Answer:
        """The answer to a conversation.

        Raises:
            RequestFailed: the server does not answer this one.
            CaptionServerError: the server is not to be used any longer.
        """
        async with self._places:
            started, attempts, pause = time.monotonic(), 0, FIRST_PAUSE_S
            while True:
                try:
                    answer = await self._attempt(messages)
                    break
                except _Empty as error:  # the same seed would spend as many tokens on the same nothing
                    raise self._failed("no-answer", str(error)) from error
                except _Busy as error:
                    away = time.monotonic() - max(self._good_until, started)
                    if away > self.captioner.patience_s:
                        raise self._stopped(f"{error}, for {away:.0f} s") from error
                    self.waiting, wanted = str(error), error.retry_after
                except _Broken as error:
                    attempts += 1
                    if attempts >= self.captioner.max_attempts:
                        raise self._failed("no-answer", f"{error}, {attempts} times") from error
                    self.waiting, wanted = str(error), 0.0
                self.on_wait()
                await asyncio.sleep(max(wanted, pause * (0.5 + self._jitter.random())))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        self.waiting, self._failures_in_a_row, self._good_until = "", 0, time.monotonic()
        self.answered += 1
        return answer

    def _failed(self, problem: str, message: str) -> Exception:
        self.failed += 1
        self.last_failure = message
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.captioner.max_failures:
            return self._stopped(f"{self._failures_in_a_row} requests in a row failed, the last: {message}")
        return RequestFailed(problem, message)

    def _stopped(self, message: str) -> CaptionServerError:
        return CaptionServerError(
            f"{self.captioner.where} ({self.captioner.model}): {' '.join(message.split())[:300]}. "
            "Answers so far are kept; repair the server and run the same command again."
        )

    async def _attempt(self, messages: list[dict[str, Any]]) -> Answer:
        """One request, to the address that is there and has the least to do."""
        now = time.monotonic()
        address = min(self._under_way, key=lambda one: (self._away_until[one] > now, self._under_way[one]))
        self._under_way[address] += 1
        try:
            return await self._request(self._clients[address], messages)
        except (_Busy, _Broken) as error:
            self._away_until[address] = time.monotonic() + max(FIRST_PAUSE_S, getattr(error, "retry_after", 0.0))
            raise
        finally:
            self._under_way[address] -= 1

    async def _request(self, client: Any, messages: list[dict[str, Any]]) -> Answer:
        openai, captioner = self._openai, self.captioner
        try:
            # The client's own time-out starts again with every byte; this one is for the whole answer.
            async with asyncio.timeout(captioner.timeout_s):
                reply = await client.chat.completions.create(
                    model=captioner.model,
                    messages=messages,
                    temperature=captioner.temperature,
                    max_tokens=captioner.max_tokens,
                    seed=captioner.seed,
                    extra_body=captioner.extra_body or None,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _Broken(f"no answer within {captioner.timeout_s:g} s") from error
        except openai.APIStatusError as error:
            raise self._by_status(error) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if "connect" in type(cause).__name__.lower():
                raise _Busy(f"cannot be reached ({cause})") from error
            raise _Broken(f"the answer broke off ({type(cause).__name__})") from error
        except (openai.APIError, json.JSONDecodeError, ValueError) as error:
            raise _Broken(f"the answer is no json ({type(error).__name__})") from error
        usage = getattr(reply, "usage", None)
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        spent = [count if isinstance(count, int) else 0 for count in counts]
        try:
            text, reason = self._useful(reply)
        except Exception:
            self.on_waste(spent[0], spent[1])
            raise
        return Answer(text, reason in CUT_OFF, *spent)

    def _useful(self, reply: Any) -> tuple[str, str]:
        """The text of a reply and why it ended. Raises where there is nothing to show."""
        text, reason, thought = _read(reply)
        if reason in _FILTERED:
            raise self._failed("refused", f"a filter ended the answer (finish_reason {reason!r})")
        if not without_markup(text) and (thought or text.strip() or reason in CUT_OFF):
            raise _Empty(
                f"no caption within max_tokens={self.captioner.max_tokens}, only thinking: raise max_tokens, or serve "
                "the model with thinking off"
            )
        return text, reason

    def _by_status(self, error: Any) -> Exception:
        status = error.status_code
        message = f"status {status}, {_in_short(error)}"
        if status in _BUSY:
            return _Busy(message, _seconds(error.response.headers.get("retry-after")))
        if status in _MISCONFIGURED:
            cure = {404: "check base_url and model"}.get(status, f"check the key in ${self.captioner.api_key_env}")
            return self._stopped(f"{message}: {cure}")
        if status in _REFUSED:
            return self._failed("refused", message)
        return _Broken(message)


class _Busy(Exception):
    def __init__(self, message: str, retry_after: float = 0.0):
        super().__init__(message)
        self.retry_after = retry_after


class _Broken(Exception):
    pass


class _Empty(Exception):
    pass


def _read(reply: Any) -> tuple[str, str, bool]:
    """The text of a reply, why it ended, and whether thoughts came beside it.

    Raises `_Broken` for a reply that is not of the API's form, a page of HTML for instance.
    """
    try:
        choice = reply.choices[0]
        text, reason = text_of(choice.message.content), str(choice.finish_reason or "").lower()
        thought = any(getattr(choice.message, name, None) for name in ("reasoning_content", "reasoning"))
    except (AttributeError, IndexError, TypeError) as error:
        raise _Broken(f"not an answer of this API: {str(reply)[:60]!r}") from error
    if text is None and not (thought or reason in CUT_OFF or reason in _FILTERED):
        raise _Broken("an answer without text")
    return text or "", reason, thought


def _in_short(error: Any) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return body["message"][:120]
    return " ".join(str(error.message).split())[:120]


def _seconds(header: str | None) -> float:
    """`Retry-After` in seconds, at most a minute; a date, or nonsense, counts as none."""
    try:
        return min(max(float(header or 0), 0.0), 60.0)
    except ValueError:
        return 0.0
