"""The policy that learns, and the anchor that follows it."""

import pytest
import torch
from toy_training import begin

from bonlib.methods.jbond import JBond
from bonlib.methods.kl_rl import KlRl
from bonlib.training.policy import Anchor

pytestmark = pytest.mark.usefixtures("one_accelerator")


def test_the_average_of_the_weights_after_k_steps_is_its_closed_form():
    weight, rate, steps = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)), 0.1, 20
    start = weight.detach().clone()
    anchor, path = Anchor([weight]), torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator())
    for point in path:
        weight.data = point.clone()
        anchor.move(rate)
    shares = rate * (1 - rate) ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    (held,) = anchor.buffers()
    torch.testing.assert_close(held, (1 - rate) ** steps * start + (shares[:, None] * path).sum(0))
    with anchor.in_place():
        assert not torch.equal(weight, path[-1])
    assert torch.equal(weight, path[-1])
    anchor.move(1.0)
    assert torch.equal(held, path[-1])


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_anchor_is_one_copy_of_what_is_trained(lora_rank, language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, JBond(), lora_rank=lora_rank)
    copies, learned = list(run.policy.anchor.buffers()), run.learned
    assert [copy.shape for copy in copies] == [weight.shape for weight in learned]
    assert all(torch.equal(copy, weight) for copy, weight in zip(copies, learned, strict=True))
    if lora_rank:
        assert sum(map(torch.numel, copies)) < sum(map(torch.numel, language_model.model.parameters())) / 5


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_policy_starts_as_the_reference(lora_rank, language_model, training_data, tmp_path):
    run = begin(language_model, training_data, tmp_path, KlRl(0.1), group=4, lora_rank=lora_rank)
    shard = run.learner.shard(0, 0)
    assert len({len(run.learner.tokens.ids[prompt]) for prompt in shard.prompts}) > 1  # some are padded
    assert shard.figures["kl"] == pytest.approx(0, abs=1e-5)
    again, _ = run.policy(shard.batch)
    torch.testing.assert_close(again.detach(), shard.reference, atol=1e-5, rtol=0)
