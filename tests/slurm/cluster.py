"""A real SLURM for the tests: Debian's packages as a cluster of one machine, on its loopback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_SYSTEM = Path("/etc/slurm")
_PROFILES = Path(__file__).parents[2] / "profiles"
#: What the profiles' site block says here: a processor for each job, no accounts, jobs of seconds.
_SITE = {
    "cores": 1,
    "slurm-no-account": True,
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 5,
}
#: Two pretended GPUs: jobs that ask for one get it, and find none.
_GPUS = "".join(f"Name=gpu Type=a100 Count=1 File={device}\n" for device in ("/dev/null", "/dev/zero"))
_FILES = {"slurm.conf": (Path(__file__).with_name("slurm.conf")).read_text(), "gres.conf": _GPUS}


def why_not() -> str:
    """Says why there can be no cluster here, after trying to install one; empty if there can."""
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    for link in (_SYSTEM / name for name in _FILES):
        if os.path.lexists(link) and not _left(link):
            return f"{link} is there: this machine belongs to a cluster, or to other tests, and is left alone"
    if all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        return ""
    if shutil.which("apt-get") is None:
        return f"SLURM is not installed, and there is no apt-get to install {', '.join(PACKAGES)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            return f"apt-get {' '.join(command)} failed: {done.stderr.strip()[-300:]}"
    return ""


def _left(link: Path) -> bool:
    """Says whether a link in /etc/slurm is that of tests which were killed."""
    if not link.is_symlink():
        return False
    target = link.readlink()
    owner = target.with_name("owner")
    if owner.exists():
        return not psutil.pid_exists(int(owner.read_text()))
    # Their folder is gone, or older than what names its owner.
    return Path(tempfile.gettempdir()) in target.parents


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Waits until ``condition`` is true.

    Raises:
        AssertionError: It did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.1)


def write_profile(name: str, folder: Path, **resources: dict[str, object]) -> Path:
    """Writes one of the repository's profiles, with the facts of this site, as a profile of its own.

    Args:
        name: The profile's folder in ``profiles/``.
        folder: The folder to write.
        resources: What single rules ask for instead, as users say it.
    """
    content = yaml.safe_load((_PROFILES / name / "config.yaml").read_text())
    del content["default-resources"]["slurm_account"]
    for rule, changed in resources.items():
        content["set-resources"][rule] |= changed
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(content | _SITE))
    return folder


class Cluster:
    """One node with the partitions that the profiles name, whose daemons run as long as the context.

    Args:
        folder: Where configuration, state and logs go.
        processors: Processors of the node.
    """

    def __init__(self, folder: Path, processors: int = 2) -> None:
        self.folder, self.processors = folder, processors

    def __enter__(self) -> Cluster:
        for folder in {(_SYSTEM / name).readlink().parent for name in _FILES if (_SYSTEM / name).is_symlink()}:
            Cluster(folder)._clear()
        (self.folder / "owner").write_text(str(os.getpid()))
        (self.folder / "state").mkdir()
        (self.folder / "spool").mkdir()
        # munged wants its socket's folder open to all and its key closed.
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
        facts = {"host": socket.gethostname().split(".")[0], "folder": self.folder}
        facts |= {"processors": self.processors, "megabytes": int(megabytes * 0.9)}
        for name, text in _FILES.items():
            (self.folder / name).write_text(text.format_map(facts))
            # The plugin takes SLURM's variables from the environment of a job's steps, SLURM_CONF among them.
            _SYSTEM.mkdir(exist_ok=True)
            (_SYSTEM / name).symlink_to(self.folder / name)
        try:
            files = {"key": "munge.key", "socket": "munge.sock", "pid": "munged.pid", "log": "munged.log"}
            flags = [
                f"--{flag}{'' if flag == 'socket' else '-file'}={self.folder / file}" for flag, file in files.items()
            ]
            subprocess.run(["munged", "--force", *flags, f"--seed-file={self.folder / 'munge.seed'}"], check=True)
            subprocess.run(["slurmctld"], check=True)
            wait_until(lambda: "UP" in ask("scontrol", "ping"), "slurmctld answers", 10)
            self.start_slurmd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._pid("slurmctld"):
            ask("scancel", "--user", "root")
            wait_until(lambda: not self.jobs(), "jobs end")
        self._clear()

    def _clear(self) -> None:
        """Ends daemons and what is left of jobs, and makes room for another cluster."""
        # Without cgroups SLURM loses sight of processes whose parents were killed first. By the cluster's name, for the
        # tests may themselves run in a job of another one.
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CLUSTER_NAME") == "tests":
                    process.kill()
        for daemon in ("slurmd", "slurmctld", "munged"):
            self._end(daemon, signal.SIGTERM)
        for name in _FILES:
            if (_SYSTEM / name).is_symlink():
                (_SYSTEM / name).unlink()

    def start_slurmd(self) -> None:
        """Starts the node's daemon and waits until the node takes jobs."""

        def node(fact: str) -> str:
            # What is told of the state besides, as that jobs are planned, comes after a plus.
            found = re.search(rf"\b{fact}=([\w:-]+)", ask("scontrol", "--oneliner", "show", "node"))
            return found[1] if found else "None"

        # Until the new one has registered, the node's state is what the one before it said.
        before = node("SlurmdStartTime")
        subprocess.run(["slurmd"], check=True)
        wait_until(lambda: node("SlurmdStartTime") not in (before, "None"), "the daemon registers")
        wait_until(lambda: node("State") in ("IDLE", "MIXED", "ALLOCATED"), "the node takes jobs")

    def kill_slurmd(self) -> None:
        """Kills the node's daemon, not its jobs."""
        self._end("slurmd", signal.SIGKILL)

    def jobs(self, *states: str) -> dict[str, str]:
        """Jobs in the queue, or those in some ``states``: what each runs (``rule_...``, ``group_...``) by its id."""
        lines = ask("squeue", "-h", "-o", "%i|%k", *([f"--states={','.join(states)}"] if states else [])).splitlines()
        return dict(line.split("|", 1) for line in lines)

    def ended(self) -> list[dict[str, str]]:
        """Every job that has ended, with what SLURM noted of it (``JobState``, ``TimeLimit``, ...), in their order."""
        path = self.folder / "ended.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [dict(item.split("=", 1) for item in line.split() if "=" in item) for line in lines]

    def completed(self) -> set[str]:
        """Ids of the jobs that have ended well."""
        return {job["JobId"] for job in self.ended() if job["JobState"] == "COMPLETED"}

    def _pid(self, daemon: str) -> int | None:
        """Its process, if it runs."""
        file = self.folder / f"{daemon}.pid"
        pid = int(file.read_text()) if file.exists() else 0
        # Empty for a process that is dead and waited for by nobody.
        command = Path(f"/proc/{pid}/cmdline")
        return pid if command.exists() and daemon in command.read_text() else None

    def _end(self, daemon: str, how: signal.Signals) -> None:
        if pid := self._pid(daemon):
            os.kill(pid, how)
            wait_until(lambda: not self._pid(daemon), f"{daemon} ends", 20)


def ask(*command: str) -> str:
    """Returns what one of SLURM's commands says; empty if it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout
