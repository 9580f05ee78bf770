"""Small models with random weights for unit tests; tests of the real ones use the bundled folders."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the hub

import pytest
import torch
from toy_training import PROMPTS, vowels

from bonlib.lm.models import LoadedModel, load_classifier, load_language_model
from bonlib.lm.pretrain import train_tokenizer

TEXTS = [
    "the film was good and the end was sad",
    "a bad film, a very bad film indeed",
    "I saw this with my mother and we laughed",
    "nobody knows why this was made",
] * 8


@pytest.fixture(scope="session")
def language_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "random-gpt2"
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, context=48)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        pad_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory, language_model_folder: Path) -> Path:
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "random-judge"
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=1, n_head=2, pad_token_id=1, num_labels=2,
        id2label={0: "negative", 1: "positive"}, initializer_range=0.4, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_model(language_model_folder: Path) -> LoadedModel:
    return load_language_model(language_model_folder, device="cpu")


@pytest.fixture(scope="session")
def classifier(classifier_folder: Path) -> LoadedModel:
    return load_classifier(classifier_folder, device="cpu")


@pytest.fixture(scope="session")
def training_data(language_model, tmp_path_factory):
    """64 draws a prompt of the small language model, scored, and their CDF."""
    from bonlib.align.reward_cdf import SampledCdf
    from bonlib.align.settings import TrainingData
    from bonlib.lm.rewards import FunctionReward
    from bonlib.lm.samplers import SamplingSettings, TransformersSampler
    from bonlib.lm.store import SampleStore

    reward, sampling = FunctionReward(vowels, name="vowels"), SamplingSettings(8)
    store = SampleStore(tmp_path_factory.mktemp("store"))
    draws = store.draw(TransformersSampler(language_model), PROMPTS, 64, sampling, seed=0)
    rewards = store.score(reward, draws)
    return TrainingData(PROMPTS, reward, sampling, draws, rewards, SampledCdf(PROMPTS, rewards))


@pytest.fixture
def one_accelerator():
    """Let a test choose the precision of its accelerator."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
