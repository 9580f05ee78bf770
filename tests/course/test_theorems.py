"""The checker finds what is false, and its cases are what it says; the claims themselves are tried on a few cases."""

import itertools

import nbformat
import numpy as np
import pytest

from bonlib import bounds
from bonlib.course.exercises import SOLUTIONS
from bonlib.course.theorems import (
    Case,
    Claim,
    blockwise,
    conjecture_excess,
    conjectured_win_rate,
    random_cases,
    try_claim,
)
from bonlib.exact import Outcomes, kl_divergence

FALSE = {"not 3.4", "Conjecture 7.2", "not B.1"}


def claims_of(notebook):
    """The claims that a notebook lists: what its first two cells and those about claims define."""
    (path,) = SOLUTIONS.glob(f"{notebook}_*.ipynb")
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {}
    for cell in [*code[:2], *(cell for cell in code if "-claims" in cell.id)]:
        exec(cell.source, names)  # a name in it may be of any of these cells
    return [claim for value in names.values() if isinstance(value, list) for claim in value if isinstance(claim, Claim)]


@pytest.mark.parametrize("claim", claims_of("03") + claims_of("04"), ids=lambda claim: f"{claim.source}: {claim.says}")
def test_only_what_is_known_to_be_false_fails(claim):
    verdict = try_claim(claim, min(60, claim.most_cases // 5), seed=5)
    assert (verdict.verdict == "fails") == (claim.source in FALSE)


def test_a_claim_that_is_a_little_too_strong_is_caught():
    too_strong = Claim("", "KL ≤ 0.99 A_n", lambda c: (c.kl, 0.99 * c.formula))
    assert try_claim(too_strong, 300).verdict == "fails"
    wrong = Claim("", "win rate = n/(n+1)", lambda c: (c.win_rate, bounds.win_rate_bound(c.n)), equality=True)
    assert try_claim(wrong, 10).verdict == "fails"
    generous = Claim("", "KL ≤ 2 A_n", lambda c: (c.kl, 2 * c.formula))
    assert try_claim(generous, 300).verdict == "loose, 49% used"
    with pytest.raises(ValueError, match="a side is not a number"):
        try_claim(Claim("", "nonsense", lambda c: (np.nan, 1.0)), 10)
    with pytest.raises(ValueError, match="cases is 0"):
        try_claim(generous, 0)


def test_cases_are_reproducible_and_of_the_promised_size():
    first, again = (list(itertools.islice(random_cases(3), 50)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.outcomes.probs, other.outcomes.probs)
        assert one.n == other.n
    assert all(len(case.outcomes) <= 60 for case in first)
    assert max(len(case.outcomes) for case in itertools.islice(random_cases(3, largest=3000), 50)) > 500
    for case in itertools.islice(random_cases(3, small=True), 50):
        assert len(case.outcomes) <= 4
        assert case.n == int(case.n) <= 4


@pytest.mark.parametrize(("n", "most"), [(1.64, 0.00421), (2, 0.00375), (3, 0.00157), (4, 0.00048)])
def test_one_worst_atom_refutes_conjecture_7_2_by_what_the_closed_form_says(n, most):
    atoms = np.linspace(0.2, 0.6, 401)
    kl = bounds.kl_bound(n) * (1 - atoms**n)
    win = n / (n + 1) - atoms ** (n + 1) * (n - 1) / (2 * (n + 1))
    excess = win - [conjectured_win_rate(value) for value in kl]
    assert excess.max() == pytest.approx(most, abs=1e-5)
    atom = atoms[excess.argmax()]
    fine = Outcomes(np.append(atom, np.full(100_000, (1 - atom) / 100_000)), np.arange(100_001.0))
    assert conjecture_excess(fine, n) == pytest.approx(excess.max(), abs=1e-5)


def test_seven_outcomes_refute_conjecture_7_2():
    assert conjecture_excess(Outcomes([0.4, *[0.1] * 6], np.arange(7)), 2) == pytest.approx(0.00305, abs=5e-6)


def test_the_conjectured_curve_inverts_the_formula():
    n = np.array([1.0, 1.5, 2, 10, 1e6])
    got = [conjectured_win_rate(kl) for kl in bounds.kl_bound(n)]
    np.testing.assert_allclose(got, bounds.win_rate_bound(n), atol=1e-7)


def test_blockwise_with_one_draw_is_the_reference():
    outcomes = Outcomes([1.0], [0.0])
    for seed in range(10):
        once = blockwise(Case(outcomes, 1.0, seed))
        assert once.kl == pytest.approx(0, abs=1e-12)
        assert once.blocks == pytest.approx(once.blocks_of_reference)
        assert blockwise(Case(outcomes, 5.0, seed)).kl > 0


def test_theorem_3_4_needs_whole_n_or_at_least_two():
    atom, fine = 0.008, 200_000
    model = Outcomes(np.append(atom, np.full(fine, (1 - atom) / fine)), np.arange(fine + 1.0))
    for n, holds in ((1.2, False), (2, True), (2.5, True)):
        gap = bounds.kl_bound(n) - kl_divergence(model.best_of(n), model.probs)
        assert (gap <= bounds.kl_gap_upper(n, model.probs)) == holds
