"""The front door does what the parts behind it do, and says what is wrong with what it is given."""

import re
import subprocess
import sys

import numpy as np
import pytest
from small_server import completion, serving
from toy_training import PROMPTS, vowels

import bonlib as bon
from bonlib.draws.rewards import ClassifierReward, FunctionReward, SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.draws.verifiers import regex
from bonlib.estimates import best_of_n_kl, best_of_n_reward, best_of_n_win_rate
from bonlib.inference.best_of_n import BestOfN
from bonlib.inference.distances import word_distances
from bonlib.inference.regularised import MbrBestOfN
from bonlib.inference.soft_best_of_n import SoftBestOfN
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.vbon import Vbon


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return SampleStore(tmp_path_factory.mktemp("front"))


@pytest.fixture(scope="module")
def draws(language_model, store):
    return bon.draw(language_model, PROMPTS, 64, max_new_tokens=8, store=store).score(vowels)


@pytest.fixture(scope="module")
def trained(draws):
    return bon.train("vbon", draws, n=4, steps=2, prompts=2, group=2)


def test_it_offers_what_it_lists_and_names_what_it_lacks():
    assert all(hasattr(bon, name) for name in bon.__all__)
    assert set(dir(bon)) == set(bon.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sample'; it has METHODS, RULES, Outcomes"):
        bon.sample  # noqa: B018


def test_importing_it_is_quick():
    code = "import time; begun = time.perf_counter(); import bonlib; print(time.perf_counter() - begun)"
    alone = "import time; begun = time.perf_counter(); import scipy.special; print(time.perf_counter() - begun)"
    ours, scipy = (min(_seconds(code) for _ in range(3)), min(_seconds(alone) for _ in range(3)))
    assert ours < 3 * scipy  # a ratio: it holds on a busy machine


def _seconds(code):
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_draws_are_those_of_the_store(draws, language_model, store):
    again = store.draw(TransformersSampler(language_model), PROMPTS, 64, SamplingSettings(8), seed=0)
    assert (draws.texts == again.texts).all()
    assert (draws.rewards == store.score(draws.reward, again)).all()
    assert draws.rewards[0, 3] == vowels(PROMPTS[0], draws.texts[0, 3])
    assert draws.prompts == list(PROMPTS)
    assert draws.model is language_model


def test_the_curve_is_made_of_the_estimators(draws):
    table = draws.curve([1, 4]).table
    for name, per_prompt in (
        ("reward", best_of_n_reward(draws.rewards, 4).value),
        ("win_rate", best_of_n_win_rate(draws.rewards, 4)),
        ("kl", best_of_n_kl(draws.rewards, 4, log_probs=draws.log_probs, responses=draws.texts)),
    ):
        assert table.loc[4, name] == pytest.approx(per_prompt.mean())
        assert table.loc[4, f"{name}_se"] == pytest.approx(per_prompt.std(ddof=1) / np.sqrt(len(PROMPTS)))
    assert table.loc[1, "control"] == pytest.approx(draws.rewards.mean())
    assert list(draws.curve().table.index) == [1, 2, 4, 8, 16, 32]
    assert len(draws.curve().plot().axes) == 3


def test_one_prompt_has_a_curve_without_errors(language_model, store):
    table = bon.draw(language_model, PROMPTS[:1], 8, max_new_tokens=4, store=store).score(vowels).curve().table
    assert table["reward"].notna().all()
    assert table["reward_se"].isna().all()


def test_best_are_the_best(draws):
    best = draws.best(8)
    assert best.shape == (len(PROMPTS), 8)
    assert vowels(PROMPTS[0], best[0, 0]) == draws.rewards[0, :8].max()


def test_rules_choose_from_the_draws(draws):
    kept = draws.choose("best", n=8)
    assert (kept.texts == draws.best(8)).all()
    assert (kept.rewards == draws.rewards.reshape(len(PROMPTS), 8, 8).max(axis=2)).all()
    assert (kept.spent == 8).all()
    assert kept.measured.table["reward"].iloc[0] == pytest.approx(draws.curve([8]).table.loc[8, "reward"])
    assert repr(kept).startswith("8 of 64 draws to each of 4 prompts by BestOfN(n=8):\n")
    assert "<li>" in kept._repr_html_()
    soft = draws.choose("soft", n=16, temperature=0.5, seed=3)
    again = draws.choose(SoftBestOfN(16, 0.5), seed=3)
    assert (soft.texts == again.texts).all()
    assert (draws.choose("soft", n=16, temperature=0.5, seed=4).texts != soft.texts).any()


def test_rules_are_compared_at_one_budget_by_reward_and_gold(draws):
    found = draws.rules(8, gold=lambda prompt, response: -len(response))
    assert {"random", "best", "best, n = 4"} <= set(found.table.index)
    assert not [name for name in found.table.index if name.startswith("majority")]
    lengths = np.array([[-len(text) for text in row] for row in draws.texts])
    assert found.table.loc["random", "gold"] == pytest.approx(lengths.mean())
    same = draws.rules(8, gold=lengths.astype(float).tolist())
    assert same.table.equals(found.table)
    assert "±" in repr(found)
    assert "<table" in found._repr_html_()


def test_votes_ask_a_verifier_for_answers(draws):
    truth = {prompt: "a" for prompt in PROMPTS}
    judged = draws.score(regex(truth, r"([a-z])"))
    kept = judged.choose("majority", n=4)
    first = re.search(r"[a-z]", kept.texts[0, 0])
    answers = [found and found[0] for found in (re.search("[a-z]", text) for text in draws.texts[0, :4])]
    assert answers.count(first and first[0]) == max(answers.count(each) for each in answers if each)
    assert "majority" in judged.rules(4).table.index
    given = judged.choose("majority", n=4, answers=np.full(draws.rewards.shape, "a"))
    assert (given.texts == draws.texts[:, ::4]).all()


def test_rules_are_told_what_they_need_by_name(draws):
    apart = word_distances(draws.texts)
    found = draws.choose("mbr", n=8, beta=1.0)
    assert (found.texts == draws.choose("mbr", n=8, beta=1.0, distances=apart).texts).all()
    assert (found.texts == draws.choose(MbrBestOfN(8, 1.0), distances=apart).texts).all()
    assert (draws.choose("mbr", n=8, beta=1e9, distances=apart * 0).texts == draws.best(8)).all()
    assert bon.choose(draws, "mbr", n=8, beta=1.0)["response"].tolist() == found.texts.ravel().tolist()
    given = bon.choose(draws, "majority", n=8, answers=["a"] * draws.texts.size)
    assert given["response"].tolist() == draws.texts[:, ::8].ravel().tolist()
    rows = draws.texts.size
    same = bon.choose(draws, "mbr", n=8, beta=1e9, distances=np.zeros((rows, rows)))
    assert same["response"].tolist() == draws.best(8).ravel().tolist()
    told = draws.rules(8, answers=np.full(draws.rewards.shape, "a"), distances=apart).table.index
    assert {"majority", "mbr"} <= {name.split(",")[0] for name in told}


def test_draws_without_rewards_say_that_they_lack_them(draws):
    bare = bon.draw(draws.model, PROMPTS, 64, max_new_tokens=8, store=draws.store)
    for name in ("choose", "rules", "best", "curve", "rewards"):
        with pytest.raises(AttributeError, match=rf"draws have no {name} yet, .*: take draws\.score\(reward\)"):
            getattr(bare, name)
    with pytest.raises(AttributeError, match="ModelDraws has no attribute 'chose'"):
        bare.chose  # noqa: B018
    with pytest.raises(ValueError, match="no score: score it first"):
        bon.choose(bare, "best", n=4)
    assert len(bon.choose(bare, "random", n=8)) == 8 * len(PROMPTS)


def test_a_policy_is_trained_once_and_found_again(draws, trained):
    again = bon.train(Vbon(4), draws, steps=2, prompts=2, group=2)
    assert trained.folder.is_relative_to(draws.store.root)
    assert again.folder == trained.folder
    assert again.curve == trained.curve
    other = bon.train("bon-sft", draws, n=8, steps=1, prompts=2, group=2)
    assert other.folder != trained.folder
    found = bon.compare({"by folder": str(trained.folder / "policy"), "as it is": trained}, draws, responses=2)
    assert found.table.loc["by folder"].tolist() == found.table.loc["as it is"].tolist()


def test_policies_are_pruned_with_the_draws(language_model, tmp_path):
    draws = bon.draw(language_model, PROMPTS, 4, max_new_tokens=4, store=tmp_path).score(vowels)
    trained = bon.train("vbon", draws, n=2, steps=1, prompts=2, group=2)
    assert draws.store.prune(1) == 0
    assert trained.folder.exists()
    assert draws.store.prune(0) > 0
    assert not trained.folder.exists()
    assert draws.store.size() == 0


@pytest.mark.parametrize("name", ["bond-iterative", "kl-rl-ppo"])
def test_methods_come_with_what_they_need(name, draws, tmp_path):
    value = {bon.METHODS[name].setting: 1 if name == "bond-iterative" else 0.1}
    done = bon.train(name, draws, steps=1, prompts=2, group=2, folder=tmp_path / name, **value)
    assert len(done.curve) == 1


def test_a_comparison_has_reference_best_of_n_and_policies(draws, trained):
    found = bon.compare({"vBoN": trained, "itself": draws.model}, draws, responses=4, ns=(2, 8))
    assert list(found.table.index) == ["reference", "best-of-2", "best-of-8", "vBoN", "itself"]
    assert found.table.loc["itself", "kl"] == 0
    assert found.table.loc["best-of-8", "reward"] == draws.curve([8]).table.loc[8, "reward"]
    assert found.responses["vBoN"].shape == (len(PROMPTS), 4)
    assert found.plot().axes[0].get_legend() is not None
    assert "vBoN" in repr(found)
    few = bon.draw(draws.model, PROMPTS, 1, max_new_tokens=8, store=draws.store).score(vowels)
    assert list(bon.compare(few.model, few, responses=2).table.index) == ["reference", "policy"]


def test_results_show_themselves_as_tables(draws, trained):
    for shown in (
        trained,
        draws,
        draws.curve(),
        bon.draw(draws.model, PROMPTS, 64, max_new_tokens=8, store=draws.store),
    ):
        assert "<table" in shown._repr_html_()
        assert len(repr(shown)) < 2000
    assert "64 draws to each of" in repr(draws)
    assert "after 2 steps and 8 responses" in repr(trained)
    assert repr(draws.model).endswith("random-gpt2: GPT2LMHeadModel, 0.0 M parameters, float32, cpu")
    assert repr(bon.draw(trained, PROMPTS, 2, max_new_tokens=4, store=draws.store)).startswith("2 draws to each of 4")
    assert list(draws.table().columns) == ["prompt", "response", "log_prob", "length", "reward"]


def test_rewards_are_functions_classifiers_and_objects(classifier, classifier_folder):
    assert isinstance(bon.reward(vowels), FunctionReward)
    assert isinstance(bon.reward(str(classifier_folder)), SentimentReward)
    assert isinstance(bon.reward(classifier), SentimentReward)
    assert bon.reward(given := ClassifierLike()) is given
    assert not isinstance(bon.reward(classifier), ClassifierReward) or bon.reward(classifier).outputs == 2


class ClassifierLike:
    fingerprint = "like one"

    def score(self, prompts, responses):
        return np.zeros(len(prompts))


def test_functions_without_a_name_are_told_apart_by_their_code():
    def longer(by):
        return lambda prompt, response: len(response) + by

    prints = [bon.reward(function).fingerprint for function in (longer(1), longer(1), longer(2), vowels)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    with pytest.raises(ValueError, match=r"name is empty, and .* no hash tells apart: give a name"):
        bon.reward(longer(object()))
    assert bon.reward(longer(object()), name="mine").name == "mine"


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("no argument 'temprature'.*temperature", lambda d: bon.draw(d.model, PROMPTS, temprature=1)),
        ("count is 0", lambda d: bon.draw(d.model, PROMPTS, 0, store=d.store)),
        ("model is 3|loaded is 3", lambda d: bon.draw(3, PROMPTS)),
        ("method is 'best'; it must be one of vbon", lambda d: bon.train("best", d, n=2)),
        ("n is missing; vbon needs it", lambda d: bon.train("vbon", d)),
        ("vbon and TrainSettings have no such field.*stepz", lambda d: bon.train("vbon", d, n=2, stepz=3)),
        ("n is no field of TrainSettings", lambda d: bon.train(BonSft(2), d, n=2)),
        ("training needs rewards", lambda d: bon.train("vbon", bon.draw(d.model, PROMPTS, 2, store=d.store), n=2)),
        ("a comparison needs rewards", lambda d: bon.compare(d.model, d.draws)),
        ("seed is 0, that of draws", lambda d: bon.compare(d.model, d, seed=0)),
        ("it must be a function", lambda d: bon.reward(3)),
        ("name is 'x'; only a function needs one", lambda d: bon.reward("imdb-sentiment-tiny", name="x")),
        ("policies has 'reference'", lambda d: bon.compare({"reference": d.model}, d, responses=2)),
        ("n is 64", lambda d: d.curve([64])),
        ("rule is 'softer'; it must be one of random, best", lambda d: d.choose("softer", n=2)),
        ("soft lacks temperature; it takes n, temperature: give temp", lambda d: d.choose("soft", n=2)),
        ("dist is no setting of mbr; it takes n, beta, and of", lambda d: d.choose("mbr", n=2, beta=1, dist=d.rewards)),
        ("known is no setting of majority; it takes n, and of the", lambda d: d.choose("majority", n=2, known={})),
        ("rule is 24; it must be one that is made", lambda d: d.choose(24)),
        ("rule is <class .*; it must be one that is made", lambda d: d.choose(BestOfN)),
        (r"answers has shape \(4, 2\); it must be", lambda d: d.choose("majority", n=2, answers=[[0, 1]] * 4)),
        (
            r"distances has shape .*; it must be \(4, 64, 64\)",
            lambda d: d.choose("mbr", n=2, beta=1, distances=d.texts),
        ),
        (r"log_probs has shape \(1,\); it must be \(4, 64\)", lambda d: d.choose("kl", n=2, beta=1, log_probs=[0])),
        ("checkpoints is 8; it must hold numbers", lambda d: d.choose("speculative", n=2, checkpoints=8)),
        (
            "partial is missing; SpeculativeRejection .*: give partial=…, or write by bonlib.inference.steered.steer",
            lambda d: d.choose("speculative", n=2, checkpoints=(2,)),
        ),
        (r"answers has shape \(3,\); it must be \(256,\)", lambda d: bon.choose(d, "majority", n=2, answers=[0] * 3)),
        ("n is given, and BestOfN", lambda d: d.choose(BestOfN(2), n=2)),
        ("n is 65; with 64 draws a prompt", lambda d: d.choose("best", n=65)),
        ("n is 65; with 64 draws a prompt", lambda d: d.rules(65)),
        ("rule is TreeBestOfN, which cannot choose", lambda d: d.choose(TreeBestOfN(4, 2, 2, (2,)))),
        ("answers is missing; MajorityVote needs it", lambda d: d.choose("majority", n=2)),
        (r"gold has shape \(2,\)", lambda d: d.rules(4, gold=np.zeros(2))),
    ],
)
def test_what_is_wrong_is_said_in_a_line(message, call, draws):
    with pytest.raises(ValueError, match=message) as caught:
        call(draws)
    assert "\n" not in str(caught.value)
    assert re.search(r"[:;,]", str(caught.value))


