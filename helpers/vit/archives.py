"""Archives, unpacked into a temporary folder: regular files alone, none larger than a data set's are."""

from __future__ import annotations

import contextlib
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from helpers.common.files import DataError, free_memory, reason
from helpers.vit.layouts import ARCHIVE, BATCH_ENDINGS

BATCH_LIMIT = 200_000_000  # bytes; the largest official file, CIFAR-100's, has 160 million


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
        try:
            _unpack(path, folder)
            yield folder
        except DataError as error:
            raise DataError(outside(str(error), folder, path)) from error


def _unpack(path: Path, folder: Path) -> None:
    folder.mkdir()
    room, kept = min(free_memory(), shutil.disk_usage(folder).free), []
    is_zip = zipfile.is_zipfile(path) and not tarfile.is_tarfile(path)  # a tar may end in a zip
    try:
        with (zipfile.ZipFile if is_zip else tarfile.open)(path) as archive:
            for member in archive.infolist() if is_zip else archive:
                name, size = (member.filename, member.file_size) if is_zip else (member.name, member.size)
                file = folder / name
                regular = not member.is_dir() if is_zip else member.isfile()
                if not regular or ".." in file.parts or not file.is_relative_to(folder):
                    continue
                # sizes by the header, before anything is read: few bytes may be a great many once they are unpacked
                room -= size
                if room < 0 or (file.suffix in BATCH_ENDINGS and size > BATCH_LIMIT):
                    raise DataError(f"{path}: {name} has {size / 1e6:,.0f} MB: no file of CIFAR's, or no room for all.")
                kept.append(member)
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder, kept)
    except DataError:
        raise
    except Exception as error:  # tarfile.ReadError, EOFError, zlib.error, zipfile.BadZipFile, lzma.LZMAError, …
        raise DataError(
            f"{path}: truncated or corrupt archive ({path.stat().st_size:,} bytes; {reason(error)})."
        ) from error
