"""Several actors fill one store: the same draws as one process makes, also if an actor is killed at work."""

import os
import pickle
import re
import signal
import sys
import types
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from small_server import serving
from test_store_under_fire import LENGTH, LetterSampler, content

from bonlib.draws import fleet
from bonlib.draws import store as store_module
from bonlib.draws.fleet import draw_everywhere
from bonlib.draws.rewards import SentimentReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.served import ServedSampler
from bonlib.draws.store import SampleStore
from bonlib.models.loaded import load_classifier, load_language_model

PROMPTS = ["the film", "a bad", "I saw", "nobody knows", "the end", "my mother"]
COUNT, BATCH = 10, 4
DRAWS = len(PROMPTS) * COUNT
SETTINGS = SamplingSettings(6)
# Ray leaves files and processes to the garbage collector when it shuts down.
ray_starts = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class MortalSampler(TransformersSampler):
    """Logs process, threads and seed of every draw; kills its process at the fourth batch, once."""

    def __init__(self, folder, log):
        super().__init__(load_language_model(folder, device="cpu"), batch_size=BATCH)
        self.log, self.calls = log, 0
        store_module.KEEP_SECONDS = 0.0

    def sample(self, prompts, settings, *, seed):
        self.calls += 1
        with self.log.open("a") as log:
            log.writelines(f"{os.getpid()} {torch.get_num_threads()} {each}\n" for each in seed)
        if self.calls == 4:
            with suppress(FileExistsError):
                os.close(os.open(self.log.with_suffix(".killed"), os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(prompts, settings, seed=seed)


class RefusingSampler(LetterSampler):
    def sample(self, prompts, settings, *, seed):
        super().sample(prompts, settings, seed=seed)
        raise ValueError("this sampler refuses to draw")


class OtherSampler(LetterSampler):
    fingerprint = "other letters"


def make_judge(folder):
    return SentimentReward(load_classifier(folder, device="cpu"))


def make_length():
    return LENGTH


@pytest.fixture(autouse=True)
def actors_find_the_tests(monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent))))


@pytest.mark.slow
@ray_starts
def test_two_actors_one_of_them_killed_fill_the_store_as_one_process_does(
    tmp_path, language_model_folder, classifier_folder
):
    import ray

    log, store, alone = tmp_path / "log", SampleStore(tmp_path / "store"), SampleStore(tmp_path / "alone")
    report = draw_everywhere(
        store,
        PROMPTS,
        COUNT,
        SETTINGS,
        seed=0,
        make_sampler=partial(MortalSampler, language_model_folder, log),
        make_reward=partial(make_judge, classifier_folder),
        prompts_at_once=2,
    )
    assert not ray.is_initialized()
    assert log.with_suffix(".killed").exists()
    sampler = TransformersSampler(load_language_model(language_model_folder, device="cpu"), batch_size=BATCH)
    draws = alone.draw(sampler, PROMPTS, COUNT, SETTINGS, seed=0)
    alone.score(make_judge(classifier_folder), draws)
    found, wanted = content(store.root), content(alone.root)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():  # the draws are the same; what they are drawn with rounds differently
        (*said, number), (*said_here, number_here) = (
            each if isinstance(each, tuple) else (each,) for each in (value, found[key])
        )
        assert said == said_here
        assert number == pytest.approx(number_here)
    assert {path.name for path in store.root.iterdir()} == {path.name for path in alone.root.iterdir()}
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == DRAWS + BATCH  # only the batch in flight was drawn again
    assert len({seed for *_, seed in lines}) == DRAWS
    assert {threads for _, threads, _ in lines} == {"1"}
    assert {process.split("/")[1] for process in report.seconds} <= {pid for pid, *_ in lines}
    assert (report.prompts, report.draws, report.drawn, report.lost) == (len(PROMPTS), DRAWS, DRAWS, 1)
    assert report.tokens == draws.lengths.sum()


