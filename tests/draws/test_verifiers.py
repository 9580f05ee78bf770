"""Verifiers: which answer a response has, whether it is right, and that they serve as reward models."""

import numpy as np
import pytest
import torch

from bonlib.answers import self_certainty
from bonlib.draws.rewards import checked_score
from bonlib.draws.verifiers import SelfCertainty, Verifier, exact_match, numeric, regex

TRUTH = {"2 + 2 =": 4, "capital of France?": "Paris"}
MATHS, FRANCE = TRUTH


def judged(verifier, prompt, *responses):
    prompts = [prompt] * len(responses)
    answers, right = verifier.answers(prompts, responses), verifier.verify(prompts, responses)
    assert answers.shape == right.shape == (len(responses),)
    assert right.dtype == bool
    assert (checked_score(verifier, prompts, list(responses)) == right).all()
    return answers.tolist(), right.tolist()


def test_the_whole_response_is_the_answer():
    assert judged(exact_match(TRUTH), FRANCE, " Paris\n", "paris", " ") == (
        ["Paris", "paris", None],
        [True, False, False],
    )
    assert judged(exact_match(TRUTH, normalise=str.casefold), FRANCE, "PARIS") == (["paris"], [True])


def test_a_pattern_finds_the_answer():
    last_word = regex(TRUTH, r"The answer is (\w+)")
    found = judged(last_word, FRANCE, "The answer is Paris. The answer is Rome.", "Paris", "The answer is Rome")
    assert found == (["Paris", None, "Rome"], [True, False, False])
    assert judged(regex(TRUTH, "Par.s"), FRANCE, "It is Paris") == (["Paris"], [True])
    assert judged(regex(TRUTH, "(x)|Paris"), FRANCE, "Paris") == ([None], [False])  # a group that took no part


def test_numbers_are_compared_as_numbers():
    last = numeric(TRUTH)
    assert judged(last, MATHS, "2 + 2 = 4.0", "It is 4,000.", "-4", "none") == ([4, 4000, -4, None], [1, 0, 0, 0])
    said = ("it is .5", "-.5", "1e3", "2.5E-1", "3-5", "(-5)", "\u22125", "$1,000.50", "v1.2.3", "4.")
    assert judged(last, MATHS, *said)[0] == [0.5, -0.5, 1000, 0.25, 5, -5, -5, 1000.5, 3, 4]
    assert judged(numeric({"p": 5}), "p", "The answer is .5") == ([0.5], [False])
    assert judged(last, MATHS, "4\nor 5\n", "5 or 4\n") == ([5, 4], [False, True])  # the last, on whatever line
    assert judged(numeric(TRUTH, tolerance=0.05), MATHS, "4.04", "3.9") == ([4.04, 3.9], [True, False])
    assert judged(numeric(TRUTH, pattern="is (.*)"), MATHS, "is 4", "is four") == ([4, None], [True, False])
    assert judged(numeric({"p": "1,000"}), "p", "1000") == ([1000], [True])


def test_the_truth_may_be_a_function():
    halves = numeric(lambda prompt: len(prompt) / 2)
    assert judged(halves, "four", "2", "3") == ([2, 3], [True, False])


def test_the_fingerprint_tells_verifiers_apart():
    def made(**truth):
        return [
            exact_match(truth),
            exact_match(truth, normalise=str.casefold),
            regex(truth, "a"),
            regex(truth, "b"),
            numeric(truth),
            numeric(truth, tolerance=1),
            exact_match(lambda prompt: prompt),
        ]

    prints = [verifier.fingerprint for verifier in (*made(p="1"), *made(p="2"))]
    assert len(set(prints)) == 13  # the last takes no truth, and is the same twice
    assert prints == [verifier.fingerprint for verifier in (*made(p="1"), *made(p="2"))]


def test_one_of_ones_own_is_made_of_two_functions():
    parity = Verifier(lambda response: len(response) % 2, lambda answer, right: answer == right, {"p": 1})
    assert judged(parity, "p", "one", "four") == ([1, 0], [True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_match(["Paris"]), "truth is .'Paris'.; it must be a dict from prompt to answer"),
        (lambda: exact_match(TRUTH).score(["who?"], ["I"]), "truth has no answer to the prompt 'who.': add it"),
        (lambda: numeric(TRUTH).verify([FRANCE], ["7"]), "truth holds 'Paris'; a numeric answer"),
        (lambda: regex(TRUTH, "(a"), "pattern is '.a', no regular expression: "),
        (lambda: regex(TRUTH, None), "pattern is None, no regular expression"),
        (lambda: numeric(TRUTH, tolerance=-1), "tolerance is -1"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_it_scores_what_the_front_door_draws(tmp_path, language_model):
    import bonlib as bon

    draws = bon.draw(language_model, ["one", "two"], 4, max_new_tokens=3, store=tmp_path)
    scored = draws.score(exact_match({"one": "x", "two": draws.texts[1, 0]}))
    assert scored.rewards[1, 0] == float(bool(draws.texts[1, 0].strip()))
    assert set(np.unique(scored.rewards)) <= {0, 1}


def test_self_certainty_reads_each_response_behind_its_prompt(language_model):
    judge = SelfCertainty(language_model, batch_size=2)
    prompts, responses = ["one", "two", "one", "two"], [" three four", " five", "", " a longer one of them"]
    found = checked_score(judge, prompts, responses)
    assert found[2] == 0
    for prompt, response, value in zip(prompts, responses, found, strict=True):
        head, ids = (language_model.tokenizer(text)["input_ids"] for text in (prompt, prompt + response))
        assert ids[: len(head)] == head
        if response:
            with torch.no_grad():
                logits = language_model.model(torch.tensor([ids])).logits[0, len(head) - 1 : -1]
            assert value == pytest.approx(self_certainty(logits.numpy()), abs=1e-5)
    assert judge.fingerprint != language_model.fingerprint
    assert len(judge.score([], [])) == 0
    with pytest.raises(ValueError, match=r"a text has \d+ tokens; .* leave it out"):
        judge.score(["one"], [" many" * 5000])
