"""Picture and numbers under the sliders are those of `bonlib.exact`."""

import io

import numpy as np
import pytest
from PIL import Image

from bonlib.course.picture import FAMILIES, MORE, Knobs, PoliciesPicture, readout, readout_table
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.draw_counts import TruncatedPoisson
from bonlib.inference.pessimism import pessimistic_policy
from bonlib.inference.rewind import rewind, rewind_at
from bonlib.inference.soft_best_of_n import soft_best_of
from bonlib.inference.stopping import StopAt, reservation_value
from bonlib.inference_aware import infalign_optimum, wind_optimum

KNOBS = Knobs(n=5, beta=0.7, temperature=0.3, acceptance=0.2, t=3, cost=0.2, caution=0.6, duel=0.4, pull=0.3)


def policies(model):
    return {
        "best-of-n": model.best_of(5),
        "KL-RL": model.tilt(0.7),
        "soft best-of-n": soft_best_of(model, 5, 0.3),
        "rewind": rewind_at(model, 0.2),
        "Poisson n": TruncatedPoisson(3).law(model),
        "stopping": rewind(model, reservation_value(model.rewards, 0.2, model.probs)),
        "pessimism": pessimistic_policy(model, 0.6),
        "WIND": wind_optimum(model, 0.4),
        "InfAlign": infalign_optimum(model, 5, 0.3),
    }


def random_outcomes(size, seed=0):
    rng = np.random.default_rng(seed)
    return Outcomes(rng.dirichlet(np.ones(size)), rng.normal(size=size))


def heights(picture, name):
    return [np.max(path.vertices[:, 1]) for path in picture._bars[name].get_paths()]


@pytest.mark.parametrize("size", [2, 3, 30])
def test_the_picture_shows_the_exact_policies(size):
    model, picture = random_outcomes(size), PoliciesPicture(FAMILIES + MORE)
    picture.draw(model, KNOBS)
    np.testing.assert_allclose(heights(picture, "reference"), model.probs)
    for name, policy in policies(model).items():
        np.testing.assert_allclose(heights(picture, name), policy)
        ((kl, win),) = picture._points[name].get_xydata()
        assert kl == pytest.approx(kl_divergence(policy, model.probs))
        assert win == pytest.approx(model.win_rate(policy))


def test_a_picture_that_was_drawn_before_equals_a_new_one():
    used = PoliciesPicture()
    for size, n in ((3, 2), (30, 2), (30, 9), (5, 9)):
        model, knobs = random_outcomes(size, n), Knobs(n=n)
        pixels = [np.array(Image.open(io.BytesIO(one.draw(model, knobs)))) for one in (used, PoliciesPicture())]
        np.testing.assert_array_equal(*pixels)
    assert len(np.unique(pixels[0].reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("family", FAMILIES + MORE)
def test_each_point_lies_on_its_curve(family):
    model = random_outcomes(6)
    curve, policy = KNOBS.curve(family, model), KNOBS.policy(family, model)
    order = np.argsort(curve.kl)
    on_curve = np.interp(kl_divergence(policy, model.probs), curve.kl[order], curve.win_rate[order])
    assert model.win_rate(policy) == pytest.approx(on_curve, abs=0.01)


def test_the_read_out_is_exact():
    model = random_outcomes(4)
    rows = readout(model, KNOBS, FAMILIES + MORE)
    for row, (name, policy) in zip(rows, policies(model).items(), strict=True):
        assert row.family == name
        assert (row.kl, row.win_rate) == (kl_divergence(policy, model.probs), model.win_rate(policy))
        assert row.reward == model.mean_reward(policy)
    ratio = pessimistic_policy(model, 0.6) / model.probs
    until = StopAt(10_000, float(reservation_value(model.rewards, 0.2, model.probs))).cost(model)
    trained = "1, once trained"
    wanted = ["5", trained, "5", "5", f"{3 / (1 - np.exp(-3)):.3g}", f"{until:.3g}", f"{ratio.max():.3g}"]
    wanted += [trained, trained]
    assert [row.draws for row in rows] == wanted
    table = readout_table(rows)
    for row in rows:
        assert f"<td>{row.setting}</td><td>{row.kl:.3f}</td><td>{row.win_rate:.3f}</td>" in table
