"""Miniature corpora in the layouts they are published in, a little of each broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile


def clip(path: Path, seconds: float = 0.5, rate: int = 16000, level: float = 0.3) -> Path:
    """A noise, another one for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.name.encode()))
    soundfile.write(path, level * rng.uniform(-1, 1, int(seconds * rate)), rate)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def librispeech(root: Path) -> Path:
    """Three good clips in two parts of train, one of dev; one without transcript, one transcript without clip."""
    chapter = root / "LibriSpeech" / "train-clean-100" / "103" / "1240"
    lines = "103-1240-0000 CHAPTER ONE\n103-1240-0001 MISSUS RACHEL LYNDE\n103-1240-0009 NOBODY SPOKE\n"
    write(chapter / "103-1240.trans.txt", lines)
    for number, seconds in ((0, 0.5), (1, 1.0), (2, 0.5)):
        clip(chapter / f"103-1240-000{number}.flac", seconds)
    other = root / "LibriSpeech" / "train-other-500" / "20" / "205"
    write(other / "20-205.trans.txt", "20-205-0000 AN OTHER SPEAKER\n")
    clip(other / "20-205-0000.flac", 0.5)
    dev = root / "LibriSpeech" / "dev-clean" / "84" / "121123"
    write(dev / "84-121123.trans.txt", "84-121123-0000 GO\n")
    clip(dev / "84-121123-0000.flac")
    return root


def aishell(root: Path) -> Path:
    """Two clips of train, one of test; one of train without transcript."""
    base = root / "data_aishell"
    lines = "BAC009S0002W0122 而 对 楼市 成交\nBAC009S0002W0123 也 成为\nBAC009S0764W0121 甚至 出现\n"
    write(base / "transcript" / "aishell_transcript_v0.8.txt", lines)
    for name in ("BAC009S0002W0122", "BAC009S0002W0123", "BAC009S0002W0199"):
        clip(base / "wav" / "train" / "S0002" / f"{name}.wav")
    clip(base / "wav" / "test" / "S0764" / "BAC009S0764W0121.wav")
    return root


def magicdata(root: Path) -> Path:
    """Two clips of train; one transcript without clip, one clip that is known to be bad."""
    rows = [
        "UtteranceID\tSpeakerID\tTranscription",
        "38_5716_20170914202211.wav\t38_5716\t天安门 在 哪里",
        "38_5716_20170914202238.wav\t38_5716\t打开 地图",
        "38_5716_20170914299999.wav\t38_5716\t没有 声音",
        "16_4013_20170819121429.wav\t16_4013\t坏了",
    ]
    write(root / "train" / "TRANS.txt", "\n".join(rows) + "\n")
    for name in ("38_5716_20170914202211", "38_5716_20170914202238", "16_4013_20170819121429"):
        clip(root / "train" / name[:7] / f"{name}.wav")
    return root


def primewords(root: Path) -> Path:
    """Two clips; one without transcript."""
    base = root / "primewords_md_2018_set1"
    rows = [
        {"id": "1", "file": "aaa111.wav", "user_id": "u7", "text": "测试 一", "length": "0.5"},
        {"id": "2", "file": "bbb222.wav", "user_id": "u8", "text": "测试 二", "length": "0.5"},
    ]
    write(base / "set1_transcript.json", json.dumps(rows, ensure_ascii=False))
    for place in ("a/aa/aaa111", "b/bb/bbb222", "c/cc/ccc333"):
        clip(base / "audio_files" / f"{place}.wav")
    return root


def commonvoice(root: Path) -> Path:
    """Two clips of train, one row without its clip; a lone quotation mark in a sentence."""
    folder = root / "zh-CN"
    rows = [
        "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment",
        'c1\tcommon_voice_zh-CN_1.wav\t他说"好\t2\t0\t\t\t\tzh-CN\t',
        "c2\tcommon_voice_zh-CN_2.wav\t再见\t2\t0\t\t\t\tzh-CN\t",
        "c2\tcommon_voice_zh-CN_3.wav\t没有\t2\t0\t\t\t\tzh-CN\t",
    ]
    write(folder / "train.tsv", "\n".join(rows) + "\n")
    for number in (1, 2):
        clip(folder / "clips" / f"common_voice_zh-CN_{number}.wav")
    return folder


def lhotse(root: Path) -> Path:
    """What `lhotse prepare` writes: two recordings, one supervision that covers half of its recording."""
    sound = clip(root / "sound" / "r1.wav"), clip(root / "sound" / "r2.wav")
    recordings = [
        {
            "id": path.stem,
            "sources": [{"type": "file", "channels": [0], "source": str(path)}],
            "sampling_rate": 16000,
            "num_samples": 8000,
            "duration": 0.5,
            "channel_ids": [0],
        }
        for path in sound
    ]
    about = {"start": 0.0, "channel": 0, "language": "English", "speaker": "s"}
    supervisions = [
        {"id": "r1", "recording_id": "r1", "duration": 0.5, "text": "first", **about},
        {"id": "r2-a", "recording_id": "r2", "duration": 0.25, "text": "half", **about},
        {"id": "r3", "recording_id": "r3", "duration": 0.25, "text": "none", **about},
    ]
    for kind, rows in (("recordings", recordings), ("supervisions", supervisions)):
        with gzip.open(root / f"x_{kind}_train.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return root / "x_supervisions_train.jsonl.gz"
