"""What may be spent on servers, which is never passed."""

from __future__ import annotations

import threading

from bonlib.checks import whole

MOMENT = 0.2  # seconds between two looks at whether calls under way have left enough


class BudgetError(ValueError):
    """The next request could pass the budget, so it was not made."""

    on_the_way = True  # as of `bonlib.draws.http.ServerError`


class Budget:
    """What may be asked of servers; share one between samplers and judges that are paid from one purse.

    A call is counted when it is made, its tokens by what the server says they were. Before a call the most that it can
    take is set aside: a token for each byte of the prompt, and `max_new_tokens` for each response. Of a call that broke
    off, or whose answer counts no tokens, all of that stays spent: it may be on the bill.

    Args:
        max_calls: most requests, repeated ones included; None for no limit.
        max_tokens: most tokens, of prompts and responses; likewise.
    """

    def __init__(self, max_calls: int | None = None, max_tokens: int | None = None) -> None:
        self.max_calls = None if max_calls is None else whole("max_calls", max_calls)
        self.max_tokens = None if max_tokens is None else whole("max_tokens", max_tokens)
        self.calls = self.tokens = 0  # spent
        self._aside: dict[int, int] = {}  # tokens of the calls under way
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"Budget({self.calls} of {self.max_calls} calls, {self.tokens} of {self.max_tokens} tokens spent)"

    def reserve(self, tokens: int, halt: threading.Event) -> int:
        """Set a call's tokens aside and return its number; wait while calls under way may leave enough.

        Raises:
            BudgetError: if it could pass the budget.
        """
        with self._changed:
            while True:
                self._check(self.calls + 1, self.max_calls, "max_calls", f"{self.calls} calls are made")
                enough = self.max_tokens is None or self.tokens + sum(self._aside.values()) + tokens <= self.max_tokens
                if enough or not self._aside or halt.is_set():
                    break
                self._changed.wait(MOMENT)
            said = f"{self.tokens} tokens are spent, and the next call may take {tokens}"
            self._check(self.tokens + sum(self._aside.values()) + tokens, self.max_tokens, "max_tokens", said)
            self.calls += 1
            self._aside[self.calls] = tokens
            return self.calls

    def settle(self, call: int, tokens: int | None) -> None:
        """Say what a call took; all that was set aside if None."""
        with self._changed:
            aside = self._aside.pop(call)
            self.tokens += aside if tokens is None else tokens
            self._changed.notify_all()

    def _check(self, would: int, most: int | None, name: str, said: str) -> None:
        if most is not None and would > most:
            raise BudgetError(f"{name} of the budget is {most}; {said}: what came is kept; raise {name} to go on")
