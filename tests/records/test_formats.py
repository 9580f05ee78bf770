"""Formats as others write them. Where a row is an excerpt, its repository is named; texts are shortened."""

import json

import numpy as np
import pytest

from bonlib.records.columns import USUAL
from bonlib.records.formats import FORMATS
from bonlib.records.reading import read


def taken(tmp_path, rows, name="rows.jsonl", **named):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if name.endswith("l") else json.dumps(rows))
    records = read(path, **named)
    return records, records.taken["format"]


def harness(doc_id, responses, **entries):
    """A row as EleutherAI/lm-evaluation-harness 0.4 writes it: lm_eval/evaluator.py, and the loggers' arguments."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"question {doc_id}", "answer": "#### 18"},
        "target": "#### 18",
        "arguments": {"gen_args_0": {"arg_0": f"Question: {doc_id}\nAnswer:", "arg_1": {"until": ["Question:"]}}},
        "resps": [responses],
        "filtered_resps": ["18"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "986c",
        "exact_match": 0.0,
        **entries,
    }


def test_the_harness_excerpt(tmp_path):
    # containers/olot (Apache-2.0), tests/data/lmeh/samples_gsm8k_2025-04-30T18-24-41.082644.jsonl; prompts cut.
    rows = [
        {
            "doc_id": 0,
            "doc": {"question": "Janet’s ducks lay 16 eggs per day.", "answer": "She makes 9 * 2 = 18.\n#### 18"},
            "target": "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer’s market.\n#### 18",
            "arguments": {
                "gen_args_0": {
                    "arg_0": "Question: Janet’s ducks lay 16 eggs per day.\nAnswer:",
                    "arg_1": {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0},
                }
            },
            "resps": [["Warequrng chi edizaghi iecua bre eaind tesigiouc! Meso ike saim andudofak tineriet"]],
            "filtered_resps": ["[invalid]"],
            "filter": "strict-match",
            "metrics": ["exact_match"],
            "doc_hash": "986c19252f3c7f6eaeff2229e9a5777f96a85c0ceea931a92d2289084dfd518c",
            "prompt_hash": "32680f263ba83280e98a8a24ceefed10a722a4cdcd9f4d78e93c45d43143ca66",
            "target_hash": "623a0fbdf774fcb55e485a3e6b012e6c3965616af5b8eb9b9aebd2f6712be2eb",
            "exact_match": 0.0,
        }
    ]
    records, name = taken(tmp_path, rows)
    assert name == "lm-eval"
    assert records.prompts.tolist() == ["Question: Janet’s ducks lay 16 eggs per day.\nAnswer:"]
    assert records.responses[0].startswith("Warequrng")
    assert (records.reward.tolist(), records.correct.tolist(), records.answers) == ([0], [False], None)


def test_the_harness_runs_are_draws_and_of_several_filters_one_is_read(tmp_path):
    runs = []
    for run in range(3):
        path = tmp_path / f"samples_{run}.jsonl"
        rows = []
        for name, right in (("strict-match", run == 1), ("flexible-extract", run > 0)):
            rows += [harness(doc, [f"r{run}"], filter=name, exact_match=float(right)) for doc in range(2)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(path)
    records = read(runs)
    assert records.prompts.tolist() == ["Question: 0\nAnswer:", "Question: 1\nAnswer:"]
    assert records.responses.tolist() == ["r0", "r1", "r2"] * 2
    assert records.reward.tolist() == [0, 1, 0] * 2
    assert records.taken["filter"] == ("strict-match; flexible-extract judges the same responses, and is passed over")
    assert read(runs, reward="exact_match,flexible-extract").reward.tolist() == [0, 1, 1] * 2
    with pytest.raises(ValueError, match="has no metric 'acc'; it has 'exact_match'"):
        read(runs, reward="acc")


def test_the_harness_repeats_are_draws_whose_metric_is_often_one_for_all(tmp_path):
    together = [harness(doc, ["a", "b"], filtered_resps=[["18", "[invalid]"]]) for doc in range(2)]
    records, _ = taken(tmp_path, together)
    assert records.responses.tolist() == ["a", "b"] * 2
    assert records.answers.tolist() == ["18", None] * 2
    assert records.scores == {}
    assert records.taken["reward"] == "none: exact_match is one number for all repeats"
    with pytest.raises(ValueError, match=r"has no score \(none: exact_match is one number for all repeats\): score it"):
        records.reward  # noqa: B018
    each, _ = taken(tmp_path, [harness(0, ["a", "b"], exact_match=[1, 0])])
    assert each.correct.tolist() == [True, False]


def test_the_harness_with_a_chat_template_and_older_arguments(tmp_path):
    asked = [{"role": "user", "content": "hi"}]
    rows = [
        harness(0, ["ho"], arguments={"gen_args_0": {"arg_0": [json.dumps(asked)]}}),
        harness(1, ["hm"], arguments=[["Question: hm", {"until": []}]], f1=0.5, metrics=["f1"]),
    ]
    records, _ = taken(tmp_path, rows[:1])
    assert records.messages == [asked]
    assert records.prompts.tolist() == ["hi"]
    records, _ = taken(tmp_path, rows[1:])
    assert (records.prompts.tolist(), records.reward.tolist(), records.correct) == (["Question: hm"], [0.5], None)


def test_the_harness_on_given_choices_has_no_responses(tmp_path):
    row = harness(0, []) | {"resps": [[["-1.5", "False"]], [["-2.5", "False"]]], "filtered_resps": [["-1.5", "False"]]}
    with pytest.raises(ValueError, match="line 1 holds likelihoods of given choices, and no response"):
        taken(tmp_path, [row])


SKY = {"role": "user", "content": "What color is the sky?"}
BLUE, GREEN = {"role": "assistant", "content": "It is blue."}, {"role": "assistant", "content": "It is green."}


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        # The rows of huggingface/trl (Apache-2.0), docs/source/dataset_formats.md.
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is", [" blue.", " green."]),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", [" blue.", " green."]),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}, SKY["content"], ["It is blue.", "It is green."]),
        ({"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, SKY["content"], ["It is blue.", "It is green."]),
        # As HuggingFaceH4/ultrafeedback_binarized has it: the prompt twice.
        (
            {
                "prompt": "What color?",
                "prompt_id": "1",
                "chosen": [SKY, BLUE],
                "rejected": [SKY, GREEN],
                "messages": [],
            },
            SKY["content"],
            ["It is blue.", "It is green."],
        ),
        # As Anthropic/hh-rlhf has it: both responses begin alike.
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: hell"},
            "\n\nHuman: hi\n\nAssistant:",
            [" hello", " hell"],
        ),
    ],
)
def test_preferences_with_a_prompt_or_without(tmp_path, row, prompt, responses):
    records, name = taken(tmp_path, [row])
    assert name == "preference"
    assert records.prompts.tolist() == [prompt]
    assert records.responses.tolist() == responses
    assert list(records.scores) == ["preferred"]
    assert records.reward.tolist() == [1, 0]


def test_preferences_with_scores(tmp_path):
    # OpenRLHF/OpenRLHF (Apache-2.0), openrlhf/datasets/reward_dataset.py reads these columns; margin is not needed.
    rows = [
        {"input": "q", "chosen": "a", "rejected": "b", "chosen_score": 8.5, "rejected_score": "3", "margin": 5.5},
        {"input": "q", "chosen": "a", "rejected": "c", "chosen_score": 8.5, "rejected_score": None},
    ]
    records, _ = taken(tmp_path, rows)
    assert records.responses.tolist() == ["a", "b", "a"]
    assert records.reward.tolist() == [8.5, 3, 8.5]
    assert "has no score" in records.bad.reason[0]
    rows = [{"chosen": [SKY, BLUE], "rejected": [{**SKY, "content": "What?"}, GREEN]}, {"chosen": "x", "rejected": "y"}]
    with pytest.raises(ValueError, match="differ before the last message"):
        taken(tmp_path, rows)


def test_prompt_completion_data(tmp_path):
    # huggingface/trl, docs/source/dataset_formats.md: prompt–completion and unpaired preference.
    records, name = taken(tmp_path, [{"prompt": [SKY], "completion": [BLUE], "label": True}])
    assert (name, records.responses.tolist(), records.correct.tolist()) == ("plain", ["It is blue."], [True])
    rows = [{"prompt": "The sky is", "completions": [" blue.", " green."], "rewards": [1.0, 0.5]}]
    assert taken(tmp_path, rows)[0].reward.tolist() == [1, 0.5]
    # OpenRLHF/OpenRLHF, openrlhf/cli/batch_inference.py writes these.
    records, _ = taken(tmp_path, [{"input": "q", "output": "a", "reward": 0.25}])
    assert (records.prompts.tolist(), records.responses.tolist(), records.reward.tolist()) == (["q"], ["a"], [0.25])


def test_conversations_whose_last_message_is_the_response(tmp_path):
    records, name = taken(tmp_path, [{"messages": [SKY, BLUE], "score": 3}, {"messages": [SKY], "score": 2}])
    assert name == "messages"
    assert (records.messages, records.responses.tolist(), records.reward.tolist()) == ([[SKY]], ["It is blue."], [3])
    assert "must be a list of at least two" in records.bad.reason[0]


def test_ultrafeedback(tmp_path):
    # OpenBMB/UltraFeedback (MIT), README.md, its example row, texts cut; the data set has the scores besides.
    def rated(*ratings):
        names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
        return {name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(names, ratings, strict=True)}

    row = {
        "source": "sharegpt",
        "instruction": "I am going to cairo in June of this year",
        "models": ["falcon-40b-instruct", "gpt-4"],
        "correct_answers": ["None"],
        "completions": [
            {
                "model": "falcon-40b-instruct",
                "principle": "helpfulness",
                "response": "Cairo is a city that has something for everyone.",
                "annotations": rated("2", "3", "3", "3"),
            },
            {"model": "gpt-4", "response": "In Cairo for 4-5 days, …", "annotations": rated("5", "N/A", "5", "4")},
        ],
    }
    records, name = taken(tmp_path, [row])
    assert name == "ultrafeedback"
    assert records.prompts.tolist() == [row["instruction"]]
    assert records.reward.tolist() == pytest.approx([2.75, 14 / 3])
    for completion, score in zip(row["completions"], (6.5, None), strict=True):
        completion |= {"overall_score": score, "fine-grained_score": 3.0}
    records, _ = taken(tmp_path, [row])
    assert (list(records.scores), records.reward.tolist()) == (["overall_score"], [6.5])
    assert "has no overall_score" in records.bad.reason[0]
    assert taken(tmp_path, [row], reward="fine-grained_score")[0].reward.tolist() == [3, 3]
    with pytest.raises(ValueError, match="has no score 'foo'; its completions have 'model', "):
        taken(tmp_path, [row], reward="foo")


def test_results_of_human_eval(tmp_path):
    # openai/human-eval (MIT): data/example_samples.jsonl, with the columns that human_eval/evaluation.py adds.
    said = [("return input('enter a number')", "failed: "), ("time.sleep(10)", "timed out"), ("return 1", "passed")]
    rows = [{"task_id": "test/0", "completion": f"    {code}", "result": result} for code, result in said]
    whole = [{**row, "passed": row["result"] == "passed"} for row in rows]
    for some, column in ((rows, "result"), (whole, "passed")):
        records, name = taken(tmp_path, some)
        assert (name, records.prompts.tolist()) == ("human-eval", ["test/0"])
        assert records.correct.tolist() == [False, False, True]
        assert (list(records.scores), records.reward.tolist()) == ([column], [0, 0, 1])


def test_outputs_of_alpaca_eval(tmp_path):
    # tatsu-lab/alpaca_eval (Apache-2.0), example/outputs.json.
    rows = [
        {
            "instruction": "What breed dog is smallest?",
            "output": "The Chihuahua breed is considered the smallest dog breed.",
            "generator": "example",
            "dataset": "helpful_base",
            "datasplit": "eval",
        },
        {
            "instruction": "How did US states get their names?",
            "output": "US states got their names from a variety of sources",
            "generator": "example",
            "dataset": "helpful_base",
            "datasplit": "eval",
        },
    ]
    records, name = taken(tmp_path, rows, "outputs.json")
    assert name == "plain"
    assert records.prompts.tolist() == [row["instruction"] for row in rows]
    assert records.responses.tolist() == [row["output"] for row in rows]
    assert records.scores == {}


def test_samples_of_alpaca_farm(tmp_path):
    # tatsu-lab/alpaca_farm (Apache-2.0), examples/data/multisamples_sft.json, texts cut: inputs of one instruction.
    rows = [
        {"instruction": "Describe a time.", "input": "", "output": ["I had to make", "I had to take", "I was"]},
        {"instruction": "Rewrite the sentence.", "input": "If you have any questions", "output": ["If you have"]},
        {"instruction": "Rewrite the sentence.", "input": "Another", "output": ["One"]},
    ]
    records, name = taken(tmp_path, rows, "multisamples_sft.json")
    assert name == "plain"
    assert records.counts.tolist() == [3, 1, 1]
    assert records.prompts[1] == "Rewrite the sentence.\n\nIf you have any questions"
    assert records.taken["prompt"] == "instruction, input"


TEMPLATES = {
    "lm-eval": harness(0, ["a"]),
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 2, "score_rejected": 1},
    "ultrafeedback": {"instruction": "a", "completions": [{"response": "b", "overall_score": 1, "annotations": {}}]},
    "human-eval": {"task_id": "a", "completion": "b", "result": "passed"},
    "messages": {"messages": [SKY, BLUE], "score": 1},
    "plain": {
        "prompt": "a",
        "response": "b",
        "reward": 1,
        "log_prob": -1,
        "is_correct": True,
        "pred": "c",
        "length": 1,
    },
    "wide": {
        "prompt": "a",
        "responses": ["b", "c"],
        "rewards": [1, 2],
        "is_correct": [True, False],
        "log_probs": [-1, -2],
    },
}
ODD = [None, 3, "x", [], [None, None], {"a": 1}, [[]], [{"role": 1}], [["x"]], True, [SKY], float("inf")]


def outcome(tmp_path, rows, **named):
    """What is read of rows, or why nothing is."""
    try:
        return taken(tmp_path, rows, **named)[0]
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_whatever_stands_in_a_row_it_is_read_or_said_to_be_bad(tmp_path, name):
    row = TEMPLATES[name]
    for column in row:
        for value in ODD:
            odd = {**row, column: value}
            found = [outcome(tmp_path, rows) for rows in ([row, odd], [odd])]
            found.append(outcome(tmp_path, [odd], format=name if name in FORMATS else "plain"))
            for said in found:
                if isinstance(said, str):
                    assert "rows.jsonl" in said
                    assert "\n" not in said
                else:
                    assert len(said) > 0
                    assert all(np.isfinite(score).all() for score in said.scores.values())


def test_a_format_can_be_named_and_each_says_whose_it_is(tmp_path):
    row = {"chosen": "a", "rejected": "b", "prompt": "c", "response": "d", "score": 2}
    assert taken(tmp_path, [row])[1] == "preference"
    records, name = taken(tmp_path, [row], format="plain")
    assert (name, records.responses.tolist(), records.reward.tolist()) == ("plain", ["d"], [2])
    assert taken(tmp_path, [row], response="chosen")[0].responses.tolist() == ["a"]
    assert list(FORMATS)[-1] == "plain", "which takes whatever the others do not"
    assert set(FORMATS["plain"].takes) == set(USUAL)
