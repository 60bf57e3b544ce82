"""The costs of a run's jobs added up, and the lines that say so before it starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atomcsi.costs.estimate import Cost
from atomcsi.costs.rates import ASSUMED_WATTS
from atomcsi.quantities import duration, file_size, number

#: Structures that JMP-S and JMP-L were pretrained on (paper, section 1: "Budget").
JMP_BUDGET = 240_000_000
#: Rules with a smaller share of the time have no line of their own.
_COUNTS = 0.02
_COLUMNS = ("step", "jobs", "structures seen", "core-hours", "GPU-hours", "disk")


@dataclass(frozen=True)
class Item:
    """What some jobs cost together.

    Attributes:
        name: What the jobs are called.
        jobs: How many there are.
        structures: Structures seen, each as often as it is.
        core_hours: Hours of single cores, where no GPU works.
        gpu_hours: Hours of single GPUs.
        bytes: Of what is written.
    """

    name: str
    jobs: int
    structures: int
    core_hours: float
    gpu_hours: float
    bytes: float

    @classmethod
    def of(cls, name: str, costs: Sequence[Cost]) -> Item:
        """Adds costs up."""
        seconds = {
            device: sum(cost.device_seconds for cost in costs if cost.device == device) for device in ASSUMED_WATTS
        }
        return cls(
            name=name,
            jobs=len(costs),
            structures=sum(cost.structures for cost in costs),
            core_hours=seconds["cpu"] / 3600,
            gpu_hours=seconds["cuda"] / 3600,
            bytes=sum(cost.bytes for cost in costs),
        )

    @property
    def kwh(self) -> float:
        """Energy at the power that is assumed of devices, as in model cards without a meter."""
        return (self.core_hours * ASSUMED_WATTS["cpu"] + self.gpu_hours * ASSUMED_WATTS["cuda"]) / 1000


@dataclass(frozen=True)
class Bill:
    """What a run costs.

    Attributes:
        items: What the jobs of each rule cost, the dearest first; those that hardly count together.
        total: All of them.
        seconds: From the start of the run to its end, with ``slots`` jobs at once.
        slots: See there.
        sources: How rates are known, with the backbones and extractors that they are of.
        unsized: Datasets whose size was guessed.
        budgets: Structures that each pretraining sees.
    """

    items: list[Item]
    total: Item
    seconds: float
    slots: int
    sources: dict[str, list[str]]
    unsized: list[str]
    budgets: list[int]

    @classmethod
    def of(
        cls,
        costs: Sequence[Cost],
        *,
        chain: float,
        slots: int = 1,
        gpus: int | None = None,
        unsized: Iterable[str] = (),
    ) -> Bill:
        """Adds up what jobs cost.

        Args:
            costs: Of each job.
            chain: Seconds of the longest chain of jobs that wait for each other.
            slots: Jobs that run at once at most.
            gpus: GPUs that they share; None if there are enough.
            unsized: Datasets whose size was guessed.
        """
        on_gpus = sum(cost.device_seconds for cost in costs if cost.device == "cuda")
        by_rule = defaultdict(list)
        for cost in costs:
            by_rule[cost.rule].append(cost)
        least = _COUNTS * sum(cost.device_seconds for cost in costs)
        small = {rule for rule, members in by_rule.items() if sum(cost.device_seconds for cost in members) < least}
        items = [Item.of(rule, members) for rule, members in by_rule.items() if rule not in small]
        others = [cost for cost in costs if cost.rule in small]
        items.sort(key=lambda item: (-item.gpu_hours, -item.core_hours, item.name))
        return cls(
            items=[*items, Item.of("others", others)] if others else items,
            total=Item.of("total", costs),
            seconds=max(chain, sum(cost.seconds for cost in costs) / slots, on_gpus / gpus if gpus else 0.0),
            slots=slots,
            sources={
                source: sorted({cost.network for cost in costs if cost.source == source})
                for source in sorted({cost.source for cost in costs if cost.source})
            },
            unsized=sorted(unsized),
            budgets=[cost.structures for cost in costs if cost.rule == "pretrain"],
        )

    def lines(self, *, scale: str, waiting: Sequence[Item] = ()) -> list[str]:
        """Returns what is printed.

        Args:
            scale: The run's: beside JMP's, budgets make sense at full scale only.
            waiting: What jobs cost at most that only CSI's choice will name.
        """
        total = self.total
        at_once = "one job at a time" if self.slots == 1 else f"{self.slots} jobs at once"
        head = [
            f"Estimated cost ({scale} scale): about {duration(self.seconds)}, {at_once}",
            f"{number(total.gpu_hours)} GPU-hours",
            f"{number(total.kwh)} kWh",
            f"{file_size(total.bytes)} of disk",
        ]
        rows = [_COLUMNS, *map(_row, self.items), _row(total)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows]
        notes = [f"rates {source}: {', '.join(networks)}" for source, networks in self.sources.items()]
        if self.unsized:
            notes.append(f"guessed for want of `size` in the catalogue: {', '.join(self.unsized)}")
        if waiting:
            jobs = " and ".join(f"{item.jobs} {item.name}" for item in waiting)
            hours = [number(sum(item.core_hours for item in waiting)), number(sum(item.gpu_hours for item in waiting))]
            notes.append(
                f"+ at most {jobs} that only the choice of CSI will name: {hours[0]} core-hours, {hours[1]} GPU-hours"
            )
        if scale == "full" and self.budgets:
            together, largest = (number(budget / JMP_BUDGET) for budget in (sum(self.budgets), max(self.budgets)))
            notes.append(f"C of these pretrainings over JMP's 240M: {together} together, {largest} the largest")
        return ["; ".join(head), *(f"  {line}".rstrip() for line in (*table, *notes))]


def _row(item: Item) -> tuple[str, ...]:
    return (
        item.name,
        f"{item.jobs:,}",
        f"{item.structures:,}" if item.structures else "",
        number(item.core_hours),
        number(item.gpu_hours),
        file_size(item.bytes),
    )
