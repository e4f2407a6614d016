"""The commands that write, for the parts that disturb them: kills, races, full disks."""

from table import COMMANDS, Command, command_of
from world import SETS, SHARD, TRAIN

LIST = "--db_path mcp --list cfg/all.train --out out"
GOING = ("--resume", "auto", "--save_path", "new", "--epoch", "2")
SUMMARY = ("summary.json",)  # of the last run alone
OWN: dict[str, Command] = {
    "shard, 2 workers": command_of(f"--workers 2 {LIST}", "out", before=SHARD),
    "append, 2 workers": command_of(
        "--append --workers 2 --db_path mcp --list cfg/all.train --out data/grown", "data/grown", before=SHARD
    ),
    "train": Command(words=("train", *SETS, *TRAIN, *GOING), outputs=("new",), ignored=SUMMARY),
    "train, many checkpoints": Command(
        words=("train", *SETS, *TRAIN, *GOING, "--checkpoint_steps", "2"), outputs=("new",), ignored=SUMMARY
    ),
    "train, average of steps": Command(
        words=("train", *SETS, *TRAIN, *GOING, "--average", "ema:0.9"), outputs=("new",), ignored=SUMMARY
    ),
    "train from files": Command(
        words=("train", *TRAIN, "--spk2idx", "cfg/spk2idx.json", "--cache_dir", "made", *GOING), outputs=("new", "made"),
        ignored=SUMMARY,
    ),
    "train from a URL": Command(
        words=("train", "--tr_shards", "file://{world}/data/train", "--va_shards", "file://{world}/data/test", *TRAIN,
               "--shard_cache", "kept", *GOING),
        outputs=("new",), ignored=SUMMARY,
    ),
    "score from a URL": command_of(
        "--te_shards file://{world}/data/test --shard_cache kept --model ckpt", "r.log",
        before=("score", "--no_pictures", "--log_file", "r.log", "--scores", "r.npz"), ignored=("r.npz",),
    ),
    "embed npy": command_of("embed --te_shards data/test --model ckpt --out e.npy", "e.npy", "e.keys"),
    "embed ark": command_of("embed --te_shards data/test --model ckpt --out e.ark", "e.ark", "e.scp"),
    "results": command_of("results others", "others/results.tsv"),
}  # fmt: skip
SHARED = (
    "shard", "shard_wav", "shard_skip", "append", "task", "merge", "index", "resume", "score", "score_top", "calibrate",
    "trials_npz", "embed", "export", "report",
)  # fmt: skip
WRITING: dict[str, Command] = {name: COMMANDS[name] for name in SHARED} | OWN
