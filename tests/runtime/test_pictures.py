from __future__ import annotations

import numpy
import PIL.Image
import PIL.ImageDraw
import pytest

from surgeon.bundle.manifest import Image
from surgeon.errors import SurgeonError
from surgeon.runtime.photos import at_size, fit, load_photo
from surgeon.runtime.pictures import difference, heat, save, to_picture

LAYOUT = Image(height=8, width=8, resize=10)


def pixels(photo: PIL.Image.Image) -> numpy.ndarray:
    return numpy.asarray(photo).astype(int)


@pytest.fixture
def colourful() -> PIL.Image.Image:
    """Not square, and different in every corner."""
    photo = PIL.Image.new("RGB", (48, 32), "red")
    draw = PIL.ImageDraw.Draw(photo)
    draw.rectangle((0, 0, 23, 15), fill="blue")
    draw.rectangle((24, 16, 47, 31), fill="lime")
    return photo


def store(photo: PIL.Image.Image, path, **options):
    photo.save(path, **options)
    return path


def test_a_photo_comes_in_the_manifests_range(tmp_path):
    path = store(PIL.Image.new("RGB", (20, 20), (255, 0, 51)), tmp_path / "photo.png")
    values = load_photo(path, LAYOUT)
    assert values.dtype == numpy.float32 and values.shape == (3, 8, 8) and values.flags.c_contiguous
    assert values[:, 4, 4] == pytest.approx([1, -1, -0.6])
    halved = load_photo(path, Image(height=8, width=8, range=(0.0, 1.0)))
    assert halved[:, 4, 4] == pytest.approx([1, 0, 0.2])
    grey = load_photo(path, Image(channels=1, height=8, width=8))
    assert grey.shape == (1, 8, 8)


def test_values_and_picture_are_inverse(tmp_path):
    noise = numpy.random.default_rng(0).integers(0, 256, (8, 8, 3), numpy.uint8)
    path = store(PIL.Image.fromarray(noise), tmp_path / "noise.png")
    assert (pixels(to_picture(load_photo(path, LAYOUT), LAYOUT)) == noise).all()  # square, of the size: untouched


def test_shorter_side_then_centre(tmp_path, colourful):
    """As torchvision's Resize and CenterCrop do it: 48 x 32 to 15 x 10, then 8 x 8 from (4, 1)."""
    values = load_photo(store(colourful, tmp_path / "photo.png"), LAYOUT)
    expected = colourful.resize((15, 10), PIL.Image.Resampling.BILINEAR).crop((4, 1, 12, 9))
    assert (pixels(to_picture(values, LAYOUT)) == pixels(expected)).all()


def test_another_size_is_cropped_from_as_much(tmp_path, colourful):
    larger = at_size(LAYOUT, 16, 20)
    assert (larger.height, larger.width, larger.resize) == (16, 20, 20)
    path = store(colourful, tmp_path / "photo.png")
    expected = colourful.resize((30, 20), PIL.Image.Resampling.BILINEAR).crop((5, 2, 25, 18))
    assert (pixels(to_picture(load_photo(path, larger), larger)) == pixels(expected)).all()
    assert (pixels(to_picture(load_photo(path, LAYOUT, native=True), LAYOUT)) == pixels(colourful)).all()


@pytest.mark.parametrize("size", [(55, 71), (97, 160), (33, 100), (100, 33), (11, 9), (224, 225), (500, 375)])
@pytest.mark.parametrize("layout", [Image(), Image(resize=224), LAYOUT, Image(height=16, width=40, resize=16)])
def test_every_size_gives_the_inputs(size, layout):
    assert fit(PIL.Image.new("RGB", size, "white"), layout).getextrema() == ((255, 255),) * 3  # no black edge
    assert fit(PIL.Image.new("RGB", size), layout).size == (layout.width, layout.height)


def test_orientation_is_obeyed(tmp_path, colourful):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = load_photo(store(colourful.rotate(90, expand=True), tmp_path / "turned.png", exif=exif), LAYOUT)
    assert numpy.allclose(turned, load_photo(store(colourful, tmp_path / "straight.png"), LAYOUT))


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (PIL.Image.new("RGBA", (9, 9), (0, 0, 0, 0)), (255, 255, 255)),
        (PIL.Image.new("RGBA", (9, 9), (255, 0, 0, 102)), (255, 153, 153)),
        (PIL.Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        (PIL.Image.new("L", (9, 9), 100), (100, 100, 100)),
        (PIL.Image.new("1", (9, 9), 1), (255, 255, 255)),
        (PIL.Image.new("RGB", (9, 9), (1, 2, 3)).quantize(4), (1, 2, 3)),
        (PIL.Image.fromarray(numpy.full((9, 9), 257 * 200, numpy.uint16)), (200, 200, 200)),
    ],
    ids=["transparent", "translucent", "grey-alpha", "grey", "bits", "palette", "grey16"],
)
def test_modes(tmp_path, photo, expected):
    values = load_photo(store(photo, tmp_path / "photo.png"), LAYOUT)
    assert tuple(pixels(to_picture(values, LAYOUT))[4, 4]) == expected


