"""`speechzoo data asr` on miniature corpora in their published layouts."""

from __future__ import annotations

import gzip
import io
import json
from argparse import Namespace
from pathlib import Path

import corpus_files
import datasets
import pyarrow
import pytest
import soundfile
from huggingface_hub import DatasetCard

from speechzoo.cli import main
from speechzoo.corpora import layouts
from speechzoo.corpora.build import _clips
from speechzoo.corpora.layouts import CORPORA
from speechzoo.corpora.stage import Broken
from speechzoo.data import read_manifest
from speechzoo.data.instructions import ASR_INSTRUCTIONS
from speechzoo.system.files import read_jsonl

FOUND = {
    "librispeech": (
        {
            "103-1240-0000": ("CHAPTER ONE", "en", "103"),
            "103-1240-0001": ("MISSUS RACHEL LYNDE", "en", "103"),
            "20-205-0000": ("AN OTHER SPEAKER", "en", "20"),
        },
        {"103-1240-0002": "no transcript", "103-1240-0009": "no sound file"},
    ),
    "aishell": (
        {"BAC009S0002W0122": ("而对楼市成交", "zh", "S0002"), "BAC009S0002W0123": ("也成为", "zh", "S0002")},
        {"BAC009S0002W0199": "no transcript"},
    ),
    "magicdata": (
        {
            "38_5716_20170914202211": ("天安门 在 哪里", "zh", "38_5716"),
            "38_5716_20170914202238": ("打开 地图", "zh", "38_5716"),
        },
        {"38_5716_20170914299999": "no sound file", "16_4013_20170819121429": "no transcript"},
    ),
    "primewords": (
        {"aaa111": ("测试一", "zh", "u7"), "bbb222": ("测试二", "zh", "u8")},
        {"ccc333": "no transcript"},
    ),
    "commonvoice": (
        {
            "common_voice_zh-CN_1": ('他说"好', "zh", "c1"),
            "common_voice_zh-CN_2": ("再见", "zh", "c2"),
        },
        {"common_voice_zh-CN_3": "no sound file"},
    ),
    "lhotse": ({"r1": ("first", "en", "s")}, {"r2-a": "part of a recording", "r3": "no sound file"}),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_layout_is_read_and_what_is_broken_named(name: str, tmp_path: Path):
    good, bad = FOUND[name]
    clips = dict(CORPORA[name](getattr(corpus_files, name)(tmp_path), "train"))
    found = {
        key: (clip["text"], clip["language"], clip["voice"])
        for key, clip in clips.items()
        if not isinstance(clip, Broken)
    }
    assert found == good
    assert all(Path(clip["audio"]).is_file() for clip in clips.values() if not isinstance(clip, Broken))
    assert {key: clip.reason for key, clip in clips.items() if isinstance(clip, Broken)} == bad


def test_a_part_or_folder_that_is_not_there_is_told_with_what_is(tmp_path: Path, capsys):
    corpus_files.librispeech(tmp_path)
    assert main(["data", "asr", str(tmp_path / "out"), f"librispeech={tmp_path}", "--part", "test-clean"]) == 1
    assert (
        "has no part test-clean (its folders: dev-clean, train-clean-100, train-other-500)" in capsys.readouterr().err
    )
    assert main(["data", "asr", str(tmp_path / "out2"), f"aishell={tmp_path / 'no'}"]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "asr", str(tmp_path / "out3"), f"timit={tmp_path}"]) == 1
    assert "write KIND=PATH with one of librispeech, aishell" in capsys.readouterr().err


def build(out: Path, root: Path, *more: str) -> int:
    corpora = [f"librispeech={root / 'l'}", f"aishell={root / 'a'}"]
    return main(["data", "asr", str(out), *corpora, "--threads", "2", *more])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    corpus_files.librispeech(root / "l")
    corpus_files.aishell(root / "a")
    chapter = root / "l" / "LibriSpeech" / "train-clean-100" / "103" / "1240"
    (chapter / "103-1240.trans.txt").open("a").write("103-1240-0003 SILENCE\n103-1240-0004 DAMAGED\n")
    corpus_files.clip(chapter / "103-1240-0003.flac", level=0)
    (chapter / "103-1240-0004.flac").write_bytes(b"fLaC and no more")
    return root


