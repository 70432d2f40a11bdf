"""From what a quickstart run left in its folder to its report, and to Weights & Biases."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import wandb

from speechzoo.evaluation import (
    Check,
    HumanClip,
    Licence,
    ReportData,
    StageSummary,
    SystemResult,
    describe_environment,
    load_answers,
    score,
    write_report,
)
from speechzoo.evaluation.figures import metrics_files
from speechzoo.evaluation.runs import published_stages
from speechzoo.evaluation.wandb_run import open_run
from speechzoo.models.checkpoint import read
from speechzoo.names.published import entry
from speechzoo.parts.registry import licences
from speechzoo.quickstart.examination import SYSTEMS, System, source
from speechzoo.quickstart.listening import read_facts
from speechzoo.quickstart.scale import PUBLISHED, Scale
from speechzoo.quickstart.stages import Stages
from speechzoo.system.files import read_json, read_jsonl, without_nan, write_json

INTRO = [
    "LLaSM and LLaMA-Omni, trained on the same spoken questions with the same small pretrained parts (Whisper tiny.en, "
    "SmolLM2-135M-Instruct), and asked the same held-out questions as a cascade of Whisper's transcription and an LLM.",
    "All numbers are of one run with one seed on a small synthetic corpus. Intervals are 95 % bootstrap intervals over "
    "the test questions; they say nothing about other seeds or other data.",
]

LIMITS = [
    "One synthetic voice speaks all questions and answers; other speakers, accents, noise and rooms are not in it.",
    "Questions come from a closed set of kinds. The systems learn these, not conversation: ask something else and "
    "they fail.",
    "The LLM has 135 million parameters and its weights were rounded to 4 bits by their publisher; its own arithmetic "
    "is often wrong.",
    "The cascade and the text column use LLaSM's fine-tuned LLM. A third of the training questions were given to it "
    "in writing too, so that it still reads; an LLM tuned on text alone may answer better or worse.",
    "LLaMA-Omni's units are k-means clusters of Whisper's third layer, not HuBERT's; rates are not comparable with "
    "the paper's. Its vocoder was trained on the spoken answers of one synthetic voice, whose generator it uses.",
    "ASR-WER and ASR-CER are judged by Whisper tiny.en, which also gave the units; the cascade speaks with the voice "
    "the corpus was made with, which is as good as speech can be here.",
    "A few hundred optimizer steps decide the ranking here. It is not evidence about the two papers.",
    "Both systems read encoder states of the real length instead of 30 s, LLaSM the plain states instead of the "
    "released 64 decoder states, and LLaMA-Omni's adaptor is warmed up on transcription; the recipes say why.",
]

NOTES = [
    "Trainable parameters are those any stage trained; LLaMA-Omni's vocoder is not counted in its size and training. "
    "The two systems were trained and asked at the same time, each on half of the cores. Seconds per answer are wall "
    "time of a batch over its questions.",
    "How good the speech sounds is rated where a predictor is installed: Distill-MOS by pip install "
    "'speechzoo[quality]', UTMOS by $SPEECHZOO_UTMOS, a clone of tarepan/SpeechMOS. The two do not compare.",
    "The unit error rate in the table compares the units LLaMA-Omni decoded after its own text with those of the true "
    "answer, so a wrong answer counts as wrong units; the expectation is measured on the true answers' states.",
]


def write_up(out: Path, scale: Scale, seed: int, stages: Stages) -> None:
    """Write `report.html` and `report.md` into `out`; log the answers to W&B (offline by default)."""
    systems = [_result(out, scale, system) for system in SYSTEMS]
    human, facts = read_json(out / "human.json"), read_facts(out)
    pairs = read_jsonl(out / "corpus" / "pairs.jsonl")
    data = ReportData(
        title="speechzoo quickstart",
        intro=[*INTRO, *([] if scale.from_scratch else [_taken()])],
        systems=systems,
        limits=LIMITS,
        notes=[*NOTES, _where_speech_fails(facts)],
        data={
            "training questions": sum(pair["split"] == "train" for pair in pairs),
            "test questions": sum(pair["split"] == "test" for pair in pairs),
            "test questions with unseen names or sums": sum(p["split"] == "test" and p["unseen"] for p in pairs),
            "kinds of question": len({pair["kind"] for pair in pairs}),
            "speaking rates": ", ".join(str(rate) for rate in sorted({pair["rate"] for pair in pairs})),
        },
        checks=_checks(out, systems, scale, facts),
        human=[HumanClip(**clip) for clip in human["clips"]],
        human_note=human["note"],
        settings={"seed": seed, "scale": asdict(scale), "wall seconds by stage": _seconds(stages)},
        versions=describe_environment(),
        licences=[
            Licence(name, package, licence, "package registry", what) for name, package, licence, what in licences()
        ],
        seed=seed,
    )
    write_report(data, out)
    write_json(
        out / "results.json",
        {
            "seed": seed,
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "seconds": data.settings["wall seconds by stage"],
            "scores": without_nan({system.name: score(system.answers) for system in systems}),
            "true_answers_asr_wer": {key: facts[f"{key}_units_asr_wer"] for key in ("true", "decoded")},
            "checks": [asdict(check) for check in data.checks],
        },
    )
    _log_to_wandb(out, systems)


def _where_speech_fails(facts: dict[str, Any]) -> str:
    true, decoded = (f"{facts[f'{key}_units_asr_wer']:.1%}" for key in ("true", "decoded"))
    return (
        f"Where the speech goes wrong: true answers spoken from their true units are heard with {true} WER, which is "
        f"the vocoder's and the recogniser's share; from the units decoded after them with {decoded}."
    )


def _taken() -> str:
    """What was not trained here, and what that took."""
    minutes = (
        sum(cost.get("seconds", 0) for name in PUBLISHED.values() for cost in entry(name)["training"].values()) / 60
    )
    names = ", ".join(f"{name} ({stage})" for stage, name in PUBLISHED.items())
    return (
        f"Taken from the zoo, not trained here: {names}. Their training took {minutes:.0f} minutes on one CPU core in "
        "all (`speechzoo show NAME`), which the table's training columns include; --from-scratch trains them too."
    )


def _result(out: Path, scale: Scale, system: System) -> SystemResult:
    summaries = []
    trained: dict[str, int] = {}
    for run in system.runs:
        state = read(source(out, scale, run))["state_dict"]
        trained |= {name: tensor.numel() for name, tensor in state.items()}
        if source(out, scale, run) != out / run:
            name = PUBLISHED[run]
            summaries += [replace(stage, name=f"{name}, {stage.name}") for stage in published_stages(name)]
            continue
        csv = metrics_files(out / run)
        name = run.removeprefix("llasm_").removeprefix("llama_omni_")
        summaries.append(
            StageSummary.from_file(out / run / "summary.json", name, [path.relative_to(out) for path in csv])
        )
    size = read_json(out / "answers" / f"{system.key}.json")["total_parameters"]
    answers = load_answers(out / "answers" / f"{system.key}.jsonl")
    return SystemResult(system.name, answers, summaries, size, sum(trained.values()), None, system.note)


def _checks(out: Path, systems: list[SystemResult], scale: Scale, facts: dict[str, Any]) -> list[Check]:
    """What the recipes are expected to reach at the default scale."""
    copy = score(load_answers(out / "answers" / "copy_llasm_pretrain_questions.jsonl"))["wer"].value
    llasm = score(systems[0].answers)
    units = read_json(out / "answers" / "units.json")["unit_error_rate"]
    zoo, omni = not scale.from_scratch, score(systems[1].answers)
    rows = [
        ("LLaSM stage 1 copies unseen sentences (WER)", copy, 0.04 if zoo else 0.10, True),
        ("LLaSM answers (WER)", llasm["wer"].value, 0.12 if zoo else 0.20, True),
        ("LLaSM answers, exact", llasm["exact_match"].value, 0.60 if zoo else 0.45, False),
        ("LLaMA-Omni's unit decoder on true answers (unit error rate)", units, 0.18 if zoo else 0.30, True),
        ("LLaMA-Omni's streamed sound, largest difference from the whole", facts["streamed_minus_whole"], 1e-4, True),
    ]
    if zoo:
        rows[3:3] = [
            ("LLaMA-Omni answers (WER)", omni["wer"].value, 0.10, True),
            ("LLaMA-Omni answers, exact", omni["exact_match"].value, 0.60, False),
        ]
        rows.insert(-1, ("LLaMA-Omni's speech against its text (ASR-WER)", omni["asr_wer"].value, 0.35, True))
    checks = []
    for name, value, limit, below in rows:
        met = value < limit if below else value > limit
        limit_text, text = (f"{limit:.0%}", f"{value:.1%}") if limit > 0.01 else (f"{limit:.0e}", f"{value:.1e}")
        checks.append(Check(name, f"{'under' if below else 'over'} {limit_text}", text, met))
    return checks


def _seconds(stages: Stages) -> dict[str, Any]:
    names = sorted(path.stem for path in stages.state.glob("*.done"))
    return {name: round(stages.seconds(name) or 0) for name in names}


def _log_to_wandb(out: Path, systems: list[SystemResult]) -> None:
    run = open_run("speechzoo-quickstart", "comparison", out)
    if run is None:
        return
    columns: list[str | int] = ["system", "id", "question", "reference", "answer", "audio"]
    table = wandb.Table(columns=columns)
    for system in systems:
        for answer in system.answers[:8]:
            sound = wandb.Audio(str(out / answer.audio)) if answer.audio else None
            table.add_data(system.name, answer.id, answer.question, answer.reference, answer.text, sound)
        scores = score(system.answers)
        run.summary.update({f"{system.name}/{name}": interval.value for name, interval in scores.items()})
    run.log({"answers": table, "comparison": _scores(systems)})
    run.finish()


def _scores(systems: list[SystemResult]) -> wandb.Table:
    table = wandb.Table(columns=["system", "measure", "value", "low", "high"])
    for system in systems:
        for name, interval in score(system.answers).items():
            table.add_data(system.name, name, *interval)
    return table
