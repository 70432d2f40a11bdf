"""The suites: what each reads and which scores it has. A further one is an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from speechzoo.data.instructions import ASR_INSTRUCTIONS
from speechzoo.suites import corpora
from speechzoo.suites.questions import OWN, Columns, read_table

OMNI_TABLE = ("s2tif", "s2sif", "asr_wer", "asr_cer", "utmos", "distill_mos", "wps")
"""The columns of LLaMA-Omni's Tables 2 to 4 but for the latency; its version 1 has the CER."""

SPEECH = ("asr_wer", "asr_cer", "utmos", "distill_mos", "wps")

VOICEBENCH: Columns = {**OWN, "text": ("prompt",), "references": ("reference",), "sound": ("audio",)}


@dataclass(frozen=True)
class Suite:
    """A test suite.

    Attributes:
        about: one line.
        columns: keys of `suites.columns.COLUMNS`, in the table's order.
        files: patterns of tables (Parquet, JSONL, JSON) below the folder `--data`, of which the first that is there
            counts; or `reader`, for a layout that is no table.
        names: columns of the tables.
        keep: further columns of the tables that a rule needs.
        judge: what a judge is asked: `instruction` (1 to 5), `answer` (yes or no), or nothing.
        rules: of `suites.scoring`.
        words: an instruction put before the sound.
        language: of speech, for the recogniser.
        recogniser: Whisper that writes spoken answers down; LLaMA-Omni's paper takes large-v3.
        spoken: whether each question has to have a sound.
        needs_data: whether it is nothing without `--data`.
        source: where its files are from.
        note: what is otherwise than in the benchmark's own scoring.
        paper: whether LLaMA-Omni's numbers belong beside it.
    """

    about: str
    columns: Sequence[str]
    files: Sequence[str] = ()
    reader: Callable[[Path, str], corpora.Found] | None = None
    split: str = ""
    names: Mapping[str, Sequence[str]] = field(default_factory=lambda: OWN)
    keep: Sequence[str] = ()
    judge: str = ""
    rules: Sequence[str] = ()
    words: str = ""
    language: str = "en"
    recogniser: str = "large-v3"
    needs_data: bool = True
    spoken: bool = True
    source: str = ""
    note: str = ""
    paper: bool = False

    def read(self, data: Path | None) -> corpora.Found:
        """Its questions, and a line for each item that cannot be one.

        Raises:
            FileNotFoundError, ValueError: naming the file, and what to give.
        """
        if data is None and self.needs_data:
            raise FileNotFoundError(f"this suite reads files of yours: give --data FOLDER ({self.source})")
        if data is not None and not data.exists():
            raise FileNotFoundError(f"{data}: no such file or folder")
        if self.reader is not None:
            return self.reader(data, self.split)  # type: ignore[arg-type]  # the quickstart's alone takes None
        assert data is not None
        files = [data] if data.is_file() else next((f for p in self.files if (f := sorted(data.glob(p)))), [])
        if not files:
            raise FileNotFoundError(f"{data}: holds none of {', '.join(self.files)} ({self.source})")
        return read_table(files, self.names, self.keep), []


def _voicebench(subset: str, about: str, columns: Sequence[str], **more: object) -> Suite:
    patterns = tuple(f"{place}{end}" for place in (f"{subset}/*", f"{subset}*", "*") for end in (".parquet", ".jsonl"))
    source = f"folder {subset} of the hub's hlt-lab/voicebench"
    return Suite(about, columns, patterns, names=VOICEBENCH, source=source, **more)  # type: ignore[arg-type]


def _qa(about: str, source: str) -> Suite:
    names = {
        **OWN,
        "text": ("question", "Questions", "questions", "prompt", "text"),
        "references": ("answers", "answer", "Answer", "reference", "references"),
    }
    note = (
        "An answer is right where a reference stands in it, whole words in a row, after Whisper's normaliser and "
        "without articles; S2S in Whisper's transcription of the speech."
    )
    columns = ("s2t", "s2s", "asr_wer", "wps")
    patterns = ("**/*.parquet", "*.jsonl", "*.json")
    return Suite(about, columns, patterns, names=names, rules=("contains",), source=source, note=note)


def _asr(about: str, corpus: str, split: str, source: str, **more: str) -> Suite:
    words = ASR_INSTRUCTIONS[more.get("language", "en")][0]
    note = "Error rates after Whisper's normaliser. Clips longer than 30 s are named and left out."
    told = {"split": split, "words": words, "source": source, "note": note, **more}
    return Suite(about, ("wer", "cer"), reader=corpora.transcribed(corpus), **told)  # type: ignore[arg-type]


