"""Word problems that a small model answers: a file of prompts, responses, answers and scores, as notebook 14 reads it.

`python -m bonlib.course.experiments.arithmetic` makes the file anew; what was drawn when it was stopped is kept.
"""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd

from bonlib.course.experiments.results import RESULTS
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.segments import replace_file
from bonlib.draws.store import Draws, SampleStore
from bonlib.draws.verifiers import Verifier, numeric
from bonlib.models.loaded import load_language_model

FILE = RESULTS.parent / "arithmetic.parquet"
PROBLEMS, DRAWS, SEED = 96, 32, 0
LAW = SamplingSettings(32, temperature=0.7, stop=("\n",))
EXAMPLES = """\
Question: Sam has 3 cups and buys 4 more. How many cups does Sam have now?
Answer: Sam has 3 + 4 = 7 cups. The answer is 7.

Question: Kim has 9 balls and gives 2 away. How many balls does Kim have left?
Answer: Kim has 9 - 2 = 7 balls left. The answer is 7.

Question: Jo buys 3 boxes with 6 cards in each. How many cards does Jo buy?
Answer: Jo buys 3 * 6 = 18 cards. The answer is 18.

Question: Al has 11 pears and Joy has 5 more than Al. How many pears does Joy have?
Answer: Joy has 11 + 5 = 16 pears. The answer is 16.

"""
NAMES, THINGS = ("Tom", "Mia", "Ben", "Ana", "Leo", "Eva"), ("apples", "books", "coins", "pens", "shells", "stamps")


def word_problems(count: int = PROBLEMS, seed: int = SEED) -> dict[str, int]:
    """Return problems of one step, each behind four solved ones, and their answers.

    They are sums, differences, products and comparisons in turn, of numbers from 2 to 12.

    Args:
        count: how many, all different; fewer are the first of more.
        seed: of their numbers and names.
    """
    rng, truth = np.random.default_rng(seed), dict[str, int]()
    while len(truth) < count:
        a, b = rng.integers(2, 13, size=2).tolist()
        (one, other), thing = rng.choice(NAMES, 2, replace=False), rng.choice(THINGS)
        problem, answer = (
            (f"{one} has {a} {thing} and buys {b} more. How many {thing} does {one} have now?", a + b),
            (f"{one} has {a + b} {thing} and gives {b} away. How many {thing} does {one} have left?", a),
            (f"{one} buys {a} boxes with {b} {thing} in each. How many {thing} does {one} buy?", a * b),
            (f"{one} has {a} {thing} and {other} has {b} more than {one}. How many {thing} does {other} have?", a + b),
        )[len(truth) % 4]
        truth.setdefault(f"{EXAMPLES}Question: {problem}\nAnswer:", answer)
    return truth


def verifier(truth: dict[str, int]) -> Verifier:
    """Return what finds the answer of a response, its first after "The answer is", and compares it with the right one.

    Args:
        truth: the answer to each prompt, as `word_problems` gives it.
    """
    return numeric(truth, pattern=r"The answer is (-?\d+)")


def equation_holds(prompt: str, response: str) -> float:
    """Return 1 if a response does the sum right that it writes down, 0 if not, or if it writes none.

    It is a verifier that errs: a sum done right may be the wrong one.

    Args:
        prompt: which is not looked at.
        response: with an equation such as "3 * 6 = 18".
    """
    if not (found := re.search(r"(\d+) ([-+*x]) (\d+) = (\d+)", response)):
        return 0.0
    sign, (a, b, said) = found[2], map(int, found.group(1, 3, 4))
    return float({"+": a + b, "-": a - b}.get(sign, a * b) == said)


def arithmetic_rows(draws: Draws, truth: dict[str, int]) -> pd.DataFrame:
    """Return a row a draw: prompt, response, the model's confidence, log_prob, length, answer, truth, correct.

    Args:
        draws: of responses to word problems.
        truth: the answer to each prompt.
    """
    prompts = [prompt for prompt in draws.prompts for _ in range(draws.texts.shape[1])]
    responses, judge = draws.texts.ravel().tolist(), verifier(truth)
    return pd.DataFrame(
        {
            "prompt": prompts,
            "response": responses,
            # Of a token, on average: a long response is not less sure for that.
            "confidence": (draws.model_log_probs / draws.lengths).ravel().astype(np.float32),
            "log_prob": draws.log_probs.ravel().astype(np.float32),
            "length": draws.lengths.ravel(),
            "answer": pd.Series(judge.answers(prompts, responses)).astype("Int64"),
            "truth": [truth[prompt] for prompt in prompts],
            "correct": judge.verify(prompts, responses),
        }
    )


def make_arithmetic() -> None:
    """Draw answers of SmolLM2-135M-Instruct in single precision, and write the file."""
    truth = word_problems()
    loaded = load_language_model("smollm2-135m-instruct", device="cpu", dtype="float32")
    draws = SampleStore().draw(TransformersSampler(loaded), list(truth), DRAWS, LAW, seed=SEED)
    content = io.BytesIO()
    arithmetic_rows(draws, truth).to_parquet(content, index=False, compression="zstd", compression_level=19)
    replace_file(FILE, content.getvalue())


if __name__ == "__main__":
    make_arithmetic()
