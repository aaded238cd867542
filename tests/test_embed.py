"""From audio to catalogue: tiny models of the real classes, and files of every sort."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import save_file
from test_table import EXAMPLE

from amrs.audio import AudioError, audio_files, extra, normalised, read_mono, windows
from amrs.config import ConfigError, load
from amrs.config.data import DataConfig
from amrs.execution import execute
from amrs.importers import IMPORTERS
from amrs.logs.faults import LogError
from amrs.logs.schema import read_log
from amrs.models.audio_towers import RATE, ClampAudioTower, Mert, find_weights
from amrs.pairs import nearest_tracks, whitened
from amrs.runs import RunError, plan
from amrs.stages import STAGES, embed

SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": [8, 8, 8], "conv_stride": [10, 8, 4], "conv_kernel": [10, 8, 4], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
"""A MERT with 75 frames a second, as the real ones, and next to no width."""


@pytest.fixture(scope="module")
def mert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MERT's repository has it: a config of its own type, that names code which must not run."""
    folder = tmp_path_factory.mktemp("mert")
    torch.manual_seed(0)
    transformers.HubertModel(transformers.HubertConfig(**SHAPE)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mert_model", "architectures": ["MERTModel"], "feature_extractor_cqt": False,
               "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}, "attention_relax": -1.0}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_MERT.py").write_text("raise SystemExit('remote code was run')")
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 24000}')
    return folder


@pytest.fixture(scope="module")
def clamp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as CLaMP 3's, with towers that are none of ours."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=4,
    )  # fmt: skip
    state = {f"audio_model.{k}": v for k, v in transformers.BertModel(config).state_dict().items()}
    state |= {"audio_proj.weight": torch.randn(6, 16), "audio_proj.bias": torch.randn(6)}
    state["text_proj.weight"] = torch.zeros(2, 2)
    file = tmp_path_factory.mktemp("clamp") / "clamp3.pth"
    torch.save({"model": state, "epoch": 3, "min_eval_loss": 0.5}, file)
    return file


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "album").mkdir()
    soundfile.write(folder / "album" / "tone.wav", tone(6.5), RATE)
    soundfile.write(folder / "stereo.flac", np.stack([tone(5), tone(5, hertz=660)], 1), RATE)
    soundfile.write(folder / "telephone.wav", tone(2, 8000), 8000)
    soundfile.write(folder / "compressed.mp3", tone(2, 44100), 44100)
    soundfile.write(folder / "free.ogg", tone(2, 44100), 44100)
    soundfile.write(folder / "silence.wav", np.zeros(RATE * 5, np.float32), RATE)
    soundfile.write(folder / "one_sample.wav", np.zeros(1, np.float32), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE * 2, np.nan, np.float32), RATE, subtype="FLOAT")
    for kind in ("flac", "wav", "aiff", "mp3", "ogg"):
        soundfile.write(folder / f"truncated_{kind}.{kind}", tone(4, 44100), 44100)
        whole = (folder / f"truncated_{kind}.{kind}").read_bytes()
        (folder / f"truncated_{kind}.{kind}").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "not_audio.mp3").write_text("These are words.\n" * 99)
    (folder / "telephone.flac").write_bytes((folder / "stereo.flac").read_bytes())
    (folder / "cover.jpg").write_bytes(b"no audio meant")
    return folder


GOOD = {"album/tone", "stereo", "telephone", "compressed", "free", "silence"}


def run(runs: Path, mert: Path, audio: Path, *more: str) -> Path:
    """`stage=embed` as train.py runs it, in this process."""
    arguments = ["stage=embed", f"embed.audio_dir={audio}", f"embed.weights={mert}", f"runs={runs}", *more]
    return execute(plan(load(arguments)), STAGES, print)


@pytest.fixture(scope="module")
def embedded(mert: Path, audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), mert, audio, "embed.batch_size=2")


def test_every_good_file_has_a_finite_embedding_and_every_bad_one_a_reason(
    embedded: Path, audio: Path
) -> None:
    table = pq.read_table(embedded / "embeddings.parquet").to_pandas().set_index("track_id")
    assert {name for name in table.index if name != "telephone"} == GOOD - {"telephone"}
    assert np.isfinite(np.stack(table["embedding"])).all() and len(table["embedding"].iloc[0]) == 16
    assert table.loc["album/tone", "windows"] == 2 and table.loc["album/tone", "seconds"] == 6.5
    lines = (embedded / "failures.csv").read_text().splitlines()
    why = {line.split(",")[0]: line for line in lines[1:]}
    cut = {f"truncated_{kind}.{kind}" for kind in ("flac", "wav", "aiff", "mp3", "ogg")}
    assert set(why) == cut | {"one_sample.wav", "nan.wav", "empty.mp3", "not_audio.mp3", "telephone.wav"}
    assert all("truncated: " in why[f"truncated_{kind}.{kind}"] for kind in ("wav", "aiff"))
    assert "shorter than 1 s" in why["one_sample.wav"] and "not finite" in why["nan.wav"]
    assert "track id of telephone.flac" in why["telephone.wav"]
    assert len(table) + len(why) == len(audio_files(audio))
    assert not (embedded / embed.PARTS).exists()


