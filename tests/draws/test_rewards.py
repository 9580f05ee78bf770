"""Reward models: what they say of a response, once and for all, and what is said of a bad one."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import zoo

from bonlib.draws.rewards import ClassifierReward, CutPenalty, FunctionReward, SentimentReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.models.loaded import LoadedModel
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import TrainingData

PROMPTS = ["the film", "a bad", "I saw this with my", "nobody"]
RESPONSES = [" was good", " film, a very bad film indeed", " mother", " knows why this was made and we laughed"]


def test_scores_equal_a_pass_without_padding(classifier):
    logits = SentimentReward(classifier, output="logit").score(PROMPTS, RESPONSES)
    for logit, prompt, response in zip(logits, PROMPTS, RESPONSES, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([classifier.tokenizer(prompt + response)["input_ids"]])
            negative, positive = classifier.model(ids).logits[0].tolist()
        assert logit == pytest.approx(positive - negative, abs=1e-4)
    np.testing.assert_allclose(SentimentReward(classifier).score(PROMPTS, RESPONSES), 1 / (1 + np.exp(-logits)))


def test_the_batch_does_not_matter(classifier):
    together = SentimentReward(classifier).score(PROMPTS, RESPONSES)
    apart = SentimentReward(classifier, batch_size=1).score(PROMPTS, RESPONSES)
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_the_bundled_judge_tells_praise_from_blame(bundled_classifier):

    judge = SentimentReward(bundled_classifier)
    praise, blame = judge.score_texts(
        ["A wonderful film, I loved every minute of it.", "A terrible film, boring and badly acted. Avoid."]
    )
    assert praise > 0.8
    assert blame < 0.2


def test_output_kinds_have_their_own_fingerprint(classifier):
    prints = {SentimentReward(classifier, output=output).fingerprint for output in ("probability", "logit")}
    assert len(prints) == 2


def test_any_function_is_a_reward_model():
    reward = FunctionReward(lambda prompt, response: len(response), name="length")
    assert reward.score(PROMPTS, RESPONSES).tolist() == [len(response) for response in RESPONSES]
    assert reward.fingerprint != FunctionReward(len, name="length 2").fingerprint


def test_a_bad_score_names_prompt_response_and_remedy():
    reward = FunctionReward(lambda p, r: float("nan") if r == " mother" else 1.0, name="gap")
    with pytest.raises(ValueError, match=r"nan to 1 of 4 .* prompt 'I saw this with my', response ' mother'"):
        checked_score(reward, PROMPTS, RESPONSES)


def test_a_bad_shape_is_named(classifier):
    class Wrong:
        fingerprint = "wrong"

        def score(self, prompts, responses):
            return np.zeros((len(responses), 2))

    with pytest.raises(ValueError, match=r"shape \(4, 2\) for 4 responses"):
        checked_score(Wrong(), PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="output is 'both'"):
        SentimentReward(classifier, output="both")
    with pytest.raises(ValueError, match=r"text 1 has \d+ tokens"):
        SentimentReward(classifier).score_texts(["short", "film " * 60])
    with pytest.raises(ValueError, match="argument 2"):
        SentimentReward(classifier).score(["a", "b"], ["c"])


def test_nothing_to_score_gives_no_scores(classifier):
    judge = SentimentReward(classifier)
    assert judge.score([], []).shape == judge.score_texts([]).shape == (0,)
    with pytest.raises(ValueError, match="batch_size is 0"):
        SentimentReward(classifier, batch_size=0)


def test_a_classifier_with_an_encoder_is_read_whole(language_model):
    from transformers import BartConfig, BartForSequenceClassification

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, num_labels=1,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, eos_token_id=0, pad_token_id=1,
        max_position_embeddings=64,
    )  # fmt: skip
    loaded = LoadedModel(BartForSequenceClassification(config).eval(), language_model.tokenizer, "random bart")
    rewards = ClassifierReward(loaded, batch_size=2).score(["the film"] * 3, [" was good", " was", " and sad"])
    for response, reward in zip([" was good", " was", " and sad"], rewards, strict=True):
        ids = torch.tensor([loaded.tokenizer("the film" + response)["input_ids"]])
        with torch.inference_mode():
            assert reward == pytest.approx(float(loaded.model(ids).logits[0, 0]), abs=1e-4)


def test_a_cut_response_loses_the_penalty_wherever_it_is_scored(language_model, tmp_path):
    class Judge(FunctionReward):
        loaded = language_model

    judge = Judge(lambda prompt, response: len(response) / 10, name="length")
    ends = language_model.end_token_ids
    reward_model, sampler = CutPenalty(judge, ends, penalty=2.0), TransformersSampler(language_model)
    draws = SampleStore(tmp_path).draw(sampler, ["the film"], 256, SamplingSettings(12), seed=0)
    (responses,) = draws.responses
    is_cut = np.array([row[row >= 0][-1] not in ends for row in responses.token_ids])
    assert 0 < is_cut.sum() < 256
    expected = judge.score(["the film"] * 256, responses.texts.tolist()) - 2.0 * is_cut
    assert np.array_equal(SampleStore(tmp_path).score(reward_model, draws)[0], expected)
    assert np.array_equal(checked_score(reward_model, ["the film"] * 256, responses), expected)
    assert reward_model.fingerprint != CutPenalty(judge, ends, penalty=1.0).fingerprint
    with pytest.raises(ValueError, match="penalty is -1"):
        CutPenalty(judge, ends, penalty=-1)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_reward_with_shared_prompts_is_that_of_a_pass_alone(llama, classifier, batch_size):
    prompts = ["the film", "a very bad film indeed and", "the film"] * 3
    responses = [f" was good {'and sad ' * i}" for i in range(9)]
    rewards = ClassifierReward(llama, batch_size=batch_size).score(prompts, responses)
    logits = SentimentReward(classifier, output="logit", batch_size=batch_size).score(prompts, responses)
    for prompt, response, reward, logit in zip(prompts, responses, rewards, logits, strict=True):
        ids = torch.tensor([llama.tokenizer(prompt + response)["input_ids"]])
        with torch.inference_mode():
            assert reward == pytest.approx(float(llama.model(ids).logits[0, 0]), abs=1e-4)
            negative, positive = classifier.model(ids).logits[0].tolist()
        assert logit == pytest.approx(positive - negative, abs=1e-4)


def test_a_token_that_spans_the_border_is_read_with_the_response(llama):
    """The prompt "the fil" ends inside a token of "the film", so its last token is not the text's."""
    prompts, responses = ["the fil"] * 4, ["m was", "m", "l", "m was good"]
    rewards = ClassifierReward(llama).score(prompts, responses)
    whole = ClassifierReward(llama).score_texts([p + r for p, r in zip(prompts, responses, strict=True)])
    np.testing.assert_allclose(rewards, whole, atol=1e-5)


