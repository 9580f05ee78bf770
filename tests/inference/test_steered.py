"""Methods that choose while a model writes: what they keep, what it costs, and that the model says it plainly."""

import hashlib

import numpy as np
import pytest
import torch
import zoo
from scipy.stats import chisquare

from bonlib.course.making.enumerable import LENGTH, enumerate_log_probs, letter_sentiment, response_indices, responses
from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.inference.best_of_n import BestOfN
from bonlib.inference.blockwise import blockwise_best_of_n
from bonlib.inference.smc import SequentialMonteCarlo, SmcLaw
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.steered import steer
from bonlib.inference.tree_best_of_n import TreeBestOfN
from bonlib.inference.trees import Tree
from bonlib.models import steps
from bonlib.models.decoding import plain_logits
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.models.steps import WrittenStep

PROMPTS = ["The film", "a", "The film", "I watched this because"]
SETTINGS = SamplingSettings(12)


def noise(prompt, response):
    """A reward of its own for every text, so that none tie."""
    return int(hashlib.md5((prompt + response).encode()).hexdigest()[:8], 16) / 16**8


REWARD = FunctionReward(noise, name="noise")


@pytest.fixture(scope="module")
def sampler(bundled_model):
    return TransformersSampler(bundled_model, batch_size=24)


def drawn_at_once(sampler, n, seed, settings=SETTINGS):
    """The n draws of each prompt, and their rewards."""
    listed = [prompt for prompt in PROMPTS for _ in range(n)]
    draws = sampler.sample(listed, settings, seed=seed)
    return draws, REWARD.score(listed, draws.texts.tolist()).reshape(len(PROMPTS), n)


@pytest.mark.parametrize(
    "rule",
    [
        SpeculativeRejection(8, ()),
        SpeculativeRejection(8, (3, 6), reject=0.0),
        TreeBestOfN(8, 8, 1, (3, 6)),
        SequentialMonteCarlo(8, 1e-9, ()),
    ],
    ids=repr,
)
def test_with_nothing_given_up_it_is_best_of_n_of_the_same_draws(sampler, rule):
    draws, rewards = drawn_at_once(sampler, 8, seed=5)
    found = steer(sampler, REWARD, PROMPTS, rule, SETTINGS, seed=5)
    best = rewards.argmax(axis=1)
    kept = draws[best + 8 * np.arange(len(PROMPTS))]
    assert found.responses.texts.tolist() == kept.texts.tolist()
    np.testing.assert_array_equal(found.responses.token_ids, kept.token_ids)
    np.testing.assert_allclose(found.responses.log_probs, kept.log_probs, rtol=1e-4)
    np.testing.assert_array_equal(found.rewards, rewards.max(axis=1))
    np.testing.assert_array_equal(found.tokens, draws.lengths.reshape(-1, 8).sum(axis=1))
    assert not found.read_again.any()


def test_soft_best_of_n_keeps_one_of_the_same_draws(sampler):
    draws, _ = drawn_at_once(sampler, 8, seed=5)
    found = steer(sampler, REWARD, PROMPTS, SequentialMonteCarlo(8, 0.3, ()), SETTINGS, seed=5)
    for text, among in zip(found.responses.texts, draws.texts.reshape(-1, 8), strict=True):
        assert text in among


def test_one_particle_is_the_reference(sampler):
    draws, _ = drawn_at_once(sampler, 1, seed=5)
    found = steer(sampler, REWARD, PROMPTS, SequentialMonteCarlo(1, 0.3, (2, 7)), SETTINGS, seed=5)
    assert found.responses.texts.tolist() == draws.texts.tolist()
    np.testing.assert_array_equal(found.tokens, draws.lengths)


def test_one_survivor_is_blockwise_best_of_n(sampler):
    one = steer(sampler, REWARD, PROMPTS, TreeBestOfN(4, 1, 4, (4, 8)), SETTINGS, seed=1)
    other = blockwise_best_of_n(sampler, REWARD, PROMPTS, 4, 4, SETTINGS, seed=1, candidates=4)
    assert one.responses.texts.tolist() == other.texts.tolist()
    np.testing.assert_array_equal(one.rewards, other.rewards)


