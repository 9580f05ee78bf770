"""What the notebooks on movie reviews work with, put together from a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bonlib.course.making.pretrain import log_odds
from bonlib.course.making.reviews import resolve_reviews, review_prompts
from bonlib.course.profiles import Profile
from bonlib.draws.rewards import ClassifierReward, CutPenalty, SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.kernels import has_bfloat16
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model, pick_device


@dataclass(frozen=True, eq=False)
class Setting:
    """Reference policy, reward model and test prompts, at the size of a profile.

    Attributes:
        reference: the language model.
        sampler: draws from it.
        reward_model: what policies are trained on.
        prompts: that policies are not trained on.
        source: where the prompts come from, with the commit if it is the hub.
        sampling: length and temperature of the draws.
    """

    reference: LoadedModel
    sampler: TransformersSampler
    reward_model: SentimentReward | CutPenalty
    prompts: list[str]
    source: str
    sampling: SamplingSettings

    def __str__(self) -> str:
        length = self.sampling.max_new_tokens
        lines = [f"{len(self.prompts)} prompts from {self.source}, responses of at most {length} tokens"]
        for role, loaded in (("reference", self.reference), ("reward model", self.reward_model.loaded)):
            commit = f"hub commit {loaded.commit}, " if loaded.commit else ""
            version = f"{commit}weights {loaded.fingerprint[:12]}"
            size = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
            dtype = str(loaded.model.dtype).removeprefix("torch.")
            lines.append(f"{role}: {loaded.name}, {size:.1f} M parameters, {version}, {loaded.device.type}, {dtype}")
        return "\n".join(lines)


def instruct_sampler(profile: Profile) -> TransformersSampler:
    """Load the instruct model of a profile, in bfloat16 where the machine computes in it."""
    device = pick_device(profile.device)
    dtype = "bfloat16" if profile.dtype == "auto" and has_bfloat16(device) else profile.dtype
    loaded = load_language_model(
        profile.instruct_model, revision=profile.instruct_model_revision, device=device, dtype=dtype
    )
    return TransformersSampler(loaded, batch_size=profile.instruct.batch_size)


def review_judge(profile: Profile) -> ClassifierReward:
    """Load the judge of movie reviews that no policy is trained on, gold: log-odds that a review is positive."""
    return log_odds(load_classifier(profile.review_judge, device=profile.device, dtype="float32"))


def imdb_setting(profile: Profile, prompts: int | Sequence[str] | None = None) -> Setting:
    """Load models and prompts of vBoN section 5, openings of held-out reviews; hub models at the profile's revision.

    Args:
        profile: names the models and data.
        prompts: how many, or which ones; as many as the notebooks on movie reviews evaluate on if None. Fewer are the
            first of more.
    """
    reference = load_language_model(
        profile.language_model, revision=profile.language_model_revision, device=profile.device, dtype=profile.dtype
    )
    # A judge in bfloat16 rounds different rewards to equal ones: ties that the model does not have.
    judge = load_classifier(
        profile.reward_model, revision=profile.reward_model_revision, device=profile.device, dtype="float32"
    )
    sizes, source = profile.imdb, "given"
    if prompts is None or isinstance(prompts, int):
        commit = resolve_reviews(profile.reviews, profile.reviews_revision)
        source = profile.reviews + (f"@{commit}" if commit else "")
        prompts = review_prompts(
            reference.tokenizer,
            prompts or sizes.test_prompts,
            seed=profile.seed,
            lengths=sizes.prompt_tokens,
            source=profile.reviews,
            revision=commit,
        )
    return Setting(
        reference=reference,
        sampler=TransformersSampler(reference, batch_size=sizes.batch_size),
        reward_model=SentimentReward(judge),
        prompts=list(prompts),
        source=source,
        sampling=SamplingSettings(sizes.max_new_tokens),
    )
