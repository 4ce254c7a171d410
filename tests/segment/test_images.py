"""Every kind of image file that users bring, as the RGB that a viewer shows, or refused in one sentence."""

import struct
import unicodedata
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers.segment.images import ImageError, find_images, output_names, read_first, read_image

UNCOMPRESSED = (cv2.IMWRITE_TIFF_COMPRESSION, 1)  # the default of some versions of OpenCV is lossy for floats


@pytest.fixture
def photo():
    """Smooth colours, which lossy formats keep, all corners different: uint8 [40, 60, 3]."""
    rows, columns = np.mgrid[:40, :60]
    return np.stack([rows * 6, columns * 4, 255 - rows * 3 - columns * 2], -1).astype(np.uint8)


def close(image, expected, tolerance):
    assert image.dtype == np.uint8 and image.shape == expected.shape and image.flags.c_contiguous
    return np.abs(image.astype(int) - expected).mean() <= tolerance


@pytest.mark.parametrize(("suffix", "options", "tolerance"), [
    ("png", {}, 0), ("bmp", {}, 0), ("tif", {}, 0), ("tif", {"compression": "tiff_lzw"}, 0), ("ppm", {}, 0),
    ("webp", {"lossless": True}, 0), ("webp", {"quality": 90}, 3), ("jpg", {"quality": 95}, 3), ("JPG", {}, 5),
    ("gif", {}, 12),
])  # fmt: skip
def test_common_formats(tmp_path, photo, suffix, options, tolerance):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo).save(path, **options)
    assert close(read_image(path), photo, tolerance)
    assert close(read_image(str(path)), photo, tolerance)


# What the orientations mean (EXIF 2.32, tag 0x0112): where row 0 and column 0 of the stored picture are seen.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, photo, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    assert close(read_image(tmp_path / f"a.{suffix}"), UPRIGHT[orientation](photo), 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_picture(tmp_path, photo, exif):
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert close(read_image(tmp_path / "a.jpg"), photo, 3)


def test_transparency_becomes_white(tmp_path, photo):
    alpha = np.zeros(photo.shape[:2], np.uint8)
    alpha[:, 20:40], alpha[:, 40:] = 128, 255
    share = alpha[:, :, None] / 255
    expected = photo * share + 255 * (1 - share)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "rgba.png")
    assert close(read_image(tmp_path / "rgba.png"), expected, 0.6)
    Image.fromarray(np.dstack([photo[:, :, 0], alpha])).save(tmp_path / "la.png")
    assert close(read_image(tmp_path / "la.png"), np.repeat(expected[:, :, :1], 3, 2), 0.6)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    assert close(read_image(tmp_path / "rgba.webp"), expected, 0.6)


def test_palettes(tmp_path):
    colours = np.array([[200, 10, 30], [0, 0, 0], [20, 90, 250]], np.uint8)
    indices = np.arange(12).reshape(3, 4) % 3
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "plain.png")
    assert (read_image(tmp_path / "plain.png") == colours[indices]).all()
    white = np.where(indices[:, :, None] == 1, 255, colours[indices])
    for name in ("index.png", "index.gif"):
        image.save(tmp_path / name, transparency=1)
        assert (read_image(tmp_path / name) == white).all()
    image.save(tmp_path / "bytes.png", transparency=bytes([255, 0, 255]))
    assert (read_image(tmp_path / "bytes.png") == white).all()
    pixels = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)  # a colour without a palette
    Image.fromarray(pixels).save(tmp_path / "colour.png", transparency=(9, 9, 9))
    assert read_image(tmp_path / "colour.png").tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pgm"])
def test_grayscale_and_black_and_white(tmp_path, photo, suffix):
    gray = photo[:, :, 0]
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}")
    assert (read_image(tmp_path / f"a.{suffix}") == gray[:, :, None]).all()
    Image.fromarray(gray > 100).save(tmp_path / f"b.{suffix.replace('pgm', 'png')}")
    assert (read_image(tmp_path / f"b.{suffix.replace('pgm', 'png')}") == 255 * (gray > 100)[:, :, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix, channels):
    values = np.linspace(0, 65535, 30 * 20 * channels).astype(np.uint16).reshape(30, 20, channels)
    values[:, :, 3:] = 65535
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)  # BGR, as OpenCV has it
    expected = np.broadcast_to(values[:, :, 2::-1] if channels > 1 else values, (30, 20, 3)) / 257
    assert np.abs(read_image(tmp_path / f"a.{suffix}") - expected).max() <= 1


