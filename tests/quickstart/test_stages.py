"""Stages are done once, count the time of killed attempts, and keep a folder to one set of settings; questions."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from speechzoo.evaluation import load_answers
from speechzoo.models import SpeechLLM
from speechzoo.names.recipes import recipe
from speechzoo.quickstart import pipeline
from speechzoo.quickstart.ask import answer_questions, read_questions
from speechzoo.quickstart.pipeline import TITLES, Quickstart
from speechzoo.quickstart.scale import DEFAULT, LANES, SMOKE, STAGES
from speechzoo.quickstart.stages import Stages
from speechzoo.quickstart.work import Work
from speechzoo.types import SpeechReply


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the stages, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr("speechzoo.quickstart.stages.time.monotonic", lambda: now[0])
    return now


def stages(folder: Path, **settings) -> Stages:
    return Stages(folder, {"seed": 0, **settings}, Console(file=io.StringIO()))


def test_a_finished_stage_is_not_done_again(tmp_path: Path, clock: list[float]) -> None:
    done: list[str] = []

    def work() -> None:
        done.append("once")
        clock[0] += 12

    first = stages(tmp_path)
    assert first.seconds("a") is None
    first.run("a", "A", work)
    later = stages(tmp_path)
    later.run("a", "A", work)
    assert done == ["once"]
    assert later.seconds("a") == 12
    assert "finished before, 12 s" in later.console.file.getvalue()


def test_a_failed_attempt_is_repeated_and_its_time_counts(tmp_path: Path, clock: list[float]) -> None:
    def stopped() -> None:
        clock[0] += 5
        raise KeyboardInterrupt

    def work() -> None:
        clock[0] += 7

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stages(tmp_path).run("a", "A", stopped)
    assert stages(tmp_path).seconds("a") is None
    stages(tmp_path).run("a", "A", work)
    assert stages(tmp_path).seconds("a") == 5 + 5 + 7


def test_other_settings_are_refused(tmp_path: Path) -> None:
    stages(tmp_path, pairs=3)
    stages(tmp_path, pairs=3)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(pairs: 3 there, 4 asked\)"):
        stages(tmp_path, pairs=4)
    with pytest.raises(ValueError, match="pairs: 3 there, None asked"):
        stages(tmp_path)


@pytest.mark.parametrize("scale", [DEFAULT, SMOKE])
def test_a_folder_belongs_to_one_seed_and_scale(tmp_path: Path, scale) -> None:
    console = Console(file=io.StringIO())
    Quickstart(tmp_path, scale, 0, console)
    Quickstart(tmp_path, scale, 0, console)  # what went through JSON equals what was given
    with pytest.raises(ValueError, match="seed: 0 there, 1 asked"):
        Quickstart(tmp_path, scale, 1, console)
    with pytest.raises(ValueError, match="train_pairs: "):
        Quickstart(tmp_path, SMOKE if scale is DEFAULT else DEFAULT, 0, console)


def test_stages_run_in_order_up_to_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(pipeline, "run_apart", lambda work, out, scale, seed, *call: ran.append(call[-1]))
    quickstart = Quickstart(tmp_path, SMOKE, 0, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="--only takes one of parts, corpus, units, llasm_pretrain, .*, not 'corpse'"):
        quickstart.run("corpse")
    assert ran == []
    quickstart.run("units")
    assert ran == ["fetch_parts", "make_corpus", "make_units"]
    assert quickstart.run() == tmp_path / "report.html"
    assert ran[:3] == ["fetch_parts", "make_corpus", "make_units"] and ran[-2:] == ["make_speech", "report"]
    for lane in LANES:  # at the same time as the other, each in its order
        assert [name for name in ran if name in lane] == list(lane)
    assert (
        len(ran) == len(TITLES)
        and set(SMOKE.overrides) == set(STAGES) < set(TITLES)
        and all(recipe(f"quickstart/{n}.yaml") for n in STAGES)
    )
    assert asdict(DEFAULT)["overrides"] == {}


def test_nothing_starts_after_a_stage_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    started, failed = threading.Event(), threading.Event()

    def run_apart(work, out, scale, seed, threads, *call):
        ran.append(call[-1])
        if call[-1] == "llasm_pretrain":
            started.wait(10)
            failed.set()
            raise ValueError("no room on the disk")
        if call[-1] == "llama_omni_warmup":  # goes on to its end, and is finished
            started.set()
            failed.wait(10)
            time.sleep(0.2)

    monkeypatch.setattr(pipeline, "run_apart", run_apart)
    quickstart = Quickstart(tmp_path, SMOKE, 0, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match="no room on the disk"):
        quickstart.run()
    assert set(ran[3:]) == {"llasm_pretrain", "llama_omni_warmup"}
    assert quickstart.stages.seconds("llama_omni_warmup") is not None
    assert quickstart.stages.seconds("llasm_pretrain") is None


class Parrot:
    """Answers with what it was asked, and notes the sizes of its batches."""

    def __init__(self, prompt) -> None:
        self.prompt, self.sizes = prompt, []

    def respond(self, batch, **generate) -> SpeechReply:
        self.sizes.append(len(batch))
        return SpeechReply([self.prompt.decode(row.tolist()) for row in batch.input_ids])


@pytest.fixture(scope="module")
def model(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> SpeechLLM:
    from test_models import make

    return make("llama_omni", tiny_llm_dir, tiny_whisper_pt).eval()


@pytest.fixture
def questions(tmp_path: Path, wavs: list[Path]) -> list[dict]:
    pairs, records = [], []
    for index, wav in enumerate(wavs[:3]):
        pair = {"id": f"q{index}", "question": f"What is {index}?", "answer": f"It is {index}.", "kind": "sum"}
        pairs.append({**pair, "unseen": index == 1, "question_audio": wav.name, "split": "test"})
        spoken = {"role": "user", "content": [{"type": "audio", "path": wav.name}]}
        answer = {"role": "assistant", "content": pair["answer"], "units": [index, 5]}
        records.append({"id": f"q{index}", "messages": [spoken, answer]})
    for name, rows in (("pairs", pairs), ("test", records)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(tmp_path / "test.jsonl", tmp_path / "pairs.jsonl")


def test_all_questions_are_answered_in_order(tmp_path: Path, wavs: list[Path], questions, model) -> None:
    done: list[tuple[int, int]] = []
    target = wavs[0].parent / "answers" / "omni.jsonl"
    progress = lambda *counts: done.append(counts)  # noqa: E731
    answer_questions(model, questions, wavs[0].parent, target, batch=2, progress=progress)
    answers = load_answers(target)
    assert done == [(2, 3), (3, 3)]
    assert [answer.id for answer in answers] == ["q0", "q1", "q2"]
    assert [answer.reference for answer in answers] == ["It is 0.", "It is 1.", "It is 2."]
    assert [answer.seen for answer in answers] == [True, False, True]
    assert [answer.reference_units for answer in answers] == [[0, 5], [1, 5], [2, 5]]
    assert all(answer.units is not None and answer.seconds > 0 for answer in answers)
    assert [(target.parents[1] / answer.audio).resolve() for answer in answers] == [w.resolve() for w in wavs[:3]]


def test_the_upper_bound_reads_the_true_text(tmp_path: Path, wavs: list[Path], questions, model) -> None:
    parrot = Parrot(model.prompt)
    answer_questions(parrot, questions, wavs[0].parent, tmp_path / "a" / "p.jsonl", batch=2, as_text=True)
    assert parrot.sizes == [2, 1]
    for answer in load_answers(tmp_path / "a" / "p.jsonl"):
        assert answer.question in answer.text and answer.reference not in answer.text


@pytest.mark.parametrize(("out", "given"), [("1e3", "./1e3"), ("null", "./null"), ("a b/1", "a b/1"), (".", ".")])
def test_a_folder_with_the_name_of_a_number_stays_a_folder(monkeypatch, out: str, given: str) -> None:
    told: list[str] = []
    monkeypatch.setattr("speechzoo.commands.training.run", told.extend)
    Work(Path(out), DEFAULT, 0, Console(file=io.StringIO())).train("llasm_finetune")
    assert f"--vars.out={given}" in told
