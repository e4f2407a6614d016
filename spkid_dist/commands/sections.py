"""The order in which the help shows commands and flags: by subject, and in each from the usual to the rare.

A command that is not among `SECTIONS` has few flags, which stand in the order of its fields.
"""

# subject: (its commands, an example)
COMMAND_GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "Start here": (("demo",), "spkid demo --out demo"),
    "Data": (
        ("shard", "merge", "info", "verify", "index"),
        "spkid shard --db_path mcp --list cfg/all.train --out data/train",
    ),
    "Training": (
        ("train", "report", "results", "doctor"),
        "spkid train --tr_shards data/train --va_shards data/test --save_path ckpt",
    ),
    "Models": (
        ("identify", "score", "calibrate", "trials", "embed", "export"),
        "spkid score --te_shards data/test --model ckpt",
    ),
    "Measuring": (("bench", "simulate"), "spkid bench --out report"),
}

# An example of the commands whose group has another one.
EXAMPLES = {
    "merge": "spkid merge data/train",
    "info": "spkid info data/train",
    "verify": "spkid verify data/train",
    "index": "spkid index data/train",
    "report": "spkid report ckpt --score spk_classification.json",
    "results": "spkid results sweep",
    "doctor": "spkid doctor --shards data/train",
    "calibrate": "spkid calibrate --te_shards data/dev --model ckpt",
    "trials": "spkid trials --trials cfg/trials --te_shards data/test --model ckpt",
    "export": "spkid export --model ckpt --out exported --format onnx",
    "identify": "spkid identify ckpt recording.wav",
    "embed": "spkid embed --model ckpt --te_shards data/test --out embeddings.npz",
    "simulate": (
        "spkid simulate --frames 1_000_000_000 --mean_frames 300 --speakers 5000 --nodes 2 --gpus 8 --network_gbits 100 "
        "--device h100"
    ),
}

SPEAKER_RULES = "speaker_component speaker_regex speaker_tsv utt2spk"
TRAIN = {
    "Data": (
        "tr_shards va_shards fingerprint db_path tr_list_file va_list_file ext spk2idx speaker_component tr_speakers "
        "tr_utterances balance_speakers on_bad_block max_frames cache_dir cache_bytes shard_cache shard_cache_bytes"
    ),
    "Network": "in_frames edge normalize hsize num_layers activation batch_norm dropout",
    "Optimisation": (
        "epoch batch_size lr optimizer patience schedule warmup step_factor step_epochs weight_decay momentum "
        "clip_grad_norm label_smoothing average best_by seed shuffle_windows num_streams"
    ),
    "Run": "save_path overwrite log_freq log_with profile",
    "Checkpoints": "resume checkpoint_steps checkpoint_minutes keep_checkpoints",
    "Machine": "mixed_precision engine tf32 accumulation device_memory compile timeout_minutes",
}
SHARD = {
    "Data": "db_path list source ext num_features kaldi_cmvn kaldi_vad spk2idx out append skip_bad max_frames",
    "Speakers": SPEAKER_RULES,
    "Audio": "features.sample_rate features.resample features.channel features.downmix ffmpeg",
    "Features of audio": (
        "features.kind features.num_bins features.num_ceps features.window_ms features.shift_ms features.low_freq "
        "features.high_freq features.reflect_edges features.use_energy features.dither"
    ),
    "Frames of audio": (
        "features.delta_order features.delta_window features.cmvn features.cmvn_variance features.cmvn_window "
        "features.cmvn_causal features.cmvn_min_window features.vad features.vad_energy_threshold "
        "features.vad_energy_mean_scale features.vad_frames_context features.vad_proportion_threshold"
    ),
    "Format": "dtype shard_bytes block_frames seed",
    "Machine": "workers task json",
    "Slurm": ("slurm_array slurm.partition slurm.timeout_min slurm.mem_gb slurm.sbatch slurm.log_dir slurm.cluster"),
}
SCORE = {
    "Model": "model weights_ckpt train_cfg",
    "Data": "te_shards fingerprint db_path te_list_file source ext spk2idx max_frames shard_cache shard_cache_bytes",
    "Speakers": SPEAKER_RULES,
    "Results": "log_file scores top verbose no_pictures",
    "Decisions": "threshold no_calibration",
    "Machine": "batch_size workers mixed_precision",
}
CALIBRATE = {
    "Model": SCORE["Model"],
    "Data": (
        "te_shards fingerprint db_path te_list_file unknown force source ext spk2idx max_frames shard_cache shard_cache_bytes"
    ),
    "Speakers": SPEAKER_RULES,
    "Machine": SCORE["Machine"],
}
TRIALS = {
    "Trials": "trials p_target",
    "Scores": "scores embeddings enrol center",
    "Model": f"{SCORE['Model']} no_calibration",
    "Data": "te_shards fingerprint db_path source ext spk2idx max_frames shard_cache shard_cache_bytes",
    "Results": "out no_pictures",
    "Machine": SCORE["Machine"],
}
EMBED = {
    "Model": "model weights_ckpt train_cfg",
    "Data": "te_shards fingerprint db_path te_list_file source ext spk2idx max_frames shard_cache shard_cache_bytes",
    "Results": "out",
    "Machine": "batch_size workers mixed_precision",
}
BENCH = {
    "What": "what",
    "Data": "shards fingerprint db_path list ext spk2idx max_frames",
    "Speakers": SPEAKER_RULES,
    "Synthetic corpus": "frames speakers mean_frames num_features",
    "Network": "in_frames batch_size hsize num_layers",
    "Run": "out json repeats folder buffer_bytes",
    "Machine": "threads processes mixed_precision engine tf32",
}
SIMULATE = {
    "Data": "shards fingerprint frames utterances mean_frames speakers num_features dtype block_frames shard_bytes",
    "Cluster": "nodes gpus network_gbits store_gbytes store_gbytes_in_all memory_gb price",
    "Training": "in_frames edge batch_size hsize num_layers num_streams shuffle_windows",
    "Rates": (
        "device step_overhead_us compute_windows stack_windows fill_windows bus_gbytes allreduce_us first_batch_seconds"
    ),
    "Run": "json",
}
# command: section -> names of its flags
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    command: {title: tuple(names.split()) for title, names in sections.items()}
    for command, sections in {
        "train": TRAIN, "shard": SHARD, "score": SCORE, "calibrate": CALIBRATE, "trials": TRIALS, "embed": EMBED,
        "bench": BENCH, "simulate": SIMULATE,
    }.items()
}  # fmt: skip
