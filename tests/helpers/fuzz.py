"""Coverage-guided fuzzing of all readers, each in a process of its own: ``python tests/helpers/fuzz.py --seconds 60
[--target NAME]``.

What is found interesting stays in ``fuzz/NAME`` for the next run; an input that fails is written to
``fuzz/NAME-crash-*``, and ``python tests/helpers/fuzz.py --target NAME --input FILE`` runs it again. Needs
requirements/fuzz.txt.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shards"], exclude=["shards.kernels"]):  # numba compiles those
    from fuzz_targets import check, make_targets

FOUND = Path("fuzz")
MAX_INPUT_BYTES = 16384  # a whole shard of the toy corpus fits


def main() -> None:
    """Fuzz one target here, or all of them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", help="fuzz only this one")
    parser.add_argument("--input", type=Path, help="run the target on this file only")
    options = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - the files' owner is the folder's
    with tempfile.TemporaryDirectory(prefix="spkid-fuzz-", dir=memory) as folder:
        targets = make_targets(Path(folder))
        if options.target is None:
            sys.exit(sum(_fuzz_in_process(name, options.seconds) for name in targets))
        target = targets[options.target]
        if options.input is not None:
            check(target, options.input.read_bytes())
            return
        corpus = FOUND / options.target
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        flags = (f"-max_total_time={options.seconds}", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1")
        atheris.Setup(
            [sys.argv[0], *flags, f"-artifact_prefix={corpus}-", str(corpus)], lambda data: check(target, data)
        )
        atheris.Fuzz()  # ends the process


def _fuzz_in_process(name: str, seconds: int) -> bool:
    """Whether the target failed; prints what was done."""
    command = (sys.executable, __file__, "--target", name, "--seconds", str(seconds))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    print(f"{name}: {runs[1] if runs else 'no'} runs, {'failed' if done.returncode else 'nothing found'}", flush=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
    return done.returncode != 0


if __name__ == "__main__":
    main()
