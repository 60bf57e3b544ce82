"""kill -9 of the jobs of every rule, at random moments."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from pipeline import Run
from published_checkpoint import SMALL, publish, small_config

# isort: split
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone

#: Kills of each rule's jobs; `make fault-test` sets it.
KILLS = int(os.environ.get("ATOMCSI_KILLS", "0"))
RULES, ROUNDS = 20, 5
TARGETS = ("all", "results/effective_rank.csv")
_FETCHED = """
title: An extractor whose checkpoint is fetched
question: Does it come?
source: not in the paper
plot: csi
tasks: [rmd17-mini-forces]
comparisons: [{label: fetched, extractor: fetched}]
"""
_EXTRACTOR = """
fetched:
  implementation: equiformer-v2
  source: {name: small.pt, url: "http://localhost:9/small.pt"}
  max_atoms: 256
  max_edges: 9000
"""
_SCRIPT = re.compile(r"\.snakemake/scripts/[\w.]+\.py$")
_LOG = re.compile(rb"results/logs/(\w+)")


def rule_of(process: psutil.Process) -> str | None:
    """The rule whose job a process is: a command of ours, or the script of a rule, which names the job's log."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    if not command or "python" not in Path(command[0]).name:
        return None
    if len(command) > 2 and Path(command[1]).name == "atomcsi":
        return command[2]
    script = next(filter(_SCRIPT.search, command), None)
    # A script is removed when its job is done.
    with contextlib.suppress(FileNotFoundError):
        if script and (found := _LOG.search(Path(script).read_bytes())):
            return found[1].decode()
    return None


def seconds_of_rules(run: Run) -> dict[str, float]:
    """How long the fastest job of each rule took."""
    folder = run.folder / "results" / "benchmarks"
    seconds = defaultdict(list)
    for path in folder.rglob("*.tsv"):
        rule = path.relative_to(folder).with_suffix("").parts[0]
        seconds[rule].append(pd.read_csv(path, sep="\t")["s"].iloc[0])
    return {rule: min(found) for rule, found in seconds.items()}


def everything(folder: Path) -> Run:
    """A run of every rule: with a mix of hard structures, a task that is a fold, and an extractor that is fetched."""
    run = Run(folder)
    config = folder / "config"
    run.edit(
        "small.yaml",
        "  balanced:",
        "  hard: {kind: ranked, dataset: ani1x-mini, judge: ani1x-mini, part: hard}\n  balanced:",
    )
    run.edit("small.yaml", "inits: [ani1x-mini,", "experiments: [first, fetched]\ninits: [ani1x-mini, hard,")
    run.edit("small.yaml", "title:", f"mirror: {folder / 'mirror'}\ntitle:")
    split = "gap: hartree}\n  split: {kind: "
    run.edit(
        "datasets.yaml",
        f"{split}random, train: rest, val: 20, test: 20",
        f"{split}folds, fold: 0, folds: 30, val: 0.03",
    )
    (config / "experiments" / "fetched.yaml").write_text(_FETCHED)
    with (config / "extractors.yaml").open("a") as extractors:
        extractors.write(_EXTRACTOR)
    (folder / "mirror").mkdir()
    torch.manual_seed(0)
    publish(folder / "mirror" / "small.pt", EquiformerV2Backbone(**SMALL), config=small_config())
    return run


class Killer:
    """Kills the jobs of a running Snakemake: every rule's a number of times, at moments that the seed says."""

    def __init__(self, seconds: dict[str, float], kills: int, seed: int) -> None:
        self._seconds, self._kills = seconds, kills
        self._generator = random.Random(seed)
        self._moments: dict[psutil.Process, float] = {}
        self.killed: dict[str, int] = {}

    def look(self, snakemake: psutil.Process) -> None:
        """Kills jobs whose moment has come, and draws moments for those that have started."""
        now = time.time()
        for process in snakemake.children(recursive=True):
            rule = rule_of(process)
            if rule is None or self.killed.get(rule, 0) >= self._kills:
                continue
            if process not in self._moments:
                # At any moment, but more often early: a job that is done cannot be killed any more.
                share = self._generator.random() ** 2
                self._moments[process] = process.create_time() + share * self._seconds.get(rule, 2.0)
            if now >= self._moments[process]:
                # One that has ended by itself meanwhile was not killed.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    self.killed[rule] = self.killed.get(rule, 0) + 1


@pytest.mark.slow
def test_a_lost_lock(tmp_path, ledger):
    """Two Snakemakes do the same work beside each other; each file is then that of one of them, whole."""
    target = "results/csi_matrix.csv"
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    assert whole(target).returncode == 0
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]

    def start(output: Path) -> subprocess.Popen:
        with output.open("w") as file:
            return subprocess.Popen(run.command(target), stdout=file, stderr=subprocess.STDOUT)

    first = start(outputs[0])
    # It locks its inputs, its outputs, and only then runs jobs.
    while "Execute" not in outputs[0].read_text():
        assert first.poll() is None
        time.sleep(0.02)
    for lock in (run.folder / ".snakemake" / "locks").iterdir():
        lock.unlink()
    second = start(outputs[1])
    while "Execute" not in outputs[1].read_text():
        assert first.poll() is None and second.poll() is None, outputs[1].read_text()[-3000:]
        time.sleep(0.02)
    first.wait()
    second.wait()
    # Snakemake may miss its lock, or files that it was to make; the same command finds them.
    run("--unlock")
    found = run(target)
    assert found.returncode == 0, found.stderr[-5000:]
    lost = run.lost(whole)
    assert lost == 0 and run.leftovers() == []
    ledger.add("lost lock, and a second Snakemake in the folder", "whole files; same results", lost=lost)


@pytest.mark.slow
@pytest.mark.skipif(KILLS == 0, reason="takes minutes: make fault-test")
def test_every_rule_survives_kills(tmp_path, ledger):
    whole = everything(tmp_path / "whole")
    found = whole(*TARGETS)
    assert found.returncode == 0, found.stderr[-5000:]

    killer, lost = Killer(seconds_of_rules(whole), KILLS, seed=0), 0
    # Some jobs end before their moment comes: a few runs, until every rule has had its kills.
    for number in range(ROUNDS):
        run = everything(tmp_path / f"killed-{number}")
        output = tmp_path / f"output-{number}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(run.command(*TARGETS, "--retries", "30"), stdout=file, stderr=subprocess.STDOUT)
            while process.poll() is None:
                killer.look(psutil.Process(process.pid))
                time.sleep(0.02)
        # With its repetitions no job fails for good.
        assert "Exiting because a job execution failed" not in output.read_text(), output.read_text()[-5000:]
        # Snakemake 9.27 forgets a job that waits for its repetition while a selection is followed up, and ends early.
        finished = run(*TARGETS)
        assert finished.returncode == 0, output.read_text()[-5000:] + finished.stderr[-5000:]
        lost += run.lost(whole)
        assert lost == 0 and run.leftovers() == []
        if len(killer.killed) == RULES and min(killer.killed.values()) == KILLS:
            break

    # A rule is in it from its first kill on.
    assert len(killer.killed) == RULES, killer.killed
    injected = sum(killer.killed.values())
    # What docs/reliability.md is made with.
    assert injected >= 100 or KILLS < 8, killer.killed
    ledger.add("kill -9 of a job, at a random moment", "retried; same results", injected=injected, lost=lost)
