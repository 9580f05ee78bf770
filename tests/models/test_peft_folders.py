"""Adapters of every kind that `peft` has, on small random models: loaded as `peft` does, trained, kept and refused."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.models.peft_folders import lasting_name
from bonlib.models.places import BUNDLED
from bonlib.training.policy import trainable
from bonlib.training.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's, on models that it cannot look up
IDS = torch.tensor([[5, 9, 40, 33, 7, 21, 60, 12]])
ADAPTED = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=3, target_modules="all-linear"),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules="all-linear", rank_pattern={"v_proj": 2}),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules="all-linear"),
    "lora with biases": lambda: peft.LoraConfig(r=4, bias="all", target_modules="all-linear"),
    "lora and a whole layer": lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head"], target_modules="all-linear"),
    "lora and tokens": lambda: peft.LoraConfig(r=4, trainable_token_indices=[5, 9], target_modules="all-linear"),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=None),
    "ia3": lambda: peft.IA3Config(),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules="all-linear"),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "v_proj", "c_proj"]),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[5, 9], target_modules=["embed_tokens", "wte"]),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "prefix by a network": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16
    ),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, language_model):
    """Folders of a Llama and a GPT-2 in single precision, whose own tokenizer is that of the language model."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    root, words = tmp_path_factory.mktemp("bases"), len(language_model.tokenizer)
    common = {"vocab_size": words, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    llama = LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=64, **common,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(root / "llama")
    GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **common)).save_pretrained(root / "gpt2")
    for name in ("llama", "gpt2"):
        language_model.tokenizer.save_pretrained(root / name)
    return root


def adapter(base, config, folder, task="CAUSAL_LM", auto="AutoModelForCausalLM", **options):
    """Save an adapter with random weights, as somebody's training would, and return the model with it."""
    import transformers

    config.task_type = task
    model = peft.get_peft_model(getattr(transformers, auto).from_pretrained(base, **options), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn_like(weight))
    model.eval().save_pretrained(folder)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def finish(loaded, policy, folder):
    """Write a policy as the end of a training does, and load it."""
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    RunFolder(folder, accelerator).finish(replace(loaded, model=policy), {})
    return load_language_model(folder / "policy", device="cpu")


# LoHa knows no layers of GPT-2.
@pytest.mark.parametrize(
    ("kind", "base"),
    [(kind, base) for kind in ADAPTED for base in ("llama", "gpt2") if (kind, base) != ("loha", "gpt2")],
)
def test_an_adapter_is_loaded_trained_and_kept(kind, base, bases, tmp_path):
    made = adapter(bases / base, ADAPTED[kind](), tmp_path / "adapter")
    loaded = load_language_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(made), atol=1e-6, rtol=1e-6)
    base_logits = logits(load_language_model(bases / base, device="cpu").model)
    assert (base_logits - logits(made)[:, -base_logits.shape[1] :]).abs().max() > 1e-3  # it does something
    virtual = 3 if kind in ("prompt", "p-tuning") or "prefix" in kind else 0
    assert loaded.context == 64 - virtual
    fresh = {name for name, weight in made.named_parameters() if weight.requires_grad}
    policy = trainable(loaded.model, 0)
    learned = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    if virtual:  # of a prompt that is finished, peft keeps no network
        assert set(learned) == {"prompt_encoder.default.embedding.weight"}
    else:
        assert set(learned) == fresh
    assert all(weight.dtype == torch.float32 for weight in learned.values())
    before = logits(policy)
    optimiser = torch.optim.SGD(learned.values(), lr=0.01)
    policy(IDS).logits.logsumexp(-1).mean().backward()
    assert all(weight.grad is not None for weight in learned.values())
    optimiser.step()
    assert not torch.equal(before, logits(policy))
    torch.testing.assert_close(logits(finish(loaded, policy, tmp_path / "run").model), logits(policy))


def test_half_precision_is_trained_in_single(bases, tmp_path):
    for kind in ("lora", "lora and a whole layer"):
        adapter(bases / "llama", ADAPTED[kind](), tmp_path / kind)
        loaded = load_language_model(tmp_path / kind, device="cpu", dtype="bfloat16")
        policy = trainable(loaded.model, 0)
        assert {weight.dtype for weight in policy.parameters() if weight.requires_grad} == {torch.float32}
        policy(IDS).logits.float().logsumexp(-1).mean().backward()


def test_the_scale_of_an_adapter_is_part_of_what_it_is(bases, tmp_path):
    prints = set()
    adapter(bases / "llama", ADAPTED["lora"](), tmp_path)
    for alpha in (3, 8, 16):
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": alpha}))
        prints.add(load_language_model(tmp_path, device="cpu").fingerprint)
    assert len(prints) == 3


