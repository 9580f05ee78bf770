"""The training loop on small random models: the same numbers after an interruption and on two processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import PROMPTS

from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.evaluate import TestSet
from bonlib.methods import METHODS
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.bond import Bond, iterative_bond
from bonlib.methods.dpo import Dpo
from bonlib.methods.jbond import JBond
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.loaded import load_language_model
from bonlib.training import trainer
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import Ppo, TrainSettings
from bonlib.training.trainer import DivergedError, train

SHORT = TrainSettings(steps=6, prompts=4, group=4, learning_rate=3e-3, warmup=1, measure_every=2, checkpoint_every=3)


pytestmark = pytest.mark.usefixtures("one_accelerator")


@pytest.fixture(scope="module")
def data(training_data):
    return training_data


def weights_of(loaded):
    return torch.cat([p.detach().flatten() for p in loaded.model.parameters()])


def weights(trained):
    return weights_of(trained.policy)


ALL = [
    (KlRl(0.1), SHORT),
    (KlRl(0.1), replace(SHORT, ppo=Ppo(epochs=2))),
    (Vbon(4), SHORT),
    (VbonBound(4), SHORT),
    (BonSft(4), SHORT),
    (Bonbon(4), SHORT),
    (Dpo(0.1), SHORT),
    (Dpo(0.5, generations=24, pairs=200, identity=True), SHORT),
    (Bond(4), SHORT),
    (iterative_bond(10), SHORT),
    (JBond(anchor_rate=0.1), replace(SHORT, group=2)),
]


@pytest.mark.parametrize(("method", "settings"), ALL, ids=lambda x: str(x)[:24])
def test_every_method_improves_the_reward_and_is_saved_for_transformers(
    method, settings, language_model, data, tmp_path
):
    longer = replace(settings, steps=30, measure_every=15, checkpoint_every=100)

    def measure(policy):
        drawn = TransformersSampler(policy).sample(PROMPTS * 64, data.sampling, seed=1)
        return {"measured": float(data.reward_model.score(PROMPTS * 64, drawn.texts.tolist()).mean())}

    trained = train(language_model, method, data, longer, tmp_path / "run", measure=measure, show=False)
    before = measure(language_model)["measured"]
    assert trained.curve[-1]["measured"] > before + 0.02
    assert [row["step"] for row in trained.curve] == [15, 30]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy", use_safetensors=True)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(again(ids).logits, trained.policy.model(ids).logits, atol=1e-5)
    assert not (tmp_path / "run" / "checkpoints").exists()
    loaded = train(language_model, method, data, longer, tmp_path / "run", measure=measure, show=False)
    assert loaded.curve == trained.curve  # finished: nothing is trained again


EASED = (VbonBound(4), replace(SHORT, easing=0.5, lora_rank=2))


@pytest.mark.parametrize(
    ("method", "settings"), [ALL[1], ALL[2], ALL[6], ALL[10], EASED], ids=["ppo", "vbon", "dpo", "jbond", "eased"]
)
def test_an_interrupted_run_comes_to_the_same_numbers(method, settings, language_model, data, tmp_path, monkeypatch):
    whole = train(language_model, method, data, settings, tmp_path / "whole", show=False)
    calls = 0
    original = trainer.TrainingRun.train_step

    def interrupted(self):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(trainer.TrainingRun, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(language_model, method, data, settings, tmp_path / "halves", show=False)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "halves" / "checkpoints").iterdir()] == ["step-000003"]
    resumed = train(language_model, method, data, settings, tmp_path / "halves", show=False)
    assert torch.equal(weights(whole), weights(resumed))
    for a, b in zip(whole.curve, resumed.curve, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_the_reference_is_not_changed(language_model, data, tmp_path):
    before = language_model.fingerprint
    train(language_model, VbonBound(4), data, SHORT, tmp_path, show=False)
    assert language_model.fingerprint == before


@pytest.mark.parametrize("method", [Dpo(0.1), Bonbon(4)], ids=["dpo", "bonbon"])
def test_shards_do_not_change_what_off_policy_methods_learn(method, language_model, data, tmp_path):
    one = train(language_model, method, data, SHORT, tmp_path / "1", show=False)
    two = train(language_model, method, data, replace(SHORT, shards=2), tmp_path / "2", show=False)
    # Adam turns rounding into steps where a gradient is all but 0, so single weights may differ a little.
    assert [row["loss"] for row in one.curve] == pytest.approx([row["loss"] for row in two.curve], rel=1e-4)
    assert torch.dist(weights(one), weights(two)) < 0.01 * torch.dist(weights(one), weights_of(language_model))


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_policy_starts_as_the_reference(lora_rank, language_model, data, tmp_path):
    settings = replace(SHORT, lora_rank=lora_rank, prompts=4)
    run = trainer.TrainingRun(language_model, KlRl(0.1), data, settings, tmp_path, None, False)
    shard = run.learner.shard(0, 0)
    assert len({len(run.learner.tokens.ids[prompt]) for prompt in shard.prompts}) > 1  # some are padded
    assert shard.figures["kl"] == pytest.approx(0, abs=1e-5)
    again, _ = run.policy(shard.batch)
    torch.testing.assert_close(again.detach(), shard.reference, atol=1e-5, rtol=0)


def test_ppo_spreads_the_whole_return_over_the_tokens(language_model, data, tmp_path):
    settings = replace(SHORT, ppo=Ppo(), precision="bf16")
    run = trainer.TrainingRun(language_model, KlRl(0.5), data, settings, tmp_path, None, False)
    shard = run.learner.shard(0, 0)
    torch.testing.assert_close(shard.token_rewards.sum(1).double(), shard.returns, atol=1e-4, rtol=0)
    assert shard.old_values.dtype == torch.float32


def test_the_learning_rate_rises_and_falls_and_the_pull_grows():
    settings = TrainSettings(steps=10, learning_rate=1.0, warmup=10, easing=0.5)
    rates = [settings.learning_rate_at(step) for step in range(10)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [settings.pull_at(step) for step in (0, 3, 4, 9)] == pytest.approx([0.2, 0.8, 1.0, 1.0])
    assert replace(settings, easing=0.0).pull_at(0) == 1.0


def test_tied_rewards_share_best_of_n(data):
    cdf = SampledCdf(["p"], [[0.0, 0.0, 1.0, 2.0]], "none")
    log_pi = torch.tensor([-3.0, -0.5], dtype=torch.float64)
    judged = Judged(["p"] * 2, ["a", "b"], log_pi, log_pi, torch.tensor([0.0, 2.0], dtype=torch.float64))
    got = Vbon(3).returns(judged, cdf) + log_pi
    own = float(np.exp(-0.5))  # more than the quarter that the samples give a reward of 2
    worst = np.exp(-3.0) / 0.5 * 0.5**3
    best = 1 - (1 - own) ** 3
    np.testing.assert_allclose(got.exp(), [worst, best], rtol=1e-6)


def test_an_adapter_alone_is_trained_and_saved(language_model, data, tmp_path):
    settings = replace(SHORT, lora_rank=2, learning_rate=1e-2)
    trained = train(language_model, VbonBound(4), data, settings, tmp_path / "run", show=False)
    names = {path.name for path in (tmp_path / "run" / "policy").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    loaded = load_language_model(tmp_path / "run" / "policy", device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(loaded.model(ids).logits, trained.policy.model(ids).logits, atol=1e-5)
    assert not torch.allclose(loaded.model(ids).logits, language_model.model(ids).logits, atol=1e-3)
    resumed = train(language_model, VbonBound(4), data, settings, tmp_path / "run", show=False)
    assert resumed.curve == trained.curve


def test_a_diverging_run_stops_and_says_where(language_model, data, tmp_path):
    wild = replace(SHORT, learning_rate=50.0, checkpoint_every=1, max_kl=5.0)
    with pytest.raises(DivergedError, match=r"step \d of run: .*Batch: \[.*Likely cause: .*learning_rate.*step-0000"):
        train(language_model, KlRl(0.1), data, wild, tmp_path / "run", show=False)
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_return_that_is_not_finite_is_found_before_it_does_harm(language_model, data, tmp_path):
    class Broken(SampledCdf):
        def log_weak(self, prompts, responses, rewards):
            return np.where(np.arange(len(prompts)) == 3, -np.inf, super().log_weak(prompts, responses, rewards))

    broken = replace(data, cdf=Broken(PROMPTS, data.rewards))
    with pytest.raises(DivergedError, match="log F of a response is −inf"):
        train(language_model, VbonBound(4), broken, SHORT, tmp_path / "run", show=False)


def test_a_folder_of_another_run_is_refused(language_model, data, tmp_path):
    train(language_model, Dpo(0.1), data, SHORT, tmp_path, show=False)
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, Dpo(0.2), data, SHORT, tmp_path, show=False)
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, Dpo(0.1), replace(data, rewards=-data.rewards), SHORT, tmp_path, show=False)
    train(language_model, VbonBound(4), data, replace(SHORT, steps=1), tmp_path / "vbon", show=False)
    fewer = replace(data, cdf=SampledCdf(PROMPTS, data.rewards[:, :8]))
    with pytest.raises(ValueError, match="other settings"):
        train(language_model, VbonBound(4), fewer, replace(SHORT, steps=1), tmp_path / "vbon", show=False)


def test_bad_input_is_named(language_model, data, tmp_path):
    with pytest.raises(ValueError, match="group is 1"):
        TrainSettings(group=1, prompts=2, shards=2)
    with pytest.raises(ValueError, match="shards is 3"):
        TrainSettings(prompts=16, shards=3)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        TrainSettings(learning_rate=0)
    with pytest.raises(ValueError, match="prompts is empty"):
        replace(data, prompts=[])
    with pytest.raises(ValueError, match="temperature"):
        replace(data, sampling=SamplingSettings(8, temperature=0.7))
    with pytest.raises(ValueError, match="draw more"):
        train(language_model, BonSft(65), data, SHORT, tmp_path / "a", show=False)
    with pytest.raises(ValueError, match="cdf is None"):
        train(language_model, Vbon(4), replace(data, cdf=None), SHORT, tmp_path / "b", show=False)
    with pytest.raises(ValueError, match="draws has other prompts"):
        replace(data, prompts=PROMPTS[::-1])
    with pytest.raises(ValueError, match="rewards has 2 rows for 4 prompts"):
        replace(data, rewards=data.rewards[:2])
    with pytest.raises(ValueError, match="prompts has 1 repeated"):
        SampledCdf(["a", "a"], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="epochs is 0"):
        Ppo(epochs=0)
    with pytest.raises(ValueError, match="precision is 'fp99'"):
        TrainSettings(precision="fp99")
    with pytest.raises(ValueError, match="sft_weight is None"):
        Bonbon(4).loss(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="temperature 1"):
        TestSet(PROMPTS, data.rewards, SamplingSettings(8, top_p=0.9))
    with pytest.raises(ValueError, match="n is 0"):
        Vbon(0)
    with pytest.raises(ValueError, match="beta is 0"):
        KlRl(0)
    with pytest.raises(ValueError, match="has no samples"):
        SampledCdf(PROMPTS, data.rewards).log_weak(["unknown"], ["x"], np.zeros(1))


def test_dpo_pairs_are_ordered_different_and_without_ties():
    rewards = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0] * 7])
    prompts, pairs = Dpo(0.1).examples(rewards, seed=0)
    assert len(pairs) == 12
    assert not prompts.any()
    assert len({tuple(sorted(pair)) for pair in pairs}) == 12
    assert (rewards[prompts, pairs[:, 0]] > rewards[prompts, pairs[:, 1]]).all()


def test_bonbon_learns_from_best_and_worst_of_the_same_draws():
    rewards = np.array([[3.0, 1.0, 2.0, 5.0, 9.0, 7.0]])
    prompts, pairs = Bonbon(3).examples(rewards, seed=0)
    assert pairs.tolist() == [[0, 1], [4, 3]]
    assert prompts.tolist() == [0, 0]


def test_every_method_has_an_entry():
    for name, entry in METHODS.items():
        method = entry.make(4 if entry.setting in ("n", "every") else 0.1)
        assert hasattr(method, "returns") == (entry.algorithm != "offline"), name


SCRIPT = """
import sys, json
from pathlib import Path
import torch
from accelerate.state import PartialState
sys.path[:0] = [{tests!r}, {tests!r} + "/training"]
from test_trainer import SHORT
from toy_training import PROMPTS, vowels
from dataclasses import replace
from bonlib.methods.jbond import JBond
from bonlib.methods.kl_rl import KlRl
from bonlib.training.settings import Ppo, TrainingData
from bonlib.training.trainer import train
from bonlib.models.loaded import load_language_model
from bonlib.draws.rewards import FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
torch.set_num_threads(1)
model = load_language_model({model!r}, device="cpu")
data = TrainingData(PROMPTS, FunctionReward(vowels, name="vowels"), SamplingSettings(8))
out = Path({out!r})
settings = replace(SHORT, shards=2)
result = {{}}
with_ppo = replace(settings, ppo=Ppo(epochs=2))
runs = {{"rloo": (KlRl(0.1), settings), "ppo": (KlRl(0.1), with_ppo), "jbond": (JBond(anchor_rate=0.2), settings)}}
for name, (method, changed) in runs.items():
    trained = train(model, method, data, changed, out / name, show=False)
    result["processes"] = PartialState().num_processes
    flat = torch.cat([p.detach().flatten() for p in trained.policy.model.parameters()])
    result[name] = [trained.curve[-1][k] for k in ("reward", "kl", "loss")] + [float(flat.double().norm())]
if PartialState().is_main_process:
    (out / "result.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_two_processes_come_to_the_same_result_as_one(language_model_folder, tmp_path):
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        script = out / "script.py"
        names = {"tests": str(Path(__file__).parents[1]), "model": str(language_model_folder), "out": str(out)}
        script.write_text(SCRIPT.format(**names))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
        # On CPUs, too, only this option starts more processes than one.
        launch += ["--multi_gpu"] if processes > 1 else ["--cpu"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", str(processes), str(script)]
        done = subprocess.run(launch, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((out / "result.json").read_text()))
        assert results[-1].pop("processes") == processes
    for name in ("rloo", "ppo", "jbond"):
        assert np.allclose(results[0][name], results[1][name], rtol=1e-4, atol=1e-5), (name, results)
