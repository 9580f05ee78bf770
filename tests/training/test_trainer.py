"""The training loop on small random models: the same numbers after an interruption and on two processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import PROMPTS, SHORT, weights_of

from bonlib.draws.samplers import TransformersSampler
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
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import Ppo
from bonlib.training.trainer import DivergedError, train

pytestmark = pytest.mark.usefixtures("one_accelerator")


ALL = [
    (KlRl(0.1), SHORT),
    (KlRl(0.1), replace(SHORT, ppo=Ppo(epochs=2))),
    (Vbon(4), SHORT),
    (VbonBound(4), SHORT),
    (BonSft(4), SHORT),
    (Bonbon(4), SHORT),
    (Dpo(0.1), SHORT),
    # At β = 0.5 IPO wants so small a step that whether it shows depends on the draws; at 0.05 it always does.
    (Dpo(0.05, generations=24, pairs=200, identity=True), SHORT),
    (Bond(4), SHORT),
    (iterative_bond(10), SHORT),
    (JBond(anchor_rate=0.1), replace(SHORT, group=2)),
]


@pytest.mark.parametrize(("method", "settings"), ALL, ids=lambda x: str(x)[:24])
def test_every_method_improves_the_reward_and_is_saved_for_transformers(
    method, settings, language_model, training_data, tmp_path
):
    longer = replace(settings, steps=30, measure_every=15, checkpoint_every=100)

    def measure(policy):
        drawn = TransformersSampler(policy).sample(PROMPTS * 64, training_data.sampling, seed=1)
        return {"measured": float(training_data.reward_model.score(PROMPTS * 64, drawn.texts.tolist()).mean())}

    trained = train(language_model, method, training_data, longer, tmp_path / "run", measure=measure, show=False)
    before = measure(language_model)["measured"]
    assert trained.curve[-1]["measured"] > before + 0.02
    assert [row["step"] for row in trained.curve] == [15, 30]
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy", use_safetensors=True)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(again(ids).logits, trained.policy.model(ids).logits, atol=1e-5)
    assert not (tmp_path / "run" / "checkpoints").exists()
    loaded = train(language_model, method, training_data, longer, tmp_path / "run", measure=measure, show=False)
    assert loaded.curve == trained.curve  # finished: nothing is trained again


EASED = (VbonBound(4), replace(SHORT, easing=0.5, lora_rank=2))


@pytest.mark.parametrize(
    ("method", "settings"), [ALL[1], ALL[2], ALL[6], ALL[10], EASED], ids=["ppo", "vbon", "dpo", "jbond", "eased"]
)
def test_an_interrupted_run_comes_to_the_same_numbers(
    method, settings, language_model, training_data, tmp_path, monkeypatch
):
    whole = train(language_model, method, training_data, settings, tmp_path / "whole", show=False)
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
        train(language_model, method, training_data, settings, tmp_path / "halves", show=False)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "halves" / "checkpoints").iterdir()] == ["step-000003"]
    resumed = train(language_model, method, training_data, settings, tmp_path / "halves", show=False)
    assert torch.equal(weights_of(whole.policy), weights_of(resumed.policy))
    for a, b in zip(whole.curve, resumed.curve, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_the_reference_is_not_changed(language_model, training_data, tmp_path):
    before = language_model.fingerprint
    train(language_model, VbonBound(4), training_data, SHORT, tmp_path, show=False)
    assert language_model.fingerprint == before


def test_an_adapter_alone_is_trained_and_saved(language_model, training_data, tmp_path):
    settings = replace(SHORT, lora_rank=2, learning_rate=1e-2)
    trained = train(language_model, VbonBound(4), training_data, settings, tmp_path / "run", show=False)
    names = {path.name for path in (tmp_path / "run" / "policy").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    loaded = load_language_model(tmp_path / "run" / "policy", device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(loaded.model(ids).logits, trained.policy.model(ids).logits, atol=1e-5)
    assert not torch.allclose(loaded.model(ids).logits, language_model.model(ids).logits, atol=1e-3)
    resumed = train(language_model, VbonBound(4), training_data, settings, tmp_path / "run", show=False)
    assert resumed.curve == trained.curve


def test_a_diverging_run_stops_and_says_where(language_model, training_data, tmp_path):
    wild = replace(SHORT, learning_rate=50.0, checkpoint_every=1, max_kl=5.0)
    with pytest.raises(DivergedError, match=r"step \d of run: .*Batch: \[.*Likely cause: .*learning_rate.*step-0000"):
        train(language_model, KlRl(0.1), training_data, wild, tmp_path / "run", show=False)
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_return_that_is_not_finite_is_found_before_it_does_harm(language_model, training_data, tmp_path):
    class Broken(SampledCdf):
        def log_weak(self, prompts, responses, rewards):
            return np.where(np.arange(len(prompts)) == 3, -np.inf, super().log_weak(prompts, responses, rewards))

    broken = replace(training_data, cdf=Broken(PROMPTS, training_data.rewards))
    with pytest.raises(DivergedError, match="log F of a response is −inf"):
        train(language_model, VbonBound(4), broken, SHORT, tmp_path / "run", show=False)


SCRIPT = """
import sys, json
from pathlib import Path
import torch
from accelerate.state import PartialState
sys.path.insert(0, {tests!r})
from toy_training import PROMPTS, SHORT, vowels
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
