"""Small models with random weights for unit tests; tests of the real ones use the bundled folders."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the hub

import hypothesis
import pytest
import torch
from toy_training import DOCUMENTS, EXAMPLES, PROMPTS, vowels

from bonlib.course.making.pretrain import train_tokenizer
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("patient")

TEXTS = [
    "the film was good and the end was sad",
    "a bad film, a very bad film indeed",
    "I saw this with my mother and we laughed",
    "nobody knows why this was made",
] * 8


def pytest_addoption(parser):
    parser.addoption("--all-architectures", action="store_true", help="all models of tests/zoo.py, and MODELS.md")


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
    from bonlib.draws.rewards import FunctionReward
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.draws.store import SampleStore
    from bonlib.training.reward_cdf import SampledCdf
    from bonlib.training.settings import TrainingData

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


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, language_model):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "random-llama"
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=len(language_model.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=1, bos_token_id=0,
        eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finetuned_folder(tmp_path_factory, llama_folder):
    """An adapter of a random model that was trained for a moment."""
    from accelerate.state import AcceleratorState

    from bonlib.course.making.adapters import AdapterRecipe, finetune

    AcceleratorState._reset_state(reset_partial_state=True)
    folder, base = tmp_path_factory.mktemp("adapters") / "sft", str(llama_folder)
    settings = {"context": 64, "steps": 12, "batch_size": 2, "learning_rate": 2e-2, "warmup_steps": 1, "rank": 2}
    finetune(folder, folder.with_name("scratch"), DOCUMENTS, AdapterRecipe(**settings, base=base))
    return folder


@pytest.fixture(scope="session")
def reward_folders(tmp_path_factory, llama_folder):
    """Two reward models, trained for a moment."""
    from accelerate.state import AcceleratorState

    from bonlib.course.making.adapters import RewardRecipe, train_reward_model

    found = []
    for seed in (0, 1):
        AcceleratorState._reset_state(reset_partial_state=True)
        folder, base = tmp_path_factory.mktemp("adapters") / f"judge-{seed}", str(llama_folder)
        settings = {"context": 64, "steps": 30, "batch_size": 2, "learning_rate": 2e-2, "warmup_steps": 1, "rank": 2}
        train_reward_model(folder, folder / "scratch", EXAMPLES, RewardRecipe(**settings, seed=seed, base=base))
        found.append(folder)
    return found
