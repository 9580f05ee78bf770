"""The requests of notebook 11 to an instruct model."""

from __future__ import annotations

from bonlib.models.loaded import LoadedModel
from bonlib.models.texts import chat_prompt

# Beirami et al., appendix C: four requests of the Alpaca data set, and four to translate. The last two are the paper's
# own abstract, whose symbols the copy at hand had lost.
REQUESTS = {
    "P1": "Transform the following sentence into a yes/no question. It is going to rain tomorrow.",
    "P2": "Describe the function of a computer motherboard.",
    "P3": "What is the capital of France?",
    "P4": "Give three tips for staying healthy.",
}
ABSTRACT = (
    "A simple and effective method for the inference-time alignment and scaling test-time compute of generative models "
    "is the best-of-n policy, where n samples are drawn from a reference policy, ranked based on a reward function, "
    "and the highest ranking one is selected. A commonly used analytical expression in the literature claims that the "
    "KL divergence between the best-of-n policy and the reference policy is equal to log(n) - (n-1)/n. We disprove the "
    "validity of this claim, and show that it is an upper bound on the actual KL divergence. We also explore the "
    "tightness of this upper bound in different regimes, and propose a new estimator for the KL divergence and "
    "empirically show that it provides a tight approximation. We also show that the win rate of the best-of-n policy "
    "against the reference policy is upper bounded by n/(n+1) and derive bounds on the tightness of this "
    "characterization. We conclude with analyzing the tradeoffs between win rate and KL divergence of the best-of-n "
    "alignment policy, which demonstrate that very good tradeoffs are achievable with n < 1000."
)
TRANSLATIONS = {
    f"{size}, {language}": f"Translate the next sentences to {language}. {text}"
    for size, text in (("short", "I want to buy bread."), ("long", ABSTRACT))
    for language in ("German", "French")
}


def asked(loaded: LoadedModel) -> dict[str, str]:
    """Return the eight requests in an instruct model's chat template, by their labels."""
    return {label: chat_prompt(loaded.tokenizer, text) for label, text in (REQUESTS | TRANSLATIONS).items()}
