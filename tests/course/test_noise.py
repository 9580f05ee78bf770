"""What may lower the noise of a policy gradient leaves its mean alone, and does on reviews what it does on letters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bonlib.course.experiments import noise
from bonlib.course.experiments.exact_runs import world
from bonlib.course.experiments.sentiment import Harness
from bonlib.course.profiles import get_profile
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.vbon import Vbon
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import TrainingRun


def test_spaced_numbers_lie_in_equal_parts_and_are_each_uniform():
    uniforms = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    numbers = noise.spaced(uniforms)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert torch.allclose(numbers.sort(dim=1).values.diff(dim=1), torch.tensor(0.2), atol=1e-6)
    assert np.allclose(numbers.mean(0), 0.5, atol=0.02)


@pytest.mark.parametrize("estimator", noise.ESTIMATORS)
def test_every_estimator_comes_to_the_exact_gradient(estimator):
    prompts = world("letters")
    now, better = prompts.log_best_of(2).clamp(min=-40).log_softmax(1), torch.from_numpy(
        np.stack([outcomes.calibrated_reward for outcomes in prompts.outcomes])
    )  # fmt: skip

    def slope(objective):
        strength = torch.zeros((), dtype=torch.float64, requires_grad=True)
        objective((now + strength * better).log_softmax(1), 1.0).backward()
        return float(strength.grad)

    times = noise.ROUND if estimator == "common" else 300  # whose numbers come again after a round
    slopes = np.concatenate(
        [
            [slope(drawn) for _ in range(times)]
            for seed in range(300 // times)
            for drawn in [noise.estimate(prompts, 4, estimator, 6, seed)]
        ]
    )
    exact = slope(prompts.ascend(Vbon(4)))
    assert abs(exact) > 5 * slopes.std() / len(slopes) ** 0.5
    assert slopes.mean() == pytest.approx(exact, abs=4 * slopes.std() / len(slopes) ** 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    harness = Harness(get_profile("quick"))
    draws, rewards = harness.reference_draws
    of = slice(0, 8)
    prompts = harness.prompts[of]
    data = TrainingData(
        prompts,
        harness.setting.reward_model,
        harness.setting.sampling,
        replace(draws, prompts=tuple(prompts), responses=draws.responses[of]),
        rewards[of],
        SampledCdf(prompts, rewards[of]),
    )

    def made(method, folder=None, steps=8):
        settings = TrainSettings(steps=steps, prompts=4, group=4, easing=0.0, measure_every=1, checkpoint_every=3)
        folder = folder or tmp_path_factory.mktemp("run")
        return TrainingRun(harness.setting.reference, method, data, settings, folder, show=False)

    return made


def test_numbers_come_again_with_their_prompts(runs):
    for estimator, again in (("common", True), ("others", False)):
        learner = runs(noise.VbonBy(8, estimator=estimator)).learner
        first, later = (learner.shard(step, 0) for step in (1, 3))  # a round has two steps
        assert (first.prompts == later.prompts) == again
        assert (first.returns.tolist() == later.returns.tolist()) == again


def weights(run):
    return torch.cat([weight.detach().flatten() for weight in run.learned]).double()


def watched(run):
    """Train, and return the weights after each step as the next one finds them."""
    passed, stepped = [], run.learner.stepped

    def watch(steps):
        passed.append(weights(run))
        stepped(steps)

    run.learner.stepped = watch
    run.go()
    return passed


def test_the_weights_end_at_their_mean_and_at_an_anchor(runs):
    passed = watched(runs(noise.VbonBy(8)))
    averaged, anchored = runs(noise.VbonBy(8, estimator="averaged")), runs(noise.VbonBy(8, estimator="anchor"))
    assert torch.equal(torch.stack(watched(averaged)), torch.stack(passed))  # nothing is changed before the end
    assert torch.allclose(weights(averaged), torch.stack(passed[4:]).mean(0), atol=1e-6)
    anchor = weights(runs(noise.VbonBy(8)))
    watched(anchored)
    for now in passed:
        anchor += noise.ANCHOR_RATE * (now - anchor)
    assert torch.allclose(weights(anchored), anchor, atol=1e-6)


def test_a_mean_goes_on_where_it_was_interrupted(runs, tmp_path):
    whole, method = runs(noise.VbonBy(8, estimator="averaged")), noise.VbonBy(8, estimator="averaged")
    whole.go()
    for last in (7, 9):
        run = runs(method, tmp_path)
        stepped = run.learner.stepped

        def stop(steps, last=last, stepped=stepped):
            if steps == last:
                raise KeyboardInterrupt
            stepped(steps)

        run.learner.stepped = stop
        if last == 7:  # the checkpoint before has a mean of two steps
            with pytest.raises(KeyboardInterrupt):
                run.go()
        else:
            run.go()
    assert torch.equal(weights(run), weights(whole))


def test_a_warm_start_is_bon_regression_for_half_of_the_steps(runs):
    warm, regression = watched(runs(Vbon(8, warm=0.5))), watched(runs(BonRegression(8)))
    same = [torch.equal(mine, other) for mine, other in zip(warm, regression, strict=True)]
    assert same == [True] * 4 + [False] * 4


def test_the_baseline_is_the_mean_of_stored_draws(runs):
    learner = runs(noise.VbonBy(8, estimator="stored")).learner
    shard, chosen = learner.shard(0, 0), learner.chosen(0, 0)
    baseline = (shard.returns - shard.advantages).view(4, 4)
    assert torch.allclose(baseline, baseline[:, :1], atol=1e-4)  # one for each prompt
    for place, found in zip(chosen, baseline[:, 0].tolist(), strict=True):  # the policy still is the reference
        cdf, rewards = learner.data.cdf, learner.rewards[place, : noise.STORED]
        ref_log_probs = torch.from_numpy(learner.draws.responses[place].log_probs[: noise.STORED])
        prompts = [learner.data.prompts[place]] * noise.STORED
        judged = Judged(prompts, [""] * noise.STORED, ref_log_probs, ref_log_probs, torch.from_numpy(rewards))
        assert found == pytest.approx(float(learner.method.returns(judged, cdf).mean()), abs=1e-3)
