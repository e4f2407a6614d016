"""Trials by embeddings: speakers are enrolled by utterances, and need not have been trained on."""

import json

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from shards import InputError, UsageError
from spkid_dist.commands.trials import score_trials
from spkid_dist.config import TrialsConfig
from spkid_dist.scoring.cosine import read_enrolments
from spkid_dist.scoring.embeddingfile import write_embeddings

KEYS = [f"x/{speaker}/{number}" for speaker in ("ana", "bob", "eve") for number in range(4)]
ENROLMENTS = "ana x/ana/0 x/ana/1\nbob x/bob/0\nbob x/bob/1\neve x/eve/0 x/eve/1\n"


@pytest.fixture
def embeddings(tmp_path):
    """Embeddings of three speakers' utterances, in directions of their own about a common one."""
    draw = np.random.default_rng(4)
    vectors = 3 + np.repeat(draw.standard_normal((3, 8)), 4, axis=0) + draw.standard_normal((12, 8)) * 0.4
    vectors *= draw.uniform(0.5, 2, (12, 1))  # the length says nothing
    write_embeddings(tmp_path / "all.npz", KEYS, [vectors.astype(np.float32)], 8)
    return vectors.astype(np.float32).astype(np.float64)


def trial_list(path, claims):
    lines = [
        f"{claim} {key} {'target' if key.split('/')[1] == claim.split('/')[-1] else 'nontarget'}"
        for claim in claims
        for key in KEYS
        if key[-1] in "23"
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def options(tmp_path, **changes):
    usual = {"trials": tmp_path / "trials", "embeddings": tmp_path / "all.npz", "out": tmp_path / "out/scores.txt"}
    return TrialsConfig(**usual | {"pictures": False} | changes)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("centered", [False, True])
def test_a_score_is_the_cosine_to_the_mean_of_the_enrolment_utterances(tmp_path, embeddings, centered):
    trial_list(tmp_path / "trials", ("ana", "bob", "eve"))
    (tmp_path / "enrol").write_text(ENROLMENTS)
    center = {"center": tmp_path / "all.npz"} if centered else {}
    result = score_trials(options(tmp_path, enrol=tmp_path / "enrol", **center))
    vectors = embeddings - embeddings.mean(axis=0) if centered else embeddings
    models = np.stack([unit(vectors[row : row + 2]).mean(axis=0) for row in (0, 4, 8)])
    tests = vectors[[row for row, key in enumerate(KEYS) if key[-1] in "23"]]
    np.testing.assert_allclose(result.scores, cosine_similarity(models, tests).ravel(), atol=1e-12)
    rate, _ = result.figures.curve.equal_error
    assert (rate == 0) or not centered
    lines = [line.split() for line in (tmp_path / "out/scores.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [line.split()[:2] for line in (tmp_path / "trials").read_text().splitlines()]
    np.testing.assert_allclose([float(line[2]) for line in lines], result.scores, rtol=1e-8)
    facts = json.loads((tmp_path / "out/scores.json").read_text())
    assert (facts["score"], facts["calibrated"], facts["cllr"]) == ("cosine", False, None)
    assert facts["enrol"] == str(tmp_path / "enrol")


def test_a_claim_may_be_an_utterance_as_voxceleb_has_it(tmp_path, embeddings, capsys):
    (tmp_path / "trials").write_text("1 x/ana/0.wav x/ana/2.wav\n0 x/ana/0.wav x/bob/3.wav\n")
    result = score_trials(options(tmp_path))
    rows = [KEYS.index(key) for key in ("x/ana/0", "x/ana/2", "x/bob/3")]
    np.testing.assert_allclose(result.scores, cosine_similarity(embeddings[rows])[0, 1:], atol=1e-12)
    assert "cosines are no log-likelihood ratios, so actDCF and Cllr are left out" in capsys.readouterr().out


def test_enrolments_may_have_a_file_of_their_own(tmp_path, embeddings):
    trial_list(tmp_path / "trials", ("ana", "bob", "eve"))
    (tmp_path / "enrol").write_text(ENROLMENTS)
    whole = score_trials(options(tmp_path, enrol=tmp_path / "enrol"))
    for name, wanted in (("first.npy", "01"), ("second.ark", "23")):
        rows = [row for row, key in enumerate(KEYS) if key[-1] in wanted]
        write_embeddings(tmp_path / name, [KEYS[row] for row in rows], [embeddings[rows].astype(np.float32)], 8)
    files = (tmp_path / "first.npy", tmp_path / "second.ark")
    np.testing.assert_array_equal(
        score_trials(options(tmp_path, embeddings=files, enrol=tmp_path / "enrol")).scores, whole.scores
    )


@pytest.mark.usefixtures("embeddings")
def test_many_trials_are_scored_a_part_at_a_time(tmp_path, monkeypatch):
    trial_list(tmp_path / "trials", KEYS)
    whole = score_trials(options(tmp_path)).scores
    monkeypatch.setattr("spkid_dist.scoring.cosine.TRIALS_AT_A_TIME", 7)
    np.testing.assert_array_equal(score_trials(options(tmp_path)).scores, whole)


BAD = {
    "an utterance without an embedding": (
        {"trials": "ana x/ana/9 target\n"},
        r"trials:1: utterance 'x/ana/9' is not in .*all\.npz .*; embed it too, or remove the trial; .* has 12 utterances",
    ),
    "a speaker who is not enrolled": ({"trials": "zoe x/ana/2 target\n"}, r"trials:1: speaker 'zoe' is not in .*enrol"),
    "an enrolment without an embedding": (
        {"enrol": "ana x/ana/0 x/ana/7\n"},
        r"enrol:1: utterance 'x/ana/7' is not in",
    ),
    "utt2spk in place of spk2utt": (
        {"enrol": "x/ana/0 ana\nx/ana/1 ana\n"},
        r"enrol:1: utterance 'ana' is not in .*; its lines seem to be UTTERANCE SPEAKER: give lines SPEAKER UTTERANCE",
    ),
    "an utterance twice": (
        {"enrol": "ana x/ana/0\n\nana x/ana/1 x/ana/0\n"},
        r"enrol:3: utterance 'x/ana/0' enrols 'ana' already, in line 1; remove it once",
    ),
    "a speaker alone": ({"enrol": "ana\n"}, r"enrol:1: 'ana' stands alone; give lines SPEAKER UTTERANCE"),
    "no enrolments": ({"enrol": "\n \n"}, r"enrol: holds no enrolments; give lines"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("embeddings")
def test_what_is_missing_has_a_line_and_leaves_no_scores(tmp_path, case):
    files, message = BAD[case]
    for name, text in ({"trials": "ana x/ana/2 target\n", "enrol": ENROLMENTS} | files).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        score_trials(options(tmp_path, enrol=tmp_path / "enrol"))
    assert not (tmp_path / "out/scores.txt").exists()


@pytest.mark.usefixtures("embeddings")
def test_embeddings_that_do_not_go_together_are_refused(tmp_path):
    trial_list(tmp_path / "trials", KEYS)
    write_embeddings(tmp_path / "short.npz", ["y"], [np.ones((1, 7), np.float32)], 7)
    write_embeddings(tmp_path / "same.npz", KEYS[3:4], [np.ones((1, 8), np.float32)], 8)
    write_embeddings(tmp_path / "zero.npz", ["y"], [np.zeros((1, 8), np.float32)], 8)
    for name, message in (
        (
            "short.npz",
            r"short\.npz: its embeddings have 7 values, those of .*all\.npz 8; embed both with the same model",
        ),
        ("same.npz", r"same\.npz: utterance 'x/ana/3' is in .*all\.npz, too"),
        ("zero.npz", r"the embedding of 'y' is 0 in all its values, so it has no direction \(1 of 13 are\)"),
    ):
        with pytest.raises(InputError, match=message):
            score_trials(options(tmp_path, embeddings=(tmp_path / "all.npz", tmp_path / name)))
    with pytest.raises(InputError, match=r"short\.npz: its embeddings have 7 values"):
        score_trials(options(tmp_path, center=tmp_path / "short.npz"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scores": "s.npz"}, "--scores with --embeddings: a trial has one score; give one of the two"),
        ({"model": "ckpt"}, "--model with --embeddings: a trial has one score"),
        ({"te_shards": "data"}, "--te_shards with --embeddings: a trial has one score"),
        (
            {"embeddings": (), "scores": "s.npz", "te_shards": "data"},
            "--te_shards with --scores: the scores are computed already",
        ),
        (
            {"embeddings": (), "model": "ckpt", "enrol": "e"},
            "--enrol without --embeddings: a model knows its own speakers",
        ),
        ({"embeddings": (), "model": "ckpt", "center": "e.npz"}, "--center without --embeddings"),
        ({"enrol": "e", "out": "e"}, "--out e: is the file of --enrol; give another name"),
        ({"out": "all.npz", "embeddings": ("a.npz", "all.npz")}, "--out all.npz: is the file of --embeddings"),
        ({"embeddings": ()}, "no model is given"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        TrialsConfig(**{"trials": "t", "embeddings": "all.npz"} | given)


def test_a_speaker_may_have_several_lines(tmp_path):
    (tmp_path / "enrol").write_text("a  k1 k2\r\n\nb\tk3\na k4\n")
    assert {name: list(keys) for name, keys in read_enrolments(tmp_path / "enrol").items()} == {
        "a": ["k1", "k2", "k4"],
        "b": ["k3"],
    }
