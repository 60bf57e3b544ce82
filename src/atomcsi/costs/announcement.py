"""Says what a run costs before it starts, and in a dry run, right after Snakemake has said how many jobs there are."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake.io import is_flagged
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from atomcsi.costs.bill import Bill
from atomcsi.costs.estimate import Cost, Estimator, Step
from atomcsi.costs.rates import Rates
from atomcsi.errors import AtomcsiError
from atomcsi.project import Project

if TYPE_CHECKING:
    from snakemake.dag import DAG
    from snakemake.jobs import Job
    from snakemake.workflow import Workflow


class Announcement(logging.Handler):
    """Waits in Snakemake's log for the statistics of the jobs, and adds what these cost.

    Dry runs have no hook of their own, but runs and dry runs alike log their statistics as soon as the jobs are known;
    the processes of jobs do not. An estimate that fails is a warning, and no more.

    Args:
        workflow: The workflow.
        project: Its run and catalogue.
    """

    def __init__(self, workflow: Workflow, project: Project) -> None:
        super().__init__()
        self._workflow, self._project = workflow, project
        self._lines: list[str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the costs after the statistics, in a dry run also after those at its end."""
        if getattr(record, "event", None) != LogEvent.RUN_INFO:
            return
        # At the end of a dry run no job is left to count.
        if self._lines is None:
            try:
                self._lines = self._estimate()
            except Exception as error:
                self._lines = []
                kind = "" if isinstance(error, AtomcsiError) else f"{type(error).__name__}: "
                logger.warning(f"The costs of this run cannot be estimated: {kind}{error}")
        if self._lines:
            # As quiet as the statistics.
            logger.info("\n".join(self._lines) + "\n", extra={"quietness": Quietness.PROGRESS})

    def _estimate(self) -> list[str]:
        workflow, project = self._workflow, self._project
        rates = Rates.load(Path(workflow.basedir) / "config" / "rates.yaml")
        estimator = Estimator(project, rates, Path.cwd(), _device(project))
        jobs = [job for job in workflow.dag.needrun_jobs() if job.output]
        costs = {job: estimator.cost(_step(job)) for job in jobs}
        limit = workflow.global_resources.get("gpu")
        bill = Bill.of(
            list(costs.values()),
            chain=_longest_chain(workflow.dag, costs),
            slots=workflow.nodes or workflow.cores,
            gpus=None if limit is None else limit.value,
            unsized=estimator.unsized,
        )
        waiting = []
        if any(is_flagged(file, "checkpoint_target") for job in jobs for file in job.input):
            waiting = Bill.of(estimator.after_the_choice(), chain=0).items
        return bill.lines(scale=project.run.scale, waiting=waiting)


def _device(project: Project) -> str:
    """What trainings are taken to run on: a GPU at full scale, where nobody would do without, or if there is one."""
    return "cuda" if project.run.scale == "full" or Path("/dev/nvidiactl").exists() else "cpu"


def _step(job: Job) -> Step:
    resources = job.resources
    return Step(
        rule=job.rule.name,
        wildcards=job.wildcards_dict,
        params=dict(job.params.items()),
        inputs=[Path(file) for file in job.input],
        processes=resources.get("devices", 1) * resources.get("nodes", 1),
    )


def _longest_chain(dag: DAG, costs: dict[Job, Cost]) -> float:
    """Seconds of the longest chain of jobs that wait for each other."""
    ends: dict[Job, float] = {}
    levels: Iterable[Iterable[Job]] = dag.toposorted(set(costs))
    for level in levels:
        for job in level:
            starts = max((ends[other] for other in dag.dependencies[job] if other in ends), default=0.0)
            ends[job] = starts + costs[job].seconds
    return max(ends.values(), default=0.0)