@pytest.mark.slow
@ray_starts
def test_a_job_draws_only_what_is_missing_and_says_what_went_wrong(tmp_path, monkeypatch):
    """One test, since each start of Ray takes seconds; it also shows that a Ray which is there is used and kept."""
    import ray

    log, store, alone = tmp_path / "log", SampleStore(tmp_path / "store"), SampleStore(tmp_path / "alone")

    def run(kind, **sizes):
        make_sampler = partial(kind, log)
        models = {"make_sampler": make_sampler, "make_reward": make_length}
        return draw_everywhere(store, PROMPTS, COUNT, SETTINGS, seed=0, actors=1, **models, **sizes)

    draws = alone.draw(LetterSampler(tmp_path / "other log"), PROMPTS, COUNT, SETTINGS, seed=0)
    alone.score(LENGTH, draws)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match=r"^this sampler refuses to draw\n") as caught:
            run(RefusingSampler)
        assert "test_fleet.py" in caught.value.__notes__[0]  # where in the actor it was raised
        assert len(log.read_text().splitlines()) == BATCH  # it is not tried again
        assert content(store.root) == {}

        few = store.draw(LetterSampler(tmp_path / "other log"), PROMPTS[2:], 7, SETTINGS, seed=0)
        store.score(LENGTH, few)
        log.unlink()
        report = run(LetterSampler, prompts_at_once=4)
        assert content(store.root) == content(alone.root)
        assert len(log.read_text().splitlines()) == DRAWS - few.texts.size
        assert (report.prompts, report.draws, report.drawn) == (len(PROMPTS), DRAWS, DRAWS - few.texts.size)
        assert 0 < report.tokens < draws.lengths.sum()

        lost = types.ModuleType("not_on_the_other_machine")
        exec("def make(): pass", lost.__dict__)
        monkeypatch.setitem(sys.modules, lost.__name__, lost)
        with pytest.raises(ModuleNotFoundError, match="not_on_the_other_machine"):
            draw_everywhere(store, PROMPTS, 1, SETTINGS, seed=1, make_sampler=lost.make, cpus_per_actor=0.5)
        makers, sizes = [partial(LetterSampler, log), partial(OtherSampler, log)], {"prompts_at_once": 3}
        with pytest.raises(ValueError, match="different fingerprints"):
            draw_everywhere(store, PROMPTS, 1, SETTINGS, seed=1, make_sampler=makers, cpus_per_actor=0.5, **sizes)

        with serving() as one, serving() as other:
            engines = [partial(ServedSampler, server.url, kind="vllm") for server in (one, other)]
            places = {"make_sampler": engines, "cpus_per_actor": 0.5, "prompts_at_once": 1}
            report = draw_everywhere(SampleStore(tmp_path / "served"), PROMPTS, 4, SETTINGS, seed=0, **places)
            asked = [(body["prompt"], body["seed"]) for server in (one, other) for _, body in server.asked]
        assert len(asked) == len(set(asked)) == report.drawn == 4 * len(PROMPTS)
        assert one.asked
        assert other.asked
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def worker(tmp_path, make_sampler, journal="journal"):
    request = {"count": COUNT, "settings": SETTINGS, "seed": 0}
    return fleet._Worker(
        SampleStore(tmp_path), request, make_sampler, None, torch.get_num_threads(), tmp_path / journal
    )


def test_a_job_that_is_done_draws_nothing(tmp_path):
    log = tmp_path / "log"
    SampleStore(tmp_path).draw(LetterSampler(log), PROMPTS, COUNT, SETTINGS, seed=0)
    (tmp_path / "journal").mkdir()
    row = worker(tmp_path, partial(RefusingSampler, log)).work(0, PROMPTS)
    assert (row["error"], row["prompts"], row["draws"]) == (b"", len(PROMPTS), DRAWS)
    assert (row["drawn"], row["tokens"], row["lost"]) == (0, 0, 0)


def raised(row):
    assert row["prompts"] == 0
    return pickle.loads(row["error"])


def test_prompts_that_kill_every_actor_end_the_job(tmp_path, language_model):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "7").write_bytes(b"." * fleet.MAX_LOSSES)
    row = worker(tmp_path, partial(TransformersSampler, language_model)).work(7, PROMPTS[:2])
    assert (row["error"], row["lost"], row["drawn"]) == (b"", fleet.MAX_LOSSES, 2 * COUNT)
    error = raised(worker(tmp_path, partial(TransformersSampler, language_model)).work(7, PROMPTS[:2]))
    assert isinstance(error, RuntimeError)
    assert re.match(r"11 actors were lost at the 2 prompts from 'the film' on.*out of memory", str(error))


def test_an_actor_that_sees_another_folder_says_so(tmp_path):
    error = raised(worker(tmp_path, None, "elsewhere").work(0, PROMPTS))
    assert isinstance(error, FileNotFoundError)
    assert "a file system that all machines share" in str(error)


class WantsTwo(Exception):  # noqa: N818
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_any_exception_comes_home(tmp_path):
    def no_model(error):
        raise error

    (tmp_path / "journal").mkdir()
    for error, kind in ((FileNotFoundError("no such model"), FileNotFoundError), (WantsTwo("a", "b"), RuntimeError)):
        found = raised(worker(tmp_path, partial(no_model, error)).work(0, PROMPTS))
        assert type(found) is kind
        assert str(error) in str(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "the film"}, "prompts is 'the film'; it must be a list"),
        ({"prompts": ["a", "b", "a"]}, "prompts has 'a' 2 times"),
        ({"count": 0}, "count is 0; it must be a whole number of at least 1"),
        ({"make_sampler": []}, "make_sampler is an empty list"),
        ({"actors": 0}, "actors is 0; it must be at least 1"),
        ({"prompts_at_once": 0}, "prompts_at_once is 0"),
        ({"cpus_per_actor": -1}, "cpus_per_actor is -1; it must be at least 0"),
        ({"gpus_per_actor": -0.5}, "gpus_per_actor is -0.5"),
        ({"gpus_per_actor": 1}, "gpus_per_actor is 1 for 2 actors; this machine has 1 GPUs: ask for fewer"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, changes, message):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = {"prompts": PROMPTS, "count": 1, "settings": SETTINGS, "seed": 0, "make_sampler": None} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_everywhere(SampleStore(tmp_path), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install -e ".[ray]"')):
        draw_everywhere(SampleStore(tmp_path), PROMPTS, 1, SETTINGS, seed=0, make_sampler=None)
