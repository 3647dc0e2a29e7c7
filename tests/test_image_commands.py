"""`nsbox image`, as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_nsbox import cli
from tests.images import archives as a
from tests.images.archives import entry, tar

LAYER = tar([entry("f", b"12345")])


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.tar"
    path.write_bytes(a.saved([LAYER], Cmd=["sh"]))
    return str(path)


def nsbox(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["image", *arguments]) == 0
    return capsys.readouterr().out


def test_images_are_imported_listed_shown_exported_and_removed(archive, capsys, tmp_path):
    identity = nsbox(capsys, "import", archive, "mine").strip()
    assert nsbox(capsys, "ls").splitlines() == [
        "NAME          IMAGE ID       LAYERS   SIZE",
        f"mine:latest   {identity[7:19]}   1        5 B",
        f"thing:1       {identity[7:19]}   1        5 B",
    ]
    assert nsbox(capsys, "ls", "-q") == f"{identity}\n"
    (shown,) = json.loads(nsbox(capsys, "inspect", "mine"))
    assert (shown["Id"], shown["RepoTags"], shown["Config"]) == (identity, ["mine:latest", "thing:1"], {"Cmd": ["sh"]})
    assert shown["RootFS"]["Layers"] == [f"sha256:{a.digest(LAYER)}"]
    assert os.listdir(shown["GraphDriver"]["Data"]["Layers"][0]) == ["f"]
    assert nsbox(capsys, "export", "mine", str(tmp_path / "out")) == ""
    assert (tmp_path / "out/index.json").exists()
    assert nsbox(capsys, "rm", "mine", "thing:1") == f"{identity}\n" * 2
    assert nsbox(capsys, "ls").splitlines() == ["NAME   IMAGE ID   LAYERS   SIZE"]


def test_what_goes_wrong_is_one_line_and_exit_code_1(archive, capsys, tmp_path):
    for arguments in (["import", "/nowhere"], ["rm", "mine"], ["inspect", "mine"], ["export", str(tmp_path), "x"]):
        assert cli.main(["image", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("nsbox: ")
        assert error.count("\n") == 1


def test_the_program_is_installed():
    program = Path(sys.executable).with_name("nsbox")
    done = subprocess.run([program, "image", "--help"], capture_output=True, text=True, check=True)
    for command in ("import", "ls", "inspect", "export", "rm"):
        assert command in done.stdout