def test_an_embedding_is_the_mean_over_layers_frames_and_windows(
    embedded: Path, mert: Path, audio: Path
) -> None:
    table = pq.read_table(embedded / "embeddings.parquet").to_pandas().set_index("track_id")
    model = transformers.HubertModel.from_pretrained(
        mert, config=transformers.HubertConfig(**SHAPE), local_files_only=True
    ).eval()
    samples, _ = soundfile.read(audio / "album" / "tone.wav", dtype="float32")
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    vectors = []
    for part in (samples[: 5 * RATE], samples[5 * RATE :]):
        with torch.no_grad():
            hidden = model(torch.from_numpy(part)[None], output_hidden_states=True).hidden_states
        vectors.append(torch.stack([layer.mean(1)[0] for layer in hidden]).mean(0))
    expected = torch.stack(vectors).mean(0).numpy()
    np.testing.assert_allclose(table.loc["album/tone", "embedding"], expected, atol=1e-4)


def test_a_layer_and_max_pooling_can_be_chosen(mert: Path) -> None:
    samples = torch.from_numpy(tone(1))[None]
    tower = Mert(mert, 1, "max")
    with torch.no_grad():
        hidden = tower.model(samples, output_hidden_states=True).hidden_states
    assert torch.equal(tower(samples), hidden[1].amax(1))
    assert torch.equal(Mert(mert, -1, "mean")(samples), hidden[2].mean(1))
    with pytest.raises(RunError, match="layers 0 to 2"):
        Mert(mert, 3, "mean")


def test_batches_do_not_change_an_embedding(mert: Path, audio: Path, embedded: Path, tmp_path: Path) -> None:
    only = tmp_path / "audio"
    only.mkdir()
    (only / "tone.wav").write_bytes((audio / "album" / "tone.wav").read_bytes())
    alone = pq.read_table(run(tmp_path / "runs", mert, only, "embed.batch_size=1") / "embeddings.parquet")
    table = pq.read_table(embedded / "embeddings.parquet").to_pandas().set_index("track_id")
    np.testing.assert_allclose(alone["embedding"][0].as_py(), table.loc["album/tone", "embedding"], atol=1e-5)


