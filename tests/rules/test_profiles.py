"""The profiles: what sites share is the same in all, and rules that exist are meant."""

import re

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
