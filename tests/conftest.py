"""Small models with random weights for unit tests; tests of the real ones use the bundled folders.

Workers of pytest-xdist take a module at a time, a notebook each, and what takes longest first.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the hub
# Said before torch is loaded, which would take all cores in each worker; kernels and other processes hear it, too.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(
    max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
)

import hypothesis
import pytest
import torch
from corpus import TEXTS
from toy_training import DOCUMENTS, EXAMPLES, PROMPTS, vowels

from bonlib.course.check import this_machine
from bonlib.course.making.pretrain import train_tokenizer
from bonlib.course.profiles import get_profile
from bonlib.course.runner import LONG, USUAL
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("patient")


# These begin after the notebooks, so that the end is made of what is short.
LONG_MODULES = (
    "test_site", "test_browser", "test_own_models", "test_samplers", "test_fleet", "test_trainer", "test_wheel",
    "test_sentiment", "test_real_servers", "test_architectures", "test_peft_folders", "test_setup",
    "test_store_under_fire",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--all-architectures", action="store_true", help="all models of tests/zoo.py, and MODELS.md")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """A worker may run a notebook, which needs a core and the memory of the quick profile."""
    machine = this_machine()
    return max(1, min(machine.cores, int(machine.memory_gb / get_profile("quick").memory_gb)))


def pytest_collection_modifyitems(config, items):
    if not hasattr(config, "workerinput"):
        return

    def place(item):
        module = item.path.stem
        if module == "test_notebooks":
            return -LONG.get(item.callspec.id[:2], USUAL) if hasattr(item, "callspec") else 0
        return 1 + (LONG_MODULES.index(module) if module in LONG_MODULES else len(LONG_MODULES))

    items.sort(key=place)


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
def bundled_model() -> LoadedModel:
    return load_language_model("imdb-gpt2-tiny", device="cpu")


@pytest.fixture(scope="session")
def bundled_classifier() -> LoadedModel:
    return load_classifier("imdb-sentiment-tiny", device="cpu")


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


@pytest.fixture(autouse=True, scope="module")
def no_accelerator_of_another_module():
    """Accelerate keeps the precision of a process's first training, whichever tests a worker was given before."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


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


@pytest.fixture(scope="session")
def llama(language_model, tmp_path_factory):
    """A causal model with another way of telling positions, and a head with one output."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_labels=1, pad_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    return LoadedModel(LlamaForSequenceClassification(config).eval(), language_model.tokenizer, "random llama")


@pytest.fixture(scope="session")
def papers_folders(tmp_path_factory):
    """GPT-2 without a padding token and a DistilBERT judge: the papers' architectures with random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    policy, judge = (tmp_path_factory.mktemp("papers") / name for name in ("gpt2-imdb", "distilbert-imdb"))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"]))
    PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>").save_pretrained(
        policy
    )
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(policy)

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(judge)
    DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=200,
            max_position_embeddings=64,
            dim=32,
            n_layers=1,
            n_heads=2,
            hidden_dim=64,
            num_labels=2,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            pad_token_id=0,
        )
    ).save_pretrained(judge)
    return policy, judge
