"""An exported model has its calibration, and callers have the confidences of `spkid score`; options that change nothing."""

import json

import numpy as np
import pytest
from test_export import RATE, compare_with_score, config, random_model, recordings, trained  # noqa: F401 - fixtures

from shards import FeatureOptions
from shards.sources.features import WITHOUT_EFFECT, kaldi_options
from spkid_dist.config import ExportConfig, ScoreConfig
from spkid_dist.export import export_model
from spkid_dist.score import score_utterances
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.calibrationfile import write_calibration


@pytest.mark.parametrize("is_open", [False, True])
def test_a_caller_has_the_confidences_and_the_unknown_speakers_of_spkid_score(recordings, tmp_path, is_open):
    source, db_path, listed = recordings["fmatrix"]
    paths = random_model(tmp_path / "model", edge="valid", source=source)
    config = ScoreConfig(db_path=db_path, te_list_file=listed, **paths, log_file=tmp_path / "x.log", pictures=False)
    scale = Scale(temperature=30_000.0, length_exponent=0.4)
    write_calibration([paths["weights_ckpt"]], scale, None, {})
    decisions = score_utterances(config).decisions
    assert 1 / 3 < decisions.posteriors.min() < 0.9
    threshold = float(np.median(decisions.ratios)) if is_open else None
    write_calibration([paths["weights_ckpt"]], scale, threshold, {})
    assert set(score_utterances(config).decisions.accepted) == ({False, True} if is_open else {True})
    model = json.loads(export_model(ExportConfig(**paths, out=tmp_path / "out", format="safetensors")).read_text())
    step = model["steps"][-1]
    found = [step[name] for name in ("step", "temperature", "length_exponent", "threshold")]
    assert found == ["calibrate", 30_000.0, 0.4, threshold]
    compare_with_score([(paths, tmp_path / "out", db_path, listed, "safetensors")])


def test_without_a_calibration_its_numbers_are_null(trained, config):
    trained()
    step = json.loads(export_model(ExportConfig(**config, format="safetensors")).read_text())["steps"][-1]
    assert [step[name] for name in ("temperature", "length_exponent", "threshold")] == [None, None, None]


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
def test_options_without_effect_have_none(kind):
    options = FeatureOptions(kind=kind, sample_rate=RATE, num_bins=20, num_ceps=12)
    samples = np.random.default_rng(0).standard_normal(2000).astype(np.float32)

    def computed(**changes):
        import kaldi_native_fbank as library

        given = kaldi_options(options)
        for name, value in changes.items():
            held = next(one for one in (given["frame_opts"], given["mel_opts"], given) if name in one)
            held[name] = value
        given["frame_opts"] = library.FrameExtractionOptions(**given["frame_opts"])
        given["mel_opts"] = library.MelBanksOptions(**given["mel_opts"])
        of_kind, make = {
            "fbank": (library.FbankOptions, library.OnlineFbank),
            "mfcc": (library.MfccOptions, library.OnlineMfcc),
        }[kind]
        extractor = make(of_kind(**given))
        extractor.accept_waveform(RATE, samples * 32768)
        return np.stack([extractor.get_frame(frame) for frame in range(extractor.num_frames_ready)])

    others = {"blackman_coeff": 0.1, "vtln_low": 200.0, "vtln_high": -900.0, "norm": "", "use_slaney_mel_scale": False}
    others |= {"floor_to_int_bin": True, "debug_mel": True, "energy_floor": 5.0, "raw_energy": False}
    assert others.keys() == set(WITHOUT_EFFECT)
    expected = computed()
    for name, value in others.items():
        np.testing.assert_array_equal(computed(**{name: value}), expected, name)
    assert not np.array_equal(computed(htk_mode=False, low_freq=100.0), expected)