def test_the_data_set_is_what_training_reads_and_its_card_counts_everything(corpora: Path, tmp_path: Path):
    out = tmp_path / "set"
    assert build(out, corpora, "--lower") == 0
    records = {record["id"]: record["messages"] for record in read_jsonl(out / "data.jsonl")}
    assert list(records) == [
        "librispeech-103-1240-0000",
        "librispeech-103-1240-0001",
        "librispeech-20-205-0000",
        "aishell-BAC009S0002W0122",
        "aishell-BAC009S0002W0123",
    ]
    ask, answer = records["librispeech-103-1240-0001"]
    assert answer == {"role": "assistant", "content": "missus rachel lynde"}
    kinds = {part["type"]: part for part in ask["content"]}
    assert kinds["text"]["text"] in ASR_INSTRUCTIONS["en"]
    assert Path(kinds["audio"]["path"]).name == "103-1240-0001.flac"
    zh = {part["type"]: part for part in records["aishell-BAC009S0002W0122"][0]["content"]}
    assert zh["text"]["text"] in ASR_INSTRUCTIONS["zh"]
    broken = [(row["id"], row["reason"]) for row in read_jsonl(out / "broken.jsonl")]
    assert broken == [
        ("librispeech-103-1240-0002", "no transcript"),
        ("librispeech-103-1240-0003", "unusable sound"),
        ("librispeech-103-1240-0004", "unusable sound"),
        ("librispeech-103-1240-0009", "no sound file"),
        ("aishell-BAC009S0002W0199", "no transcript"),
    ]
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["user_hours"] == round((0.5 + 1.0 + 0.5 + 0.5 + 0.5) / 3600, 4)
    assert numbers["user_seconds"] == {"mean": 0.6, "median": 0.5, "p95": 0.5, "max": 1.0}
    # Words of five answers: 2 + 3 + 3, and 6 + 3 Chinese characters.
    assert numbers["answer_words"] == 17 / 5
    assert numbers["left_out"] == {"clips: no transcript": 2, "clips: unusable sound": 2, "clips: no sound file": 1}
    assert numbers["sources"] == {"librispeech": 3, "aishell": 2}
    assert numbers["voices"] == {"103": 2, "S0002": 2, "20": 1}
    card = DatasetCard.load(out / "README.md")
    assert card.data.to_dict()["license"] == ["apache-2.0", "cc-by-4.0"]
    assert card.data.language == ["en", "zh"]
    assert card.data.task_categories == ["automatic-speech-recognition"]
    assert card.data.size_categories == "n<1K"
    assert "| clips: no transcript | 2 |" in card.text
    assert numbers["sha256"]["data.jsonl"] in card.text
    samples = [record.clip_samples for record in read_manifest(out / "data.jsonl")]
    assert samples == [
        [8000],
        [16000],
        [8000],
        [8000],
        [8000],
    ]


