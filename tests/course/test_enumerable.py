"""The enumerable language model: its lists are what a sampler draws from, and its sums are what they claim to be."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from bonlib.course.experiments.enumerated import EnumeratedPrompts, ListedPolicy, TabularPolicy, train_exactly
from bonlib.course.making import enumerable
from bonlib.course.making.enumerable import PROMPTS, enumerate_log_probs, responses
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.exact import kl_divergence
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.dpo import Dpo
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.models.reading import response_log_probs
from bonlib.training.reward_cdf import SampledCdf

THREE = SamplingSettings(max_new_tokens=3)
TEXT = "the film was great, and being there was as good as it gets. " * 20


@pytest.fixture(scope="module")
def reference():
    return load_language_model("trigram-tiny", device="cpu")


@pytest.fixture(scope="module")
def world(reference):
    return EnumeratedPrompts(reference, PROMPTS, enumerable.letter_sentiment())


@pytest.fixture(scope="module")
def tied(reference):
    return EnumeratedPrompts(reference, PROMPTS[:2], enumerable.vowel_count())


def test_the_list_is_complete_and_in_order():
    listed = responses()
    assert len(set(listed)) == 27**3
    assert listed[:2] == ("   ", "  a")
    assert listed[-1] == "zzz"
    np.testing.assert_array_equal(enumerable.response_indices(["  a", "zzz"]), [1, 27**3 - 1])


def test_the_tokenizer_keeps_every_symbol(reference):
    for text in ["the ", " be", "  z", "a  b", " z "]:
        ids = reference.tokenizer(text)["input_ids"]
        assert ids == [enumerable.SYMBOLS.index(symbol) for symbol in text]
        assert reference.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert reference.tokenizer.decode(reference.tokenizer("It's\n«Été»")["input_ids"]) == "it s   t  "


def test_enumeration_sums_to_one_and_agrees_with_reading(reference, world):
    np.testing.assert_allclose(world.ref_log_probs.exp().sum(1), 1, atol=1e-12)
    prompts = [prompt for prompt in PROMPTS for _ in range(40)]
    drawn = TransformersSampler(reference).sample(prompts, THREE, seed=0)
    listed = world.look_up(world.ref_log_probs, prompts, drawn.texts.tolist())
    np.testing.assert_allclose(listed, response_log_probs(reference, prompts, drawn), atol=1e-4)
    np.testing.assert_allclose(listed, drawn.log_probs, atol=1e-4)


def test_prompts_of_different_length_share_a_batch(reference):
    ids = [[5], [20, 8, 5, 0], [0, 2, 5]]
    with torch.no_grad():
        together = enumerate_log_probs(reference.model, ids)
        alone = torch.cat([enumerate_log_probs(reference.model, [each]) for each in ids])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_sampler_draws_what_is_listed(reference, world):
    count = 20_000
    drawn = TransformersSampler(reference, batch_size=count).sample([PROMPTS[0]] * count, THREE, seed=1)
    assert (drawn.lengths == 3).all()
    seen = np.bincount(enumerable.response_indices(drawn.texts.tolist()), minlength=27**3)
    expected = count * world.outcomes[0].probs
    often = expected >= 10
    observed = np.append(seen[often], seen[~often].sum())
    assert chisquare(observed, np.append(expected[often], expected[~often].sum())).pvalue > 1e-3


def test_the_end_token_stays_impossible_while_the_model_learns(reference, world):
    model = copy.deepcopy(reference.model)
    policy = ListedPolicy(model, world.prompt_ids[:1])
    target = torch.randn(1, 27**3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    train_exactly(policy, lambda lp, _: -(target * lp).sum(), steps=3, learning_rate=0.05)
    assert model.lm_head.bias[27] == enumerable.NEVER
    with torch.no_grad():
        assert policy().exp().sum() == pytest.approx(1, abs=1e-12)


def test_rewards_are_without_and_with_ties_as_promised(world, tied):
    assert all(len(np.unique(outcomes.rewards)) == 27**3 for outcomes in world.outcomes)
    assert all(set(outcomes.rewards) == {0, 1, 2, 3} for outcomes in tied.outcomes)
    reward = enumerable.letter_sentiment()
    assert reward.function("was ", "gre") > reward.function("was ", "ter")


def test_best_of_n_is_what_choosing_among_draws_gives(tied):
    """On the ten likeliest responses, by listing all triples of draws."""
    outcomes = tied.outcomes[0]
    top = np.argsort(-outcomes.probs)[:10]
    small = type(outcomes)(outcomes.probs[top] / outcomes.probs[top].sum(), outcomes.rewards[top])
    brute = np.zeros(10)
    for i, j, k in np.ndindex(10, 10, 10):
        triple = np.array([i, j, k])
        brute[triple[best_of_n(small.rewards[triple][None], 3)[0, 0]]] += small.probs[triple].prod()
    np.testing.assert_allclose(small.best_of(3), brute, atol=1e-14)


def test_log_cdf_of_responses(world, tied):
    for judged in (world, tied):
        outcomes = judged.outcomes[1]
        for index in (0, 777, 12345):
            r, text = outcomes.rewards[index], [responses()[index]]
            weak = judged.log_weak([PROMPTS[1]], text, [r])
            strict = judged.log_strict([PROMPTS[1]], text, [r])
            assert np.exp(weak) == pytest.approx(outcomes.probs[outcomes.rewards <= r].sum(), abs=1e-12)
            assert np.exp(strict) == pytest.approx(outcomes.probs[outcomes.rewards < r].sum(), abs=1e-12)


def test_judging_agrees_with_the_exact_mathematics(world):
    policy = TabularPolicy(world.ref_log_probs + 0.3 * world.rewards)().detach()
    judged = world.judge(policy, 4)
    for row, outcomes in enumerate(world.outcomes):
        p = policy[row].exp().numpy()
        assert judged.reverse_kl[row] == pytest.approx(kl_divergence(p, outcomes.best_of(4)))
        assert judged.forward_kl[row] == pytest.approx(kl_divergence(outcomes.best_of(4), p))
        assert judged.kl[row] == pytest.approx(kl_divergence(p, outcomes.probs))
        assert judged.win_rate[row] == pytest.approx(outcomes.win_rate(p))
        assert judged.reward[row] == pytest.approx(outcomes.mean_reward(p))
    assert judged.means()["kl"] == pytest.approx(judged.kl.mean())


def test_judging_a_model_reads_it(reference, world):
    judged = world.judge(reference, 1)
    np.testing.assert_allclose([judged.reverse_kl, judged.forward_kl, judged.kl], 0, atol=1e-9)


def test_the_gradient_is_that_of_the_exact_kl(world):
    start = world.ref_log_probs + 0.2 * world.rewards
    by_returns, by_autograd = TabularPolicy(start), TabularPolicy(start)
    world.ascend(Vbon(8))(by_returns(), 1.0).backward()
    log_probs = by_autograd()
    (log_probs.exp() * (log_probs - world.log_best_of(8))).sum(1).mean().backward()
    np.testing.assert_allclose(by_returns.logits.grad, by_autograd.logits.grad, atol=1e-12)


def test_a_table_reaches_best_of_n(reference):
    world = EnumeratedPrompts(reference, PROMPTS[:1], enumerable.letter_sentiment())
    policy = TabularPolicy(world.ref_log_probs)
    values = train_exactly(policy, world.ascend(Vbon(8), easing=0.5), steps=400, learning_rate=0.1)
    judged = world.judge(policy(), 8)
    assert judged.reverse_kl[0] < 1e-6
    assert judged.forward_kl[0] < 1e-6
    assert values[-1] == pytest.approx(judged.reverse_kl[0], abs=1e-6)


def test_imitation_is_the_forward_kl(world):
    policy = world.ref_log_probs
    entropies = [-outcomes.best_of(8) @ outcomes.log_best_of(8) for outcomes in world.outcomes]
    difference = float(world.imitate(8)(policy, 0.0)) - np.mean(entropies)
    assert difference == pytest.approx(world.judge(policy, 8).forward_kl.mean())


def test_pairs_are_the_best_and_worst_of_n_draws(tied):
    best, worst = tied.best_and_worst(3, 50_000, seed=0)
    for row, outcomes in enumerate(tied.outcomes):
        ladder = outcomes.best_of(3) @ (outcomes.rewards[:, None] == np.arange(4))
        seen = np.bincount(outcomes.rewards[best[row]].astype(int), minlength=4) / 50_000
        np.testing.assert_allclose(seen, ladder, atol=0.01)
        assert (outcomes.rewards[best[row]] >= outcomes.rewards[worst[row]]).all()


@pytest.mark.parametrize("method", [BonSft(4), Dpo(0.5), Bonbon(4, sft_weight=0.1)])
def test_learning_from_draws_of_the_reference_raises_the_reward(world, method):
    policy = TabularPolicy(world.ref_log_probs)
    values = train_exactly(policy, world.learn(method, count=2000), steps=30, learning_rate=0.1)
    assert np.mean(values[-5:]) < np.mean(values[:5])
    assert world.judge(policy(), 4).win_rate.mean() > 0.6


@pytest.mark.parametrize("method", [Vbon(4), VbonBound(4), KlRl(0.5)])
def test_draws_of_the_policy_estimate_the_gradient(tied, method):
    start = tied.ref_log_probs + 0.3 * tied.rewards
    gradients = []
    for count in (None, 200_000):
        policy = TabularPolicy(start)
        tied.ascend(method, count=count)(policy(), 1.0).backward()
        gradients.append(policy.logits.grad.flatten())
    cosine = torch.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.99
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, rel=0.05)


def test_with_ties_too_vbon_ends_at_best_of_n(reference):
    tied = EnumeratedPrompts(reference, PROMPTS[:1], enumerable.vowel_count())
    policy = TabularPolicy(tied.ref_log_probs)
    train_exactly(policy, tied.ascend(Vbon(8), easing=0.5), steps=400, learning_rate=0.1)
    assert tied.judge(policy(), 8).reverse_kl[0] < 1e-6


def test_an_estimated_cdf_takes_the_place_of_the_true_one(world):
    samples = np.stack([np.random.default_rng(0).choice(o.rewards, 16, p=o.probs) for o in world.outcomes])
    policy = TabularPolicy(world.ref_log_probs)
    objective = world.ascend(VbonBound(8), cdf=SampledCdf(PROMPTS, samples), easing=0.5)
    train_exactly(policy, objective, steps=100, learning_rate=0.1)
    listed = [prompt for prompt in PROMPTS for _ in responses()], list(responses()) * 4, world.rewards.flatten().numpy()
    log_probs, away = policy().detach(), []
    for cdf in (SampledCdf(PROMPTS, samples), world):
        log_cdf = torch.as_tensor(cdf.log_weak(*listed)).view_as(world.rewards)
        optimum = (world.ref_log_probs + 7 * log_cdf).log_softmax(1)
        away.append(float((log_probs.exp() * (log_probs - optimum)).sum(1).mean()))
    assert away[0] < 0.01 < away[1]


def test_a_4gram_model_counts():
    ids = enumerable.to_symbols([TEXT])
    assert "".join(enumerable.SYMBOLS[i] for i in ids[:22]) == "the film was great and"
    probs = enumerable.ngram_model(ids)
    assert probs.shape == (27**3, 27)
    np.testing.assert_allclose(probs.sum(1), 1)
    t, h, e = (enumerable.SYMBOLS.index(symbol) for symbol in "the")
    assert probs[t * 27 + h, e] > 0.8  # " th" is always followed by e
    unigram = enumerable.ngram_model(ids, order=1, smoothing=0.0)[0]
    np.testing.assert_allclose(unigram, np.bincount(ids, minlength=27) / len(ids))


def test_pretraining_makes_an_ordinary_folder(tmp_path, monkeypatch):
    from bonlib.course.making.reviews import Review

    monkeypatch.setattr(enumerable, "load_reviews", lambda split: (Review(TEXT, 1),))
    recipe = enumerable.EnumerableRecipe(steps=2, batch_size=4, warmup_steps=1, layers=1, width=16, heads=2)
    figures = enumerable.pretrain_enumerable(tmp_path / "tiny", recipe)
    assert all(0 < value < 10 for value in figures.values())
    loaded = load_language_model(tmp_path / "tiny", device="cpu")
    assert isinstance(loaded, LoadedModel)
    assert loaded.model.lm_head.bias[27] == enumerable.NEVER
    assert "nats a symbol" in (tmp_path / "tiny" / "README.md").read_text()


def test_the_committed_model_is_small(reference):
    folder = enumerable.Path(reference.model.config.name_or_path)
    assert (folder / "model.safetensors").stat().st_size < 1e6


def test_bad_input_is_refused(reference, world):
    with pytest.raises(ValueError, match="none of the listed"):
        enumerable.response_indices(["the", "The"])
    with pytest.raises(ValueError, match="each must be from 1 to 5"):
        enumerate_log_probs(reference.model, [[1] * 6])
    with pytest.raises(ValueError, match="each must be from 1 to 5"):
        enumerate_log_probs(reference.model, [])
    with pytest.raises(ValueError, match="all must be different"):
        EnumeratedPrompts(reference, ["the ", "the "], enumerable.vowel_count())
    with pytest.raises(ValueError, match="not listed"):
        world.log_strict(["a "], ["the"], [0.0])
    with pytest.raises(ValueError, match="policy has shape"):
        world.judge(torch.zeros(1, 27), 8)
    policy = TabularPolicy(world.ref_log_probs)
    for steps, rate in [(0, 0.1), (1, 0.0), (1, math.nan)]:
        with pytest.raises(ValueError, match="learning_rate"):
            train_exactly(policy, world.imitate(2), steps=steps, learning_rate=rate)