def test_a_dark_16_bit_picture_is_not_taken_for_one_of_8_bits(tmp_path, monkeypatch):
    Image.fromarray(np.array([[0, 200, 255]], np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()
    opened = Image.open

    def older(path):  # up to Pillow 10 the mode of such a file was I
        image = opened(path)
        image.load()
        converted = image.convert("I")
        converted.format = image.format
        return converted

    monkeypatch.setattr(Image, "open", older)
    assert not read_image(tmp_path / "a.png").any()


@pytest.mark.parametrize(("values", "expected"), [
    ([0, 0.5, 1], [0, 128, 255]),
    ([0, 128, 255], [0, 128, 255]),
    ([0, 257 * 128, 65535], [0, 128, 255]),
    ([-1, 0, 1], [0, 128, 255]),
    ([1e5, 1.5e5, 2e5], [0, 128, 255]),
    ([np.nan, 0.5, np.inf], [0, 128, 0]),
    ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ([-5, -5, -5], [0, 0, 0]),
])  # fmt: skip
def test_float_tiff(tmp_path, values, expected):
    gray = np.array([values], np.float32)
    Image.fromarray(gray).save(tmp_path / "gray.tif")
    assert read_image(tmp_path / "gray.tif").tolist() == [[[v] * 3 for v in expected]]
    # in colour, which Pillow does not read: red and blue hold the values, green the first of them everywhere
    colour = np.dstack([gray, np.full_like(gray, gray[0, 0]), gray])
    assert cv2.imwrite(str(tmp_path / "colour.tif"), colour, UNCOMPRESSED)
    read = read_image(tmp_path / "colour.tif")
    assert read[:, :, 0].tolist() == [expected] == read[:, :, 2].tolist()
    assert (read[:, :, 1] == expected[0]).all()


def test_32_bit_integer_tiff(tmp_path):
    for values, expected in (
        ([0, 1, 255], [0, 1, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 1 << 29, 1 << 30], [0, 128, 255]),
    ):
        Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
        assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == expected


def test_cmyk(tmp_path, photo):
    cmyk = Image.fromarray(photo).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()[:100]  # the marker with which the inks are stored inverted
    assert close(read_image(tmp_path / "a.jpg"), photo, 4)
    cmyk.save(tmp_path / "a.tif")
    assert close(read_image(tmp_path / "a.tif"), photo, 1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_picture_of_many(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), name) for name in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert close(read_image(tmp_path / f"a.{suffix}"), np.full((6, 8, 3), (255, 0, 0)), 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(tmp_path, size):
    Image.new("RGB", size, (7, 8, 9)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (size[1], size[0], 3) and (image == (7, 8, 9)).all()


@pytest.mark.filterwarnings("error")
def test_90_megapixels(tmp_path):
    """Pillow's own limit is 89, and warns."""
    Image.new("L", (12_000, 7_500), 90).save(tmp_path / "a.png", compress_level=1)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (7_500, 12_000, 3) and image[-1, -1].tolist() == [90, 90, 90]


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [16_000, 50_000])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"a\.png .*250,000,000"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(share * len(whole)))])
    with pytest.raises(ImageError, match=rf"a\.{suffix} .*(truncated|damaged)"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_float_tiff(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), np.random.default_rng(0).random((50, 50, 3), np.float32))
    whole = (tmp_path / "a.tif").read_bytes()
    for length in (4, 12, 200, len(whole) // 2):
        (tmp_path / "b.tif").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"b\.tif "):
            read_image(tmp_path / "b.tif")


