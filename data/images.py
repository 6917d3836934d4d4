"""Sets of images: IDX files, as MNIST comes in, and those from OpenML.

Either way a table of one row an image and one column a pixel, and a column `label` where the labels
are known, which is a truth to check against and never fitted by itself.
"""

import gzip
import math
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy
import pandas

from elbowroom.errors import DataError
from elbowroom.memory import check_memory

OPENML: Mapping[str, tuple[str, str]] = {
    "mnist": ("mnist_784", "70,000 digits of 28 x 28 pixels (LeCun et al., 1998)"),
    "fashion_mnist": ("Fashion-MNIST", "70,000 garments of 28 x 28 pixels (Xiao et al., 2017)"),
    "omniglot": ("Omniglot", "letters of 50 alphabets (Lake, Salakhutdinov and Tenenbaum, 2015)"),
}
"""What can be fetched: for each name, that at OpenML and what it is."""
TOP = 255
"""The largest value of a pixel."""
_IDX = re.compile(r"idx\d-ubyte(\.gz)?$")
_MOST_DIMS = 4
_UNSIGNED_BYTES = 8  # the one kind of cells that images and labels come in


def is_idx(path: Path) -> bool:
    """Whether a file is named as IDX files are, packed by gzip or not.

    Example:
        >>> is_idx(Path("t10k-images-idx3-ubyte.gz")), is_idx(Path("digits.csv.gz"))
        (True, False)
    """
    return _IDX.search(path.name.lower()) is not None


def read_idx(path: Path) -> pandas.DataFrame:
    """The images of an IDX file, and their labels, if their file is in the same folder.

    That of `NAME-images-idx3-ubyte` is `NAME-labels-idx1-ubyte`, both packed or not.

    Raises:
        DataError: If the file is no IDX file of bytes, is cut short, or its labels are not as many
            as its images; or if it has no images, or more than fit into memory.
    """
    array = _read_array(path)
    if not array.size:
        raise DataError(
            f"'{path}' has {' x '.join(map(str, array.shape))} cells, so no images: give a file "
            "with some."
        )
    if array.ndim == 1:
        return pandas.DataFrame({"label": array})
    labels = Path(
        path.parent, path.name.replace("images", "labels").replace("idx3", "idx1")
    )  # fmt: skip
    if labels == path or not labels.is_file():
        return images_to_table(array)
    found = _read_array(labels)
    if found.shape != array.shape[:1]:
        raise DataError(
            f"'{labels}' has {len(found)} labels, but '{path}' has {len(array)} images, so "
            "the two files do not belong together; restore their original names, or move one of "
            "them away."
        )
    return images_to_table(array, found)


def images_to_table(images: numpy.ndarray, labels: numpy.ndarray | None = None) -> pandas.DataFrame:
    """A row an image, a column `pixel_ROW_COLUMN` a pixel, and the labels.

    Args:
        images: Whole numbers from 0 to 255, (images, height, width).
        labels: (images,).

    Example:
        >>> table = images_to_table(numpy.zeros((2, 2, 2), "uint8"), numpy.array([7, 1]))
        >>> table.columns.tolist()
        ['pixel_0_0', 'pixel_0_1', 'pixel_1_0', 'pixel_1_1', 'label']
        >>> table.attrs["image_shape"]
        [2, 2]
    """
    shape = images.shape[1:]
    names = ["pixel_" + "_".join(map(str, place)) for place in numpy.ndindex(*shape)]
    table = pandas.DataFrame(images.reshape(len(images), -1), columns=names, copy=False)
    table.attrs["roles"] = dict.fromkeys(names, "feature")
    if labels is not None:
        table = pandas.concat([table, pandas.Series(labels, name="label")], axis=1)
        table.attrs["roles"] = {**dict.fromkeys(names, "feature"), "label": "label"}
    table.attrs |= {"image_shape": list(shape), "value_range": [0, TOP]}
    return table


def fetch(name: str) -> pandas.DataFrame:
    """A set of images from OpenML, kept by scikit-learn in its own folder of data.

    Args:
        name: Of `OPENML`.

    Raises:
        DataError: If it is not there yet and cannot be fetched.
    """
    from sklearn.datasets import fetch_openml

    at_openml = OPENML[name][0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each failed attempt: only the last one is reported
            found = fetch_openml(at_openml, version=1, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:  # no network; or OpenML has no such data
        raise DataError(
            f"'{name}' could not be downloaded from OpenML, where it is '{at_openml}' ({error}): "
            "check your network, or give its IDX file, such as --data train-images-idx3-ubyte.gz."
        ) from error
    pixels = numpy.asarray(found.data)
    side = math.isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise DataError(
            f"'{name}' from OpenML has {pixels.shape[1]} columns, so its images are not square: "
            "give its IDX file, such as --data train-images-idx3-ubyte.gz."
        )
    top = float(pixels.max())
    if top <= 1:  # some are handed on as shares of the top
        pixels = numpy.rint(pixels * TOP)
    labels = None if found.target is None else numpy.asarray(found.target)
    if labels is not None and all(str(label).isdigit() for label in labels):
        labels = labels.astype(int)
    return images_to_table(pixels.astype("uint8").reshape(-1, side, side), labels)


def _read_array(path: Path) -> numpy.ndarray:
    """The array of an IDX file: two zeros, the kind of cells, the dims, their sizes, the cells."""
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            return _read_cells(stream, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"'{path}' cannot be unpacked ({error}): check that the file is complete."
        ) from error


def _read_cells(stream: BinaryIO | gzip.GzipFile, path: Path) -> numpy.ndarray:
    """No more than the header says is read: what is packed may be without end."""
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTES:
        raise DataError(
            f"'{path}' is not an IDX file of bytes: it should begin with the bytes 0, 0 and "
            f"{_UNSIGNED_BYTES}; give an IDX file of unsigned bytes."
        )
    sizes = stream.read(4 * head[3])
    if head[3] == 0 or len(sizes) < 4 * head[3]:
        raise DataError(f"'{path}' ends within its header: download it again.")
    shape = tuple(numpy.frombuffer(sizes, ">u4").tolist())
    if len(shape) > _MOST_DIMS:
        raise DataError(
            f"'{path}' has cells of {len(shape)} dimensions, and images have 3 or 4: give a file "
            "of images."
        )
    count, said = math.prod(shape), " x ".join(map(str, shape))
    # The bytes, and the table of them in float64.
    check_memory(
        f"reading '{path}' with {said} cells", 9.0 * count,
        "give a file with fewer images, or use a machine with more memory", DataError,
    )  # fmt: skip
    content = stream.read(count)
    if len(content) != count or stream.read(1):
        has = "more" if len(content) == count else f"{len(content):,}"
        raise DataError(f"'{path}' should have {said} cells and has {has}: download it again.")
    return numpy.frombuffer(content, numpy.uint8).reshape(shape)
