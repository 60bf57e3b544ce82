import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from atomcsi.cli import main


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "atomcsi.cli", *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    known = ("check", "compare", "convert", "effective-rank", "info", "lmdb", "predict", "pretrain", "finetune")
    assert all(name in text for name in known)


def test_check(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    main(["check", "config/demo.yaml"])
    assert "good; 4 upstream datasets" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    found = run("check", tmp_path / "none.yaml")
    assert found.returncode == 1
    assert found.stdout == "" and found.stderr.count("\n") == 1 and "no such file" in found.stderr


def test_bad_json_on_the_command_line(toy_lmdb, tmp_path):
    store = toy_lmdb(4)
    training = ["--train", store.path, "--val", store.path, "--out", tmp_path / "out", "--seed", "0"]
    found = run("pretrain", *training, "--backbone", "{}", "--settings", "{}", "--log", tmp_path / "log")
    assert found.returncode == 1
    assert "--backbone: implementation: Field required" in (tmp_path / "log").read_text()
    found = run("pretrain", *training, "--backbone", "{", "--settings", "{}")
    assert found.returncode == 2 and "argument --backbone: invalid" in found.stderr


def test_options_of_trainings_that_make_no_sense(toy_lmdb, repository, tmp_path, capsys):
    path = str(toy_lmdb(4).path)
    backbone = yaml.safe_load((repository / "config/backbones/schnet-tiny.yaml").read_text())
    settings = {"structures": 4, "epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    training = ["pretrain", "--train", path, "--val", path, "--out", str(tmp_path / "out"), "--seed", "0"]
    training += ["--backbone", json.dumps(backbone), "--settings", json.dumps(settings)]
    for options, problem in [
        (["--devices", "0"], "argument --devices: 0 is less than 1"),
        (["--graphs", "[null, null]"], "1 files to train on, 1 to validate on and 2 graphs: give one a dataset"),
    ]:
        with pytest.raises(SystemExit):
            main([*training, *options])
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info(toy_lmdb, tmp_path, capsys):
    main(["info", str(toy_lmdb(4).path)])
    assert json.loads(capsys.readouterr().out)["structures"] == 4
    (tmp_path / "x.txt").touch()
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tmp_path / "x.txt")])
    assert stop.value.code == 1


def test_lmdb_commands(toy_lmdb, tmp_path, capsys):
    path = str(toy_lmdb(4).path)
    main(["info", path])
    main(["lmdb", "info", path, "--json"])
    found = capsys.readouterr().out
    assert found == 2 * found[: len(found) // 2]  # one and the same
    main(["lmdb", "info", path])
    rows = dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (rows["structures"], rows["elements"]) == ("4", "H 16, C 5, O 4")
    main(["lmdb", "verify", path])
    assert "good; 4 structures" in capsys.readouterr().out
    main(["lmdb", "export", path, str(tmp_path / "toy.aselmdb")])
    assert "4 structures" in capsys.readouterr().out and (tmp_path / "toy.aselmdb").exists()


def test_lmdb_verify_names_the_damaged_record(toy_lmdb):
    path = toy_lmdb(4).path
    content = path.read_bytes().replace(b"toy/2", b"toy/3")
    path.write_bytes(content)
    found = run("lmdb", "verify", path)
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert "toy.lmdb: structure 2: is damaged: its checksum is wrong (delete it and run again)" in found.stderr


@pytest.mark.parametrize(("content", "problem"), [(None, "is missing"), ("{", "is no JSON")])
def test_info_on_bad_json(tmp_path, capsys, content, problem):
    path = tmp_path / "x.json"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        main(["info", str(path)])
    message = capsys.readouterr().err
    assert problem in message and message.count("\n") == 1


def test_effective_rank(embedding, capsys):
    generator = np.random.default_rng(0)
    file = embedding([generator.normal(size=(3, 2)) for _ in range(100)])
    main(["effective-rank", str(file.path)])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("flat", "mean", "toy", "100"))