def test_a_killed_run_goes_on_where_it_was_and_tries_again_what_failed(
    mert: Path, audio: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_SAVE_EVERY", 2)
    real, seen = embed.read_mono, []

    def dies(file: Path, rate: int) -> Any:
        seen.append(file.name)
        if file.name == "free.ogg":
            raise AudioError("the disk did not answer")
        if len(seen) == 6:
            raise KeyError("the machine went down")
        return real(file, rate)

    monkeypatch.setattr(embed, "read_mono", dies)
    with pytest.raises(KeyError):
        run(tmp_path, mert, audio)
    monkeypatch.setattr(embed, "read_mono", lambda file, rate: seen.append(file.name) or real(file, rate))
    assert seen[:4] == [
        "tone.wav",
        "compressed.mp3",
        "empty.mp3",
        "free.ogg",
    ]  # saved, two of them as failures
    again = run(tmp_path, mert, audio)
    assert set(seen[:4]) & set(seen[6:]) == {"empty.mp3", "free.ogg"}
    assert (again / "failures.csv").read_text() == (embedded / "failures.csv").read_text()
    before, after = (pq.read_table(f / "embeddings.parquet").to_pandas() for f in (embedded, again))
    assert list(before["track_id"]) == list(after["track_id"])
    np.testing.assert_allclose(np.stack(after["embedding"]), np.stack(before["embedding"]), atol=1e-5)


def test_clamp_reads_tracks_longer_than_its_positions_in_segments(clamp: Path) -> None:
    tower = ClampAudioTower(clamp)
    assert tower.length == 4
    windows_WE = torch.randn(
        5, 16
    )  # 7 tokens with a zero at each end: 4, then the last 4 for the 3 that are new
    token_TE = torch.cat([torch.zeros(1, 16), windows_WE, torch.zeros(1, 16)])

    def one(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return tower.proj(tower.model(inputs_embeds=tokens[None]).last_hidden_state.mean(1))[0]

    expected = (4 * one(token_TE[:4]) + 3 * one(token_TE[-4:])) / 7
    torch.testing.assert_close(tower(windows_WE), expected)
    torch.testing.assert_close(tower(windows_WE[:1]), one(token_TE[[0, 1, 6]]))


def test_clamp_embeds_files(mert: Path, clamp: Path, audio: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, mert, audio, "embed.model=clamp3", f"embed.clamp3_weights={clamp}")
    table = pq.read_table(folder / "embeddings.parquet")
    assert len(table) == len(GOOD) and len(table["embedding"][0]) == 6


def test_missing_or_foreign_weights_are_refused_in_words(
    mert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunError, match="hf download"):
        find_weights("nobody/nothing-of-the-kind")
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((mert / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"feature_extractor_cqt": True}))
    with pytest.raises(RunError, match="feature_extractor_cqt=True"):
        Mert(other, None, "mean")
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (other / "model.safetensors").write_bytes((mert / "model.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"lacks .* weights, encoder\.layers\.2"):
        Mert(other, None, "mean")


def test_a_missing_library_is_answered_with_the_extra_s_name() -> None:
    with pytest.raises(RunError, match=r"pip install '\.\[audio\]'"):
        extra("no_such_library")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": {"audio_proj.weight": Bomb()}}, tmp_path / "bad.pth")
    with pytest.raises(RunError, match="tensors alone"):
        ClampAudioTower(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()
    save_file({"audio_proj.weight": torch.zeros(2, 2)}, tmp_path / "half.safetensors")
    with pytest.raises(RunError, match="not CLaMP 3's audio tower"):
        ClampAudioTower(tmp_path / "half.safetensors")


def test_resampling_keeps_length_and_pitch_and_stereo_is_averaged(audio: Path) -> None:
    samples = read_mono(audio / "telephone.wav", RATE)
    assert abs(len(samples) - 2 * RATE) <= 1
    loudest = np.abs(np.fft.rfft(samples)).argmax() / 2
    assert loudest == pytest.approx(440, abs=1)
    stereo = read_mono(audio / "stereo.flac", RATE)
    np.testing.assert_allclose(stereo, (tone(5) + tone(5, hertz=660)) / 2, atol=1e-4)
    with pytest.raises(AudioError):
        read_mono(audio / "not_audio.mp3", RATE)


def test_windows_drop_a_short_tail_and_silence_stays_silence() -> None:
    assert [w.shape for w in windows(np.zeros(25, np.float32), 10, 5)] == [(2, 10), (1, 5)]
    assert [w.shape for w in windows(np.zeros(24, np.float32), 10, 5)] == [(2, 10)]
    assert windows(np.zeros(4, np.float32), 10, 5) == []
    assert not normalised(np.zeros(9, np.float32)).any()


def test_impossible_combinations_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="clamp3_weights"):
        load(["stage=embed", "embed.model=clamp3"])
    with pytest.raises(ConfigError, match="whose tracks have no audio"):
        load(["stage=prepare", "data.embeddings=x.npz"])


def test_an_embedding_table_takes_the_place_of_the_catalogue_s(tmp_path: Path) -> None:
    def catalogue(folder: Path, file: Path | None) -> Any:
        folder.mkdir()
        settings = DataConfig("table", str(EXAMPLE), embeddings=str(file) if file else None)
        IMPORTERS["table"](settings, folder)
        return read_log(folder / "log")

    before = catalogue(tmp_path / "before", None)
    ids = list(before.catalogue["track_id"])[::-1]
    vectors = np.arange(3 * len(ids), dtype=np.float32).reshape(-1, 3)
    np.savez(tmp_path / "own.npz", track_id=np.array(ids), embedding=vectors)
    after = catalogue(tmp_path / "after", tmp_path / "own.npz")
    found = dict(zip(after.catalogue["track_id"], after.catalogue["embedding"], strict=True))
    assert found == {track: vector.tolist() for track, vector in zip(ids, vectors, strict=True)}
    assert after.metadata.embedding == "from own.npz"
    np.savez(tmp_path / "few.npz", track_id=np.array(ids[1:]), embedding=vectors[1:])
    with pytest.raises(LogError, match="no embedding in the table"):
        catalogue(tmp_path / "few", tmp_path / "few.npz")
    np.savez(tmp_path / "objects.npz", track_id=np.array([{}], dtype=object), embedding=vectors[:1])
    with pytest.raises(LogError, match=r"data\.embeddings"):
        catalogue(tmp_path / "objects", tmp_path / "objects.npz")


def test_whitening_ends_the_rule_of_one_large_direction() -> None:
    half_3E = torch.tensor([[100.0, 1.0], [90.0, -1.0], [20.0, 1.0]])
    embedding_KE = torch.cat([half_3E, -half_3E])
    white_KE = whitened(embedding_KE)
    torch.testing.assert_close(white_KE.T @ white_KE / 6, torch.eye(2), atol=1e-5, rtol=0)
    assert whitened(torch.randn(3, 8)).shape == (3, 2)  # three tracks span a plane
    rejected = torch.tensor([0])
    assert nearest_tracks(embedding_KE, rejected, 1).item() == 1
    assert nearest_tracks(white_KE, rejected, 1).item() == 2


def test_weights_as_the_published_file_names_them_give_the_same_vectors(mert: Path, tmp_path: Path) -> None:
    state = Mert(mert, None, "mean").model.state_dict()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = dict(state)
    for new_name, old_name in old.items():
        for key in [key for key in state if key.endswith(new_name)]:
            renamed[key.replace(new_name, old_name)] = renamed.pop(key)
    assert renamed.keys() != state.keys()
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((mert / name).read_bytes())
    samples = torch.from_numpy(tone(1))[None]
    assert torch.equal(Mert(tmp_path, None, "mean")(samples), Mert(mert, None, "mean")(samples))
