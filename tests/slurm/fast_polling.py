"""Snakemake whose SLURM plugin asks for its jobs every second, instead of ten seconds later each time."""

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)

if __name__ == "__main__":
    main()
