"""The setting of notebook 05 with models and data from anywhere."""

import numpy as np


def test_the_paper_profile_runs_on_local_models_and_data(papers_folders, tmp_path, monkeypatch):
    """The whole chain of notebook 05 at the paper profile: hub-like data set, models, prompts, draws, rewards."""
    import dataclasses

    import pandas as pd

    from bonlib.course.experiments.setting import imdb_setting
    from bonlib.course.profiles import get_profile
    from bonlib.draws.store import SampleStore

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    texts = [
        f"{word} film number {i}<br /><br />was seen" for i, word in enumerate(["the", "a bad", "my", "nobody"] * 5)
    ]
    data = tmp_path / "imdb"
    data.mkdir()
    for split in ("train", "test"):
        pd.DataFrame({"text": texts, "label": [0, 1] * 10}).to_csv(data / f"{split}.csv", index=False)
    paper = get_profile("paper")
    small = dataclasses.replace(
        paper,
        language_model=str(papers_folders[0]),
        reward_model=str(papers_folders[1]),
        reviews=str(data),
        device="cpu",
        imdb=dataclasses.replace(paper.imdb, test_prompts=4, draws=4, batch_size=4, max_new_tokens=8),
    )
    setting = imdb_setting(small)
    assert len(setting.prompts) == 4
    store = SampleStore(tmp_path / "store")
    draws = store.draw(setting.sampler, setting.prompts, 4, setting.sampling, seed=0)
    rewards = store.score(setting.reward_model, draws)
    assert rewards.shape == (4, 4)
    assert np.isfinite(rewards).all()
