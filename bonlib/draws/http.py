"""Asking servers: many requests at once, again where that helps, and errors that say the remedy."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from bonlib.checks import number, shown, whole
from bonlib.draws.budget import Budget
from bonlib.draws.gather import gather

if TYPE_CHECKING:
    import httpx
    import tenacity

SECRET = 12  # characters from which a key counts as one: servers of one's own take any word, such as EMPTY
LONGEST_WAIT = 600.0  # seconds, whatever a server asks for
PASSING = {408, 425, 429}  # and 500 or more: these may be well the next time

J = TypeVar("J")
T = TypeVar("T")


class ServerError(ValueError):
    """A server cannot be used as asked; the message names it, what it said, and the remedy.

    Attributes:
        status: HTTP status of its answer; 0 if there was none, or it was not what an answer must be.
    """

    on_the_way = True  # what came before is kept: to the command line, a failure and no wrong usage

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _PassingError(ServerError):
    """One that may be over the next time.

    Attributes:
        after: seconds to wait at least.
        sent: whether the server had the request, and may bill it.
    """

    def __init__(self, message: str, status: int = 0, *, after: float = 0.0, sent: bool = True) -> None:
        super().__init__(message, status)
        self.after, self.sent = after, sent


class Server:
    """An HTTP server that is given JSON and answers with JSON.

    Args:
        url: its base address, such as http://localhost:8000/v1.
        key: name of the environment variable that holds its key, which is read for each request and stands nowhere
            else; without one the requests have none.
        concurrency: requests under way at once.
        timeout: seconds without a byte after which a request counts as unanswered.
        retries: how often a request is repeated that found the server busy, broken or silent.
        budget: that it may spend; None for no limit.

    Raises:
        ValueError: if an argument is out of range, or the address is none or holds a key.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 300.0,
        retries: int = 6,
        budget: Budget | None = None,
    ) -> None:
        import httpx

        try:
            parts = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise ValueError(f"url is {shown(url)}; it must be an address such as http://localhost:8000/v1") from error
        if parts.userinfo or parts.query:
            raise ValueError(
                f"url, of {parts.host}, holds a user or a query, which may be a key and would stand in messages: put "
                "the key into an environment variable and give its name as key"
            )
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(f"url is {shown(url)}; it must be an address such as http://localhost:8000/v1")
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError("key is not the name of an environment variable (and not shown: it may be the key itself)")
        self.url, self.key = str(parts).rstrip("/"), key
        self.concurrency = whole("concurrency", concurrency, 1)
        self.timeout = float(number("timeout", timeout, above=0))
        self.retries = whole("retries", retries)
        self.budget = budget or Budget()
        self._halt = threading.Event()

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        # Many servers close a connection that is idle for 5 s, which a request must not meet.
        most = self.concurrency + 1
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=2.0)
        timeout = httpx.Timeout(self.timeout, connect=min(self.timeout, 10.0))
        # Without TLS there is nothing to verify, and reading all certificates takes a fraction of a second.
        client = httpx.Client(timeout=timeout, limits=limits, verify=self.url.startswith("https:"))
        weakref.finalize(self, client.close)
        return client

    def get(self, path: str) -> Any:
        """Return what the server has at a path, asking once; it costs nothing of the budget."""
        return self._once("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any], tokens: int) -> Any:
        """Return what the server answers, asked again while it is busy, broken or silent.

        Args:
            path: after the base address; empty for that itself.
            body: what it is given, as JSON.
            tokens: the most that it may bill.

        Raises:
            ServerError: if there is no answer, or one that is none.
            BudgetError: if it could pass the budget.
        """
        import tenacity

        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PassingError),
            stop=tenacity.stop_after_attempt(self.retries + 1) | tenacity.stop_when_event_set(self._halt),
            wait=_pause,
            sleep=tenacity.sleep_using_event(self._halt),
            reraise=True,
        ):
            with attempt:
                call, used = self.budget.reserve(tokens, self._halt), None
                try:
                    answer = self._once("POST", path, body)
                    used = _usage(answer)
                    return answer
                except ServerError as error:
                    used = 0 if error.status or not getattr(error, "sent", True) else None
                    raise
                finally:
                    self.budget.settle(call, used)
        raise AssertionError

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        import httpx

        address, secret = f"{self.url}/{path}".rstrip("/"), os.environ.get(self.key, "").strip()
        if not (secret.isascii() and secret.isprintable()):
            raise ServerError(
                f"{address}: the environment variable {self.key} holds letters that no key has: set it anew"
            )
        trouble, response = None, None
        try:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            response = self._client.request(method, address, json=body, headers=headers)
        except httpx.HTTPError as error:  # raised outside of here, as the error holds the request and so the key
            trouble = self._trouble(address, error, secret)
        if response is None:
            raise trouble or AssertionError
        said = _hidden(response.text, secret)
        if response.status_code != 200:
            raise self._refusal(address, response.status_code, said, response.headers.get("Retry-After", ""))
        try:
            return json.loads(said)
        except ValueError:
            remedy = "is this the address of the API (for most servers one that ends in /v1)?"
            raise ServerError(f"{address}: the answer is not JSON but {_short(said)}: {remedy}") from None

    def _trouble(self, address: str, error: httpx.HTTPError, secret: str) -> _PassingError:
        import httpx

        reason = _hidden(str(error), secret) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            remedy = "start it, or check the address"
            return _PassingError(f"{address}: no server can be reached ({reason}): {remedy}", sent=False)
        if isinstance(error, httpx.TimeoutException):
            remedy = "is it overloaded or still loading? Ask less at once (concurrency), or raise timeout"
            return _PassingError(f"{address}: no answer within {self.timeout:g} s: {remedy}")
        return _PassingError(f"{address}: the answer broke off ({reason}): look into the server's log, then go on")

    def _refusal(self, address: str, status: int, said: str, after: str) -> ServerError:
        about = f"{address}: status {status}, {_short(said)}"
        if status in PASSING or status >= 500:
            remedy = "ask less at once (concurrency)" if status == 429 else "look into the server's log"
            return _PassingError(f"{about}: {remedy}, then go on", status, after=_seconds(after))
        remedy = "change what is asked for"
        if status in (401, 403):
            held = "holds a key that it does not take" if os.environ.get(self.key) else "is not set"
            remedy = f"the environment variable {self.key} {held}; key= names another"
        elif status in (404, 405):
            remedy = "check the model's name, and the address: that of most servers ends in /v1"
        elif status < 400:
            remedy = "it sends elsewhere: give the address of the API itself"
        return ServerError(f"{about}: {remedy}", status)

    def gather(
        self,
        jobs: Iterable[J],
        work: Callable[[J], T],
        keep: Callable[[list[tuple[J, T]]], Iterable[J]],
    ) -> None:
        """Do jobs at once, as many as `concurrency`, and have what comes kept; see `bonlib.draws.gather`."""
        gather(jobs, work, keep, at_once=self.concurrency, halt=self._halt)


def as_server(server: Server | str) -> Server:
    """Return a server, or the one at an address."""
    return server if isinstance(server, Server) else Server(server)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until a request is repeated: at random up to a limit that doubles, and as many as the server asks for."""
    import tenacity

    error = state.outcome.exception() if state.outcome else None
    pause: float = tenacity.wait_random_exponential(multiplier=0.5, max=30)(state)
    return max(pause, getattr(error, "after", 0.0))


def _seconds(after: str) -> float:
    """What a Retry-After header asks for: a number of seconds, or a date."""
    try:
        asked = float(after) if after.strip().isdigit() else 0.0
        if after and not asked:
            asked = (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT)


def _usage(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total >= 0 else None


def _hidden(text: str, secret: str) -> str:
    """A text in which a key that a server sent back cannot be read."""
    return text.replace(secret, "[key]") if len(secret) >= SECRET else text


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else f"{line[:200]}…") if line else "and says nothing"
