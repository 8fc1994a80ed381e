from __future__ import annotations

import numpy as np
import pytest

from isobit.cli.user_data.calibration_files import load
from isobit.cli.user_data.image_options import ImageOptions
from isobit.data import Dataset
from isobit.errors import DataError

PLAIN = ImageOptions()


@pytest.fixture
def graph(make_graph):
    return make_graph(x=("n", 3))


@pytest.fixture
def pair(make_graph):
    return make_graph(a=("n", 3), b=("n",))


def batches(files, graph, **settings):
    return list(Dataset(files.source, graph, **settings))


def test_npz_by_input_name(tmp_path, pair):
    a, b = np.ones((5, 3), np.float32), np.arange(5, dtype=np.float32)
    np.savez(tmp_path / "d.npz", a=a, b=b, other=a, label=np.arange(5))
    files = load(tmp_path / "d.npz", pair, PLAIN)
    assert set(files.source) == {"a", "b"}
    assert {name: array.tolist() for name, array in files.labels.items()} == {"": [0, 1, 2, 3, 4]}
    assert "other" in files.notes[0]
    assert [len(batch["a"]) for batch in batches(files, pair, batch_size=2)] == [2, 2, 1]


def test_only_arrays_that_are_needed_are_read(tmp_path, graph, monkeypatch):
    np.savez(tmp_path / "d.npz", x=np.ones((5, 3), np.float32), huge=np.ones(10))
    read = []
    original = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, key: (read.append(key), original(self, key))[1]
    )
    files = load(tmp_path / "d.npz", graph, PLAIN)
    batches(files, graph)
    batches(files, graph)
    assert read == ["x"]


def test_lone_array_of_any_name_is_the_lone_input(tmp_path, graph):
    np.savez(tmp_path / "d.npz", anything=np.ones((5, 3), np.float32), label=np.zeros(5, int))
    files = load(tmp_path / "d.npz", graph, PLAIN)
    assert files.source["x"].shape == (5, 3)
    assert "'anything', the only one, is taken for input 'x'" in files.notes[0]


def test_input_named_label_is_no_label(tmp_path, make_graph):
    np.savez(tmp_path / "d.npz", label=np.ones((5, 3), np.float32))
    files = load(tmp_path / "d.npz", make_graph(label=("n", 3)), PLAIN)
    assert files.labels == {}
    assert set(files.source) == {"label"}


def test_npy_is_mapped_not_read(tmp_path, graph):
    np.save(tmp_path / "d.npy", np.ones((5, 3), np.float32))
    files = load(tmp_path / "d.npy", graph, PLAIN)
    assert isinstance(files.source["x"], np.memmap)
    assert len(batches(files, graph, batch_size=2)) == 3


def test_labels_of_outputs(tmp_path, graph):
    graph = graph.with_nodes((), outputs={"one": "x", "two": "x", "names": "x"})
    x, one = np.ones((5, 3), np.float32), np.arange(5)
    np.savez(tmp_path / "d.npz", x=x, label=one, labels_two=one + 1, label_three=one)
    files = load(tmp_path / "d.npz", graph, PLAIN, samples=4)
    assert {name: array.tolist() for name, array in files.labels.items()} == {"one": [0, 1, 2, 3], "two": [1, 2, 3, 4]}
    assert "also holds label_three, which the model does not read" in files.notes[0]
    assert "labels of an output are called label_ and its name: one, two, names" in files.notes[0]
    np.savez(tmp_path / "e.npz", x=x, label_one=one, label_two=one[:3])
    with pytest.raises(DataError, match=r"the labels of 'two' have shape \(3,\), and there are 5 samples"):
        load(tmp_path / "e.npz", graph, PLAIN)


def test_samples_caps_the_first(tmp_path, graph):
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "d.npz", x=x, label=np.arange(10))
    files = load(tmp_path / "d.npz", graph, PLAIN, samples=4)
    np.testing.assert_array_equal(files.source["x"], x[:4])
    assert files.labels[""].tolist() == [0, 1, 2, 3]
    assert "the first 4 of 10" in files.notes[0]