def test_a_classifier_with_other_outputs_is_refused(classifier):
    with pytest.raises(ValueError, match="has 2 outputs; ClassifierReward takes a classifier with 1"):
        ClassifierReward(classifier)


def test_a_reward_model_may_have_a_chat_template_of_its_own():
    """Case 27: prompt and response are the turns of a conversation."""
    tokenizer = zoo.tokenizer()
    judge = LoadedModel(zoo.CLASSIFIERS["llama"](), tokenizer, "judge")
    with pytest.raises(ValueError, match="has no chat template"):
        ClassifierReward(judge, chat=True)
    plain = ClassifierReward(judge).fingerprint
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }} said {{ message.content }} . {% endfor %}"
        "{% if add_generation_prompt %}assistant said {% endif %}"
    )
    reward = ClassifierReward(judge, chat=True)
    found = reward.score(["the film"] * 3, ["was good", "was bad", "was good"])
    want = [
        float(
            zoo.plain_scores(judge.model, tokenizer(f"user said the film . assistant said {text} . ")["input_ids"])[0]
        )
        for text in ("was good", "was bad", "was good")
    ]
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert found[0] == found[2]
    assert len({reward.fingerprint, plain, ClassifierReward(judge).fingerprint}) == 2


def test_a_judge_without_two_sentiments_is_refused(classifier):
    odd = copy.copy(classifier.model)
    odd.config = copy.deepcopy(classifier.model.config)
    odd.config.id2label = {0: "sad", 1: "bored", 2: "glad"}
    with pytest.raises(ValueError, match="labels"):
        SentimentReward(dataclasses.replace(classifier, model=odd))


def test_a_text_is_judged_once_whatever_batch_it_is_in(bundled_model, bundled_classifier, tmp_path):
    """The response " effects" is three of four draws: its F≤ must be told of it whenever it comes again."""
    store, sampler = SampleStore(tmp_path), TransformersSampler(bundled_model)
    judge = SentimentReward(bundled_classifier, batch_size=7)
    draws = store.draw(sampler, ["The special"], 256, SamplingSettings(1), seed=0)
    rewards = store.score(judge, draws)
    of_text = {text: set(rewards[0][draws.texts[0] == text]) for text in draws.texts[0]}
    assert all(len(given) == 1 for given in of_text.values())
    share = np.mean(draws.texts[0] == " effects")
    assert share == pytest.approx(0.777, abs=0.05)
    fresh = SentimentReward(judge.loaded, batch_size=3)
    again = fresh.score(["The special"] * 5, [" effects", " a", " case with it", " one", " effects"])[0]
    cdf = SampledCdf(["The special"], rewards, "none")
    worse = np.mean(rewards[0] < rewards[0][draws.texts[0] == " effects"][0])
    for reward in (again, judge.score(["The special"], [" effects"])[0]):
        assert np.exp(cdf.log_weak(["The special"], [""], [reward]))[0] == pytest.approx(share + worse)
    told = SentimentReward(judge.loaded)
    SampleStore(tmp_path).score(told, draws)
    told.score_tokens = None  # what the store holds it need not be asked
    assert told.score(["The special"], [" effects"])[0] in of_text[" effects"]


def test_a_classifier_forgets_when_its_weights_change(classifier):
    judge = SentimentReward(dataclasses.replace(classifier, model=copy.deepcopy(classifier.model)))
    first = judge.score(["the film"], [" was good"])
    assert judge.score(["the", "the film"], [" film was good", " was"])[0] == first[0]  # the same text
    with torch.no_grad():
        judge.loaded.model.score.weight += 1.0
    assert judge.score(["the film"], [" was good"])[0] != first[0]


class Given:
    """A reward model that returns what it was given."""

    fingerprint = "given"

    def __init__(self, rewards):
        self.rewards = rewards

    def score(self, prompts, responses):
        return self.rewards


PAIR = (["the film", "a bad"], [" was good", " one"])


@pytest.mark.parametrize(
    "rewards",
    [
        torch.tensor([1.0, 0.0], requires_grad=True),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        [torch.tensor(1.0, requires_grad=True), torch.tensor([0.0])],
        [np.float32(1), np.int64(0)],
        [True, np.bool_(False)],
        np.array([1, 0], dtype=object),
        (1, 0),
    ],
    ids=repr,
)
def test_rewards_of_any_kind_of_number_are_taken(rewards):
    assert checked_score(Given(rewards), *PAIR).tolist() == [1.0, 0.0]
    each = dict(zip(PAIR[1], rewards, strict=True))
    name = f"each {rewards!r}"
    assert checked_score(FunctionReward(lambda p, r: each[r], name=name), *PAIR).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", ["good", None, {"score": 1}, (1.0, "text"), [1, 2], b"1", 1j, float("nan"), "1.0"])
def test_a_reward_that_is_no_number_names_prompt_and_response(bad):
    given = FunctionReward(lambda p, r: bad if r == " one" else 1.0, name=f"bad {bad!r}")
    for model in (given, Given([1.0, bad])):
        with pytest.raises(ValueError, match=r"prompt 'a bad', response ' one'") as caught:
            checked_score(model, *PAIR)
        assert "\n" not in str(caught.value)


def test_the_wrong_number_of_rewards_is_named():
    for bad in ([1.0], 1.0, None, "ab", {"a": 1}, torch.zeros(2, 2), np.zeros(3)):
        with pytest.raises(ValueError, match=r"for 2 responses, the first to prompt 'the film'; it must return one"):
            checked_score(Given(bad), *PAIR)


def test_what_is_no_reward_model_or_no_model_gets_the_remedy(classifier, language_model, training_data, tmp_path):
    for bad, message in (
        (lambda p, r: 1.0, r"FunctionReward\(function, name=NAME\)"),
        (len, r"FunctionReward\(function, name=NAME\)"),
        ("imdb-sentiment-tiny", "load_classifier"),
        (classifier, "load_classifier"),
        (classifier.model, "load_classifier"),
        (FunctionReward, "reward_model is <class"),
        (None, "reward_model is None"),
    ):
        for use in (
            lambda bad: checked_score(bad, *PAIR),
            lambda bad: SampleStore(tmp_path).score(bad, training_data.draws),
            lambda bad: TrainingData(["the film"], bad, SamplingSettings(4)),
        ):
            with pytest.raises(ValueError, match=message):
                use(bad)
    for make, message in (
        (lambda: TransformersSampler("imdb-gpt2-tiny"), "load_language_model"),
        (lambda: SentimentReward("imdb-sentiment-tiny"), "load_classifier"),
        (lambda: ClassifierReward(classifier.model), "load_classifier"),
        (lambda: SampleStore(tmp_path).draw(language_model, ["a"], 1, SamplingSettings(4), seed=0), "TransformersS"),
        (lambda: FunctionReward("good", name="x"), "function is 'good'"),
        (lambda: FunctionReward(len, name=3), "name is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_two_functions_of_one_name_are_told_apart(language_model, tmp_path):
    def of(letter, weight=1.0):
        return lambda prompt, response: weight * response.count(letter)

    first = FunctionReward(of("e"), name="twice")
    FunctionReward(of("e"), name="twice")  # the same code again is no trouble
    for other in (of("a"), of("e", 2.0), lambda prompt, response: len(response)):
        with pytest.warns(UserWarning, match="two reward functions are called 'twice'"):
            FunctionReward(other, name="twice")
    draws = SampleStore(tmp_path).draw(TransformersSampler(language_model), ["a"], 4, SamplingSettings(4), seed=0)
    stored = SampleStore(tmp_path).score(first, draws)
    with pytest.warns(UserWarning, match="two reward"):
        other = FunctionReward(of("a"), name="twice")
    with pytest.warns(UserWarning, match="another function called 'twice' gave"):
        np.testing.assert_array_equal(SampleStore(tmp_path).score(other, draws), stored)