def test_shards_joined_are_the_whole_byte_by_byte(corpora: Path, tmp_path: Path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert build(whole, corpora) == 0
    for index in (2, 0, 1):
        if index == 1:
            assert main(["data", "join", str(parts)]) == 1
            assert "shards that are not finished: 00001-of-00003" in capsys.readouterr().err
        assert build(parts, corpora, "--shard", f"{index}/3") == 0
    assert main(["data", "join", str(parts)]) == 0
    for name in ("data.jsonl", "broken.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert "--shard" not in (parts / "README.md").read_text()
    with (parts / "clips" / "00001-of-00003" / "records.jsonl").open("a") as shard:
        shard.write("{}\n")
    assert main(["data", "join", str(parts)]) == 1
    assert "records.jsonl: is not what done.json beside it says" in capsys.readouterr().err
    assert build(parts, corpora, "--shard", "0/2") == 1
    assert "shards: 3 there, 2 asked" in capsys.readouterr().err


def test_a_repaired_clip_comes_in_with_the_same_command(corpora: Path, tmp_path: Path):
    root, out = tmp_path / "corpora", tmp_path / "set"
    corpus_files.aishell(root / "a")
    corpus_files.librispeech(root / "l")
    lost = root / "a" / "data_aishell" / "wav" / "train" / "S0002" / "BAC009S0002W0123.wav"
    content = lost.read_bytes()
    lost.write_bytes(b"")
    build(out, root)
    before = (out / "clips" / "00000-of-00001" / "records.jsonl").read_bytes()
    lost.write_bytes(content)
    build(out, root)
    after = (out / "clips" / "00000-of-00001" / "records.jsonl").read_bytes()
    assert after.startswith(before)  # nothing was done again
    assert after[len(before) :].count(b"\n") == 1
    assert [record["id"] for record in read_jsonl(out / "data.jsonl")][-1] == "aishell-BAC009S0002W0123"


def test_any_hugging_face_set_by_its_columns(tmp_path: Path, capsys):
    import datasets

    sound = io.BytesIO()
    soundfile.write(sound, [0.1, -0.2] * 6000, 24000, format="WAV")
    rows = {
        "path": [{"bytes": sound.getvalue(), "path": "a.wav"}, {"bytes": sound.getvalue(), "path": "b.wav"}],
        "sentence": ["hello there", " "],
    }
    table = datasets.Dataset(pyarrow.Table.from_pydict(rows)).cast_column("path", datasets.Audio())
    table.save_to_disk(tmp_path / "table")
    out = tmp_path / "set"
    arguments = ["data", "asr", str(out), f"hf={tmp_path / 'table'}", "--licence", "mit"]
    assert main(arguments) == 1
    assert "has no columns audio and text (its columns: sentence, path)" in capsys.readouterr().err
    assert main(["data", "asr", str(tmp_path / "set2"), *arguments[3:], "--columns", "path", "sentence"]) == 0
    (record,) = read_jsonl(tmp_path / "set2" / "data.jsonl")
    (path,) = [part["path"] for part in record["messages"][0]["content"] if part["type"] == "audio"]
    assert path.startswith("audio/")
    assert (tmp_path / "set2" / path).read_bytes() == sound.getvalue()
    assert json.loads((tmp_path / "set2" / "numbers.json").read_text())["user_seconds"]["mean"] == 0.5


def test_tables_without_ids_and_damaged_manifests(tmp_path: Path, monkeypatch):
    args = Namespace(columns=["audio", "text"], part="train", language="en")
    for folder in "AB":
        (tmp_path / folder).mkdir()
        table = [{"id": None, "audio": "a.wav", "text": "x", "speaker_id": n} for n in range(2)]
        datasets.Dataset.from_list(table).save_to_disk(str(tmp_path / folder / "set"))
    pairs = [("hf", str(tmp_path / folder / "set")) for folder in "AB"]
    one, both = list(_clips(pairs[:1], args)), list(_clips(pairs, args))
    assert [(item.id, item.value["voice"]) for item in one] == [("hf-0", "0"), ("hf-1", "1")]
    assert [item.id for item in both] == ["hf-A/set-0", "hf-A/set-1", "hf-B/set-0", "hf-B/set-1"]
    (language := tmp_path / "en").mkdir()
    (language / "train.tsv").write_text("path\tsentence\na.mp3\tHello\nb.mp3\n")  # cut off
    assert [key for key, _ in layouts.commonvoice(language, "train")] == ["a", "b"]
    (language / "clips").mkdir()
    (language / "clips" / "a.mp3").touch()
    monkeypatch.chdir(language)
    assert dict(layouts.commonvoice(Path(), "train"))["a"]["language"] == "en"
    recordings, supervisions = (tmp_path / f"x_{kind}.jsonl.gz" for kind in ("recordings", "supervisions"))
    recordings.write_bytes(gzip.compress(b""))
    cut = gzip.compress(b'{"id": "s", "recording_id": "r", "duration": 1}\n')[:-4]
    for content, said in ((cut, "ended before"), (gzip.compress(b'{"id": 1}\n'), "no recording_id")):
        supervisions.write_bytes(content)
        with pytest.raises(ValueError, match=f"{supervisions.name}: cannot be read as a manifest of lhotse .*{said}"):
            list(layouts.lhotse(supervisions, ""))
    recordings.write_bytes(gzip.compress(b'{"id": "r", "duration": 1, "sources": []}\n'))
    supervisions.write_bytes(gzip.compress(b'{"id": "s", "recording_id": "r", "duration": 1, "text": "a"}\n'))
    ((_, broken),) = layouts.lhotse(supervisions, "")
    assert isinstance(broken, Broken) and broken.detail == "recording r names no source"
