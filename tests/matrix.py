"""What the library does with a tiny model of each architecture, held against a double-precision pass over each text."""

import logging
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import zoo

from bonlib.draws.rewards import ClassifierReward, FunctionReward, checked_score
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.evaluate import TestSet, evaluate
from bonlib.models import ways
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model
from bonlib.models.reading import response_log_probs, response_logits, token_batch
from bonlib.training.policy import Policy, trainable

PROMPTS = ["the film was good and the end was sad", "a", "the film was good and the end was sad", "so bad"] * 2
RESPONSES = [" and", " but it was fine", " so", "", " the end", " and the film was so long", " a", " film"]
TOLERANCE = 1e-4  # relative to the plain pass


@dataclass
class Found:
    """What came out for one model.

    Attributes:
        name: in the zoo.
        verdict: "right", "refused", or what is wrong.
        left_out: the fast ways that it does without, by task.
    """

    name: str
    verdict: str = "right"
    left_out: dict[str, str] = field(default_factory=dict)

    def hold(self, what: str, got, want, rounding=0.0) -> None:
        """Note it if numbers are not those wanted, up to what rounding makes of them in a plain pass."""
        got, want = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
        off = (np.abs(got - want) - rounding) / np.maximum(np.abs(want), 1.0)
        if self.verdict == "right" and not (off <= TOLERANCE).all():
            self.verdict = f"wrong: {what} off by {off.max():.1e}"

    def note(self, model, *tasks: str) -> None:
        """Note the ways that are left out."""
        for task in tasks:
            kept = ways.proven(model, task, length=20)
            there = [way for way in ways.TASKS[task].ways if ways.TASKS[task].applies(model, way)]
            self.left_out[task] = ", ".join(way for way in there if way not in kept) or "–"


def examine(name: str, kind: str) -> Found:
    """Try everything with one model of the zoo; `kind` is "causal", "classifier" or "adapter"."""
    found = Found(name)
    logging.getLogger("bonlib").setLevel(logging.ERROR)  # it says what is left out; so does the table
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            {"causal": _causal, "classifier": _classifier, "adapter": _adapter}[kind](found, Path(folder))
        except ValueError as error:
            text = str(error)
            is_clear = "\n" not in text and "; " in text.replace(": ", "; ")
            found.verdict = f"refused: {text}" if is_clear else f"crash: {text}"
        except Exception as error:
            found.verdict = f"crash: {type(error).__name__}: {error}"
    return found


def _causal(found: Found, folder: Path) -> None:
    model = zoo.CAUSAL[found.name]()
    model.save_pretrained(folder / "base")
    zoo.tokenizer().save_pretrained(folder / "base")
    loaded = load_language_model(folder / "base", device="cpu", dtype="float32")
    _language_model(found, loaded, folder)


def _adapter(found: Found, folder: Path) -> None:
    base, kind = found.name.split(" ", 1)
    zoo.CAUSAL[base]().save_pretrained(folder / "base")
    zoo.tokenizer().save_pretrained(folder / "base")
    below = load_language_model(folder / "base", device="cpu", dtype="float32")
    zoo.ADAPTERS[kind](below.model).save_pretrained(folder / "adapter")
    loaded = load_language_model(folder / "adapter", device="cpu", dtype="float32")
    _language_model(found, loaded, folder)


def _language_model(found: Found, loaded: LoadedModel, folder: Path) -> None:
    drawn = TransformersSampler(loaded, batch_size=5).sample(PROMPTS, SamplingSettings(8), seed=0)
    prompts = [loaded.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    responses = [row[row >= 0].tolist() for row in drawn.token_ids]
    with torch.no_grad():
        exact = _plainly(zoo.in_double(loaded.model), prompts, responses).numpy()
        rounding = np.abs(_plainly(loaded.model, prompts, responses).numpy() - exact)
    found.hold("draws", drawn.log_probs, exact, rounding)
    found.hold("reading", response_log_probs(loaded, PROMPTS, drawn), exact, rounding)

    test = TestSet(["the film", "a"], np.zeros((2, 4)), SamplingSettings(6), responses=2)
    measured = evaluate(loaded, loaded, FunctionReward(lambda _, text: len(text), name="length"), test)
    found.hold("KL to itself", [measured.kl, measured.kl_k1, measured.kl_k3], 0.0)

    policy = Policy(trainable(loaded.model, 0)).eval()
    batch = token_batch(prompts, responses, pad_id=loaded.pad_token_id, device=loaded.device)
    learned = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    twin = zoo.in_double(policy.model).requires_grad_(True)  # now: some models keep what cannot be copied
    try:
        log_probs, _ = policy(batch)
    except ways.UnfitModelError:
        found.left_out["learning"] = "refused"
    else:
        found.hold("log-probabilities of a step", log_probs.detach().double().sum(1), exact, rounding)
        ours = _gradient(log_probs.sum(), learned)
        plain = _gradient(_plainly(policy.model, prompts, responses).sum(), learned)
        weights = {name: weight for name, weight in twin.named_parameters() if name in learned}
        want = _gradient(_plainly(twin, prompts, responses).sum(), weights)
        size = float(want.norm())
        found.hold("gradient", float((ours - want).norm()) / size, 0.0, float((plain - want).norm()) / size)
        found.note(policy.model, "learning")

    with torch.no_grad():
        for weight in learned.values():
            weight.mul_(1.01)  # and what is 0 stays so: of some models the padding token is
    policy.model.save_pretrained(folder / "policy")
    loaded.tokenizer.save_pretrained(folder / "policy")
    again = load_language_model(folder / "policy", device="cpu", dtype="float32")
    with torch.no_grad():
        here, there = (response_logits(each, batch).logits for each in (policy.model, again.model))
    found.hold("reloading", there, here)
    found.note(loaded.model, "drawing", "responses")


def _plainly(model, prompts, responses):
    """Log-probabilities of responses, text by text; gradients flow."""
    sums = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, -len(response) - 1 : -1].double()
        sums.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums)


def _gradient(total, weights):
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    flat = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), grads, strict=True)]
    return torch.cat([each.flatten().double() for each in flat])


def _classifier(found: Found, folder: Path) -> None:
    model = zoo.CLASSIFIERS[found.name]()
    model.save_pretrained(folder / "judge")
    zoo.tokenizer(closed=model.config.is_encoder_decoder).save_pretrained(folder / "judge")
    loaded = load_classifier(folder / "judge", device="cpu", dtype="float32")
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    reward = ClassifierReward(loaded, batch_size=5)
    got = checked_score(reward, PROMPTS, RESPONSES)
    want = np.array([float(zoo.plain_scores(loaded.model, ids)[0]) for ids in loaded.tokenizer(texts)["input_ids"]])
    spread = want.std() + 1e-3 * np.abs(want).max()  # what counts is the order of responses
    found.hold("rewards", got / spread, want / spread)
    found.hold("rewards of texts", reward.score_texts(texts) / spread, want / spread)
    loaded.model.save_pretrained(folder / "again")
    loaded.tokenizer.save_pretrained(folder / "again")
    again = ClassifierReward(load_classifier(folder / "again", device="cpu", dtype="float32"), batch_size=3)
    found.hold("reloading", again.score(PROMPTS, RESPONSES) / spread, want / spread)
    found.note(loaded.model, "judging")


def table(rows: list[Found], tasks: tuple[str, ...]) -> str:
    """Return what was found as a table in Markdown."""
    header = ["model", "verdict", *(f"{task} without" for task in tasks)]
    cells = [[row.name, row.verdict, *(row.left_out.get(task, "") for task in tasks)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *cells])
