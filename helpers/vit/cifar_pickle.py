"""CIFAR-10's pickles as dictionaries; of all that a pickle may name, only what NumPy's arrays are made of is called."""

from __future__ import annotations

import _codecs
import io
import pickle

import numpy as np

from helpers.common.files import DataError

ARRAY = np.zeros(1, np.uint8)


def plain_dtype(spec: object, *_: object) -> np.dtype:
    """The dtype of plain numbers: the elements of any other could be addresses that a pickle made up."""
    dtype = np.dtype(spec, copy=True)  # a copy, since its byte order is set afterwards
    if dtype.kind not in "uif":
        raise pickle.UnpicklingError(f"an array of type {dtype}")
    return dtype


ALLOWED = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": plain_dtype,
    "numpy.core.multiarray._reconstruct": ARRAY.__reduce__()[0],
    "numpy.core.multiarray.scalar": ARRAY[0].__reduce__()[0],
    "numpy.core.numeric._frombuffer": ARRAY.__reduce_ex__(5)[0],
    "_codecs.encode": _codecs.encode,  # bytes, as Python 3 writes them in protocol 2
    "builtins.bytes": bytes,  # and those that are empty
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if full not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10 has no use for")
        return ALLOWED[full]


def unpickle(data: bytes, where: str) -> dict[str, object]:
    """The dictionary of one CIFAR-10 file, keys as str whatever Python wrote it; `DataError` for anything else."""
    try:  # encoding="bytes": Python 2's str arrives as bytes, so that raw pixels and names both survive
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary")
    except Exception as error:  # what a damaged pickle raises is open-ended
        what = f"truncated, corrupt or not a CIFAR-10 pickle ({len(data):,} bytes; {error})"
        raise DataError(f"{where}: {what}. Nothing in it was executed.") from error
    return {text(key): value for key, value in content.items() if isinstance(key, (bytes, str))}


def text(value: bytes | str) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
