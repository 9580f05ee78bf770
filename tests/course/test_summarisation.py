"""Summarisation on small random models: every method trains, is judged by another reward than its own, and once."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from scipy.stats import pearsonr

from bonlib.course.experiments.judging import Condition, copied, read_verdicts
from bonlib.course.experiments.results import add_run, read_rows
from bonlib.course.experiments.summarisation import DISTRIBUTIONS, TRAINED, SummaryHarness, bundle, grid
from bonlib.course.profiles import PROFILES, get_profile, known_sizes
from bonlib.draws.store import SampleStore
from bonlib.methods import METHODS
from bonlib.metrics import win_rate
from bonlib.models.loaded import load_language_model


@pytest.fixture(scope="module")
def profile(finetuned_folder, reward_folders):
    quick = get_profile("quick")
    sizes = quick.summaries
    training = replace(
        sizes.training, draws=8, cdf_samples=8, ns=(4,), betas=(1 / 3,), dpo_betas=(1 / 3,), bond_ns=(4,), steps=2,
        test_prompts=2, responses=2,
    )  # fmt: skip
    return replace(
        quick,
        dtype="bfloat16",
        summary_model=str(finetuned_folder),
        proxy_model=str(reward_folders[0]),
        gold_model=str(reward_folders[1]),
        summary_policies=None,
        summaries=replace(
            sizes, train_prompts=8, test_prompts=3, draws=8, opponents=4, n=4, training=training, prompt_tokens=60,
            max_new_tokens=12, batch_size=6, responses=3,
        ),
    )  # fmt: skip


@pytest.fixture
def harness(profile, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    yield SummaryHarness(profile, SampleStore(tmp_path / "store"), build=tmp_path / "build")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_every_method_trains_and_is_judged_once(harness, tmp_path, capsys):
    results = tmp_path / "results"
    assert harness.run_all(grid(harness.profile), results=results)
    rows = read_rows(results / "tldr.parquet")
    assert sorted(rows["method"]) == sorted(TRAINED)
    assert rows.set_index("method")["cdf"].dropna().to_dict() == {"vbon-bound": "exponential", "bond": "samples"}
    capsys.readouterr()
    harness.judge_all(results=results)
    conditions = len(DISTRIBUTIONS) * len(harness.sizes.temperatures) * len(harness.sizes.sampling_seeds)
    assert len(capsys.readouterr().out.splitlines()) == conditions
    judged = read_rows(results / "tldr_judged.parquet")
    assert len(judged) == conditions * (2 + len(TRAINED))
    assert judged[["gold", "gold_se", "win", "proxy", "length", "copied"]].notna().all(axis=None)
    assert judged.loc[judged["distribution"] == "out", "rouge"].isna().all()
    assert judged.loc[judged["distribution"] == "in", "rouge"].notna().all()
    assert set(read_rows(results / "tldr_judged.parquet", "prompts").groupby("run").size()) == {3}
    curve = read_rows(results / "tldr_judged.parquet", "curves")
    assert sorted(set(curve["n"])) == [1, 2, 4, 8]
    bundle(harness, results=results, folder=tmp_path / "models")
    for method in TRAINED:
        folder = tmp_path / "models" / f"tldr-{method}"
        kept = load_language_model(folder, dtype="bfloat16").model.state_dict()
        trained = harness.policies()[method, 0].model.state_dict()
        assert all(torch.allclose(kept[name], tensor, atol=1e-3, rtol=1e-3) for name, tensor in trained.items())
        assert "minutes" in (folder / "README.md").read_text()
    # Another process, whose models were loaded anew, finds nothing left to do.
    runs = SummaryHarness(harness.profile, harness.store, build=harness.build).judge_all(results=results)
    assert runs == set(judged["run"])
    of_abstracts = harness.judge_all(results=results, distributions=["in"])
    assert of_abstracts == set(judged.loc[judged["distribution"] == "in", "run"])
    assert not capsys.readouterr().out
    assert len(read_rows(results / "tldr_judged.parquet")) == len(judged)
    verdicts = read_verdicts("quick", results)
    assert len(verdicts.by_prompt) == 3 * len(judged)
    assert set(verdicts.texts["method"]) == {"sft", "bon", *TRAINED}
    assert set(verdicts.curves["n"]) == {1, 2, 4, 8}
    for table in verdicts:
        assert {"distribution", "temperature", "sampling_seed", "run"} <= set(table)
    add_run(results / "tldr_judged.parquet", "newer", judged.drop(columns="run").iloc[0].to_dict())
    with pytest.raises(ValueError, match="two rows of"):
        read_verdicts("quick", results)
    assert len(read_verdicts("quick", results, runs).by_prompt) == len(verdicts.by_prompt)


def test_best_of_n_is_chosen_by_the_proxy_and_judged_by_gold(harness):
    where = Condition("out", 1.0, 0)
    _, (proxy, gold) = harness.reference_draws_at(where)
    judged = harness.of_reference(where)
    assert judged["bon"].gold.shape == (3, 2)
    groups = proxy[:, :8].reshape(3, 2, 4)
    np.testing.assert_array_equal(judged["bon"].proxy, groups.max(axis=2))
    best = groups.argmax(axis=2) + 4 * np.arange(2)
    np.testing.assert_array_equal(judged["bon"].gold, np.take_along_axis(gold, best, axis=1))
    expected = win_rate(judged["bon"].gold, gold[:, 8:])
    assert judged["bon"].summary()["win"] == pytest.approx(float(expected.value))
    curve = harness.best_of_each_n(where)
    assert curve[0]["proxy"] == pytest.approx(proxy.mean())
    assert curve[0]["gold_gain"] == pytest.approx(0, abs=1e-6)
    assert curve[-1]["proxy_gain"] == pytest.approx(curve[-1]["proxy"] - curve[0]["proxy"])
    centred = [(table - table.mean(axis=1, keepdims=True)).ravel() for table in (proxy, gold)]
    assert curve[0]["correlation"] == pytest.approx(pearsonr(*centred).statistic)
    assert curve[-1]["proxy"] == pytest.approx(np.sort(proxy, axis=1)[:, -8:].mean(), abs=10)  # the best of 8 of 12
    assert [row["proxy"] for row in curve] == sorted(row["proxy"] for row in curve)


def test_a_policy_that_is_the_reference_wins_half(harness):
    where = Condition("in", 1.0, 0)
    harness.profile = replace(harness.profile, summaries=replace(harness.sizes, responses=64, opponents=64))
    judged = harness.of_policies({"same": harness.setting.reference}, where)["same"]
    assert judged.summary()["win"] == pytest.approx(0.5, abs=0.12)


def test_documents_in_and_out_and_for_training_do_not_meet(harness):
    prompts = [set(harness.exam(distribution).prompts) for distribution in DISTRIBUTIONS]
    assert not prompts[0] & prompts[1]
    assert not set(harness.prompts) & (prompts[0] | prompts[1])
    assert len(harness.prompts) == 8
    with pytest.raises(ValueError, match="distribution is 'near'"):
        harness.exam("near")


def test_beta_and_n_are_equivalent_in_every_profile():
    for profile in PROFILES.values():
        training = profile.summaries.training
        assert training.ns == training.bond_ns == (profile.summaries.n,)
        assert training.betas == training.dpo_betas == pytest.approx([1 / (profile.summaries.n - 1)])
        assert {METHODS[run.method].setting for run in grid(profile)} == {"n", "beta", "rate"}


def test_copied_counts_trigrams():
    assert copied("we show that it works", "Here We show that cats work") == pytest.approx(1 / 3)
    assert copied("two words", "two words and more") == 0.0
    assert torch.tensor(copied("a b c", "x a b c")) == 1


def test_stored_verdicts_are_known_by_the_sizes_that_they_had():
    sizes = json.dumps(known_sizes(get_profile("laptop").summaries), sort_keys=True)
    assert hashlib.sha256(sizes.encode()).hexdigest()[:12] == "fbaa98989de1"