def test_a_figure_is_shown_and_described_without_pyplot(draws):
    figure = draws.curve().plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert repr(figure).startswith("Figure. Mean reward, win rate and KL of best-of-n")


def test_draws_a_table_and_a_file_are_reported_on_alike(draws, tmp_path):
    path = tmp_path / "draws.jsonl"
    draws.table().to_json(path, orient="records", lines=True, double_precision=15)
    of_draws, of_table, of_file = (bon.report(what) for what in (draws, draws.table(), path))
    assert "64 draws to each of" in of_draws.records.source
    for name in ("reward", "win_rate", "kl"):
        np.testing.assert_allclose(of_table.curve.table[name], of_draws.curve.table[name], rtol=1e-12)
        np.testing.assert_allclose(of_file.curve.table[name], of_draws.curve.table[name], rtol=1e-9)
    found = draws.curve([4]).table.loc[4]
    assert of_draws.curve.table.loc[4, "reward"] == pytest.approx(found["reward"], rel=1e-12)
    assert bon.export(draws, "dpo", tmp_path / "pairs.jsonl", pairs=2) == 2 * len(PROMPTS)


def test_records_are_scored_once_and_become_draws_that_train(bundled_model, store, tmp_path):
    draws, said = bon.draw(bundled_model, PROMPTS, 16, max_new_tokens=8, store=store), []

    def letters(prompt, response):
        said.append(response)
        return float(len(response))

    records = bon.read(draws.table())
    scored = bon.score(records, letters, store=store)
    assert (scored.reward == [len(text) for text in scored.responses]).all()
    different = {(p, r) for p, r in zip(scored.prompt, scored.responses, strict=True)}
    assert len(said) == len(different)  # a response that came again is scored once
    both = bon.score(scored, bon.reward(letters, name="other letters"), name="second", store=store)
    assert list(both.scores) == ["reward", "second"]
    said.clear()
    bon.score(bon.read(draws.table().iloc[:9]), letters, store=SampleStore(tmp_path))
    assert len(said) == len(set(scored.responses[:9]))
    again = bon.as_draws(scored, bundled_model)
    same = np.abs(again.log_probs - draws.log_probs) < 1e-3  # cut ones have no end token; a few texts have other tokens
    assert same.mean() > 0.9
    trained = bon.train("bon-sft", again, n=8, steps=1, prompts=2, folder=tmp_path / "run")
    assert (trained.folder / "policy" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="need a reward model"):
        bon.train("vbon", again, n=8, steps=1, prompts=2, group=2, folder=tmp_path / "other")