def test_speculative_rejection_is_a_filter_of_whole_draws(sampler):
    """What would have become of those that were given up never matters."""
    rule, n = SpeculativeRejection(9, (2, 5, 9), reject=0.4), 9
    draws, rewards = drawn_at_once(sampler, n, seed=2)
    partial = np.zeros((*rewards.shape, 3))
    for place, checkpoint in enumerate(rule.checkpoints):
        begun = steer(sampler, REWARD, PROMPTS, SpeculativeRejection(n, ()), SamplingSettings(checkpoint), seed=2)
        assert begun.tokens.max() == n * checkpoint
        for row, tokens in enumerate(draws.token_ids):
            prompt = sampler.loaded.tokenizer(PROMPTS[row // n])["input_ids"]
            text = sampler.loaded.tokenizer.decode(
                [*prompt, *(t for t in tokens[:checkpoint].tolist() if t >= 0)], skip_special_tokens=True
            )
            partial[row // n, row % n, place] = noise(PROMPTS[row // n], text.removeprefix(PROMPTS[row // n]))
    found = steer(sampler, REWARD, PROMPTS, rule, SETTINGS, seed=2)
    kept = rule.choose(rewards, partial).kept
    assert found.responses.texts.tolist() == draws.texts.reshape(-1, n)[np.arange(len(PROMPTS)), kept].tolist()
    spent = rule.spending(draws.lengths.reshape(-1, n), partial)
    np.testing.assert_array_equal(found.tokens, spent.tokens)
    assert (found.calls <= spent.calls).all()  # equal beginnings are judged once


def test_one_child_is_speculative_rejection(sampler):
    one = steer(sampler, REWARD, PROMPTS, TreeBestOfN(8, 4, 1, (4,)), SETTINGS, seed=1)
    other = steer(sampler, REWARD, PROMPTS, SpeculativeRejection(8, (4,), reject=0.5), SETTINGS, seed=1)
    assert one.responses.texts.tolist() == other.responses.texts.tolist()
    np.testing.assert_array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2 recorded", "llama", "llama recorded", "gemma2", "jamba", "mamba", "xlstm", "recurrent_gemma"]
)
def test_branched_decoding_says_what_the_plain_pass_says(name, monkeypatch):
    """Plain caches, also as for a CUDA graph, windows, states, and what can only be read again."""
    if name.endswith(" recorded"):
        monkeypatch.setattr(steps, "RECORDED_ON", ("cpu",))
    name = name.removesuffix(" recorded")
    model, settings = zoo.CAUSAL[name](), SamplingSettings(20)
    sampler = TransformersSampler(LoadedModel(model, zoo.tokenizer(), name), batch_size=16)
    seen, prompts = [], ["the film was good", "so", "the film was good", "a"]
    rule = TreeBestOfN(4, 2, 3, (2, 5, 11))
    found = steer(sampler, REWARD, prompts, rule, settings, seed=0, watch=seen.append)
    again = name in ("xlstm", "recurrent_gemma")
    assert (found.read_again > 0).all() == again
    assert found.read_again.any() == again
    assert [judged.scores.shape[1] for judged in seen[:4]] == [4, 6, 6, 6]
    ends = torch.tensor(sampler.loaded.end_token_ids)
    for judged in seen:
        width = judged.scores.shape[1]
        for row, (tokens, length, log_probs, _) in enumerate(zip(*judged.responses, strict=True)):
            prompt = sampler.loaded.tokenizer(prompts[judged.prompts[row // width]])["input_ids"]
            said = tokens[:length].tolist()
            with torch.no_grad():
                logits = plain_logits(model, prompt + said)[len(prompt) - 1 : -1]
            plain = logits.log_softmax(1).gather(1, tokens[:length, None])[:, 0]
            torch.testing.assert_close(log_probs[:length].float(), plain, rtol=1e-3, atol=1e-3)
            assert not torch.isin(tokens[: length - 1], ends).any()
    last = [texts for texts in seen if texts.begun == 11]
    assert len({tuple(row.tolist()) for judged in last for row in judged.responses.tokens}) > 12  # copies part


@pytest.fixture
def computed(monkeypatch):
    """Rows of every step that was computed."""
    rows = []
    monkeypatch.setattr(
        WrittenStep,
        "_step",
        lambda self, tokens, step=WrittenStep._step: (rows.append(len(tokens)), step(self, tokens))[1],
    )
    return rows


@pytest.mark.parametrize(
    "rule",
    [
        SpeculativeRejection(8, (3, 6, 9)),
        TreeBestOfN(8, 2, 4, (4, 8)),
        TreeBestOfN(2, 2, 2, (4,)),
        SequentialMonteCarlo(8, 0.5, (1, 6)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("model", ["bundled_model", "language_model"])
def test_the_tokens_it_says_are_those_that_were_computed(rule, model, computed, request):
    """The first token of each response and copy comes with the reading of what it shares with others."""
    sampler = TransformersSampler(request.getfixturevalue(model), batch_size=24)
    steer(sampler, REWARD, PROMPTS, rule, SETTINGS, seed=1)  # a model that is new is tried first
    computed.clear()
    asked = []
    reward = FunctionReward(lambda prompt, response: (asked.append(prompt), noise(prompt, response))[1], name="asked")
    further = []

    def count(judged):
        """Further copies, of responses that go on."""
        width, last = judged.scores.shape[1], judged.responses.tokens.gather(1, judged.responses.lengths[:, None] - 1)
        ended = torch.isin(last, torch.tensor(sampler.loaded.end_token_ids)).reshape(-1, width).numpy()
        again = np.diff(judged.kept, axis=1, prepend=-1) == 0
        further.append((again & ~np.take_along_axis(ended, judged.kept, axis=1)).sum())

    found = steer(sampler, reward, PROMPTS, rule, SETTINGS, seed=0, watch=count)
    assert sum(computed) == found.tokens.sum() - len(PROMPTS) * rule.n - sum(further)
    assert len(asked) == found.calls.sum()
    assert (found.calls <= rule.n * (len(rule.checkpoints) + 1) + 8).all()
    assert not found.read_again.any()


def test_rejection_costs_the_tokens_of_the_method(sampler):
    found = steer(sampler, REWARD, PROMPTS, SpeculativeRejection(8, (3, 6, 9)), SETTINGS, seed=0)
    assert found.tokens.tolist() == [3 * (8 + 4 + 2 + 1)] * len(PROMPTS)
    tree = TreeBestOfN(8, 2, 3, (3, 8))
    assert steer(sampler, REWARD, PROMPTS, tree, SETTINGS, seed=0).tokens.tolist() == [tree.spending(12).tokens] * 4


class Ended:
    """A reward that looks at tokens: whether there is an end token, and a little noise."""

    fingerprint = "ended"

    def __init__(self, end_token_ids):
        self.end_token_ids = end_token_ids

    def score_responses(self, prompts, responses):
        few = [noise(prompt, text) for prompt, text in zip(prompts, responses.texts, strict=True)]
        return ~responses.are_cut(self.end_token_ids) + 0.1 * np.array(few)

    def score(self, prompts, responses):
        raise AssertionError("it wants tokens")


def test_responses_that_have_ended_stay_as_candidates_and_cost_nothing(language_model):
    sampler, settings, n = TransformersSampler(language_model), SamplingSettings(40), 16
    prompts = ["the film", "a"] * 4
    found = steer(
        sampler, Ended(language_model.end_token_ids), prompts, SpeculativeRejection(n, (20, 30), 0.9), settings,
        seed=0,
    )  # fmt: skip
    lengths = sampler.sample([p for p in prompts for _ in range(n)], settings, seed=0).lengths.reshape(-1, n)
    enough = (lengths <= 20).sum(axis=1) >= 2  # then nothing goes on behind the first checkpoint
    assert enough.any()
    assert not enough.all()
    assert (found.responses.lengths[enough] <= 20).all()
    np.testing.assert_array_equal(found.tokens[enough], np.minimum(lengths, 20).sum(axis=1)[enough])
    assert (found.calls[enough] <= n).all()
    assert (found.tokens[~enough] > np.minimum(lengths, 20).sum(axis=1)[~enough]).all()
    assert (found.rewards[enough] > 1).all()


@pytest.mark.parametrize(
    "rule",
    [SpeculativeRejection(4, (1,), reject=0.5), TreeBestOfN(4, 2, 3, (1,)), SequentialMonteCarlo(2, 1.0, (1,))],
    ids=repr,
)
def test_on_a_model_that_can_be_listed_it_has_the_exact_law(rule):
    loaded, reward, prompt, count = load_language_model("trigram-tiny", device="cpu"), letter_sentiment(), "the ", 3000
    with torch.no_grad():
        log_probs = enumerate_log_probs(loaded.model, loaded.tokenizer([prompt])["input_ids"])[0]
    texts = responses()
    rewards = reward.score([prompt] * len(texts), texts)
    joint, first = log_probs.exp().double().numpy().reshape(27, -1), [text[0] for text in texts[:: 27**2]]
    beginnings = joint.sum(axis=1)
    partial = reward.score([prompt] * 27, first)
    tree = Tree(beginnings / joint.sum(), partial, joint / beginnings[:, None], rewards.reshape(27, -1))
    found = steer(
        TransformersSampler(loaded, batch_size=2048), reward, [prompt] * count, rule, SamplingSettings(LENGTH), seed=0
    )
    law = rule.tree_law(tree)
    law = law.kept if isinstance(law, SmcLaw) else law
    places = response_indices(found.responses.texts.tolist())
    # As many responses a group as come 50 times, those of like reward together.
    order = np.argsort(rewards)
    group = np.empty(len(law), int)
    group[order] = np.unique((law[order].cumsum() * (count / 50) * 0.999).astype(int), return_inverse=True)[1]
    observed, expected = np.bincount(group[places]), np.bincount(group, weights=law) * count
    assert chisquare(observed, expected).pvalue > 1e-3
    first = np.arange(len(law)) // 27**2
    assert (
        chisquare(*_enough(np.bincount(first[places], minlength=27), np.bincount(first, weights=law) * count)).pvalue
        > 1e-3
    )


def _enough(observed, expected):
    """Counts of what is expected 5 times at least, and those of the rest."""
    often = expected >= 5
    return [np.append(each[often], each[~often].sum()) for each in (observed, expected)]


def test_prompts_come_back_in_their_order_whatever_they_are_drawn_with(bundled_model):
    rule = TreeBestOfN(4, 1, 4, (3,))
    one = steer(TransformersSampler(bundled_model, batch_size=4), REWARD, PROMPTS[:1], rule, SETTINGS, seed=3)
    all_ = steer(TransformersSampler(bundled_model, batch_size=4), REWARD, PROMPTS, rule, SETTINGS, seed=3)
    assert one.responses.texts[0] == all_.responses.texts[0]
    assert noise(PROMPTS[3], all_.responses.texts[3]) == all_.rewards[3]


class Wrong:
    """A method that says what cannot be."""

    n, checkpoints = 2, (3,)

    def __init__(self, places):
        self.places = places

    def go_on(self, scores, before, generator):
        return np.array(self.places)

    def pick(self, rewards, before, generator):
        return np.zeros(len(rewards), int)


@pytest.mark.parametrize("places", [[[0, 2]], [[1, 0]], [[-1, 0]], [0, 1], [[0.5]], [[]], [[0], [1]]], ids=repr)
def test_a_choice_that_is_none_is_named(sampler, places):
    with pytest.raises(ValueError, match=r"go_on returned .* places from 0 to 1, ascending"):
        steer(sampler, REWARD, ["a"], Wrong(places), SETTINGS, seed=0)


def test_bad_arguments_are_named(sampler):
    with pytest.raises(ValueError, match=r"checkpoints is .*max_new_tokens, 12"):
        steer(sampler, REWARD, ["a"], SpeculativeRejection(2, (3, 12)), SETTINGS, seed=0)
    with pytest.raises(ValueError, match=r"sampler is .*TransformersSampler"):
        steer("gpt2", REWARD, ["a"], SpeculativeRejection(2, (3,)), SETTINGS, seed=0)
    with pytest.raises(ValueError, match="prompts"):
        steer(sampler, REWARD, [], SpeculativeRejection(2, (3,)), SETTINGS, seed=0)
    with pytest.raises(ValueError, match="seed is"):
        steer(sampler, REWARD, ["a"], SpeculativeRejection(2, (3,)), SETTINGS, seed=-1)
    for rule in ("best", BestOfN(4), TreeBestOfN):
        with pytest.raises(ValueError, match=r"rule is .*; it must choose while responses are written, such as Tree"):
            steer(sampler, REWARD, ["a"], rule, SETTINGS, seed=0)
    with pytest.raises(ValueError, match="settings is 24; it must be SamplingSettings"):
        steer(sampler, REWARD, ["a"], SpeculativeRejection(2, (3,)), 24, seed=0)
    nothing = FunctionReward(lambda prompt, response: float("nan"), name="nothing")
    with pytest.raises(ValueError, match=r"gave nan to .*: mend the reward model$"):
        steer(sampler, nothing, ["a"], SpeculativeRejection(2, (3,)), SETTINGS, seed=0)