def test_folder_of_samples_is_stacked_by_name(tmp_path, graph):
    for i in (3, 1, 2, 0):
        np.save(tmp_path / f"{i}.npy", np.full(3, i, np.float32))
    (tmp_path / "README.txt").write_text("not data", "utf-8")
    (tmp_path / ".hidden.npy").write_text("not data", "utf-8")
    files = load(tmp_path, graph, PLAIN, batch_size=3)
    assert len(files.source) == 2
    for _ in range(2):  # any number of passes
        served = batches(files, graph)
        assert [batch["x"][:, 0].tolist() for batch in served] == [[0, 1, 2], [3]]


def test_folder_of_batches(tmp_path, pair):
    for i, size in enumerate((4, 2, 5)):
        np.savez(tmp_path / f"{i}.npz", a=np.ones((size, 3), np.float32), b=np.ones(size, np.float32))
    files = load(tmp_path, pair, PLAIN)
    assert [len(batch["a"]) for batch in batches(files, pair)] == [4, 2, 5]
    files = load(tmp_path, pair, PLAIN, samples=5)
    assert [len(batch["a"]) for batch in batches(files, pair)] == [4, 1]


def test_a_folder_of_batches_with_a_scalar_and_a_state_is_capped(tmp_path, make_graph):
    graph = make_graph(rate=(), x=("n", 3), state=(2, "n", 4))
    for i, size in enumerate((1, 2, 2, 1)):
        state = np.full((2, size, 4), i, np.float32)
        np.savez(tmp_path / f"{i}.npz", rate=np.float32(16), x=np.ones((size, 3), np.float32), state=state)
    files = load(tmp_path, graph, PLAIN, samples=3)
    # A file counts for the samples of its shortest array, and none is cut along the layers of its state.
    assert [batch["state"].shape for batch in batches(files, graph)] == [(2, 1, 4), (2, 2, 4)]
    pair = make_graph(rate=(), x=("n", 3))
    served = batches(load(tmp_path, pair, PLAIN, samples=2), pair)
    assert [(batch["x"].shape, batch["rate"].shape) for batch in served] == [((1, 3), ()), ((1, 3), ())]


def test_fixed_batch_is_filled_or_refused(tmp_path, make_graph):
    graph = make_graph(x=(4, 3))
    for i in range(10):
        np.save(tmp_path / f"{i}.npy", np.zeros(3, np.float32))
    files = load(tmp_path, graph, PLAIN, batch_size=32)
    assert [batch["x"].shape for batch in batches(files, graph)] == [(4, 3), (4, 3)]
    assert any("the last 2 file(s)" in note for note in files.notes)
    with pytest.raises(DataError, match=r"3 sample\(s\) do not fill one batch: the model's batch is fixed at 4"):
        load(tmp_path, graph, PLAIN, samples=3)


def test_error_names_the_file_of_the_batch(tmp_path, graph):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full(3, np.nan if i == 3 else 0, np.float32))
    files = load(tmp_path, graph, PLAIN, batch_size=2)
    with (
        pytest.raises(DataError, match=r"2\.npy to 3\.npy: input 'x' in batch 1 holds NaN.*--ignore-non-finite"),
        files.named(),
    ):
        batches(files, graph)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_missing_and_unknown_files(tmp_path, graph):
    with pytest.raises(DataError, match=r"none\.npz: no such file or folder"):
        load(tmp_path / "none.npz", graph, PLAIN)
    (tmp_path / "d.csv").write_text("1,2", "utf-8")
    with pytest.raises(DataError, match=r"d\.csv: not a known kind of data; known endings are \.npz"):
        load(tmp_path / "d.csv", graph, PLAIN)


