"""The next token is drawn from the law that was asked for."""

import torch

from bonlib.models.next_token import Law, inverse_cdf, next_token_probs


def test_inverse_cdf_never_picks_what_cannot_be():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 1.0 - 2**-24])
    for block in (1, 2, 64):
        drawn, total = inverse_cdf(probs, uniforms, block)
        assert drawn.tolist() == [1, 1, 3, 3]
        assert total.tolist() == [1] * 4
        assert inverse_cdf(probs, torch.ones(4), block)[0].tolist() == [3] * 4


def test_inverse_cdf_draws_as_often_as_the_weights_say():
    weights = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) ** 8 * 7
    uniforms = (torch.arange(200_000) + 0.5) / 200_000
    drawn, _ = inverse_cdf(weights.expand(200_000, -1), uniforms)
    counts = torch.bincount(drawn, minlength=1000).double()
    expected = weights[0].double() / weights.double().sum() * 200_000
    assert (counts - expected).abs().max() < 2  # no noise: the uniform numbers are a grid
    assert (drawn.diff() >= 0).all()


def test_top_p_keeps_at_least_one_token():
    probs = next_token_probs(torch.tensor([[1.0, 3.0, 2.0]]), Law(top_p=1e-6))
    assert probs.tolist() == [[0.0, 1.0, 0.0]]
