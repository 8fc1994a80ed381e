"""Files are whole or not there."""

from __future__ import annotations

import inspect
import os
import stat
import sys
from pathlib import Path

import pytest

from isobit.errors import OutputError
from isobit.files import check_file_writable, check_writable, is_file, is_there, write_atomically, write_folder
from isobit.files.path_checks import make_folders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError if failure is OSError else failure), write_atomically(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*file/a\.txt"), write_atomically(tmp_path / "file" / "a.txt"):
        pass
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="cannot write .*taken"), write_atomically(tmp_path / "taken") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["file", "taken"]


def test_a_folder_is_filled_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "other").write_text("kept")
    (folder / "a").write_text("old")
    with write_folder(folder) as staging:
        (staging / "a").write_text("new")
        (staging / "b").write_text("new")
        assert (folder / "a").read_text() == "old"
        assert not (folder / "b").exists()
    assert {name: (folder / name).read_text() for name in names(folder)} == {"a": "new", "b": "new", "other": "kept"}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("there", [True, False])
def test_a_failed_folder_is_as_before(tmp_path: Path, failure: type[BaseException], there: bool) -> None:
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
        (folder / "a").write_text("old")
    with pytest.raises(OutputError if failure is OSError else failure), write_folder(folder) as staging:  # noqa: PT012
        (staging / "a").write_text("half")
        raise failure
    assert folder.exists() == there
    if there:
        assert names(folder) == ["a"]
        assert (folder / "a").read_text() == "old"


def test_no_file_moves_when_one_of_them_cannot(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="a folder of that name is there"), write_folder(tmp_path) as staging:  # noqa: PT012
        (staging / "a").write_text("new")
        (staging / "b").write_text("new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with write_folder(tmp_path) as staging:
            (staging / "model").mkdir()
            (staging / "model" / content).write_text(content)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file of that name is there"), write_folder(tmp_path) as staging:
        (staging / "file").mkdir()


def test_writable_is_asked_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet" / "there")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot write to folder .*file"), write_folder(tmp_path / "file"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_permission_is_asked_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission to write"):
        check_writable(tmp_path / "out")


@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_folders_are_made_however_deep_and_go_again_after_a_failure(tmp_path: Path, write) -> None:
    path = tmp_path.joinpath(*"d" * 200, "new")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)
    try:
        with pytest.raises(KeyError), write(path):
            raise KeyError
        assert names(tmp_path) == []
        with write(path) as temporary:
            (temporary if write is write_atomically else temporary / "a").write_text("x")
    finally:
        sys.setrecursionlimit(limit)
    assert path.exists()


@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_a_path_through_a_file_is_named(tmp_path: Path, write) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file is not a folder"), write(tmp_path / "file" / "in" / "new"):
        pass


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_nothing_can_have(tmp_path: Path, name: str) -> None:
    assert not is_there(tmp_path / name)
    assert not is_file(tmp_path / name)
    with pytest.raises((OSError, ValueError)):
        make_folders(tmp_path / "new" / name)
    assert names(tmp_path) == []


def test_what_could_not_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link", "new/in/new"):
        check_file_writable(tmp_path / name)
    for name, problem in (("x" * 300, "too long"), ("a\0b", "null"), (".", "folder"), ("file/in", "not a folder")):
        with pytest.raises(OutputError, match=problem):
            check_file_writable(tmp_path / name)
    with pytest.raises(OutputError, match="device or a pipe"):
        check_file_writable(Path(os.devnull))
