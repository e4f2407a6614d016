"""Run ``python -m spkid_dist COMMAND [flags]``, which does the same as ``spkid COMMAND [flags]``."""

from spkid_dist.commands.cli import main

if __name__ == "__main__":
    main()