def test_cmyk_and_animation(tmp_path):
    store(PIL.Image.new("RGB", (9, 9), "white").convert("CMYK"), tmp_path / "print.jpg")
    assert load_photo(tmp_path / "print.jpg", LAYOUT).min() > 0.97
    frames = [PIL.Image.new("L", (9, 9), 255), PIL.Image.new("L", (9, 9), 0)]
    store(frames[0], tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert load_photo(tmp_path / "film.gif", LAYOUT).min() == 1


def broken_photo(path):
    noise = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), numpy.uint8)
    store(PIL.Image.fromarray(noise), path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("hello"), "is not a picture"),
        (lambda path: path.write_bytes(b""), "is not a picture"),
        (broken_photo, "cannot be read"),
        (lambda path: store(PIL.Image.new("RGB", (100, 7)), path), "100 x 7 pixels, too few"),
        (lambda path: store(PIL.Image.new("RGB", (900, 9)), path), "too elongated"),
        (lambda path: store(PIL.Image.new("F", (9, 9)), path, format="TIFF"), "floating-point"),
    ],
    ids=["missing", "folder", "text", "empty", "truncated", "small", "elongated", "float"],
)
def test_an_unusable_photo_is_named(tmp_path, make, words):
    path = tmp_path / "photo.png"
    make(path)
    with pytest.raises(SurgeonError, match=words) as caught:
        load_photo(path, LAYOUT)
    assert "photo.png" in caught.value.message


def test_too_many_pixels(tmp_path, monkeypatch):
    path = store(PIL.Image.new("L", (40, 40)), tmp_path / "photo.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    load_photo(path, LAYOUT)  # between once and twice the limit Pillow only warns, and so much is fine
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(SurgeonError, match="too many pixels"):
        load_photo(path, LAYOUT)


def test_other_channels_take_no_photo(tmp_path):
    with pytest.raises(SurgeonError, match="takes 4 channels"):
        load_photo(tmp_path / "photo.png", Image(channels=4))


def test_difference_uses_the_whole_range_over_all_channels():
    clean = numpy.zeros((3, 1, 2), numpy.float32)
    perturbed = numpy.array([[[-1, 0]], [[1, 0]], [[3, 0]]], numpy.float32)
    assert pixels(difference(clean, perturbed)).tolist() == [[[0, 128, 255], [64, 64, 64]]]
    assert pixels(difference(clean, clean)).tolist() == [[[128] * 3] * 2]
    outlier = numpy.linspace(-1, 1, 1000, dtype=numpy.float32).reshape(1, 10, 100)
    outlier[0, 9, 99] = 1000
    assert pixels(difference(0 * outlier, outlier)).max(axis=(1, 2))[8] < 2
    assert pixels(difference(0 * outlier, outlier, clip=1)).max(axis=(1, 2))[8] > 200


def test_heat_keeps_zero_grey():
    pullback = numpy.array([[[-1, 0]], [[0.5, 0]], [[2, 0]]], numpy.float32)
    assert pixels(heat(pullback)).tolist() == [[[64, 159, 255], [128, 128, 128]]]
    assert pixels(heat(numpy.zeros((1, 1, 1)))).tolist() == [[[128] * 3]]


def test_save_names_what_fails(tmp_path):
    picture = PIL.Image.new("RGB", (8, 8))
    save(picture, tmp_path / "new" / "picture.JPG")
    with PIL.Image.open(tmp_path / "new" / "picture.JPG") as saved:
        assert saved.format == "JPEG"
    for name in ("picture.txt", "picture", "picture.psd"):
        with pytest.raises(SurgeonError, match="names a picture format"):
            save(picture, tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeonError, match=r"file/picture\.png cannot be written"):
        save(picture, tmp_path / "file" / "picture.png")


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fill(self, target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", fill)
    with pytest.raises(SurgeonError, match="No space left"):
        save(PIL.Image.new("RGB", (8, 8)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"] and path.read_bytes() == b"old"
