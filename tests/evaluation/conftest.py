"""A made-up run: three systems, their answers, curves, sounds and summaries in a folder, from fixed seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechzoo.evaluation import Answer, Check, HumanClip, Licence, ReportData, StageSummary, SystemResult

CITIES = {"France": "Paris", "Poland": "Warsaw", "Japan": "Tokyo", "Spain": "Madrid", "Peru": "Lima"}
DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def write_sound(path: Path, seconds: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = np.arange(int(16_000 * seconds)) / 16_000
    pitch = 140 + 40 * np.sin(2 * np.pi * 1.3 * t + seed)
    tone = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16_000) / k for k in range(1, 12))
    gate = np.clip(np.sin(2 * np.pi * 3.1 * t + seed), 0, 1)
    soundfile.write(path, 0.1 * tone * gate + 0.002 * rng.standard_normal(t.size), 16_000, subtype="PCM_16")


def write_curve(path: Path, first: int, last: int, start: float, end: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "train/loss", "val/loss"])
        writer.writeheader()
        for step in range(first, last):
            value = end + (start - end) * np.exp(-step / 40)
            writer.writerow({"epoch": 0, "step": step, "train/loss": round(value + 0.08 * rng.standard_normal(), 4)})
            if step % 30 == 29:
                writer.writerow({"epoch": 0, "step": step, "val/loss": round(value + 0.05, 4)})


def questions() -> list[Answer]:
    items = []
    for number, (country, city) in enumerate(CITIES.items()):
        question, reference = f"What is the capital of {country}?", f"The capital of {country} is {city}."
        items += [Answer(f"capital-{number}", "capital", question, reference, "", seen=number < 2)]
    for number in range(10):
        a, b = DIGITS[number % 8], DIGITS[(3 * number + 1) % 8]
        total = DIGITS.index(a) + DIGITS.index(b) + 2
        question, reference = f"What is {a} plus {b}?", f"The answer is {total}."
        items += [Answer(f"sum-{number}", "sum", question, reference, "", seen=False)]
    return items


def answer(item: Answer, chance: float, rng: np.random.Generator, **more) -> Answer:
    words = item.reference.split()
    if rng.random() > chance:
        words[-1] = rng.choice(["Berlin.", "3.", "Rome.", "17."])
    seconds = float(0.4 + 0.2 * rng.random())
    return Answer(**{**item.__dict__, "text": " ".join(words), "seconds": seconds, **more})


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison makes a run of W&B, which takes seconds; the test that looks at it asks for it."""
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def made_up(tmp_path: Path) -> ReportData:
    """A `ReportData` whose files lie in `tmp_path`."""
    return make_up(tmp_path)


def make_up(folder: Path) -> ReportData:
    rng = np.random.default_rng(0)
    (folder / "sounds").mkdir()
    items = []
    for number, item in enumerate(questions()):
        path = f"sounds/{item.id}.wav"
        write_sound(folder / path, 1.6 + 0.1 * (number % 5), number)
        items.append(Answer(**{**item.__dict__, "audio": path}))
    stages = {}
    for system, names in {"LLaSM": ["pretrain", "finetune"], "LLaMA-Omni": ["stage 1", "stage 2 (units)"]}.items():
        stages[system] = []
        for number, name in enumerate(names):
            file = folder / system / name / "metrics.csv"
            write_curve(file, 0, 200, 3.5 - number, 0.2 + number, seed=number)
            cost = {"seconds": 190.4 - 60 * number, "steps": 200, "tokens": 91_830, "supervised_tokens": 11_204}
            size = {"examples": 1600, "trainable_parameters": 5_120_000, "total_parameters": 147_300_000}
            loss = {"peak_memory_mb": 2412.0, "train_loss": 0.231 + number, "val_loss": 0.317 + number}
            relative = str(file.relative_to(folder))
            stages[system].append(StageSummary(name, **cost, **size, **loss, metrics=[relative]))
    units = [[int(u) for u in rng.integers(0, 200, 30)] for _ in items]
    noisy = [[u if rng.random() > 0.2 else (u + 1) % 200 for u in row] for row in units]
    systems = [
        SystemResult("LLaSM", [answer(i, 0.7, rng) for i in items], stages["LLaSM"], 147_300_000, 7_240_000),
        SystemResult(
            "LLaMA-Omni",
            [
                answer(i, 0.6, rng, units=n, reference_units=u, reply_audio=i.audio)
                for i, n, u in zip(items, noisy, units, strict=True)
            ],
            stages["LLaMA-Omni"],
            156_100_000,
            16_900_000,
        ),
        SystemResult(
            "Cascade",
            [answer(i, 0.5, rng, heard=i.question.replace("capital", "capitol")) for i in items],
            [],
            172_300_000,
            0,
            1620.0,
            note="Whisper tiny.en writes the question down, the untrained LLM answers it.",
        ),
    ]
    human = [
        HumanClip(f"librivox-{n}", text, {"LLaSM": text, "Cascade": text.replace("the", "a")}, items[n].audio)
        for n, text in enumerate(["He was not an ill disposed young man.", "The old gentleman died in the spring."])
    ]
    return ReportData(
        title="LLaSM and LLaMA-Omni, trained and compared on small real speech",
        intro=["Both systems were trained from the same small pretrained parts on the same spoken questions."],
        systems=systems,
        limits=["One synthetic voice, closed topics: nothing here says how the systems rank at full scale."],
        data={"training questions": 1600, "test questions": len(items)},
        checks=[
            Check("LLaSM answers, WER", "under 20 %", "14.2 %", True),
            Check("Unit error rate", "under 30 %", "36.0 %", False),
            Check("Adaptor copy-WER", "under 10 %", None, None),
        ],
        notes=["The 135 M LLM gets sums wrong when it reads them as text, too."],
        human=human,
        human_note="Two sentences read by people (LibriVox), given to systems that can transcribe.",
        settings={"seed": 0, "llasm": {"pretrain": {"lr": 1e-3, "max_steps": 200}}, "device": None},
        versions={"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6"},
        licences=[Licence("Whisper tiny.en", "20250625", "MIT", "openai", "encoder, frozen")],
    )