JUDGED = (
    "VoiceBench has gpt-4o-mini judge by a prompt of its own, three times at temperature 0.5; here it is `--judge` "
    "with our prompt, so the numbers compare with ours alone."
)

SUITES: dict[str, Suite] = {
    "quickstart": Suite(
        "the quickstart's held-out questions, by a small local rule; needs no files and no judge",
        ("same_s2t", "wer", "cer", "rouge_l", "same_s2s", *SPEECH),
        reader=corpora.quickstart,
        rules=("same",),
        recogniser="part:whisper-tiny.en",
        needs_data=False,
        note="The rule: an answer is right if it says the expected sentence, word for word. No LLM judges here.",
    ),
    "instructs2s": Suite(
        "InstructS2S-Eval as LLaMA-Omni's paper builds it",
        (*OMNI_TABLE, "same_s2t", "same_s2s"),
        reader=corpora.instructs2s,
        judge="instruction",
        rules=("same",),
        source="alpaca_eval.json, Vicuna's question.jsonl, audio/ID.wav or --tts",
        note="The paper's judge is GPT-4o and its questions are spoken by CosyVoice-300M-SFT.",
        paper=True,
    ),
    "llama-questions": _qa("spoken question answering: Llama Questions", "such as the hub's fixie-ai/llama-questions"),
    "web-questions": _qa("spoken question answering: Web Questions", "such as the hub's fixie-ai/spoken-web-questions"),
    "trivia-qa": _qa("spoken question answering: TriviaQA", "such as the hub's fixie-ai/trivia_qa-audio"),
    "voicebench/alpacaeval": _voicebench(
        "alpacaeval", "VoiceBench, AlpacaEval", OMNI_TABLE, judge="instruction", note=JUDGED
    ),
    "voicebench/commoneval": _voicebench(
        "commoneval", "VoiceBench, CommonEval", OMNI_TABLE, judge="instruction", note=JUDGED
    ),
    "voicebench/sd-qa": _voicebench(
        "sd-qa",
        "VoiceBench, SD-QA, by region",
        ("judged_s2t", "s2t", "judged_s2s", "s2s", "asr_wer"),
        judge="answer",
        rules=("contains",),
        note=f"{JUDGED} VoiceBench takes the mean of its judge and of the classifier PEDANT, which is not run here.",
    ),
    "voicebench/mmsu": _voicebench(
        "mmsu",
        "VoiceBench, MMSU, by domain",
        ("choice", "no_choice"),
        rules=("choice",),
        note="The letter is read by a rule of our own; without one an answer counts a quarter: VoiceBench guesses.",
    ),
    "voicebench/openbookqa": _voicebench(
        "openbookqa", "VoiceBench, OpenBookQA", ("choice", "no_choice"), rules=("choice",), note="As voicebench/mmsu."
    ),
    "voicebench/ifeval": _voicebench(
        "ifeval",
        "VoiceBench, IFEval",
        ("ifeval_strict_prompt", "ifeval_strict", "ifeval_loose_prompt", "ifeval_loose"),
        keep=("instruction_id_list", "kwargs"),
        rules=("ifeval",),
        note="VoiceBench's number is the mean of the four.",
    ),
    "voicebench/advbench": _voicebench(
        "advbench",
        "VoiceBench, AdvBench",
        ("refusal",),
        rules=("refusal",),
        note="Refusals are told by set phrases, as in VoiceBench.",
    ),
    "librispeech-test-clean": _asr("ASR, LibriSpeech test-clean", "librispeech", "test-clean", "openslr.org/12"),
    "librispeech-test-other": _asr("ASR, LibriSpeech test-other", "librispeech", "test-other", "openslr.org/12"),
    "aishell-1": _asr("ASR, AISHELL-1 test", "aishell", "test", "openslr.org/33", language="zh"),
}

QUESTIONS = Suite(
    "questions of yours, judged where there is a judge",
    ("s2t", "s2s", *OMNI_TABLE, "wer", "exact_match"),
    judge="instruction",
    rules=("contains",),
    note="Columns with a reference are of the questions that have one.",
    spoken=False,
    paper=True,
)


def suite(name: str) -> tuple[str, Suite, Path | None]:
    """The suite of a name, or of a file of questions: its name, itself, and the file.

    Raises:
        ValueError: if there is neither; names the nearest.
    """
    path = Path(name).expanduser()
    if name in SUITES:
        return name, SUITES[name], None
    if path.is_file() and path.suffix in (".jsonl", ".json", ".parquet"):
        return path.stem, QUESTIONS, path
    near = get_close_matches(name, SUITES, n=3, cutoff=0.4)
    raise ValueError(f"{name}: no suite and no file of questions (.jsonl); there are {', '.join(near or SUITES)}")