def test_wrong_name_lists_what_is_there(tmp_path, graph):
    path = write_npz(tmp_path / "d.npz", xs=np.ones(3), y=np.ones(3))
    with pytest.raises(
        DataError, match=r"d\.npz: no array for input 'x' \(did you mean 'xs'\?\); the file holds: xs, y"
    ):
        load(path, graph, PLAIN)


def test_npy_whose_elements_have_no_bytes(tmp_path, graph):
    """Mapped, NumPy divides by their size, and the process ends."""
    with (tmp_path / "d.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|V0", "fortran_order": False, "shape": (-1,)})
        file.write(bytes(24))
    with pytest.raises(DataError, match=r"d\.npy: its elements have no bytes"):
        load(tmp_path / "d.npy", graph, PLAIN)


def test_npy_for_two_inputs(tmp_path, pair):
    np.save(tmp_path / "d.npy", np.ones(3))
    with pytest.raises(DataError, match=r"d\.npy: .*2 inputs \(a, b\): use a \.npz"):
        load(tmp_path / "d.npy", pair, PLAIN)


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
def test_pickled_objects_are_refused(tmp_path, graph, name):
    array = np.array([{"code": 1}], dtype=object)
    if name == "d.npy":
        np.save(tmp_path / name, array)
    else:
        np.savez(tmp_path / name, x=array)
    with pytest.raises(DataError, match=rf"{name}: holds pickled Python objects, which are refused"):
        load(tmp_path / name, graph, PLAIN)


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"PK\x03\x04rubbish", b"\x80\x04K\x01."])
def test_rubbish_is_a_data_error(tmp_path, graph, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load(tmp_path / name, graph, PLAIN)


@pytest.mark.parametrize("cut", [10, 100, 200, 400, 1000])
def test_truncated_files(tmp_path, graph, cut):
    np.save(tmp_path / "d.npy", np.ones((100, 3), np.float32))
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).random((100, 3), np.float32))
    for name in ("d.npy", "d.npz"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(DataError, match=name):
            load(tmp_path / name, graph, PLAIN)


def test_damaged_member_names_the_array(tmp_path, graph):
    path = write_npz(tmp_path / "d.npz", x=np.ones((100, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[400:410] = b"0123456789"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz: array 'x' cannot be read: Bad CRC"):
        load(path, graph, PLAIN)


def test_folders_without_data(tmp_path, graph):
    with pytest.raises(DataError, match="the folder holds no data: no file ends in"):
        load(tmp_path, graph, PLAIN)
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"its 1 folder\(s\) are not searched"):
        load(tmp_path, graph, PLAIN)


def test_mixed_folder(tmp_path, graph):
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"mixes arrays and images \(a\.npy, b\.png\)"):
        load(tmp_path, graph, PLAIN)


def test_folder_file_of_wrong_rank_or_shape(tmp_path, graph):
    np.save(tmp_path / "a.npy", np.ones((2, 2, 3), np.float32))
    with pytest.raises(DataError, match=r"a\.npy: the array for input 'x' has shape \(2, 2, 3\).*one batch \(2 axes\)"):
        load(tmp_path, graph, PLAIN)
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    np.save(tmp_path / "b.npy", np.ones(4, np.float32))
    files = load(tmp_path, graph, PLAIN)
    with pytest.raises(DataError, match=r"b\.npy: array for input 'x' has shape \(4,\); that of a\.npy"), files.named():
        batches(files, graph)


def test_samples_and_batches_in_one_file(tmp_path, pair):
    np.savez(tmp_path / "d.npz", a=np.ones(3, np.float32), b=np.ones(4, np.float32))
    with pytest.raises(DataError, match=r"d\.npz: some arrays are a batch and some one sample \(a \(3,\), b \(4,\)\)"):
        load(tmp_path, pair, PLAIN)


def test_label_count(tmp_path, graph):
    path = write_npz(tmp_path / "d.npz", x=np.ones((5, 3), np.float32), labels=np.zeros(4, int))
    with pytest.raises(DataError, match=r"d\.npz: the labels have shape \(4,\), and there are 5 samples"):
        load(path, graph, PLAIN)