def test_a_policy_finds_its_base_from_anywhere(bases, tmp_path, monkeypatch):
    shutil.copytree(bases / "llama", tmp_path / "work" / "base")
    monkeypatch.chdir(tmp_path / "work")
    loaded = load_language_model("base", device="cpu")
    policy = trainable(loaded.model, 2)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(0.3)
    finish(loaded, policy, Path("run"))
    monkeypatch.chdir("/")
    again = load_language_model(tmp_path / "work" / "run" / "policy", device="cpu")
    torch.testing.assert_close(logits(again.model), logits(policy))
    # And as others save them: a path from where they stood.
    adapter(bases / "llama", ADAPTED["lora"](), tmp_path / "work" / "theirs")
    file = tmp_path / "work" / "theirs" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "./base"}))
    assert load_language_model(tmp_path / "work" / "theirs", device="cpu")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(FileNotFoundError, match=r"stands on './gone', which is not there.*base_model_name_or_path"):
        load_language_model(tmp_path / "work" / "theirs", device="cpu")


def test_bundled_models_are_named_and_not_placed():
    from bonlib.models.gguf import packaged_file, unpacked

    assert lasting_name(str(BUNDLED / "imdb-gpt2-tiny")) == "imdb-gpt2-tiny"
    assert lasting_name(str(unpacked(packaged_file("smollm2-135m-instruct")))) == "smollm2-135m-instruct"
    assert lasting_name("owner/model") == "owner/model"


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "kept", "prompt"])
def test_the_tokenizer_of_an_adapter_is_taken(kind, base, bases, language_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases / base)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.add_tokens(["wonderful", "terrible"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(bases / base)
    model.resize_token_embeddings(len(tokenizer))
    embeddings = {"llama": "embed_tokens", "gpt2": "wte"}[base]
    config = {
        "lora": ADAPTED["lora"](),
        "kept": peft.LoraConfig(target_modules="all-linear", modules_to_save=[embeddings, "lm_head"]),
        "prompt": ADAPTED["prompt"](),
    }[kind]
    config.task_type = "CAUSAL_LM"
    made = peft.get_peft_model(model, config).eval()
    made.save_pretrained(tmp_path, save_embedding_layers=kind != "kept")
    tokenizer.save_pretrained(tmp_path)
    if kind == "prompt":  # peft keeps no embeddings besides a prompt
        try:
            loaded = load_language_model(tmp_path, device="cpu")
        except ValueError as error:
            assert "tokens that the model does not know" in str(error)  # noqa: PT017
            return
    loaded = load_language_model(tmp_path, device="cpu")
    assert loaded.vocabulary == len(tokenizer) == len(language_model.tokenizer) + 3
    assert tokenizer.eos_token_id in loaded.end_token_ids
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    ids = torch.tensor([tokenizer("a wonderful film")["input_ids"]])
    torch.testing.assert_close(logits(loaded.model, ids), logits(made, ids))
    assert loaded.fingerprint == load_language_model(tmp_path, device="cpu").fingerprint
    policy = trainable(loaded.model, 0)
    torch.testing.assert_close(
        logits(finish(loaded, policy, tmp_path / "run").model, ids), logits(made, ids), atol=1e-6, rtol=1e-6
    )


def test_added_tokens_without_their_embeddings_are_refused(bases, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases / "llama")
    tokenizer.add_tokens(["wonderful"])
    model = AutoModelForCausalLM.from_pretrained(bases / "llama")
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "none", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="does not know, the first 'wonderful'"):
        load_language_model(tmp_path / "none", device="cpu")
    config = peft.LoraConfig(target_modules="all-linear", modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(bases / "llama")
    model.resize_token_embeddings(len(tokenizer))
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "half", save_embedding_layers=False)
    with pytest.raises(ValueError, match="only one of the input and the output embeddings"):
        load_language_model(tmp_path / "half", device="cpu")


def test_an_adapter_that_is_not_whole_is_refused(bases, tmp_path):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        weights = load_file(folder / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder

    config = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"])
    adapter(bases / "llama", config, tmp_path / "whole")
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    with pytest.raises(ValueError, match=r"not whole.*q_proj.lora_A"):
        load_language_model(broken("lora", lambda weights: weights.pop(first)), device="cpu")
    with pytest.raises(ValueError, match=r"not whole.*lm_head"):
        load_language_model(broken("kept", lambda w: w.pop("base_model.model.lm_head.weight")), device="cpu")
    with pytest.raises(ValueError, match=r"layers\.7.*no place"):
        load_language_model(
            broken("layer", lambda weights: weights.update({first.replace("layers.0", "layers.7"): torch.ones(2, 32)})),
            device="cpu",
        )
    with pytest.raises(ValueError, match="does not fit the model"):
        load_language_model(broken("shape", lambda w: w.update({first: torch.ones(2, 7)})), device="cpu")
    folder = broken("pickled", lambda weights: None)
    os.rename(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        load_language_model(folder, device="cpu")
    with pytest.raises(ValueError, match="trained for CAUSAL_LM, not as a classifier"):
        load_classifier(tmp_path / "whole", device="cpu")


def test_one_adapter_of_several_is_taken_or_named(bases, tmp_path):
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    model = adapter(bases / "llama", config, tmp_path / "both")
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "both")
    loaded = load_language_model(tmp_path / "both", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(model))
    assert list(loaded.model.peft_config) == ["default"]
    (tmp_path / "both" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapters in folders of its own, of which one can be named: other"):
        load_language_model(tmp_path / "both", device="cpu")
    file = tmp_path / "both" / "other" / "adapter_config.json"
    load_language_model(tmp_path / "both" / "other", device="cpu")
    adapter(bases / "llama", ADAPTED["lora"](), tmp_path / "below")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "below")}))
    with pytest.raises(ValueError, match="is an adapter too"):
        load_language_model(tmp_path / "both" / "other", device="cpu")


