"""Every kind of image file that users bring, as the RGB that a viewer shows, or refused in one sentence."""

import struct
import sys
import types
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from albums import names
from helpers.common.images import KINDS, ImageError, find_images, read_image

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


LOSSY = {
    "gif": 12,
    **{kind: 6 for kind in KINDS.split() if "j" in kind},
    "mpo": 6,
    "webp": 6,
    "avif": 6,
    "avifs": 6,
    "hdr": 6,
}


def save(photo, path):
    """Write uint8 RGB [64, 64, 3] as what the suffix of `path` says."""
    image, kind = Image.fromarray(photo), path.suffix[1:]
    if kind in ("ico", "cur"):  # two sizes, of which the larger one is the picture
        image.save(path, "ICO", sizes=[(16, 16), image.size], bitmap_format="bmp" if kind == "cur" else "png")
        if kind == "cur":  # differs in its type
            path.write_bytes(b"\0\0\2\0" + path.read_bytes()[4:])
    elif kind in ("hdr", "pfm"):  # floats; those of hdr are light, without a gamma
        assert cv2.imwrite(str(path), (photo[..., ::-1] / np.float32(255)) ** (2.2 if kind == "hdr" else 1))
    elif kind == "ras":
        assert cv2.imwrite(str(path), photo[..., ::-1])
    elif kind == "psd":  # Adobe Photoshop File Formats Specification: header, three empty sections, planes
        header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, *photo.shape[:2], 8, 3)
        path.write_bytes(header + bytes(12) + b"\0\0" + photo.transpose(2, 0, 1).tobytes())
    elif kind == "qoi":  # qoiformat.org: every pixel with its three bytes
        pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in photo.reshape(-1, 3).tolist())
        path.write_bytes(struct.pack(">4sIIBB", b"qoif", *image.size, 3, 0) + pixels + bytes(7) + b"\1")
    elif kind == "mpo":
        image.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", image.size)], quality=95)
    else:
        image.save(path, {"jif": "JPEG", "avifs": "AVIF"}.get(kind))


def test_every_kind_is_found_in_a_folder_and_read(tmp_path):
    rows, columns = np.mgrid[:64, :64]
    photo = np.stack([rows * 3, columns * 4, 255 - rows * 2 - columns * 2], -1).astype(np.uint8)
    grey = np.repeat(photo[:, :, :1], 3, axis=2)
    expected = {"pgm": grey, "pbm": np.uint8(255) * (grey > 99)}
    missing = {"heic", "heif", "hif", "jxl"} | (set() if features.check("avif") else {"avif", "avifs"})
    kinds = [kind for kind in KINDS.split() if kind not in missing]
    for kind in kinds:
        if kind == "pbm":
            Image.fromarray(photo[:, :, 0] > 99).save(tmp_path / "a.pbm")
        elif kind == "pgm":
            Image.fromarray(photo[:, :, 0]).save(tmp_path / "a.pgm")
        else:
            save(photo, tmp_path / f"a.{kind}")
    found = find_images(tmp_path)
    assert sorted(path.suffix[1:] for path in found) == sorted(kinds)
    for path in found:
        kind, image = path.suffix[1:], read_image(path)
        if kind == "icns":  # into which Pillow writes larger ones, too
            assert image.shape == (1024, 1024, 3)
            image = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        assert close(image, expected.get(kind, photo), LOSSY.get(kind, 1)), path


@pytest.mark.parametrize(("start", "module", "package"), [
    (b"\0\0\0\x18ftypheic\0\0\0\0", "pillow_heif", "pillow-heif"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0", "pillow_heif", "pillow-heif"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", "pillow-jxl-plugin"),
    (b"\xff\x0a\x12", "pillow_jxl", "pillow-jxl-plugin"),
])  # fmt: skip
def test_a_kind_that_needs_a_package_names_it_and_is_read_with_it(tmp_path, monkeypatch, photo, start, module, package):
    path = tmp_path / "a.img"
    path.write_bytes(start)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImageError, match=rf"a\.img is no image .*pip install {package}"):
        read_image(path)
    # once it is imported, Pillow knows the kind
    Image.fromarray(photo).save(tmp_path / "same.png")
    opened, imported, registered = Image.open, [], []

    def import_module(name):
        imported.append(name)
        return types.SimpleNamespace(
            **{"register_heif_opener": lambda: registered.append(name)} if "heif" in name else {}
        )

    monkeypatch.setattr("importlib.import_module", import_module)
    monkeypatch.setattr(Image, "open", lambda path: opened(tmp_path / "same.png" if imported else path))
    np.testing.assert_array_equal(read_image(path), photo)
    assert imported == [module] and registered == [module] * (module == "pillow_heif")


