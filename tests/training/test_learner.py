"""What learners share: rounds of things in random order, and prompts as tokens."""

from hypothesis import given
from hypothesis import strategies as st

from bonlib.training.learner import PromptTokens, Rounds


@given(st.integers(1, 7), st.integers(0, 99))
def test_each_round_has_everything_once_whatever_is_asked_first(count, seed):
    rounds = Rounds(count, seed)
    row = rounds.at(0, 3 * count)
    for start in range(0, 3 * count, count):
        assert sorted(row[start : start + count]) == list(range(count))
    assert Rounds(count, seed).at(2 * count, count) == row[2 * count :]  # as after a resume
    assert rounds.at(1, 2 * count) == row[1 : 1 + 2 * count]


def test_the_rounds_of_a_seed_and_those_of_another_differ():
    assert Rounds(50, 0).at(0, 50) != Rounds(50, 1).at(0, 50) != Rounds(50, 1).at(50, 50)


def test_a_batch_has_each_prompt_before_its_response_and_no_padding_in_the_mask(language_model, training_data):
    tokens = PromptTokens(language_model, training_data)
    prompts = training_data.prompts[:2]
    batch = tokens.batch(prompts, [[5, 6, -1], [7, -1, -1]])
    assert [row[mask.bool()].tolist() for row, mask in zip(batch.responses, batch.response_mask, strict=True)] == [
        [5, 6],
        [7],
    ]
    assert [tokens.ids[prompt] for prompt in prompts] == language_model.encode(prompts, 8)
