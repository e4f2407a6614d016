"""From feature files to a dataset: plan, tasks, shards, records, and their assembly."""
