from __future__ import annotations

import sys

import numpy as np
import pytest
import typer

from isobit.cli.user_data.calibration_files import load
from isobit.cli.user_data.image_files import plan_preprocessing
from isobit.cli.user_data.image_options import ImageOptions, parse_numbers, parse_size
from isobit.data import Dataset
from isobit.errors import DataError, PluginError
from isobit.graph import TensorInfo

Image = pytest.importorskip("PIL.Image")

RED = np.zeros((4, 6, 3), np.uint8) + np.array([255, 51, 0], np.uint8)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(RED).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def only_batch(path, graph, options=None, **settings):
    files = load(path, graph, options or ImageOptions(), **settings)
    (batch,) = Dataset(files.source, graph)
    return batch["x"], files.notes[0]


def test_defaults_come_from_the_input(photo, make_graph):
    x, note = only_batch(photo, make_graph(x=("n", 3, 4, 6)))
    assert x.shape == (1, 3, 4, 6)
    np.testing.assert_array_equal(x[0, :, 0, 0], np.array([255, 51, 0], np.float32) * np.float32(1 / 255))
    assert "1 image(s), resized to 4x6 (bilinear, not cropped), rgb, times 1/255, laid out nchw in float32" in note


def test_nhwc_and_bgr(photo, make_graph):
    x, note = only_batch(photo, make_graph(x=("n", 4, 6, 3)), ImageOptions(channels="bgr", scale=1.0))
    assert x[0, 0, 0].tolist() == [0, 51, 255]
    assert "bgr, times 1, laid out nhwc" in note


def test_gray_and_resize(photo, make_graph):
    x, note = only_batch(photo, make_graph(x=("n", 1, 8, 8)))
    assert x.shape == (1, 1, 8, 8)
    assert "resized to 8x8" in note
    assert "gray" in note


def test_mean_and_std_by_channel(photo, make_graph):
    options = ImageOptions(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    x, note = only_batch(photo, make_graph(x=("n", 3, 4, 6)), options)
    np.testing.assert_allclose(x[0, :, 0, 0], [1.0, -0.05, 0.0], atol=1e-7)
    assert "minus mean (0.5, 0.25, 0), divided by std (0.5, 1, 2)" in note


def test_uint8_inputs_take_pixels(photo, make_graph):
    graph = make_graph(x=TensorInfo(("n", 3, 4, 6), "uint8"))
    x, _ = only_batch(photo, graph)
    assert x.dtype == np.uint8
    assert x[0, :, 0, 0].tolist() == [255, 51, 0]
    with pytest.raises(DataError, match="takes uint8 pixels as they are"):
        load(photo, graph, ImageOptions(scale=2.0))


def test_open_size_and_channels_must_be_said(photo, make_graph):
    with pytest.raises(DataError, match="any size: say --image-size"):
        load(photo, make_graph(x=("n", 3, "h", "w")), ImageOptions())
    with pytest.raises(DataError, match="say --layout and --channels"):
        load(photo, make_graph(x=("n", None, None, None)), ImageOptions())
    options = ImageOptions(size=(5, 7), channels="rgb", layout="nhwc")
    x, _ = only_batch(photo, make_graph(x=("n", None, None, None)), options)
    assert x.shape == (1, 5, 7, 3)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (("n", 3, 8, 8), ImageOptions(size=(8, 9)), "--image-size 8x9: input 'x' takes 8x8"),
        (("n", 3, 8, 8), ImageOptions(channels="gray"), r"--channels gray is 1 channel\(s\), and input 'x' takes 3"),
        (("n", 1, 8, 8), ImageOptions(mean=(1, 2, 3)), "--mean has 3 numbers for 1 channel"),
        (("n", 4, 8, 8), ImageOptions(layout="nchw"), "takes 4 channels"),
        (("n", 3), ImageOptions(), r"has shape \(\?, 3\): images need an input of 4 axes"),
        (None, ImageOptions(), "unknown"),
    ],
)
def test_contradictions(make_graph, shape, options, message):
    with pytest.raises(DataError, match=message):
        plan_preprocessing(make_graph(x=TensorInfo(shape)), options)


def test_two_inputs_take_no_images(photo, make_graph):
    with pytest.raises(DataError, match="images serve a model of one input, and this one has: a, b"):
        load(photo, make_graph(a=("n", 3, 4, 6), b=("n", 3, 4, 6)), ImageOptions())


def test_folder_of_formats_is_sorted(tmp_path, make_graph):
    for index, ending in enumerate(("png", "JPG", "jpeg", "bmp", "webp")):
        kind = "JPEG" if ending.lower().startswith("j") else ending.upper()
        Image.fromarray(np.full((4, 4), 40 * index, np.uint8)).save(tmp_path / f"{index}.{ending}", kind)
    graph = make_graph(x=("n", 1, 4, 4))
    files = load(tmp_path, graph, ImageOptions(scale=1.0), batch_size=2)
    pixels = [batch["x"][:, 0, 0, 0] for batch in Dataset(files.source, graph)]
    np.testing.assert_allclose(np.concatenate(pixels), [0, 40, 80, 120, 160], atol=2)
    assert [len(batch) for batch in pixels] == [2, 2, 1]


def test_damaged_image_is_named(tmp_path, photo, make_graph):
    (tmp_path / "b.png").write_bytes(photo.read_bytes()[:50])
    (tmp_path / "c.png").write_bytes(b"not an image")
    graph = make_graph(x=("n", 3, 4, 6))
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=f"{name}: not a readable image"):
            only_batch(tmp_path / name, graph)


def test_deep_pixels_are_refused(tmp_path, make_graph):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: I;16 pixels of more than 8 bits"):
        only_batch(tmp_path / "deep.png", make_graph(x=("n", 1, 4, 4)))


def test_decompression_bomb_is_an_error(tmp_path, photo, make_graph, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"a\.png: not a readable image: .*decompression bomb"):
        only_batch(photo, make_graph(x=("n", 3, 4, 6)))


def test_missing_pillow_is_named(photo, make_graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(PluginError, match=r'pip install "isobit\[images\]"'):
        load(photo, make_graph(x=("n", 3, 4, 6)), ImageOptions())


def test_option_texts():
    assert parse_size("224x320") == (224, 320)
    assert parse_numbers("0.5, 1,2", "--mean") == (0.5, 1.0, 2.0)
    assert parse_numbers("0.5", "--mean") == (0.5,)
    for bad in ("224", "0x5", "axb", "-1x2"):
        with pytest.raises(typer.BadParameter, match="HEIGHTxWIDTH"):
            parse_size(bad)
    for bad in ("", "1,2", "a", "nan", "1,inf,2"):
        with pytest.raises(typer.BadParameter, match="write one number"):
            parse_numbers(bad, "--mean")
    with pytest.raises(typer.BadParameter, match="above 0"):
        parse_numbers("0", "--std")
