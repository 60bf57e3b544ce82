"""What a run will cost: jobs, structures, hours, energy and disk, by rates that were measured or are assumed."""
