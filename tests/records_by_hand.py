"""Records as a reader would make them, written down here."""

import numpy as np
import pandas as pd

from bonlib.records.records import Records


def records(rewards, responses=None, prompts=None, **fields):
    """Records of one list of rewards a prompt, each response another one of its own length if none are given."""
    counts = [len(mine) for mine in rewards]
    prompt = np.repeat(np.arange(len(rewards)), counts)
    if responses is None:
        responses = [[f"response {draw} {'a' * (7 * draw % 5)}" for draw in range(count)] for count in counts]
    texts = np.array([text for mine in responses for text in mine], dtype=object)
    scores = {"reward": np.concatenate([np.array(mine, dtype=float) for mine in rewards])}
    named = {
        name: np.concatenate([np.array(mine) for mine in values])
        for name, values in fields.items()
        if name in ("log_probs", "correct", "rows", "gold")
    }
    if "gold" in named:
        scores["gold"] = named.pop("gold").astype(float)
    if "answers" in fields:
        named["answers"] = np.array([answer for mine in fields["answers"] for answer in mine], dtype=object)
    return Records(
        prompts=np.array(prompts or [f"prompt {place}" for place in range(len(rewards))], dtype=object),
        prompt=prompt,
        responses=texts,
        scores=fields.get("scores", scores),
        lengths=np.array([len(text) for text in texts], dtype=np.intp),
        bad=fields.get("bad", pd.DataFrame({"place": [], "reason": [], "row": []})),
        source=fields.get("source", "file.jsonl"),
        taken=fields.get("taken", {}),
        **{"rows": np.arange(1, len(prompt) + 1), **named},
    )
