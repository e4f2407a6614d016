"""Find the job in a dataset's folder that is not finished: what it has written is no part of the dataset, and no damage.

Readers take the shards that the manifest lists. An append writes others beside them, and its manifest last.
"""

from dataclasses import dataclass
from pathlib import Path

from shards.conversion.folder import LocalFolder
from shards.conversion.merging import load_job, missing_shards
from shards.conversion.plan import Job
from shards.conversion.record import RECORDS_NAME
from shards.layout import JOB_NAME, shard_name
from shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class UnfinishedJob:
    """A job, how many of its shards are done, and whether it goes with the dataset that there is, or with none."""

    folder: Path
    job: Job
    shards_done: int
    goes_on: bool

    @property
    def shard_names(self) -> set[str]:
        """The shards that it writes, or has written."""
        return {shard_name(number) for number in self.job.shards}

    def __str__(self) -> str:
        job, what = self.job, "append" if self.job.part else "job"
        begun = f", begun by {job.begun_by}" if job.begun_by else ""
        return f"an unfinished {what}: {self.shards_done} of {job.num_shards} shards are done{begun}; {self.remedy}"

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        if self.goes_on and self.shards_done == self.job.num_shards:
            return f"it needs only spkid merge {self.folder}"
        files = f"{JOB_NAME}, {RECORDS_NAME} and the shards from {shard_name(self.job.first_shard)} on"
        if not self.goes_on:
            return f"it can't be continued, as the dataset has changed since; delete {JOB_NAME} and {RECORDS_NAME}"
        return f"give its command again to finish it, or delete {files} to give it up"


def find_unfinished(folder: Path, manifest: Manifest | None) -> UnfinishedJob | None:
    """The unfinished job in the folder of a dataset with this manifest, or of none; None where there is none.

    Raises:
        InputError: its file is damaged.
    """
    out = LocalFolder(folder)
    job = load_job(out)
    if job is None or (manifest is not None and job.is_in(manifest)):
        return None
    missing = missing_shards(job.shards, out.sizes())
    goes_on = job.base == ("" if manifest is None else manifest.fingerprint)
    return UnfinishedJob(folder=folder, job=job, shards_done=job.num_shards - len(missing), goes_on=goes_on)
