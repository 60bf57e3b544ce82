from snakemake.logging import logger

from atomcsi.costs.announcement import Announcement

# A dry run, and a run before it starts, say what they cost.
logger.addHandler(Announcement(workflow, PROJECT))
