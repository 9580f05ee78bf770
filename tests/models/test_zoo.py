"""The tiny models build, are finite and repeat themselves; what they are used for is tested elsewhere."""

import pytest
import torch
import zoo

IDS = [1, 7, 8, *range(40, 54)]


def test_what_is_named_is_there():
    assert len(zoo.CAUSAL) >= 110
    assert len(zoo.CLASSIFIERS) >= 80
    assert set(zoo.QUICK_CAUSAL) < set(zoo.CORE_CAUSAL) < set(zoo.CAUSAL)
    assert set(zoo.QUICK_CLASSIFIERS) < set(zoo.CORE_CLASSIFIERS) < set(zoo.CLASSIFIERS)
    assert set(zoo.CAUSAL) - set(zoo.CORE_CAUSAL) > zoo.LENGTH_DEPENDENT
    assert len(set(zoo.CORE_CAUSAL)) == len(zoo.CORE_CAUSAL) >= 50
    assert len(set(zoo.CORE_CLASSIFIERS)) == len(zoo.CORE_CLASSIFIERS) >= 28


@pytest.mark.parametrize("name", zoo.QUICK_CAUSAL)
def test_a_language_model_looks_back_only(name):
    model = zoo.CAUSAL[name]()
    logits = zoo.plain_logits(model, IDS)
    assert logits.shape == (len(IDS), zoo.VOCABULARY)
    assert 0.1 < logits.std() < 5  # draws differ, and hang on more than one token
    torch.testing.assert_close(zoo.plain_logits(model, IDS[:-6]), logits[:-6], rtol=1e-5, atol=1e-5)
    assert (zoo.plain_logits(model, [1, 9, *IDS[2:]])[2] - logits[2]).abs().max() > 1e-3  # within every window
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), zoo.CAUSAL[name]().parameters(), strict=True))


@pytest.mark.parametrize("name", zoo.QUICK_CLASSIFIERS)
def test_a_classifier_tells_texts_apart(name):
    model = zoo.CLASSIFIERS[name](num_labels=2)
    scores = torch.stack([zoo.plain_scores(model, [*IDS[: 5 + i], 2]) for i in range(3)])
    assert scores.shape == (3, 2)
    assert scores.std(dim=0).min() > 1e-3
    assert zoo.plain_scores(zoo.CLASSIFIERS[name](), IDS).shape == (1,)


@pytest.mark.parametrize("name", zoo.ADAPTERS)
def test_an_adapter_changes_its_model(name):
    plain = zoo.plain_logits(zoo.CAUSAL["llama"](), IDS)
    adapted = zoo.plain_logits(zoo.ADAPTERS[name](zoo.CAUSAL["llama"]()), IDS)
    assert adapted.shape == plain.shape
    assert (adapted - plain).abs().max() > 0.1


@pytest.mark.parametrize("folders", [zoo.REFUSED, zoo.REFUSED_CLASSIFIERS], ids=["texts", "rewards"])
def test_what_is_refused_is_a_folder_of_model_and_tokenizer(folders, tmp_path):
    for name, write in folders.items():
        files = {path.name for path in write(tmp_path / name).iterdir()}
        assert files >= {"config.json", "model.safetensors", "tokenizer.json"}, name


def test_the_tokenizer_fills_the_vocabulary_and_gives_texts_back():
    tokenizer = zoo.tokenizer()
    assert sorted(tokenizer.get_vocab().values()) == list(range(zoo.VOCABULARY))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = "the film  was made\nin 10 parks"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == text
    assert zoo.tokenizer(closed=True)(text)["input_ids"] == [*ids, 2]
