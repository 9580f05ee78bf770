"""Asking servers that are busy, broken, silent, or not there; and what may be spent on them."""

import logging
import threading
import time

import pytest
from small_server import completion, serving

from bonlib.draws.budget import Budget, BudgetError
from bonlib.draws.http import Server, ServerError

KEY = "sk-that-nobody-may-see-0123456789"
BODY = {"prompt": "ab", "max_tokens": 3, "seed": 1}


def ask(server, budget=None, **options):
    options = {"retries": 3, "timeout": 5.0, **options}
    return Server(server.url, budget=budget, **options).post("completions", BODY, tokens=9)


def test_what_is_busy_or_broken_is_asked_again():
    def answer(path, body, call):
        return (500, "out of memory") if call < 3 else completion(body)

    budget = Budget()
    with serving(answer) as server:
        assert ask(server, budget) == completion(BODY)
        assert len(server.asked) == budget.calls == 3
    assert budget.tokens == 5  # of the one that was answered, as the server counts them


def test_a_server_says_when_to_come_back():
    def answer(path, body, call):
        return (429, "slow down", {"Retry-After": "2"}) if call == 1 else completion(body)

    begun = time.monotonic()
    with serving(answer) as server:
        ask(server)
    assert 2.0 <= time.monotonic() - begun < 20


