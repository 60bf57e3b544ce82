"""The profiles: what sites share is the same in all, and rules that exist are meant."""

import os
import re
import subprocess

import pytest
import yaml
from pipeline import ROOT, Run

SLURM = ("slurm", "slurm-gres")


def text_of(profile):
    return (ROOT / "profiles" / profile / "config.yaml").read_text()


def test_only_site_facts_differ():
    shared = [text_of(profile).split("\n", 1)[1].partition("# ---- Site facts")[0] for profile in SLURM]
    assert shared[0] == shared[1] and "executor: slurm" in shared[0]


@pytest.mark.parametrize("profile", SLURM)
def test_rules_that_a_profile_names(profile):
    content = yaml.safe_load(text_of(profile))
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    known = set(re.findall(r"^(?:rule|use rule \w+ as) (\w+)", rules, re.MULTILINE))
    assert {*content["set-resources"], *content["set-threads"]} <= known
    # Jobs of a group take turns only if each takes all processors.
    groups = set(re.findall(r'^    group:\s+"(\w+)" if SMALL', rules, re.MULTILINE))
    assert groups == {group.partition("=")[0] for group in content["group-components"]}
    assert set(content["set-threads"].values()) == {content["cores"]}
    for rule in ("pretrain", "finetune"):
        assert "--signal=USR1@" in content["set-resources"][rule]["slurm_extra"]


def test_trainings_are_shared_as_a_profile_says(tmp_path):
    """By resources, which rerun nothing when they change."""
    shared = ["--set-resources", "pretrain:devices=4", "pretrain:nodes=2", "pretrain:parts=3"]
    found = Run(tmp_path)("results/pretraining.csv", "--dry-run", "--printshellcmds", *shared)
    commands = [line for line in found.stdout.splitlines() if "atomcsi pretrain" in line]
    assert commands and all("--devices 4 --nodes 2 --parts 3 " in command for command in commands), found.stderr


@pytest.mark.parametrize("profile", SLURM)
def test_jobs_of_a_group_agree(profile):
    """Snakemake refuses a group whose jobs ask for different text, and a rule that asks for none asks for 0."""
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    asked = yaml.safe_load(text_of(profile))["set-resources"]
    found = {}
    for name, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", rules, re.MULTILINE | re.DOTALL):
        if group := re.search(r'^    group:\s+"(\w+)" if SMALL', body, re.MULTILINE):
            own = dict(re.findall(r'^        (\w+)="(.*)",$', body.partition("    resources:\n")[2], re.MULTILINE))
            text = {key: value for key, value in asked.get(name, {}).items() if isinstance(value, str)}
            found.setdefault(group[1], {})[name] = own | text
    assert found["training"].keys() == {"pretrain", "score", "finetune"}
    for group, by_rule in found.items():
        assert len({frozenset(text.items()) for text in by_rule.values()}) == 1, f"{group}: {by_rule}"


def test_a_demo_is_planned_with_every_kind_of_training(tmp_path):
    """Pretrainings, scoring and finetunings in one group, which Snakemake itself asks for."""
    run = Run(tmp_path, ROOT / "profiles" / "slurm")
    run.edit(
        "small.yaml",
        "  balanced:",
        "  hard: {kind: ranked, dataset: ani1x-mini, judge: ani1x-mini, part: hard}\n  balanced:",
    )
    run.edit("small.yaml", "inits: [ani1x-mini,", "inits: [ani1x-mini, hard,")
    found = run("results/finetuning.csv", "--dry-run")
    assert found.returncode == 0, found.stderr
    assert all(f"{what} " in found.stdout for what in ("Pretrain", "Score", "Finetune"))


def test_jobs_find_atomcsi_beside_the_python_of_snakemake(tmp_path):
    """As docs/cluster.md says, whatever else PATH has."""
    other = tmp_path / "an other"
    other.mkdir()
    (other / "atomcsi").write_text("#!/bin/sh\nexit 1\n")
    (other / "atomcsi").chmod(0o755)
    command = Run(tmp_path / "run").command("results/lmdb/qm9-mini/train.lmdb")
    environment = os.environ | {"PATH": f"{other}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
