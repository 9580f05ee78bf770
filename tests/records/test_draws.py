"""Records as draws of a model: its tokens, its log-probabilities, and training from them."""

import numpy as np
import pandas as pd
import pytest

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore, check_draws
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.dpo import Dpo
from bonlib.models.reading import response_log_probs
from bonlib.models.responses import Responses, concatenate
from bonlib.records.draws import RecordedReward, draws_of
from bonlib.records.reading import read
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import train

PROMPTS = ["the film was", "a long"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, bundled_model):
    store = SampleStore(tmp_path_factory.mktemp("store"))
    return store.draw(TransformersSampler(bundled_model), PROMPTS, 64, SamplingSettings(max_new_tokens=12), seed=0)


def table(drawn, log_probs=None):
    """What a file says of draws, of which none came to its end."""
    prompts = np.repeat(np.array(drawn.prompts, dtype=object), 64)
    said = drawn.log_probs if log_probs is None else log_probs
    rewards = [float(len(text)) for text in drawn.texts.ravel()]
    return pd.DataFrame(
        {"prompt": prompts, "response": drawn.texts.ravel(), "log_prob": said.ravel(), "reward": rewards}
    )


@pytest.mark.parametrize("ended", [True, False])
def test_tokens_and_log_probabilities_are_the_models(drawn, bundled_model, ended):
    said = drawn.log_probs
    if ended:
        flat = concatenate(drawn.responses)
        tokens = np.pad(flat.token_ids, ((0, 0), (0, 1)), constant_values=bundled_model.end_token_ids[0])
        whole = Responses(flat.texts, tokens, flat.log_probs, flat.log_probs)
        said = response_log_probs(bundled_model, [prompt for prompt in PROMPTS for _ in range(64)], whole)
    draws, rewards = draws_of(read(table(drawn, said)), bundled_model, ended=ended)
    assert draws.texts.tolist() == drawn.texts.tolist()
    assert rewards.tolist() == [list(map(len, row)) for row in draws.texts]
    # The model may have written a text in other tokens than its tokenizer does.
    assert np.isclose(draws.log_probs.ravel(), said.ravel(), rtol=1e-4).mean() > 0.9
    check_draws(draws, bundled_model)
    with pytest.raises(ValueError, match=r"prompts have from 63 to 64 .*; say how many to take of each, as count=63"):
        draws_of(read(table(drawn)[1:]), bundled_model)
    with pytest.warns(UserWarning, match="1 of 2 prompts have fewer than 64 draws: left out"):
        few, _ = draws_of(read(table(drawn)[1:]), bundled_model, count=64, ended=False)
    assert few.prompts == (PROMPTS[1],)


def test_methods_learn_from_a_file(drawn, bundled_model, tmp_path):
    draws, rewards = draws_of(read(table(drawn)), bundled_model, count=8, ended=False)
    judge = RecordedReward(draws, rewards)
    law = SamplingSettings(max_new_tokens=int(draws.lengths.max()))
    data = TrainingData(draws.prompts, judge, law, draws, rewards)
    for method in (BonSft(4), Bonbon(4), Dpo(0.5)):
        settings = TrainSettings(steps=2, prompts=2, group=4)
        trained = train(bundled_model, method, data, settings, tmp_path / type(method).__name__, show=False)
        assert trained.policy is not None
    assert judge.score(draws.prompts[:1], draws.texts[0][:1]) == rewards[0, 0]
    with pytest.raises(ValueError, match="the file has no score for the response 'another': methods that draw"):
        judge.score(["the film was"], ["another"])


def test_a_response_that_runs_into_its_prompt_keeps_the_prompts_tokens(language_model):
    rows = {"prompt": ["the fil", "the fil"], "response": ["m was", ""], "reward": [1, 2]}
    draws, _ = draws_of(read(pd.DataFrame(rows)), language_model)
    assert draws.texts.tolist() == [["m was", ""]]
    assert draws.lengths[0, 1] == 1
    assert np.isfinite(draws.log_probs).all()


def test_conversations_are_put_into_the_chat_template(language_model_folder):
    from bonlib.models.loaded import load_language_model

    model = load_language_model(language_model_folder, device="cpu")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    rows = {"prompt": [[{"role": "user", "content": "the film"}]], "response": [" was"], "reward": [1]}
    draws, _ = draws_of(read(pd.DataFrame(rows)), model)
    assert draws.prompts == ("the film\n",)


def test_log_probabilities_of_another_model_are_told(language_model):
    rows = pd.DataFrame({"prompt": ["a"], "response": [" long"], "reward": [1], "log_prob": [-0.01]})
    with pytest.warns(UserWarning, match="say ended=False, or best-of-n of what drew them is learned"):
        draws_of(read(rows), language_model)
    with pytest.raises(ValueError, match="count is 2; with 1 responses a prompt it must be"):
        draws_of(read(rows), language_model, count=2)
    with pytest.raises(ValueError, match="ended is False, and a response is empty"):
        draws_of(read(rows.assign(response="")), language_model, ended=False)
