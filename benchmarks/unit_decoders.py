"""Unit decoders side by side on a quickstart's corpus: units of the true answers, and how well they and a run's own
answers are heard.

    speechzoo quickstart --only llama_omni_stage2
    speechzoo fit --config recipes/quickstart/llama_omni2.yaml
    python benchmarks/unit_decoders.py checkpoints/quickstart --runs llama_omni_stage2 llama_omni2 llama_omni2@1.0

`RUN@T` draws units at temperature T, for decoders that draw. Prints a Markdown table, a row a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from speechzoo.data import encode_batch
from speechzoo.evaluation.answers import Answer, score
from speechzoo.evaluation.listening import Listener
from speechzoo.generation.sampling import Decoding
from speechzoo.interop.hub import load_run
from speechzoo.metrics import UnitErrorRate
from speechzoo.names.published import published
from speechzoo.quickstart.ask import MAX_NEW_TOKENS, read_questions
from speechzoo.quickstart.speech import listen, speak_units
from speechzoo.vocoders import LatentVocoder

BATCH = 25
COLUMNS = ("unit error rate", "of new answers", "true answers, ASR-WER", "own answers, ASR-WER")


class Bench:
    """The test questions of a quickstart, and what is measured with them.

    Args:
        out: folder of the quickstart.
        spoken: answers that are made audible.
    """

    def __init__(self, out: Path, spoken: int) -> None:
        self.out, self.spoken, corpus = out, spoken, out / "corpus"
        self.rows = read_questions(corpus / "qa_units_test.jsonl", corpus / "pairs.jsonl")
        known = {row["answer"] for row in read_questions(corpus / "qa_units_train.jsonl", corpus / "pairs.jsonl")}
        self.new = [index for index, row in enumerate(self.rows) if row["answer"] not in known]
        self.vocoder = LatentVocoder.from_folder(published("unit-vocoder-tiny"))
        self.ear = Listener("part:whisper-tiny.en", "en", "cpu")

    def asked(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The conversation up to its answer."""
        clip = {"type": "audio", "path": str(self.out / "corpus" / row["question_audio"])}
        return [{"role": "user", "content": [clip]}]

    def error_rate(self, decoded: list[list[int]], some: list[int]) -> float:
        """Unit error rate of some of the true answers."""
        true = [self.rows[index]["messages"][-1]["units"] for index in some]
        return float(UnitErrorRate()([decoded[index] for index in some], true))

    def heard(self, folder: str, texts: list[str], units: list[list[int]]) -> float:
        """ASR-WER (Whisper tiny.en) of units as sound, against the texts they are of; of as many as there are texts."""
        said = [
            Answer(row["id"], row["kind"], "", text, text, units=some)
            for row, text, some in zip(self.rows, texts, units, strict=False)
        ]
        spoken = speak_units(said, self.vocoder, self.out, self.out / "unit_decoders" / folder)
        return float(score(listen(spoken, self.out, self.ear))["asr_wer"].value)

    @torch.no_grad()
    def measure(self, name: str) -> list[float]:
        """A value for each of `COLUMNS`, in percent."""
        run, _, temperature = name.partition("@")
        model: Any = load_run(self.out / run).float()
        if temperature:
            model.unit_decoder.decoding = Decoding(temperature=float(temperature))
        torch.manual_seed(0)
        decoded: list[list[int]] = []
        texts: list[str] = []
        units: list[list[int]] = []
        for start in range(0, len(self.rows), BATCH):
            rows = self.rows[start : start + BATCH]
            told = [[*self.asked(row), row["messages"][-1]] for row in rows]
            batch = encode_batch(model.prompt, told, answer=True, padding_side="right")
            decoded += [row.tolist() for row in model.units_of_answers(batch)]
        for start in range(0, self.spoken, BATCH):
            asked = [self.asked(row) for row in self.rows[start : min(start + BATCH, self.spoken)]]
            reply = model.respond(encode_batch(model.prompt, asked), max_new_tokens=MAX_NEW_TOKENS)
            texts += reply.text
            units += [row.tolist() for row in reply.units]
        true = [row["answer"] for row in self.rows[: self.spoken]]
        rates = [self.error_rate(decoded, some) for some in (list(range(len(self.rows))), self.new)]
        rates += [self.heard(f"{name}-true", true, decoded), self.heard(f"{name}-own", texts, units)]
        return [100 * rate for rate in rates]


def main() -> None:
    """Measure the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a quickstart, which holds the runs")
    parser.add_argument("--runs", nargs="+", default=["llama_omni_stage2", "llama_omni2"], metavar="RUN[@T]")
    parser.add_argument("--spoken", type=int, default=30, help="answers that are made audible")
    args = parser.parse_args()
    bench = Bench(args.out, args.spoken)
    print("| | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for name in args.runs:
        print(f"| {name} | " + " | ".join(f"{value:.1f} %" for value in bench.measure(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