ANSWERS = {
    "a broken one": ((500, "out of memory"), r"status 500, 'out of memory': look into the server's log, then go on"),
    "a busy one": ((429, "slow down"), r"status 429, 'slow down': ask less at once \(concurrency\)"),
    "a proxy": ("<html>Welcome to nginx</html>", r"is not JSON but '<html>Welcome.*ends in /v1"),
    "half of JSON": ('{"choices": [{"te', r"is not JSON but"),
    "half a body": ((200, '{"choices"', {"Content-Length": 5000}), r"the answer broke off \(peer closed"),
    "nothing": ("", "is not JSON but and says nothing"),
    "no such place": (
        (404, {"detail": "Not Found"}),
        r"status 404.*Not Found.*check the model's name, and the address",
    ),
    "elsewhere": ((307, "", {"Location": "/v2"}), "status 307.*give the address of the API itself"),
    "no": ((400, {"error": {"message": "n must be 1"}}), r"status 400.*n must be 1.*change what is asked for"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_goes_wrong_is_said_in_one_line_with_the_remedy(case):
    answer, message = ANSWERS[case]
    with serving(lambda *_: answer) as server, pytest.raises(ServerError, match=message) as caught:
        ask(server, retries=1)
    assert str(caught.value).startswith(f"{server.url}/completions: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_server_that_is_not_there_or_never_answers():
    with serving() as server:
        pass
    budget = Budget(max_tokens=9)
    with pytest.raises(ServerError, match=r"no server can be reached \(.*refused\): start it, or check the address"):
        ask(server, budget, retries=1)
    assert budget.tokens == 0  # it cannot bill what it never had
    with serving() as server:
        server.answer = lambda *_: server.never()
        with pytest.raises(ServerError, match=r"no answer within 0\.2 s: .* raise timeout"):
            ask(server, budget, retries=0, timeout=0.2)
    assert budget.tokens == 9  # it may have made what it never sent


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_by_its_variable(monkeypatch, status):
    with serving(lambda *_: (status, "who are you?")) as server:
        monkeypatch.setenv("THEIR_KEY", KEY)
        with pytest.raises(
            ServerError, match="variable THEIR_KEY holds a key that it does not take; key= names another"
        ):
            ask(server, key="THEIR_KEY")
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        monkeypatch.delenv("THEIR_KEY")
        with pytest.raises(ServerError, match="variable THEIR_KEY is not set"):
            ask(server, key="THEIR_KEY")
        assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_is_seen_nowhere(monkeypatch, caplog, capfd, status):
    monkeypatch.setenv("THEIR_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving(lambda *_: (status, f"your key is {KEY}")) as server:
        asked = Server(server.url, key="THEIR_KEY", retries=1)
        with pytest.raises(ServerError, match=r"your key is \[key\]") as caught:
            asked.post("completions", BODY, tokens=9)
    error, everything = caught.value, [repr(asked), repr(vars(asked)), caplog.text, *capfd.readouterr()]
    while error:
        everything += [str(error), repr(vars(error))]
        assert not hasattr(error, "request")
        error = error.__cause__ or error.__context__
    assert KEY not in "".join(everything)


def test_bad_arguments_are_named(monkeypatch):
    for url in ("localhost:8000", "ftp://host/v1", "", None, "http://"):
        with pytest.raises(ValueError, match=r"url is .* address such as http://localhost:8000/v1"):
            Server(url)
    for url in (f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(ValueError, match="url, of host, holds a user or a query") as caught:
            Server(url)
        assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match="key is not the name of an environment variable") as caught:
        Server("http://host/v1", key=KEY)
    assert KEY not in str(caught.value)
    monkeypatch.setenv("THEIR_KEY", "sk-0123\n456789\u2028")
    with pytest.raises(ServerError, match="variable THEIR_KEY holds letters that no key has") as caught:
        Server("http://host/v1", key="THEIR_KEY").get("models")
    assert "456789" not in str(caught.value)
    with pytest.raises(ValueError, match="timeout is 0; it must be a finite number above 0"):
        Server("http://host/v1", timeout=0)
    with pytest.raises(ValueError, match="max_calls is -1"):
        Budget(max_calls=-1)


def gather(server, jobs, kept, concurrency=4, budget=None):
    client = Server(server.url, concurrency=concurrency, retries=0, budget=budget)

    def work(job):
        return client.post("completions", {**BODY, "seed": job}, tokens=5)

    client.gather(jobs, work, lambda come: kept.extend(job for job, _ in come) or ())


def test_so_many_requests_are_under_way_at_once_and_no_more():
    under_way, most, lock = [0], [0], threading.Lock()

    def answer(path, body, call):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        with lock:
            under_way[0] -= 1
        return completion(body)

    kept = []
    with serving(answer) as server:
        gather(server, range(30), kept, concurrency=3)
    assert sorted(kept) == list(range(30))
    assert most[0] == 3


def test_after_an_error_nothing_is_begun_and_what_is_under_way_is_kept():
    def answer(path, body, call):
        if body["seed"] == 5:
            return 400, "no"
        time.sleep(0.5)
        return completion(body)

    kept = []
    with serving(answer) as server, pytest.raises(ServerError, match="status 400"):
        gather(server, range(40), kept)
    assert sorted([*kept, 5]) == sorted(body["seed"] for _, body in server.asked)
    assert len(server.asked) < 20


@pytest.mark.parametrize("limit", ["max_calls", "max_tokens"])
def test_a_budget_is_never_passed(limit):
    budget, kept = Budget(**{limit: {"max_calls": 17, "max_tokens": 61}[limit]}), []
    with serving() as server, pytest.raises(BudgetError, match=f"{limit} of the budget is .* raise {limit} to go on"):
        gather(server, range(40), kept, budget=budget)
    assert len(kept) == len(server.asked) == {"max_calls": 17, "max_tokens": 12}[limit]  # all that it is enough for
    assert repr(budget).startswith(f"Budget({len(kept)} of ")
    assert budget.tokens == 5 * len(kept)


def test_an_answer_that_counts_no_tokens_takes_all_that_was_set_aside():
    budget = Budget(max_tokens=20)
    with serving(lambda path, body, call: completion(body, usage=False)) as server:
        ask(server, budget)
        ask(server, budget)
        with pytest.raises(BudgetError, match="18 tokens are spent, and the next call may take 9"):
            ask(server, budget)
    assert len(server.asked) == 2
