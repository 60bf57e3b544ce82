"""The pipeline on a real SLURM, and what clusters do to jobs."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster import ask, wait_until
from pipeline import ROOT, Run

#: Jobs as users are told to look for them, and to end them, after Snakemake was killed.
ORPHANS, CLEANUP = re.findall(r"^(squeue .*)$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)


class Started:
    """Snakemake as it runs, in a session of its own."""

    def __init__(self, run: Run, *arguments: str) -> None:
        self.output = run.folder / "output.txt"
        with self.output.open("w") as file:
            # Tests that run in the background may ignore Ctrl-C, and would hand that on.
            self.process = subprocess.Popen(
                run.command(*arguments),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def waits_until(self, condition, what: str) -> None:
        """Waits for a moment of the run."""

        def reached() -> bool:
            assert self.process.poll() is None, f"ended before {what}: {self.output.read_text()[-5000:]}"
            return condition()

        wait_until(reached, what)

    def signal(self, number: signal.Signals) -> None:
        """Signals all its processes, as a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, number)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run without SLURM."""
    run = Run(tmp_path_factory.mktemp("local"))
    found = run("all")
    assert found.returncode == 0, found.stderr[-5000:]
    return run


def shell(command: str, folder: Path) -> str:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_all_in_spite_of_everything(pipeline, cluster, local, ledger):
    """One run of everything; jobs, the node's daemon and Snakemake are killed on the way, and the results are equal."""
    run = pipeline()
    snakemake = Started(run, "all")
    # A second Snakemake is refused by the lock of the first.
    snakemake.waits_until(lambda: cluster.jobs("RUNNING"), "the first job")
    second = run("all")
    assert second.returncode != 0 and "Directory cannot be locked" in second.stderr, second.stderr

    # Someone cancels a job from outside.
    snakemake.waits_until(lambda: "rule_embed" in str(cluster.jobs("RUNNING")), "an embedding")
    victim = next(number for number, what in cluster.jobs("RUNNING").items() if "rule_embed" in what)
    shell(f"scancel {victim}", run.folder)

    # The daemon of the node is killed; the jobs on it are not.
    checkpoints = run.folder / "results" / "pretrain"
    snakemake.waits_until(lambda: list(checkpoints.rglob("last.ckpt")) and cluster.jobs("RUNNING"), "a checkpoint")
    running = cluster.jobs("RUNNING")
    cluster.kill_slurmd()
    cluster.start_slurmd()
    assert running
    wait_until(lambda: {*running} <= {*cluster.jobs("RUNNING"), *cluster.completed()}, "jobs live on", 20)

    # Snakemake itself is killed; its jobs are orphans, which the documented command names.
    snakemake.signal(signal.SIGKILL)
    snakemake.process.wait()
    # What Snakemake knew to be done: conversions before any training, and what is older than it takes to ask for jobs.
    old = [path for path in run.folder.glob("results/embeddings/*/*.h5") if time.time() - path.stat().st_mtime > 15]
    done = {path: path.stat().st_mtime_ns for path in (*run.folder.glob("results/lmdb/*/*.lmdb"), *old)}
    assert done
    # Some may end between the two lists, but none is added.
    named = dict(line.split("|")[0:3:2] for line in shell(ORPHANS, run.folder).splitlines())
    orphans = cluster.jobs()
    assert orphans and orphans.items() <= named.items(), named
    shell(CLEANUP, run.folder)
    wait_until(lambda: not cluster.jobs(), "orphans end")

    assert run("--unlock").returncode == 0
    found = run("all")
    assert found.returncode == 0, found.stderr[-5000:]
    states = {job["JobId"]: job["JobState"] for job in cluster.ended()}
    assert states[victim] == "CANCELLED"
    # What had been done before was not done again.
    assert "Convert" not in found.stderr and "Convert" in snakemake.output.read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    results = run.results()
    assert sorted(results) == sorted(local.results())
    for name, expected in local.results().items():
        assert results[name] == expected, name
    assert run.leftovers() == []
    lost = run.lost(local)
    ledger.add("SLURM: second Snakemake in the folder", "refused by the lock of the first", lost=lost)
    ledger.add("SLURM: job cancelled from outside", "retried; same results", lost=lost)
    ledger.add("SLURM: kill -9 of slurmd", "jobs live on; same results", lost=lost)
    ledger.add("SLURM: kill -9 of Snakemake", "orphans named and cancelled, resumed; same results", lost=lost)


def test_a_job_that_needs_more_memory_gets_it(pipeline, cluster, ledger):
    """Nested Snakemakes alone take more than the first attempt has; GPUs are asked for as the site spells them."""
    before = len(cluster.ended())
    run = pipeline("slurm-gres", embed={"mem_mb": "150 if attempt == 1 else 2000"})
    found = run("results/embeddings/composition/qm9-mini.h5")
    assert found.returncode == 0, found.stderr[-5000:]
    jobs = cluster.ended()[before:]
    tried = [(job["Partition"], job["JobState"], re.search(r"mem=\w+", job["Tres"])[0]) for job in jobs]
    assert tried[-2:] == [("accelerated", "FAILED", "mem=150M"), ("accelerated", "COMPLETED", "mem=2000M")], tried
    assert "TresPerNode=gres:gpu:a100:1" in ask("scontrol", "show", "job", jobs[-1]["JobId"])
    ledger.add("SLURM: too little memory", "killed, retried with more")


