"""Scores for records: each different response to a prompt is scored once, and the store keeps what it cost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np

from bonlib.draws.rewards import RewardModel
from bonlib.draws.segments import replace_file
from bonlib.draws.store import Draws, SampleStore
from bonlib.models.responses import Responses
from bonlib.records.records import Records

TAKEN = ("prompt", "response", "log_prob", "length", "answer", "correct")  # by other columns of a table of records


def scored(records: Records, reward_model: RewardModel, store: SampleStore, *, name: str = "reward") -> Records:
    """Return records with one more score.

    It becomes the reward, unless there is one already: then it is the second score, or the last.

    Args:
        records: R responses.
        reward_model: of texts; one that looks at tokens finds none.
        store: which is asked first, and keeps the rewards.
        name: of the score, another than those that are there.

    Raises:
        ValueError: if the name is taken, or the reward model returns something other than a finite number.
    """
    if name in records.scores or name in TAKEN:
        raise ValueError(
            f"name is {name!r}, which is a column of {records.source or 'the records'} already: give another"
        )
    prompts = [str(prompt) for prompt in records.prompts]
    about = {"model": "records", "sampler": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()}
    folder = store.root / "draws" / f"records-{about['sampler'][:32]}"
    if (file := folder / "about.json").exists():
        file.touch()  # by which it is known when it was last used
    else:
        replace_file(file, json.dumps({**about, "settings": {}, "seed": 0}, indent=1).encode())
    rewards = np.empty(len(records))
    for which, rows in records.blocks():
        unknown = np.full(rows.shape[1], np.nan)
        responses = tuple(
            Responses(records.responses[row], np.full((len(row), 1), -1, np.int32), unknown, unknown) for row in rows
        )
        draws = Draws(tuple(prompts[place] for place in which), responses, folder)
        rewards[rows] = store.score(reward_model, draws)
    return replace(records, scores={**records.scores, name: rewards}, taken={**records.taken, name: "scored"})
