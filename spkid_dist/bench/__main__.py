"""The entry of ``python -m spkid_dist.bench`` and ``accelerate launch -m spkid_dist.bench``."""

from spkid_dist.cli import run_command

if __name__ == "__main__":
    run_command("bench")
