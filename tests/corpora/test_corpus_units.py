"""Units: HuBERT's layers against transformers, batches against single clips, clusters against hand-worked numbers."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import corpus_files
import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from transformers import (
    HubertConfig,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
)

from speechzoo.audio import read_audio
from speechzoo.cli import main
from speechzoo.corpora.clusters import convert_pickle, judge, phones_of_frames, purity
from speechzoo.corpora.extraction import EncoderLayer, clusters_file, frame_times
from speechzoo.encoders import WhisperEncoder
from speechzoo.system.files import read_jsonl, write_jsonl
from speechzoo.units import KMeansUnits

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def save(folder: Path, **settings) -> HubertModel:
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**SMALL, **settings)).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    return model


@pytest.fixture(scope="module")
def hubert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hubert")
    save(folder)
    return folder


def noises(*seconds: float) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(int(16000 * length)) * 0.1 for length in seconds]


@pytest.mark.parametrize("kind", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_layer_is_transformers_hidden_state_before_the_last_norm(tmp_path: Path, kind: dict, layer: int):
    model = save(tmp_path, **kind)
    clips = noises(0.31, 1.0, 0.1)
    ours = EncoderLayer(str(tmp_path), layer)(clips)
    if kind:  # fairseq's large models, which were trained on sound of mean 0 and variance 1
        clips = [torch.nn.functional.layer_norm(clip, clip.shape) for clip in clips]
    if kind and layer == 3:  # transformers gives the last one after the norm: take it away
        model.encoder.layer_norm = torch.nn.Identity()
    for clip, states in zip(clips, ours, strict=True):
        with torch.no_grad():
            theirs = model(clip[None], output_hidden_states=True).hidden_states[layer][0]
        assert len(states) == (len(clip) - 400) // 320 + 1  # 25 ms frames every 20 ms
        torch.testing.assert_close(states, theirs, atol=2e-5, rtol=1e-4)


def test_short_clips_have_no_frame_and_long_ones_are_cut_as_fairseq_does(hubert: Path, monkeypatch):
    layer = EncoderLayer(str(hubert), 2)
    short, edge = layer([torch.randn(399), torch.randn(400)])
    assert short.shape == (0, 16) and edge.shape == (1, 16)
    monkeypatch.setattr("speechzoo.corpora.extraction.CHUNK", 8000)
    (clip,) = noises(1.2)
    (cut,) = layer([clip])
    pieces = [layer([piece])[0] for piece in (clip[:8000], clip[8000:16000], clip[16000:])]
    torch.testing.assert_close(cut, torch.cat(pieces), atol=1e-5, rtol=1e-4)


def test_a_model_that_wants_normalised_sound_gets_it(hubert: Path, tmp_path: Path):
    save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True})
    )
    (clip,) = noises(0.3)
    loud = (clip - clip.mean()) / (clip.numpy().var() + 1e-7) ** 0.5
    torch.testing.assert_close(
        EncoderLayer(str(tmp_path), 2)([clip])[0], EncoderLayer(str(hubert), 2)([loud])[0], atol=1e-5, rtol=1e-4
    )


def test_a_small_whisper_of_ours_is_heard_at_the_clips_real_length(tiny_whisper_pt: Path, monkeypatch):
    monkeypatch.setattr("speechzoo.corpora.extraction.fetch", {"whisper-tiny.en": tiny_whisper_pt}.__getitem__)
    clips = noises(0.3, 1.0)
    whisper = WhisperEncoder(str(tiny_whisper_pt), window="trimmed", layer=1).eval()
    ours = EncoderLayer("whisper-tiny.en", 1)(clips)
    for clip, states in zip(clips, ours, strict=True):
        with torch.no_grad():
            theirs, (frames,) = whisper(clip[None], torch.tensor([len(clip)]))
        assert len(states) == frames == len(clip) // 320
        torch.testing.assert_close(states, theirs[0], atol=2e-5, rtol=1e-4)


def test_clusters_go_by_the_name_of_a_published_vocoder(tmp_path: Path):
    named = KMeansUnits.load(clusters_file(Path("unit-vocoder-tiny")))
    assert named.num_units == 200
    assert clusters_file(tmp_path / "km.safetensors") == tmp_path / "km.safetensors"


def test_another_layer_or_model_is_refused(hubert: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has 3 layers: layer 4 does not exist"):
        EncoderLayer(str(hubert), 4)
    Wav2Vec2BertModel(
        Wav2Vec2BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    ).save_pretrained(tmp_path)
    SeamlessM4TFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hears raw sound"):
        EncoderLayer(str(tmp_path), 1)


def records(folder: Path) -> Path:
    rows = []
    for number, seconds in enumerate((0.3, 0.5, 0.02, 0.4)):
        corpus_files.clip(folder / f"{number}.wav", seconds)
        ask = {"role": "user", "content": "why?"}
        rows.append(
            {"id": f"r{number}", "messages": [ask, {"role": "assistant", "content": "so", "audio": f"{number}.wav"}]}
        )
    rows[3]["messages"] += [ask, {"role": "assistant", "content": "written"}]
    rows.append({"id": "r4", "messages": [ask, {"role": "assistant", "content": "so", "audio": "none.wav"}]})
    write_jsonl(folder / "data.jsonl", [*rows, {"id": "r5", "messages": []}])
    return folder / "data.jsonl"


def test_units_are_the_nearest_centroids_without_repeats(hubert: Path, tmp_path: Path, capsys):
    data = records(tmp_path)
    clips = {n: read_audio(tmp_path / f"{n}.wav") for n in (0, 1, 3)}
    with torch.no_grad():
        model = HubertModel.from_pretrained(hubert).eval()
        states = {n: model(c[None], output_hidden_states=True).hidden_states[2][0].numpy() for n, c in clips.items()}
    frames = np.concatenate([states[0], states[1]])
    centroids = MiniBatchKMeans(8, random_state=0, n_init=1).fit(frames)
    joblib.dump(centroids, tmp_path / "km.bin")  # as fairseq's learn_kmeans.py writes it
    centroids = centroids.cluster_centers_
    assert main(["data", "convert-kmeans", str(tmp_path / "km.bin"), str(tmp_path / "km.safetensors")]) == 0
    arguments = ["data", "units", str(tmp_path / "out"), "--data", str(data), "--hubert", str(hubert), "--layer", "2"]
    assert main([*arguments, "--kmeans", str(tmp_path / "km.safetensors")]) == 0
    found = {record["id"]: record["messages"] for record in read_jsonl(tmp_path / "out" / "data.jsonl")}
    assert list(found) == ["r0", "r1", "r3"]
    assert len({unit for messages in found.values() for unit in messages[1]["units"]}) > 3
    for n, state in states.items():
        nearest = [int(np.argmin(((frame - centroids) ** 2).sum(1))) for frame in state]
        expected = [unit for i, unit in enumerate(nearest) if i == 0 or unit != nearest[i - 1]]
        assert found[f"r{n}"][1]["units"] == expected
    assert "units" not in found["r3"][3]
    broken = {row["id"]: row["reason"] for row in read_jsonl(tmp_path / "out" / "broken.jsonl")}
    assert broken == {"r2": "too short for a unit", "r4": "no sound file", "r5": "malformed"}
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["answer_hours"] == round(1.2 / 3600, 4)
    KMeansUnits(torch.zeros(4, 7)).save(tmp_path / "wide.safetensors")
    arguments[2] = str(tmp_path / "out2")
    assert main([*arguments, "--kmeans", str(tmp_path / "wide.safetensors")]) == 1
    assert "centroids have width 7, the states of" in capsys.readouterr().err


def test_shards_give_the_same_units(hubert: Path, tmp_path: Path):
    data = records(tmp_path)
    torch.manual_seed(2)
    KMeansUnits(torch.randn(6, 16)).save(tmp_path / "km.safetensors")
    arguments = [
        "--data",
        str(data),
        "--hubert",
        str(hubert),
        "--layer",
        "3",
        "--kmeans",
        str(tmp_path / "km.safetensors"),
    ]
    assert main(["data", "units", str(tmp_path / "whole"), *arguments]) == 0
    for shard in ("0/2", "1/2"):
        assert (
            main(["data", "units", str(tmp_path / "parts"), *arguments, "--shard", shard, "--batch-seconds", "0.1"])
            == 0
        )
    assert main(["data", "join", str(tmp_path / "parts")]) == 0
    assert (tmp_path / "whole" / "data.jsonl").read_bytes() == (tmp_path / "parts" / "data.jsonl").read_bytes()


def test_data_are_not_written_over_and_changed_sound_is_noticed(hubert: Path, tmp_path: Path, capsys):
    data = records(tmp_path)
    before = data.read_bytes()
    KMeansUnits(torch.randn(6, 16)).save(tmp_path / "km.safetensors")
    arguments = ["--data", str(data), "--hubert", str(hubert), "--layer", "1"]
    arguments += ["--kmeans", str(tmp_path / "km.safetensors")]
    assert main(["data", "units", str(tmp_path), *arguments]) == 1
    assert "data.jsonl: is not of this command" in capsys.readouterr().err
    assert data.read_bytes() == before
    assert main(["data", "units", str(tmp_path / "out"), *arguments]) == 0
    assert main(["data", "units", str(tmp_path / "out"), *arguments]) == 0
    (tmp_path / "0.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    assert main(["data", "units", str(tmp_path / "out"), *arguments]) == 1
    assert "r0 stands otherwise in the input" in capsys.readouterr().err


def test_clusters_are_trained_and_judged_by_a_command(hubert: Path, tmp_path: Path, capsys):
    data = records(tmp_path)
    labels = [{"audio": f"{n}.wav", "phones": [[0, 0.15, "a"], [0.15, 1, "b"]]} for n in (0, 1, 3)]
    write_jsonl(tmp_path / "phones.jsonl", labels)
    arguments = ["data", "kmeans", str(tmp_path / "km.safetensors"), "--data", str(data), "--hubert", str(hubert)]
    arguments += ["--layer", "1", "--clusters", "4", "--labels", str(tmp_path / "phones.jsonl")]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "km.json").read_text())
    assert report["clips"] == 3 and report["frames"] == 14 + 24 + 19
    assert KMeansUnits.load(tmp_path / "km.safetensors").centroids.shape == (4, 16)
    assert 0 <= report["pnmi"] <= 1 and report["inertia"] > 0
    assert "pnmi" in capsys.readouterr().out
    unlabelled = [*arguments[:2], str(tmp_path / "km2.safetensors"), *arguments[3:-2]]
    assert main(unlabelled) == 0
    assert "pnmi" not in capsys.readouterr().out
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "km3.json").write_text("[]")  # of somebody else
    for name, why in (("km3.safetensors", "km3.json: exists already"), ("km4.json", "the report goes there")):
        assert main([*arguments[:2], str(tmp_path / name), *arguments[3:]]) == 1
        assert why in capsys.readouterr().err
    assert (tmp_path / "km3.json").read_text() == "[]"


def test_judging_against_numbers_worked_out_by_hand():
    kmeans = KMeansUnits(torch.tensor([[0.0, 0.0], [4.0, 0.0], [100.0, 0.0]]))
    states = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[4.0, 2.0], [3.0, 0.0]])]
    told = judge(kmeans, states, [["a", "a"], ["a", "b"]])
    assert told["inertia"] == (1 + 0 + 4 + 1) / 4
    assert told["used"] == 2 and told["frames"] == 4
    assert told["perplexity"] == pytest.approx(2.0)  # two clusters, half each
    # Frames: (a,0) (a,0) (a,1) (b,1). Commonest phone of each cluster: 2 + 1 of 4; commonest cluster of a phone: 2+1.
    # H(phone) = H(3/4, 1/4), H(cluster) = ln 2, H(both) = H(1/2, 1/4, 1/4).
    assert told["phone_purity"] == told["cluster_purity"] == 0.75
    phone = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    both = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert told["pnmi"] == pytest.approx((phone + math.log(2) - both) / phone)
    assert purity([("a", 1), ("b", 0)]) == {"phone_purity": 1.0, "cluster_purity": 1.0, "pnmi": pytest.approx(1.0)}
    with pytest.raises(ValueError, match="no frame has a phone label"):
        purity([])


def test_a_frame_has_the_phone_at_its_middle():
    times = frame_times(4)
    assert times.tolist() == pytest.approx([0.0125, 0.0325, 0.0525, 0.0725])
    assert phones_of_frames([[0.0, 0.03, "a"], [0.05, 0.06, "b"]], times) == ["a", "", "b", ""]


# -- fairseq's files: `joblib.dump(MiniBatchKMeans)` ----------------------------------------------------------------


def test_a_file_of_fairseq_is_converted_by_the_command_that_says_pickle(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    # As learn_kmeans.py of fairseq makes and writes it.
    model = MiniBatchKMeans(
        n_clusters=5, init="k-means++", max_iter=10, batch_size=100, n_init=2, random_state=np.random.RandomState(1)
    ).fit(rng.standard_normal((200, 6)).astype(np.float32))
    joblib.dump(model, tmp_path / "km.bin")
    assert main(["data", "convert-kmeans", str(tmp_path / "km.bin"), str(tmp_path / "km.safetensors")]) == 0
    assert "a Python pickle" in capsys.readouterr().out
    ours = KMeansUnits.load(tmp_path / "km.safetensors")
    np.testing.assert_array_equal(ours.centroids.numpy(), model.cluster_centers_)
    frames = rng.standard_normal((50, 6)).astype(np.float32)
    assert ours(torch.from_numpy(frames), merge=False) == model.predict(frames).tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.folder),)


@pytest.mark.parametrize("write", [joblib.dump, lambda value, file: pickle.dump(value, file.open("wb"))])
@pytest.mark.parametrize("hide", [lambda evil: evil, lambda evil: np.array([evil, 1], dtype=object)])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, write, hide):
    Evil.folder = tmp_path / "made-by-the-pickle"
    write(hide(Evil()), tmp_path / "evil.bin")
    with pytest.raises(ValueError, match=r"evil.bin: (asks for|holds an array of objects)"):
        convert_pickle(tmp_path / "evil.bin")
    assert not Evil.folder.exists()


def test_files_that_are_none_are_told(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"\x80\x04nothing")
    with pytest.raises(ValueError, match="is no joblib pickle"):
        convert_pickle(tmp_path / "a.bin")
    joblib.dump({"centers": np.zeros((2, 2))}, tmp_path / "b.bin")
    with pytest.raises(ValueError, match="holds no clusters"):
        convert_pickle(tmp_path / "b.bin")


def test_other_data_in_the_folder_of_units_is_refused(hubert: Path, tmp_path: Path, capsys):
    """Its records may have the same ids, and those that are done would be taken for them."""
    KMeansUnits(torch.randn(6, 16)).save(tmp_path / "km.safetensors")
    options = ["--hubert", str(hubert), "--layer", "2", "--kmeans", str(tmp_path / "km.safetensors")]
    corpus_files.clip(tmp_path / "a.wav", 0.3)
    for name, text in (("A", "one"), ("B", "two")):
        (tmp_path / name).mkdir()
        answer = {"role": "assistant", "content": text, "audio": str(tmp_path / "a.wav")}
        write_jsonl(tmp_path / name / "train.jsonl", [{"messages": [{"role": "user", "content": "why?"}, answer]}])
    data = [str(tmp_path / name / "train.jsonl") for name in "AB"]
    assert main(["data", "units", str(tmp_path / "out"), "--data", data[0], *options]) == 0
    assert main(["data", "units", str(tmp_path / "out"), "--data", data[1], *options]) == 1
    assert "was made with other settings (content:" in capsys.readouterr().err
    assert main(["data", "units", str(tmp_path / "both"), "--data", *data, *options]) == 0
    found = {record["id"]: record["messages"][1]["content"] for record in read_jsonl(tmp_path / "both" / "data.jsonl")}
    assert found == {"A/train/train:1": "one", "B/train/train:1": "two"}
