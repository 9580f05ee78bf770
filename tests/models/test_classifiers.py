"""Texts judged in batches with shared beginnings, against a pass over each text alone."""

import inspect

import numpy as np
import pytest
import torch
import zoo

from bonlib.models.classifiers import classifier_outputs

TEXTS = [
    [5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 11, 12, 13, 14],  # one head of three tokens
    [20, 21], [20, 22, 23],  # one of one token
    [30, 31, 32], [33],  # none
]  # fmt: skip
COMMON = [3, 3, 3, 1, 1, 2, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_text_gets_the_score_of_a_pass_alone(classifier, llama, kind, batch_size):
    model = (classifier if kind == "gpt2" else llama).model
    found = classifier_outputs(model, TEXTS, COMMON, batch_size=batch_size, pad_id=1)
    for text, score in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(score, model(torch.tensor([text])).logits[0], atol=1e-5, rtol=1e-4)


def test_a_head_is_read_once(llama, monkeypatch):
    model, read_tokens = llama.model, []
    texts = [[*range(10, 40), 50 + i] for i in range(8)]
    classifier_outputs(
        model, texts, [30] * 8, batch_size=8, pad_id=1
    )  # by now it is known what is right for this model
    forward = model.base_model.forward

    def counted(ids, **options):
        read_tokens.append(ids.numel())
        return forward(ids, **options)

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.base_model, "forward", counted)
    classifier_outputs(model, texts, [30] * 8, batch_size=8, pad_id=1)
    assert read_tokens == [30, 8]  # the head, one token a text


def test_a_text_that_cannot_be_read_is_named():
    model = zoo.CLASSIFIERS["bert"]()
    with pytest.raises(ValueError, match="BertForSequenceClassification cannot read text 1, of 2 tokens"):
        classifier_outputs(model, [[5, 6], [7, 10**6]], [0, 0], batch_size=1, pad_id=0)