def test_a_served_model_is_drawn_from_scored_by_a_server_and_judged(store):
    def answer(path, body, call):
        if path == "/v1/rewards":
            return {"rewards": [float(len(response)) for response in body["responses"]]}
        if path == "/v1/chat/completions":
            message = {"role": "assistant", "content": "I say 7 of 10."}
            return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return completion(body)

    with serving(answer) as server:
        model = bon.served(bon.server(server.url, max_calls=8), kind="vllm")
        drawn = bon.draw(model, ["one", "two"], 4, max_new_tokens=5, store=store)
        assert drawn.log_probs == pytest.approx(-5 * np.log(26))
        scored = drawn.score(bon.reward(f"{server.url}/rewards"))
        assert (scored.rewards == 5).all()
        question = "How good is {response} to {prompt}? 0 to 10"
        judged = drawn.score(bon.judge(server.url, question, parse=r"(\d+) of"))
        assert (judged.rewards == 7).all()
        assert scored.curve([1, 2]).table.loc[2, "kl"] >= 0
        server.answer = lambda path, body, call: completion(body, log_probs=False)
        untold = bon.draw(bon.served(server.url, kind="vllm"), ["one", "two"], 4, max_new_tokens=5, seed=1, store=store)
        assert np.isnan(untold.log_probs).all()
        counted = untold.score(lambda prompt, response: ord(response[0]))
        assert counted.curve([1, 2]).table.loc[2, "kl"] == pytest.approx(best_of_n_kl(counted.rewards, 2).mean())
        assert bon.report(counted).kl_from.startswith("counted")
        with pytest.raises(ValueError, match="max_calls of the budget is 8"):
            bon.draw(model, ["one", "two", "three"], 4, max_new_tokens=5, store=store)
        with pytest.raises(ValueError, match="cannot be trained here"):
            bon.train("vbon", scored, n=2)
        with pytest.raises(ValueError, match=r"kind is for a server of rewards, and what is .*: leave it out"):
            bon.reward(vowels, kind="json")
