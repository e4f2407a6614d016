"""Make the sound world that all cases begin with: a small corpus in every form, and whatever the commands make of it.

It is made by the commands themselves, once; each case works on a copy. Paths in it are relative, so that a copy gives the
same output as the original.
"""

import shutil
from pathlib import Path

import numpy as np
from running import Process, run

from spkid_dist.measure.synthetic import SyntheticCorpus

RATE = 8000
SPEAKERS, TRAINING, TEST, FEATURES = 3, 4, 3, 5
LAYOUT = ("--block_frames", "60", "--shard_bytes", "5000")
NETWORK = ("--in_frames", "3", "--hsize", "8", "--num_layers", "1")
STREAM = ("--batch_size", "64", "--num_streams", "4", "--shuffle_windows", "256", "--log_freq", "4")
TRAIN = (*NETWORK, *STREAM)
MAP = ("--spk2idx", "cfg/spk2idx.json")
SHARD = ("shard", *MAP, *LAYOUT)
AUDIO = ("--source", "audio", "--features.sample_rate", str(RATE), "--features.num_bins", "8")
SETS = ("--tr_shards", "data/train", "--va_shards", "data/test")


def _words(text: str, *before: str) -> tuple[str, ...]:
    return (*before, *text.split())


DATASETS = (
    _words("--db_path mcp --list cfg/all.train --out data/train", *SHARD),
    _words("--db_path mcp --list cfg/all.test --out data/test", *SHARD),
    _words("--db_path mcp --list cfg/dev --out data/dev", *SHARD),
    _words("--db_path wav --list cfg/recordings --out data/wav", *SHARD, *AUDIO),
    _words("--db_path mcp --list cfg/all.train --out data/tasks --task 0/2", *SHARD),
    _words("--db_path mcp --list cfg/all.train --out data/tasks --task 1/2", *SHARD),
    _words("--db_path mcp --list cfg/all.train --out data/half --task 0/2", *SHARD),
)
MODELS = (
    _words("--epoch 2 --lr 0.01 --save_path ckpt", "train", *SETS, *TRAIN),
    _words("--epoch 4 --lr 0.02 --seed 1 --save_path others/b", "train", *SETS, *TRAIN),
    _words("--tr_shards data/wav --va_shards data/wav --epoch 1 --save_path voice", "train", *TRAIN),
    _words("calibrate --te_shards data/dev --model ckpt --force"),
    _words("score --te_shards data/test --model ckpt --log_file ckpt/scored.log --scores scores.npz"),
    _words("score --te_shards data/test --model ckpt --no_pictures --log_file s.log --scores scores.parquet"),
    *(_words(f"embed --te_shards data/test --model ckpt --out embeddings.{kind}") for kind in ("npz", "npy", "ark")),
)


def make_world(folder: Path, with_models: bool = True) -> None:
    """Write the world to the new folder. Raises RuntimeError where a command fails."""
    (folder / "cfg").mkdir(parents=True)
    _write_corpus(folder)
    _write_texts(folder)
    for words in (*DATASETS, *(MODELS if with_models else ())):
        outcome = run(Process(words=words, folder=folder))
        if outcome.code:
            raise RuntimeError(f"spkid {' '.join(words)}: exit code {outcome.code}: {outcome.error[-2000:]}")
    _make_more(folder)


def copy_world(world: Path, folder: Path) -> Path:
    """A copy of the world at `folder`, with the files' times; `folder`'s parent is the case's own."""
    (folder.parent / "tmp").mkdir(parents=True)
    shutil.copytree(world, folder, symlinks=True, dirs_exist_ok=True)
    return folder


def _write_corpus(folder: Path) -> None:
    """Feature files in every form: fmatrix, npy, npz, Kaldi; and recordings."""
    import kaldiio
    import soundfile

    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS, train_utterances=TRAINING, test_utterances=TEST, mean_frames=30, num_features=FEATURES
    )
    corpus.write(folder)
    generator = np.random.default_rng(0)
    matrices = {}
    for speaker in range(SPEAKERS):
        for key, frames in corpus.utterances(speaker):
            matrices[key] = frames
            for kind in ("npy", "npz", "wav", "flac"):
                (folder / kind / key).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / "npy" / f"{key}.npy", frames)
            np.savez_compressed(folder / "npz" / f"{key}.npz", frames=frames)
            samples = generator.normal(0, 0.1, 2000 + 100 * speaker).astype(np.float32)
            for kind in ("wav", "flac"):
                soundfile.write(folder / kind / f"{key}.{kind}", samples, RATE)
    (folder / "kaldi").mkdir()
    kaldiio.save_ark(str(folder / "kaldi/feats.ark"), matrices, scp=str(folder / "kaldi/feats.scp"))
    scp = folder / "kaldi/feats.scp"
    scp.write_text(scp.read_text().replace(str(folder) + "/", ""))
    (folder / "kaldi/utt2spk").write_text("".join(f"{key} {key.split('/')[1]}\n" for key in matrices))


def _write_texts(folder: Path) -> None:
    """Lists, tables, trials, configurations."""
    cfg = folder / "cfg"
    train, test = ((cfg / name).read_text().split() for name in ("all.train", "all.test"))
    (cfg / "dev").write_text("\n".join(test[1::2]) + "\n")
    (cfg / "recordings").write_text("\n".join(train[::2]) + "\n")
    (cfg / "some").write_text("\n".join(train[:8]) + "\n")
    (cfg / "speakers.tsv").write_text("".join(f"{key}\t{key.split('/')[1]}\n" for key in train + test))
    (cfg / "utt2spk").write_text("".join(f"{key} {key.split('/')[1]}\n" for key in train + test))
    names = sorted({key.split("/")[1] for key in train})
    pairs = [(name, key) for name in names for key in test]
    (cfg / "trials").write_text(
        "".join(f"{name} {key} {'target' if name in key else 'nontarget'}\n" for name, key in pairs)
    )
    (cfg / "enrol").write_text("".join(f"{name} {next(key for key in test if name in key)}\n" for name in names))
    (cfg / "train.yaml").write_text(
        "tr_shards: data/train\nva_shards: data/test\nin_frames: 3\nhsize: 8\nnum_layers: 1\nbatch_size: 64\n"
        "num_streams: 4\nshuffle_windows: 256\nepoch: 1\nsave_path: new\n"
    )
    (cfg / "shard.yaml").write_text("db_path: mcp\nlist: cfg/all.test\nspk2idx: cfg/spk2idx.json\nout: out\n")
    (cfg / "score.yaml").write_text("te_shards: data/test\nmodel: [ckpt]\nlog_file: r.log\nno_pictures: true\n")


def _make_more(folder: Path) -> None:
    """What the commands of a user would leave in time: a dataset without its index, a copy without its manifest."""
    shutil.copytree(folder / "data/test", folder / "data/tars")
    for name in ("manifest.json", "blocks.npy", "utterances.npy"):
        (folder / "data/tars" / name).unlink()
    shutil.copytree(folder / "data/test", folder / "data/grown")
