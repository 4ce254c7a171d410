"""Archives, unpacked into a temporary folder: regular files alone, and no more than there is room for."""

import contextlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from helpers.common.files import DataError, free_memory, reason
from helpers.vit.layouts import ARCHIVE


def is_archive(path: Path) -> bool:
    """Tell whether a file is an archive, by its name, or by what is in it where the name has no ending."""
    named = re.search(ARCHIVE, path.name, re.IGNORECASE)
    return bool(named) or (not path.suffix and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)))


def outside(text: str, folder: Path, path: Path) -> str:
    """`text` with the archive's path in place of the temporary folder's."""
    return text.replace(f"{folder}/", f"{path}:").replace(str(folder), str(path))


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with what is in the archive. Raises `DataError` where it is damaged or holds more than
    there is room for; in what the block raises, the folder has the archive's name."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / re.split(ARCHIVE, path.name, flags=re.IGNORECASE)[0]
        folder.mkdir()
        try:
            _unpack(path, folder)
            yield folder
        except DataError as error:
            raise DataError(outside(str(error), folder, path)) from error


def _unpack(path: Path, folder: Path) -> None:
    room = min(free_memory(), shutil.disk_usage(folder).free)
    is_zip = zipfile.is_zipfile(path) and not tarfile.is_tarfile(path)  # a tar may end in a zip
    try:
        with (zipfile.ZipFile if is_zip else tarfile.open)(path) as archive:
            if is_zip:  # keeps all names inside the folder by itself
                members = archive.infolist()
                size = sum(member.file_size for member in members)
            else:
                members = [
                    m for m in archive if m.isfile() and folder in Path(os.path.normpath(folder / m.name)).parents
                ]
                size = sum(member.size for member in members)
            # by the headers, before anything is written: few bytes may be a great many once they are unpacked
            if size > room:
                raise DataError(f"{path}: {size / 1e6:,.0f} MB are in it, and there is no room for all.")
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder, members)
    except DataError:
        raise
    except Exception as error:  # tarfile.ReadError, EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError, …
        found = f"{path.stat().st_size:,} bytes; {reason(error)}"
        raise DataError(f"{path}: truncated or corrupt archive ({found}).") from error