@pytest.mark.parametrize(("content", "message"), [
    (b"", r"a\.jpg is no image .*starts with b''"),
    (b"<!DOCTYPE html><html>", r"a\.jpg is no image .*DOCTYPE html"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"a\.jpg is no image .*convert HEIC"),
    (bytes(1000), r"a\.jpg is no image"),
])  # fmt: skip
def test_what_is_no_image(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(("name", "message"), [
    (".", "Is a directory"), ("a.jpg", "No such file"), ("secret.png", "Permission denied")
])  # fmt: skip
def test_what_cannot_be_opened(tmp_path, monkeypatch, name, message):
    if name == "secret.png":  # chmod does not stop root
        error = PermissionError(13, "Permission denied")
        monkeypatch.setattr("builtins.open", lambda *args, **options: (_ for _ in ()).throw(error))
    with pytest.raises(ImageError, match=rf"cannot be opened \({message}.*give an image file"):
        read_image(tmp_path / name)


# --- Which images --------------------------------------------------------------------------------------------------


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


def test_files_folders_and_patterns(album):
    assert find_images(album / "2.JPG") == [album / "2.JPG"]
    assert find_images(album / "notes.txt") == [album / "notes.txt"]  # whether it is an image shows when it is read
    assert names(find_images(album), album) == ["2.JPG", "10.png", "b.webp"]
    assert names(find_images(str(album)), album) == ["2.JPG", "10.png", "b.webp"]
    assert names(find_images(album / "*"), album) == ["2.JPG", "10.png", "b.webp"]
    assert names(find_images(f"{album}/[0-9]*.png"), album) == ["10.png"]
    everything = ["2.JPG", "10.png", "b.webp", "deep/1.tiff", "deep/er/3.Jpeg"]
    assert names(find_images(album / "**"), album) == everything
    assert names(find_images(album / "**" / "*"), album) == everything


def test_relative_paths_and_the_home_folder(album, monkeypatch):
    monkeypatch.chdir(album)
    assert find_images("deep") == [Path("deep/1.tiff")]
    assert find_images("*/*.tiff") == [Path("deep/1.tiff")]
    monkeypatch.setenv("HOME", str(album))
    monkeypatch.setenv("USERPROFILE", str(album))
    assert find_images("~/deep/*") == [album / "deep" / "1.tiff"]
    assert find_images("~/2.JPG") == [album / "2.JPG"]


def test_names_with_the_signs_of_a_pattern(album):
    (album / "photo [1].png").touch()
    (album / "photo 1.png").touch()
    (album / "set [a]").mkdir()
    (album / "set [a]" / "x.png").touch()
    assert find_images(album / "photo [1].png") == [album / "photo [1].png"]
    assert find_images(album / "photo [12].png") == [album / "photo 1.png"]
    assert find_images(album / "set [a]") == [album / "set [a]" / "x.png"]


@pytest.mark.parametrize(("path", "message"), [
    ("deep/er/none", r"no such file or folder; .*er: .*3\.Jpeg"),
    ("gone/none", r"no such file or folder; .*gone: nothing"),
    ("folder.png", r"no image there; .*: nothing.*a pattern"),
    ("deep/er/..", r"\.\.: no image there; .*er/*"),
    ("*.txt", r"no image there; found: .*notes\.txt.*Suffixes: jpg"),
    ("*.nef", r"no image there; found: nothing"),
    ("~nobody-of-this-name/a.jpg", "no such file or folder"),
    ("", "is empty: give a file"), ("  ", "is empty: give a file"),  # not the current folder
])  # fmt: skip
def test_nothing_found(album, monkeypatch, path, message):
    monkeypatch.chdir(album)
    (album / "deep" / "1.tiff").unlink()
    with pytest.raises(ImageError, match=message) as caught:
        find_images(path)
    assert path.strip() in str(caught.value)


def test_the_first_that_can_be_read(tmp_path, photo):
    good, bad, worse = tmp_path / "2.png", tmp_path / "1.png", tmp_path / "3.png"
    Image.fromarray(photo).save(good)
    bad.write_bytes(b"no image")
    path, image = read_first([bad, good, worse])
    assert path == good
    np.testing.assert_array_equal(image, photo)
    with pytest.raises(ImageError, match=r"none of the 2 images can be read; the last one: .*3\.png cannot be opened"):
        read_first([bad, worse])
    with pytest.raises(ImageError, match=r"^\S*1\.png is no image"):
        read_first([bad])


# --- Where the results of each image go ----------------------------------------------------------------------------


@pytest.mark.parametrize(("paths", "expected"), [
    ([], []),
    (["a/cat.jpg", "b/dog.v2.png"], ["cat", "dog.v2"]),
    (["cat.jpg", "Cat.png", "dog.jpg"], ["cat_jpg", "Cat_png", "dog"]),
    (["a/1.jpg", "b/1.jpg", "a/1.png"], ["a_1_jpg", "b_1_jpg", "1_png"]),
    (["x/a/1.jpg", "y/a/1.jpg"], ["a_1_jpg", "a_1_jpg_2"]),
    (["f/cat.jpg", "f/cat.png", "f/cat_jpg.gif"], ["f_cat_jpg", "cat_png", "f_cat_jpg_gif"]),
    (["f/\u00e9.jpg", "f/e\u0301.jpg"], ["f_é_jpg", "f_é_jpg_2"]),
    (["кошка.jpg", "猫.jpg"], ["кошка", "猫"]),
    (['a:b?<"|>*.jpg', "end. .jpg", "...jpg", ".jpg"], ["a_b______", "end", "_", "jpg"]),
])  # fmt: skip
def test_output_names(tmp_path, monkeypatch, paths, expected):
    monkeypatch.chdir(tmp_path)
    found = output_names(paths)
    assert [unicodedata.normalize("NFC", name) for name in found] == expected
    for name in found:
        (tmp_path / name).mkdir()


def test_output_names_of_long_and_undecodable_names(tmp_path):
    long = "ä" * 125 + ".jpg"  # 254 bytes, a file system's limit is 255
    found = output_names([f"a/{long}", f"b/{long}", "bad\udcff.jpg"])
    assert len(set(found)) == 3
    for name in found:
        (tmp_path / name).mkdir()
        name.encode()
