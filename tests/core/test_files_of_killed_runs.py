"""Folders change in one step, and what a killed run leaves is swept or ended by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.errors import OutputError
from isobit.files import check_writable, write_atomically, write_folder

_PROGRAM = """
import os, signal, sys
from pathlib import Path
from isobit.files import scratch, write_atomically, write_folder

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

place, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "moving":  # after the first of the files
    replace = Path.replace
    def once(self, target):
        replace(self, target)
        die()
    Path.replace = once
if moment == "file":
    with write_atomically(place / "a") as temporary:
        temporary.write_text("half")
        die()
with write_folder(place) as staging:
    for name in "ab":
        (staging / name).write_text("new")
    if moment == "waiting":
        print("there", flush=True)
        sys.stdin.read()
    if moment == "writing":
        die()
"""


def program(folder: Path, moment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _PROGRAM, str(folder), moment]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def killed(folder: Path, moment: str) -> None:
    with program(folder, moment) as child:
        child.communicate()
        assert child.returncode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_both(folder: Path, content: str) -> None:
    with write_folder(folder) as staging:
        for name in "ab":
            (staging / name).write_text(content)


def test_a_folder_of_files_changes_in_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_both(folder, "old")
    (folder / "mine").write_text("kept")
    (folder / "link").symlink_to("mine")
    folder.chmod(0o751)
    before, mine = folder.stat(), (folder / "mine").stat()
    write_both(folder, "new")
    assert contents(folder) == {"a": "new", "b": "new", "mine": "kept", "link": "kept"}
    assert (folder / "link").is_symlink()
    assert (folder / "mine").stat().st_ino == mine.st_ino
    after = folder.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    if sys.platform == "linux":
        assert after.st_ino != before.st_ino, "the folders changed places"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("why", ["subfolder", "working directory"])
def test_a_folder_that_others_stand_in_stays(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    write_both(folder, "old")
    (folder / "mine").mkdir()
    (folder / "mine" / "file").write_text("kept")
    if why == "working directory":
        (folder / "mine" / "file").unlink()
        (folder / "mine").rmdir()
        monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    write_both(folder if why == "subfolder" else Path(), "new")
    assert folder.stat().st_ino == before
    assert contents(folder) == {"a": "new", "b": "new"}
    assert names(tmp_path) == ["out"]
    assert not [name for name in names(folder) if name.startswith(".")]


def test_where_the_system_has_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(sys.modules["isobit.files.write_folder"], "exchange", refuse)
    folder = tmp_path / "out"
    write_both(folder, "old")
    (folder / "mine").write_text("kept")
    write_both(folder, "new")
    assert contents(folder) == {"a": "new", "b": "new", "mine": "kept"}
    assert names(folder) == ["a", "b", "mine"]


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_links_and_pipes_in_a_folder_are_not_replaced(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out"
    write_both(folder, "old")
    (folder / "b").unlink()
    (tmp_path / "elsewhere").write_text("theirs")
    if kind == "pipe":
        os.mkfifo(folder / "b")
    else:
        (folder / "b").symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    for call in (lambda: write_both(folder, "new"), lambda: check_writable(folder, ["a", "b"])):
        with pytest.raises(OutputError, match="which would be replaced: remove it"):
            call()
    assert (folder / "a").read_text() == "old"
    assert (tmp_path / "elsewhere").read_text() == "theirs"


@pytest.mark.parametrize("moment", ["writing", "file"])
def test_what_a_killed_run_leaves_is_swept_by_the_next(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "out"
    write_both(folder, "old")
    killed(folder, moment)
    assert contents(folder) == {"a": "old", "b": "old"}
    assert any(".isobit-tmp-" in name for name in (*names(tmp_path), *names(folder)))
    write_both(folder, "new")
    assert (names(tmp_path), names(folder)) == (["out"], ["a", "b"])


def test_a_file_that_is_written_sweeps_too(tmp_path: Path) -> None:
    killed(tmp_path, "file")
    (tmp_path / ".isobit-tmp-mine").mkdir()  # not a name of ours
    with write_atomically(tmp_path / "other") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == [".isobit-tmp-mine", "other"]


def test_moves_that_a_killed_run_began_are_ended_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "mine").mkdir(parents=True)
    write_both(folder, "old")
    killed(folder, "moving")
    assert contents(folder) == {"a": "new", "b": "old"}
    with pytest.raises(RuntimeError), write_folder(folder) as staging:  # noqa: PT012
        (staging / "a").write_text("never")
        raise RuntimeError
    assert contents(folder) == {"a": "new", "b": "new"}
    assert names(folder) == ["a", "b", "mine"]


def test_what_a_living_run_writes_is_not_swept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with program(folder, "waiting") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        write_both(folder, "first")
        child.communicate()
    assert contents(folder) == {"a": "new", "b": "new"}
    assert (names(tmp_path), names(folder)) == (["out"], ["a", "b"])
