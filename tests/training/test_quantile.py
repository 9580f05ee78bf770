"""The learned reward CDF: its targets by counting pairs, and a training that finds a known one."""

import numpy as np
import pytest

from bonlib.training.quantile import QuantileModel, QuantileRecipe, fit_quantile_model, leave_one_out_cdf


def test_targets_are_the_mean_over_all_pairs():
    rewards = np.random.default_rng(0).integers(4, size=(5, 7)).astype(float)  # with ties
    for row, found in zip(rewards, leave_one_out_cdf(rewards), strict=True):
        for place, reward in enumerate(row):
            assert found[place] == pytest.approx(np.mean(np.delete(row, place) <= reward))


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0], [2.0]], [[1.0, np.nan]]])
def test_bad_rewards_are_named(bad):
    with pytest.raises(ValueError, match="rewards has shape"):
        leave_one_out_cdf(bad)


def test_shapes_that_do_not_fit_are_named(language_model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"responses has shape \(1, 2\) and rewards \(2, 2\), for 2 prompts"):
        fit_quantile_model(str(language_model_folder), ["a", "b"], [["x", "y"]], np.zeros((2, 2)), scratch=tmp_path)


@pytest.mark.slow
def test_it_learns_what_words_are_worth_and_knows_it_of_a_new_prompt(language_model_folder, tmp_path):
    """Three kinds of response, drawn equally often: the CDF is 1/3, 2/3 and 1, whatever the prompt."""
    rng = np.random.default_rng(0)
    endings = np.array([" was bad", " was sad", " was good"])
    kinds = rng.integers(3, size=(3, 60))
    fitted = fit_quantile_model(
        str(language_model_folder),
        ["the film", "this", "my mother"],
        endings[kinds],
        kinds.astype(float),
        scratch=tmp_path,
        recipe=QuantileRecipe(steps=120, batch_size=16, learning_rate=5e-3, warmup_steps=5),
    )
    for prompt in ("the film", "a film"):  # the second was not among those trained on
        found = np.exp(fitted.log_weak([prompt] * 3, endings.tolist()))
        assert found == pytest.approx([1 / 3, 2 / 3, 1], abs=0.1)
        assert (np.exp(fitted.log_strict([prompt] * 3, endings.tolist(), np.zeros(3))) == found).all()
    assert QuantileModel(fitted.loaded).fingerprint == fitted.fingerprint
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_of_a_reference_with_an_adapter_it_takes_the_model_below(finetuned_folder, tmp_path):
    fitted = fit_quantile_model(
        str(finetuned_folder),
        ["the film"],
        [[" was bad", " was good"]],
        [[0.0, 1.0]],
        scratch=tmp_path,
        recipe=QuantileRecipe(steps=1, batch_size=2),
    )
    assert np.isfinite(fitted.log_weak(["the film"], [" was good"])).all()


def test_a_text_longer_than_the_context_is_named(language_model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"'the film film.* have \d+ tokens; .* reads 48: shorten"):
        fit_quantile_model(
            str(language_model_folder), ["the film"], [[" film" * 60, " x"]], [[0.0, 1.0]], scratch=tmp_path
        )
