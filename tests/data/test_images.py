"""IDX files as they come, damaged ones, and what cannot be fetched."""

import gzip
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from elbowroom.data.tables import read_table, select_columns
from elbowroom.errors import DataError


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype("uint8").tobytes()


IMAGES = np.arange(4 * 3 * 2).reshape(4, 3, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_with_the_labels_beside_them(tmp_path: Path, packed: bool) -> None:
    ending = ".gz" if packed else ""
    pack: Any = gzip.compress if packed else bytes
    path = tmp_path / f"t-images-idx3-ubyte{ending}"
    path.write_bytes(pack(idx(IMAGES)))
    assert "label" not in read_table(path)
    (tmp_path / f"t-labels-idx1-ubyte{ending}").write_bytes(pack(idx(np.array([3, 1, 4, 1]))))
    table = read_table(path)
    assert table["label"].tolist() == [3, 1, 4, 1]
    assert table.attrs["image_shape"] == [3, 2]
    pixels = select_columns(table)
    np.testing.assert_array_equal(pixels.to_numpy(), IMAGES.reshape(4, 6))
    assert pixels.columns[-1] == "pixel_2_1"
    assert pixels.attrs["value_range"] == [0, 255]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG", "is not an IDX file of bytes"),
        (idx(IMAGES)[:-1], "should have 4 x 3 x 2 cells and has 23"),
        (idx(IMAGES)[:9], "ends within its header"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1]), "is not an IDX file of bytes"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "t-images.idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_table(path)
    packed = tmp_path / "t-images-idx3-ubyte.gz"
    packed.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_table(packed)


def test_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(np.array([3, 1])))
    with pytest.raises(DataError, match=r"has 2 labels, but .* 4 images"):
        read_table(tmp_path / "t-images-idx3-ubyte")


def test_a_set_is_fetched_as_a_table_or_refused_without_a_network() -> None:
    found = mock.Mock(data=np.eye(4) * 255, target=np.array(["5", "0", "4", "1"]))
    with mock.patch("sklearn.datasets.fetch_openml", return_value=found) as fetched:
        table = read_table("mnist")
    assert fetched.call_args.args == ("mnist_784",)
    assert table.attrs["image_shape"] == [2, 2]
    assert table["label"].tolist() == [5, 0, 4, 1]
    lost = OSError("name not known")
    with (
        mock.patch("sklearn.datasets.fetch_openml", side_effect=lost),
        pytest.raises(DataError, match="'omniglot' could not be downloaded from OpenML"),
    ):
        read_table("omniglot")