def test_a_training_whose_time_is_up_saves_and_goes_on(pipeline, cluster, local, ledger):
    card = "results/pretrain/gemnet-oc-test/ani1x-mini/seed0/model.json"
    # Longer than the first attempt's two minutes, whatever the machine. SLURM may warn a minute earlier than it was
    # told: in the first seconds of a job of one minute, before there is a training to warn.
    epochs = round(170 / json.loads((local.folder / card).read_text())["seconds"] * 4)
    before = len(cluster.ended())
    changes = {"runtime": "2 if attempt == 1 else 10", "slurm_extra": "'--signal=USR1@30'"}
    run = pipeline(pretrain=changes, finetune=changes, score=changes)
    run.edit("small.yaml", "pretrain: {structures: 24, epochs: 4", f"pretrain: {{structures: 24, epochs: {epochs}")
    found = run(card)
    assert found.returncode == 0, found.stderr[-5000:]
    jobs = cluster.ended()[before:]
    assert [(job["JobState"], job["TimeLimit"]) for job in jobs][-2:] == [("FAILED", "2"), ("COMPLETED", "10")]
    assert "TresPerJob=gres:gpu:1" in ask("scontrol", "show", "job", jobs[-1]["JobId"])
    logs = "".join(path.read_text() for path in (run.folder / "results" / "logs" / "slurm").rglob("*.log"))
    stopped = re.search(r"stopped by SIGUSR1; run again to go on at step (\d+)", logs)
    assert stopped, logs[-5000:]
    log = (run.folder / "results" / "logs" / "pretrain" / "gemnet-oc-test" / "ani1x-mini" / "seed0.log").read_text()
    # Six steps of four structures an epoch.
    assert f"resumes at {4 * (int(stopped[1]) - 1)} of {epochs * 24} structures" in log, log
    ledger.add("SLURM: time limit of a training", "warned, saved, went on at that step")


def test_a_requeued_training_goes_on(pipeline, cluster, tmp_path, ledger):
    """As after a preemption, or the loss of a node: SLURM starts the job again by itself, and Snakemake waits."""
    card = "results/pretrain/gemnet-oc-test/ani1x-mini/seed0/model.json"
    run, alone = pipeline(), Run(tmp_path / "alone")
    for each in (run, alone):
        # Some seconds after the first checkpoint.
        each.edit("small.yaml", "pretrain: {structures: 24, epochs: 4", "pretrain: {structures: 24, epochs: 60")
    assert alone(card).returncode == 0
    snakemake = Started(run, card)
    snakemake.waits_until(lambda: list((run.folder / "results").rglob("last.ckpt")), "a checkpoint")
    (number,) = cluster.jobs("RUNNING")
    shell(f"scontrol requeue {number}", run.folder)
    assert snakemake.process.wait(300) == 0, snakemake.output.read_text()[-5000:]
    log = (run.folder / "results" / "logs" / "pretrain" / "gemnet-oc-test" / "ani1x-mini" / "seed0.log").read_text()
    assert "resumes at" in log, log
    assert "Trying to restart" not in snakemake.output.read_text()
    lost = run.lost(alone)
    assert lost == 0
    ledger.add("SLURM: training requeued by SLURM", "goes on at its checkpoint; same model", lost=lost)


def test_ctrl_c_leaves_no_job_in_the_queue(pipeline, cluster, ledger):
    snakemake = Started(pipeline(), "all")
    snakemake.waits_until(lambda: cluster.jobs("RUNNING"), "the first job")
    snakemake.signal(signal.SIGINT)
    wait_until(lambda: not cluster.jobs(), "no job is left", 10)
    assert snakemake.process.wait(60) != 0
    # Nor did it submit one after that.
    assert not cluster.jobs()
    ledger.add("SLURM: Ctrl-C", "no job left within 10 s")


def test_srun_shares_a_training_among_its_tasks(pipeline, local, ledger):
    """As docs/cluster.md says for GPUs, here with two processes of one node: the model of one process to rounding."""
    launcher = "srun --nodes=1 --ntasks=2 --ntasks-per-node=2 --kill-on-bad-exit=0"
    run = pipeline(pretrain={"devices": 2, "mpi": "srun", "tasks_per_node": 2, "launcher": launcher})
    # Larger runs have no groups of jobs.
    run.edit("small.yaml", "scale: demo", "scale: full")
    card = "results/pretrain/gemnet-oc-test/ani1x-mini/seed0/model.json"
    found = run(card)
    assert found.returncode == 0, found.stderr[-5000:]
    shared, alone = (json.loads((folder / card).read_text()) for folder in (run.folder, local.folder))
    assert (shared["costs"]["processes"], alone["costs"]["processes"]) == (2, 1)
    losses, expected = ([record["val_loss"] for record in each["history"]] for each in (shared, alone))
    assert losses == pytest.approx(expected, rel=1e-3)
    ledger.add("SLURM: training in two tasks of srun", "the model of one process")
