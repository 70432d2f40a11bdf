"""What LLaMA-Omni's paper reports, to stand beside our numbers: arXiv 2409.06666v2, Tables 2 and 4."""

from __future__ import annotations

SOURCE = "arXiv 2409.06666v2"

OFFLINE = {
    "SpeechGPT": {"s2tif": 2.98, "s2sif": 2.19, "asr_wer": 0.4500, "utmos": 3.8958},
    "SALMONN + Orca": {"s2tif": 3.44, "s2sif": 3.40, "asr_wer": 0.0378, "utmos": 3.8286},
    "Qwen2-Audio + Orca": {"s2tif": 3.47, "s2sif": 3.38, "asr_wer": 0.0677, "utmos": 3.6119},
    "LLaMA-Omni": {"s2tif": 3.99, "s2sif": 3.47, "asr_wer": 0.1082, "utmos": 3.9296, "wps": 2.73},
}
"""Table 2, by system and column; words per second from Table 4, offline."""

STREAMED = {
    10: {"s2sif": 3.54, "asr_wer": 0.0984, "utmos": 3.2304, "wps": 2.76},
    20: {"s2sif": 3.56, "asr_wer": 0.0991, "utmos": 3.4748, "wps": 2.75},
    40: {"s2sif": 3.52, "asr_wer": 0.1037, "utmos": 3.6688, "wps": 2.74},
    60: {"s2sif": 3.52, "asr_wer": 0.1047, "utmos": 3.7549, "wps": 2.74},
    80: {"s2sif": 3.50, "asr_wer": 0.1070, "utmos": 3.7858, "wps": 2.73},
    100: {"s2sif": 3.49, "asr_wer": 0.1071, "utmos": 3.8242, "wps": 2.74},
    0: {"s2sif": 3.47, "asr_wer": 0.1082, "utmos": 3.9296, "wps": 2.73},
}
"""Table 4, by Omega (0: offline); its latencies are `bench.latency.PAPER`."""

HOW = (
    f"Rows of {SOURCE} are the paper's (Tables 2 and 4): 199 questions of InstructS2S-Eval, GPT-4o as judge, "
    "Whisper-large-v3, latency on one NVIDIA L40. They compare with ours where questions and judge are the same."
)
