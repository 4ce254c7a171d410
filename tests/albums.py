"""A folder of files, some of them named as images, to be searched."""

import pytest


@pytest.fixture
def album(tmp_path):
    for name in (
        "10.png",
        "2.JPG",
        "b.webp",
        ".hidden.png",
        "notes.txt",
        "deep/1.tiff",
        "deep/er/3.Jpeg",
        "deep/a.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]