ENCODERS = {
    "bert": ("Bert", {}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}),
    "roberta": ("Roberta", {}),
    "deberta-v2": ("DebertaV2", {}),
    "electra": ("Electra", {"embedding_size": 32}),
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40}),
}


@pytest.fixture(scope="module")
def words(language_model):
    return language_model.tokenizer


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_reward_models_with_adapters_keep_their_heads(name, outputs, words, tmp_path):
    import transformers

    prefix, sizes = ENCODERS[name]
    common = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "pad_token_id": 1,
        "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{prefix}Config")(**(common | sizes))
    torch.manual_seed(0)
    kind = {"gpt2": "LMHeadModel", "llama": "ForCausalLM", "bert": "ForMaskedLM"}.get(name, "Model")
    getattr(transformers, f"{prefix}{kind}")(config).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    # Layers that the files of an encoder alone do not have must be in the adapter's.
    layers = {"bert": ["query", "value"], "distilbert": ["q_lin", "v_lin"], "deberta-v2": ["query_proj", "value_proj"]}
    new = {"bert": ["pooler"], "distilbert": ["pre_classifier"], "deberta-v2": ["pooler"]}.get(name, [])
    targets = layers.get(name, "all-linear")
    lora = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=[*new, "score", "classifier"])
    auto = "AutoModelForSequenceClassification"
    made = adapter(tmp_path / "base", lora, tmp_path / "judge", "SEQ_CLS", auto, num_labels=outputs)
    made.config.pad_token_id = 1
    loaded = load_classifier(tmp_path / "judge", device="cpu")
    assert loaded.model.config.num_labels == outputs
    torch.testing.assert_close(logits(loaded.model), logits(made), atol=1e-6, rtol=1e-6)
    assert loaded.fingerprint == load_classifier(tmp_path / "judge", device="cpu").fingerprint
    half = load_classifier(tmp_path / "judge", device="cpu", dtype="bfloat16")
    torch.testing.assert_close(logits(half.model), logits(made), atol=0.1, rtol=0.1, check_dtype=False)
    with pytest.raises(ValueError, match="trained for SEQ_CLS"):
        load_language_model(tmp_path / "judge", device="cpu")
    if name == "bert":
        half_head = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
        adapter(tmp_path / "base", half_head, tmp_path / "part", "SEQ_CLS", auto, num_labels=outputs)
        with pytest.raises(ValueError, match=r"lacks the weights 'bert\.pooler\.dense\.bias'"):
            load_classifier(tmp_path / "part", device="cpu")


def test_an_adapter_of_a_model_without_files_still_says_so(bases, tmp_path):
    adapter(bases / "llama", ADAPTED["lora"](), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no model that it stands on"):
        load_language_model(tmp_path, device="cpu")


def test_an_adapter_draws(bases, tmp_path):
    adapter(bases / "llama", ADAPTED["lora"](), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_language_model(tmp_path, device="cpu")
    assert len(TransformersSampler(loaded).sample(["a", "the film"], SamplingSettings(4), seed=0)) == 2


def test_an_adapter_of_the_hub_is_taken_with_its_commit(bases, tmp_path, monkeypatch):
    import huggingface_hub.constants

    commit = "0123456789" * 4
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("adapter", "model"):
        entry = tmp_path / f"models--owner--{name}"
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text(commit)
        if name == "model":
            shutil.copytree(bases / "llama", entry / "snapshots" / commit)
        else:
            made = adapter(bases / "llama", ADAPTED["lora"](), entry / "snapshots" / commit)
    loaded = load_language_model("owner/model", device="cpu")
    assert (loaded.name, loaded.commit) == ("owner/model", commit)
    loaded = load_language_model("owner/adapter", device="cpu")
    assert (loaded.name, loaded.commit) == ("owner/adapter", commit)
    torch.testing.assert_close(logits(loaded.model), logits(made), atol=1e-6, rtol=1e-6)
    with pytest.raises(FileNotFoundError, match="'owner/gone' could not be loaded"):
        load_language_model("owner/gone", device="cpu")
