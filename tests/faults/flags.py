"""Command lines that no command may accept: values that can't be, places that are none, flags that contradict each other."""

NUMBERS = ("-1", "nan", "inf", "1e400", "0x10", "one", "", "9" * 5000, "1_0_", "\x1b[31m", "--epoch")
TRAIN = ("train", "--tr_shards", "data/train", "--va_shards", "data/test", "--save_path", "new")
SCORE = ("score", "--te_shards", "data/test", "--model", "ckpt", "--log_file", "r.log")
SHARD = ("shard", "--db_path", "mcp", "--list", "cfg/all.train", "--out", "out")
PLACES = ("", "/dev/null", "/proc/self/mem", "cfg/all.train", "nowhere", "\x1b[31mred", "a" * 5000, "a\nb", "nowhere/\x07", ".",
          "gopher://host/x", "data:text/plain,x", "zip://nowhere.zip", "http://[::1", "http://", "memory://x", "file:///nowhere",
          "s3://", "pipe:", "pipe:true", "pipe:false {name}", "pipe:yes {name}", "pipe:cat /dev/zero {name}",
          "pipe:kill -9 $$ # {name}", "pipe:printf '\\033[31m' >&2; exit 3 # {name}")  # fmt: skip

FLAG_CASES: tuple[tuple[str, ...], ...] = (
    *((*TRAIN, flag, value) for flag in ("--batch_size", "--epoch", "--lr", "--hsize", "--in_frames") for value in NUMBERS),
    *((*SHARD, flag, value) for flag in ("--block_frames", "--shard_bytes", "--workers") for value in NUMBERS),
    *((*SCORE, flag, value) for flag in ("--top", "--batch_size", "--threshold") for value in NUMBERS if value != "-1"),
    *((command, place) for command in ("info", "verify", "merge", "index") for place in PLACES),
    *(("train", "--tr_shards", place, "--va_shards", "data/test", "--save_path", "new") for place in PLACES),
    *(("score", "--te_shards", place, "--model", "ckpt", "--log_file", "r.log") for place in PLACES),
    *(("score", "--te_shards", "data/test", "--model", place) for place in PLACES),
    *(("score", "--te_shards", "data/test", "--weights_ckpt", place) for place in PLACES),
    *(("report", place) for place in PLACES if place),
    *(("identify", "ckpt", place) for place in PLACES if place),
    *(("trials", "--trials", place, "--scores", "scores.npz") for place in PLACES),
    *(("trials", "--trials", "cfg/trials", "--scores", place) for place in PLACES),
    (*SHARD, "--task", "2/2"), (*SHARD, "--task", "0/0"), (*SHARD, "--task", "auto"), (*SHARD, "--task", "x"),
    (*SHARD, "--speaker_regex", "("), (*SHARD, "--speaker_regex", "(a+)+$"), (*SHARD, "--speaker_component", "99"),
    (*SHARD, "--ext", "../mcp"), (*SHARD, "--ext", "\x1b[31m"), (*SHARD, "--dtype", "float8"),
    (*TRAIN, "--tr_speakers", "\x1b[31m"), (*TRAIN, "--average", "epochs:-1"), (*TRAIN, "--average", "ema:2"),
    (*TRAIN, "--resume", "nowhere"), (*TRAIN, "--resume", "/dev/zero"), (*TRAIN, "--shard_cache_bytes", "-1"),
    ("train", "--config", "/dev/zero"), ("train", "--config", "nowhere"), ("train", "--config", "data"),
    (*SCORE, "--log_file", "/dev/full/x"), (*SCORE, "--scores", "x.txt"), (*SCORE, "--log_file", "cfg/all.train/x"),
    (*SCORE, "--scores", "scores.npz/x.npz"), ("export", "--model", "ckpt", "--out", "ckpt"), ("export", "--model", "ckpt"),
    ("export", "--model", "ckpt", "--out", "exported", "--format", "\x1b[31m"),
    ("nothing",), ("\x1b[31m",), ("train", "\x1b[31m"),
    ("results", "cfg"), ("results", "nowhere"), ("embed", "--model", "ckpt", "--te_shards", "data/test", "--out", "x.txt"),
)  # fmt: skip