@pytest.mark.parametrize("name", ["a.NEF", "a.dng"])
def test_raw_files_of_cameras_are_refused_rather_than_their_thumbnails_taken(tmp_path, photo, name):
    Image.fromarray(photo).save(tmp_path / name, "TIFF")
    with pytest.raises(ImageError, match=r"a camera's raw file.* save it as JPEG or TIFF"):
        read_image(tmp_path / name)


def test_radiance_is_exposed_so_that_a_lamp_does_not_leave_all_else_black(tmp_path):
    light = np.full((50, 60, 3), 0.2, np.float32)
    light[:25] = 0.02
    light[0, :10] = 5000  # less than a hundredth of the pixels
    assert cv2.imwrite(str(tmp_path / "a.hdr"), light)
    image = read_image(tmp_path / "a.hdr", notes := [])
    assert (image[0, :10] == 255).all() and image[30, 30].tolist() == [255] * 3
    assert abs(image[10, 30].astype(float) - 255 * 0.1 ** (1 / 2.2)).max() <= 2
    assert len(notes) == 1 and "a.hdr: of its high dynamic range" in notes[0]
    cv2.imwrite(str(tmp_path / "dark.hdr"), np.zeros((4, 4, 3), np.float32))
    assert not read_image(tmp_path / "dark.hdr").any()


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("tif", 1), ("tif", 3), ("pgm", 1)])
@pytest.mark.parametrize("bits", [9, 10, 11, 12, 14])
def test_unused_bits_of_16_are_left_out(tmp_path, suffix, channels, bits):
    values = np.linspace(0, (1 << bits) - 1, 30 * 20 * channels).astype(np.uint16).reshape(30, 20, channels)
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), values)
    image = read_image(path, notes := [])
    expected = np.broadcast_to(values[:, :, ::-1], (30, 20, 3)) * 255.0 / ((1 << bits) - 1)
    assert np.abs(image - expected).max() <= 0.51
    (note,) = notes
    assert note.startswith(f"{path.name}: only {bits} bits") and f"{(1 << bits) - 1:,} became" in note


def test_16_bits_that_are_used_are_as_before_and_nothing_is_said(tmp_path):
    for most in (1 << 14, 65535):
        values = np.array([[0, 300, most]], np.uint16)
        for name, pixels in (("grey.png", values), ("colour.png", np.dstack([values] * 3))):
            assert cv2.imwrite(str(tmp_path / name), pixels)
            assert read_image(tmp_path / name, notes := [])[0, :, 0].tolist() == [0, 1, most >> 8] and not notes


def test_colour_in_12_bits_is_turned_upright(tmp_path):
    values = np.zeros((20, 30, 3), np.uint16)
    values[:5, :5] = (0, 0, 4095)  # BGR
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    content = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is on the right
    data = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])  # after the header
    image = read_image(tmp_path / "a.png")
    assert image.shape == (30, 20, 3) and image[0, -1].tolist() == [255, 0, 0] and not image[:, :15].any()


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
    (b"\0\0\0\x18ftypisom\0\0\0\0", r"a\.jpg is no image .*give it as VIDEO_PATH"),
    (b"\x1a\x45\xdf\xa3matroska", r"a\.jpg is no image .*give it as VIDEO_PATH"),
    (b"\0\0\1\xb3\x14\0\xf0\x13" + bytes(99), r"a\.jpg is no image .*give it as VIDEO_PATH"),  # MPEG
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


def test_what_is_passed_over_is_named(album):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "a.mp4", "a.CR2"):
        (album / name).touch()
    find_images(album, notes=(notes := []))
    assert notes == [f"passed over in {album}: a.CR2, a.mp4, notes.txt"]
    find_images(album / "**" / "*", notes=(notes := []))
    assert notes == [f"passed over in {album}: a.CR2, a.mp4, deep/a.csv, notes.txt"]
    find_images(f"{album}/*.png", notes=(notes := []))
    find_images(album / "10.png", notes=notes)
    assert notes == []
