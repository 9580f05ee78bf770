"""The draws and runs of notebook 15: what is stored is what the models say, and both can be made anew."""

from dataclasses import replace

import numpy as np
import pytest

from bonlib.course.experiments import spending
from bonlib.course.experiments.results import read_rows
from bonlib.course.experiments.setting import imdb_setting
from bonlib.course.experiments.spending import (
    SEED,
    WORLDS,
    LateCutPenalty,
    World,
    file_of,
    load_world,
    make_draws,
    run_steered,
    steered_rules,
    stored_draws,
)
from bonlib.course.profiles import get_profile
from bonlib.draws.rewards import CutPenalty, FunctionReward
from bonlib.draws.store import SampleStore
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.metrics import win_probability
from bonlib.models.responses import Responses

SMALL = {"imdb": spending.Sizes(3, 6, (4, 8), steered=3, seeds=2)}
RULES = [("best-of-n", SpeculativeRejection(3, ())), ("TreeBoN", TreeBestOfN(4, 2, 2, (4,)))]


@pytest.fixture(scope="module")
def setting():
    return imdb_setting(replace(get_profile("laptop"), dtype="float32"), 3)


@pytest.fixture
def small(setting, tmp_path, monkeypatch):
    """A world of three prompts, whose draws have been made as the project's own are."""
    world = World(replace(setting, sampling=replace(setting.sampling, max_new_tokens=10)), FunctionReward(_length))
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(spending, "FOLDER", tmp_path)
    monkeypatch.setattr(spending, "WORLDS", SMALL)
    monkeypatch.setattr(spending, "load_world", lambda name: world)
    make_draws("imdb")
    return world


def _length(prompt: str, response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize("world", WORLDS)
def test_the_files_hold_as_much_of_each_prompt_as_they_say_and_stay_small(world):
    draws, sizes = stored_draws(world), WORLDS[world]
    assert len(draws.prompts) == len(set(draws.prompts)) == sizes.prompts
    assert draws.checkpoints == sizes.checkpoints
    tables = (draws.rewards, draws.gold, draws.log_probs, draws.lengths, draws.texts)
    assert {table.shape for table in tables} == {(sizes.prompts, sizes.draws)}
    assert draws.partial.shape == (sizes.prompts, sizes.draws, len(sizes.checkpoints))
    assert all(np.isfinite(table).all() for table in (*tables[:3], draws.partial))
    assert (draws.log_probs < 0).all()
    ended = draws.lengths[..., None] <= np.array(draws.checkpoints)
    assert (draws.partial == draws.rewards[..., None])[ended].all()
    assert file_of(world).stat().st_size < 1_800_000


def test_the_models_say_again_what_is_stored_of_reviews(setting, tmp_path):
    stored = stored_draws("imdb")
    assert stored.prompts[:3] == setting.prompts
    drawn = SampleStore(tmp_path).draw(setting.sampler, setting.prompts[:2], 6, setting.sampling, seed=SEED)
    assert (drawn.texts == stored.texts[:2, :6]).all()
    assert np.allclose(drawn.log_probs, stored.log_probs[:2, :6], atol=1e-3)
    assert (drawn.lengths == stored.lengths[:2, :6]).all()
    for place in (0, 1):
        asked = [stored.prompts[place]] * 6, stored.texts[place, :6].tolist()
        assert np.allclose(setting.reward_model.score(*asked), stored.rewards[place, :6], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "exact"), [("imdb", 1e-3), ("tldr", 0.3)])  # bfloat16 rounds as its batch has it
def test_the_judges_say_again_what_is_stored(world, exact):
    stored, (again, gold) = stored_draws(world), load_world(world)
    assert again.prompts == stored.prompts
    whole = stored.lengths[0] < again.sampling.max_new_tokens
    texts = stored.texts[0, whole][:8].tolist()
    for judge, said in ((again.reward_model, stored.rewards), (gold, stored.gold)):
        assert np.allclose(judge.score([stored.prompts[0]] * len(texts), texts), said[0, whole][:8], atol=exact)


def test_draws_are_stored_with_the_rewards_of_their_beginnings(small):
    draws, setting = stored_draws("imdb"), small.setting
    assert draws.texts.shape == (3, 6)
    assert (draws.gold == np.vectorize(len)(draws.texts)).all()
    asked = [prompt for prompt in draws.prompts for _ in range(6)], draws.texts.ravel().tolist()
    assert np.allclose(setting.reward_model.score(*asked).reshape(3, 6), draws.rewards, atol=1e-4)
    drawn = SampleStore().draw(setting.sampler, draws.prompts, 6, setting.sampling, seed=SEED)
    begun = spending.beginnings(setting, draws.prompts[0], drawn.responses[0], 4)
    assert (begun.lengths == np.minimum(drawn.lengths[0], 4)).all()
    assert all(text.startswith(part) for text, part in zip(draws.texts[0], begun.texts, strict=True))
    said = setting.reward_model.score([draws.prompts[0]] * 6, begun.texts.tolist())
    assert np.allclose(draws.partial[0, :, 0], said, atol=1e-4)


def test_a_run_is_a_row_of_what_was_kept_and_what_it_took_and_is_not_made_twice(small, tmp_path):
    file = tmp_path / "runs.parquet"
    run_steered("imdb", small, file, rules=RULES)
    rows, parts = read_rows(file), read_rows(file, "prompts")
    assert rows[["method", "seed"]].values.tolist() == [[name, seed] for seed in (0, 1) for name, _ in RULES]
    assert (rows["tokens"] <= rows["n"] * 10).all()
    assert (rows["calls"] >= 1).all()
    assert {"device", "commit", "date", "reward_se", "gold_se", "win_rate_se", "seconds"} <= set(rows)
    means = parts.groupby("run")[["reward", "gold", "win_rate", "tokens", "calls"]].mean()
    assert np.allclose(rows.set_index("run")[means.columns].loc[means.index], means)
    first, stored = parts[parts["run"] == rows["run"][0]], stored_draws("imdb")
    win = win_probability(first["reward"].to_numpy()[:, None], stored.rewards)[:, 0]
    assert np.allclose(first["win_rate"], win)
    run_steered("imdb", small, file, rules=RULES)
    assert read_rows(file)["run"].tolist() == rows["run"].tolist()


def test_every_method_that_is_run_is_named_once_with_its_settings():
    for world in WORLDS:
        listed = [(name, repr(rule)) for name, rule in steered_rules(world)]
        assert len(set(listed)) == len(listed)
        assert all(0 < each < 24 for _, rule in steered_rules(world) for each in rule.checkpoints)


def test_only_a_response_of_full_length_without_an_end_pays_for_being_cut():
    judge = LateCutPenalty(CutPenalty(FunctionReward(_length), [9], penalty=1.0), 3)
    ids, unknown = np.array([[1, 1, -1], [1, 9, -1], [1, 1, 9], [1, 1, 1]], dtype=np.int32), np.zeros(4)
    responses = Responses(np.array(["aa", "a", "aa", "aaa"]), ids, unknown, unknown)
    assert judge.score_responses(["?"] * 4, responses).tolist() == [2, 1, 2, 2]
    assert judge.score(["?"], ["aaa"]).tolist() == [3]
    assert judge.fingerprint != LateCutPenalty(judge.reward_model, 4).fingerprint


def test_a_world_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"^world is 'reddit'; it must be one of imdb, tldr$"):
        stored_draws("reddit")
