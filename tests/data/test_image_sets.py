"""Whatever lies at the path of an image set is read or counted; what would be left out is refused."""

import builtins
import gzip
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.data import file_trees
from cdmem.data.counts import told
from cdmem.data.sources import load_source
from cdmem.data.subset import SubsetSpec, choose
from cdmem.errors import InputError
from support.pools import check, grey_levels, key_of

LOSSLESS = ["png", "bmp", "tif", "tiff", "gif", "webp", "ppm", "pgm", "jp2", "qoi", "apng"]


def picture(array, form="PNG", **more):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **more)
    return file.getvalue()


def save(path, array, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"lossless": True} if path.suffix == ".webp" else {}) | more)
    return path


def counts(pool):
    return pool.provenance["images"]


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load_source("folder", str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# formats


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_formats_give_their_pixels(tmp_path, suffix):
    grey = suffix in ("gif", "pgm")
    image = grey_levels(6, 6) if grey else grey_levels(6, 6, 3)
    form = {"apng": "PNG", "jp2": "JPEG2000"}.get(suffix)
    save(tmp_path / f"a.{suffix}", image, **({"format": form} if form else {}))
    save(tmp_path / "b.PNG", image)
    pool = load_source("folder", str(tmp_path))
    check(pool, 2, (1 if grey else 3, 6, 6))
    assert all(np.array_equal(found, image[None] if grey else image.transpose(2, 0, 1)) for found in pool.images)
    assert counts(pool)["read"] == 2 == sum(counts(pool)["formats"].values())


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jpeg", "avif"])
def test_lossy_formats_are_read(tmp_path, suffix):
    form = "AVIF" if suffix == "avif" else "JPEG"
    if form == "AVIF" and form not in Image.registered_extensions().values():
        pytest.skip("this Pillow does not know AVIF")
    save(tmp_path / f"a.{suffix}", np.full((8, 8, 3), 100, np.uint8), format=form, quality=95)
    pool = load_source("folder", str(tmp_path))
    assert counts(pool)["formats"] == {form: 1} and (pool.images.double() - 100).abs().max() <= 3


def test_a_folder_of_two_formats_is_one_set_of_both(tmp_path):
    for k in range(5):
        save(tmp_path / f"{k}.png", grey_levels(6, 6, 3))
        save(tmp_path / f"{k}.tiff", grey_levels(6, 6, 3))
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "LICENSE").write_text("words")
    save(tmp_path / ".thumbnails" / "x.png", grey_levels(2, 2, 3))
    pool = load_source("folder", str(tmp_path))
    assert len(pool) == 10
    assert counts(pool) == {
        "read": 10,
        "formats": {"PNG": 5, "TIFF": 5},
        "skipped": {".txt": 1, "hidden": 2, "without a suffix": 1},
    }
    assert told(pool.provenance).startswith(
        "10 images read (5 PNG, 5 TIFF); 1 .txt, 2 hidden, 1 without a suffix skipped"
    )


def test_pictures_are_known_by_their_content_too(tmp_path):
    for name in ("img_0", "img.data"):
        (tmp_path / name).write_bytes(picture(grey_levels(6, 6, 3)))
    assert len(load_source("folder", str(tmp_path))) == 2


def test_of_an_animation_the_first_frame_is_read_and_that_is_said(tmp_path):
    frames = [Image.fromarray(grey_levels(6, 6)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    pool = load_source("folder", str(tmp_path))
    assert np.array_equal(pool.images[0, 0].numpy(), np.asarray(frames[0]))
    assert "1 animations" in told(pool.provenance)


def unread(kind, folder):
    if kind == "pages":
        pages = [Image.fromarray(grey_levels(6, 6)) for _ in range(3)]
        pages[0].save(folder / "x.tiff", save_all=True, append_images=pages[1:])
    elif kind == "damaged":
        (folder / "x.png").write_bytes(picture(grey_levels(32, 32, 3))[:200])
    elif kind == "not 8-bit":
        save(folder / "x.tif", grey_levels(6, 6).astype(np.uint16) * 256)
    elif kind == ".heic":
        (folder / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    elif kind == "no regular file":
        os.mkfifo(folder / "x.png")
    elif kind == "beside the class folders":
        save(folder / "loose.png", grey_levels(6, 6, 3))
    elif kind == "parquet files beside pictures":
        (folder / "x.parquet").write_bytes(b"PAR1")


KINDS = ["pages", "damaged", "not 8-bit", ".heic", "no regular file", "beside the class folders"]
KINDS += ["parquet files beside pictures"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_would_be_left_out_is_an_error_unless_it_is_asked_for(tmp_path, kind):
    nested = "class" in kind
    for k in range(4):
        save(tmp_path / ("cat" if k % 2 and nested else "dog" if nested else "") / f"{k}.png", grey_levels(6, 6, 3))
    unread(kind, tmp_path)
    assert "data.skip_unreadable" in refusal(tmp_path)
    pool = load_source("folder", str(tmp_path), skip_unreadable=True)
    assert len(pool) == 4 and counts(pool)["skipped"] == {kind: 1}
    assert pool.class_names == (("cat", "dog") if nested else ())
    assert pool.provenance["skip_unreadable"] is True


def test_nothing_readable_is_no_set(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    assert key_of("folder", str(tmp_path)) == key_of("folder", str(tmp_path), skip_unreadable=True) == "data.path"


# levels of folders


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("train/cat", "val/cat"),
        ("Training", "Validation", "extra"),
        ("photos/train", "photos/test"),
        ("cat/train", "cat/test", "dog/train"),
        ("trainA", "testB"),
        ("train2017", "val2017"),
        ("images_train", "images_test"),
        ("train",),
        ("val", "test"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_level_of_splits_is_refused_with_what_to_do(tmp_path, names, zipped):
    if zipped and len({name.split("/")[0] for name in names}) == 1:
        return  # the one top folder of an archive is the archive
    for name in names:
        save(tmp_path / "set" / name / "a.png", grey_levels(6, 6, 3))
    error = refusal(zip_of(tmp_path / "set") if zipped else tmp_path / "set")
    assert "sub-folder" in error and "held_out" in error
    assert len(load_source("folder", str(tmp_path / "set" / names[0]))) == 1


@pytest.mark.parametrize("names", [("bus", "train"), ("bullet_train", "test_tube"), ("trains", "tests_of_cars")])
def test_classes_that_sound_like_splits_are_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name / "a.png", grey_levels(6, 6, 3))
    assert load_source("folder", str(tmp_path)).class_names == tuple(sorted(names))


# channels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P"])
def test_grey_pictures_are_one_channel(tmp_path, mode):
    image = Image.fromarray(grey_levels(6, 6)).convert(mode)
    for k in range(2):
        image.save(tmp_path / f"{k}.png")
    pool = load_source("folder", str(tmp_path))
    assert pool.images.shape == (2, 1, 6, 6) and np.array_equal(pool.images[0, 0], image.convert("L"))


@pytest.mark.parametrize("first", ["grey", "colour"])
def test_grey_among_colour_becomes_colour_and_is_counted(tmp_path, first):
    grey, colour = grey_levels(6, 6), grey_levels(6, 6, 3)
    save(tmp_path / ("a.png" if first == "grey" else "b.png"), grey)
    save(tmp_path / ("b.png" if first == "grey" else "a.png"), colour)
    pool = load_source("folder", str(tmp_path))
    check(pool, 2, (3, 6, 6))
    assert np.array_equal(pool.images[0 if first == "grey" else 1].numpy(), np.stack([grey] * 3))
    assert "1 grey pictures among colour ones" in told(pool.provenance)


def test_held_out_images_get_the_channels_of_the_training_set(tmp_path):
    for k in range(4):
        save(tmp_path / "t" / f"{k}.png", grey_levels(6, 6, 3))
        save(tmp_path / "h" / f"{k}.png", grey_levels(6, 6))
    t, h = (load_source("folder", str(tmp_path / name)) for name in "th")
    assert choose(t, SubsetSpec(3), h).held_out_images.shape == (4, 3, 6, 6)
    with pytest.raises(InputError, match=r"^data\.held_out_path="):
        choose(h, SubsetSpec(3), t)


# archives


def zip_of(folder, extra=None):
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return file


def test_a_zipped_folder_is_that_folder(tmp_path):
    for name in ("dog/b.png", "cat/a.tif", "cat/z/b.png"):
        save(tmp_path / "set" / name, grey_levels(6, 6, 3))
    (tmp_path / "set" / "notes.txt").write_text("words")
    here = load_source("folder", str(tmp_path / "set"))
    packed = load_source("folder", str(zip_of(tmp_path / "set")))
    assert torch.equal(here.images, packed.images) and torch.equal(here.labels, packed.labels)
    assert here.class_names == packed.class_names and here.provenance == packed.provenance
    with zipfile.ZipFile(tmp_path / "top.zip", "w") as archive:  # as a file manager packs it
        for path in sorted((tmp_path / "set").rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("__MACOSX/set/._b.png", b"x")
    assert load_source("folder", str(tmp_path / "top.zip")).class_names == here.class_names


@pytest.mark.parametrize("packed", [True, False])
def test_edm_archives_give_their_labels(tmp_path, packed):
    names = [f"0000{k // 2}/img0000000{k}.png" for k in range(4)]
    for name in names:
        save(tmp_path / "set" / name, grey_levels(6, 6, 3))

    def read(about):
        (tmp_path / "set" / "dataset.json").write_text(json.dumps(about))
        return load_source("folder", str(zip_of(tmp_path / "set") if packed else tmp_path / "set"))

    pool = read({"labels": [[name, label] for name, label in zip(names[::-1], (2, 0, 1, 2))]})
    assert pool.labels.tolist() == [2, 1, 0, 2] and pool.class_names == ("0", "1", "2")
    assert counts(pool) == {"read": 4, "formats": {"PNG": 4}, "skipped": {}}
    none = read({"labels": None})
    assert none.class_names == () and none.labels.tolist() == [0] * 4
    assert read({"something": "else"}).class_names == ("00000", "00001")
    short, long = [[n, 0] for n in names[:3]], [[n, 0] for n in [*names, "00009/gone.png"]]
    for wrong in (short, long, [[n, -1] for n in names], [[n, [0, 1]] for n in names], "x", [1, 2], {"a": None}):
        with pytest.raises(InputError, match=r"^data\.path=.*dataset\.json"):
            read({"labels": wrong})


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/tmp/up.png", "C:/up.png", "..\\up.png"])
def test_archives_that_lead_out_are_refused(tmp_path, name):
    save(tmp_path / "set" / "a.png", grey_levels(6, 6, 3))
    assert "outside" in refusal(zip_of(tmp_path / "set", {name: picture(grey_levels(6, 6, 3))}))


def test_archives_of_too_many_members_and_bombs_are_refused(tmp_path, monkeypatch):
    for k in range(4):
        save(tmp_path / "set" / f"{k}.png", grey_levels(6, 6, 3))
    file = zip_of(tmp_path / "set")
    monkeypatch.setattr(file_trees, "MAX_MEMBERS", 3)
    assert "members" in refusal(file)
    monkeypatch.setattr(file_trees, "MAX_MEMBERS", 4)
    assert len(load_source("folder", str(file))) == 4
    monkeypatch.setattr(file_trees, "FREE", 1000)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.txt", bytes(10**6))
    monkeypatch.setattr(file_trees, "MAX_MEMBERS", 5)
    assert "would unpack" in refusal(file)


@pytest.mark.parametrize("name", ["labels", "label", "y", "arr_1"])
def test_labels_of_arrays(tmp_path, name):
    images = "images" if name.startswith("l") else "x" if name == "y" else "arr_0"
    for labels in (np.array([2, 0, 1, 2]), np.array([[2], [0], [1], [2]], np.uint8)):
        np.savez(tmp_path / "x.npz", **{images: grey_levels(4, 6, 6), name: labels, "seeds": np.arange(4)})
        pool = load_source("array", str(tmp_path / "x.npz"))
        assert pool.labels.tolist() == [2, 0, 1, 2] and pool.class_names == ("0", "1", "2")
        assert counts(pool) == {"read": 4, "formats": {".npz": 4}, "skipped": {}, "notes": {"with seeds": 4}}


def test_a_second_array_of_images_is_left_out_only_when_asked(tmp_path):
    np.savez(tmp_path / "x.npz", grey_levels(4, 6, 6), grey_levels(2, 6, 6))
    assert "arr_1" in refusal(tmp_path / "x.npz")
    assert len(load_source("array", str(tmp_path / "x.npz"), skip_unreadable=True)) == 4


# data sets of others


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-idx", ".idx"])
def test_mnist(tmp_path, packed, dot):
    pack = gzip.compress if packed else bytes
    images, labels = grey_levels(5, 7, 6), np.array([3, 1, 4, 1, 5], np.uint8)
    file = tmp_path / f"train-images{dot}3-ubyte{packed}"
    file.write_bytes(pack(idx(images)))
    assert load_source("array", str(file)).class_names == ()
    (tmp_path / f"train-labels{dot}1-ubyte{packed}").write_bytes(pack(idx(labels)))
    for place in (file, tmp_path):
        pool = load_source("array", str(place))
        check(pool, 5, (1, 7, 6))
        assert np.array_equal(pool.images[:, 0].numpy(), images) and np.array_equal(pool.labels.numpy(), labels)
        assert counts(pool) == {"read": 5, "formats": {"idx": 5}, "skipped": {}}
    (tmp_path / f"t10k-images{dot}3-ubyte{packed}").write_bytes(pack(idx(images)))
    assert "t10k" in refusal(tmp_path) and len(load_source("array", str(file))) == 5
    for wrong in (idx(images)[:-1], idx(images) + b"x", b"\0\0\x08\3\0", b"\0\0\x0d\3" + idx(images)[4:]):
        file.write_bytes(pack(wrong))
        assert key_of("array", str(file)) == "data.path"


def batch(path, images, key, labels, protocol):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        pickle.dumps({b"data": images.reshape(len(images), -1), key: labels, "batch_label": "x"}, protocol)
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar_for_python(tmp_path, protocol):
    images, labels = grey_levels(3, 4, 3, 8, 8), np.array([[3, 1, 0, 1], [2, 3, 3, 0], [1, 1, 1, 1]])
    for k in range(2):
        batch(tmp_path / f"data_batch_{k + 1}", images[k], b"labels", labels[k].tolist(), protocol)
    batch(tmp_path / "test_batch", images[2], "fine_labels", labels[2].tolist(), protocol)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a", b"b", b"c", b"d"]}, protocol))
    pool = load_source("folder", str(tmp_path))
    check(pool, 8, (3, 8, 8))
    assert np.array_equal(pool.images.numpy(), images[:2].reshape(8, 3, 8, 8))
    assert np.array_equal(pool.labels.numpy(), labels[:2].ravel()) and pool.class_names == tuple("abcd")
    assert counts(pool)["skipped"] == {"CIFAR's test part": 1}
    held = load_source("array", str(tmp_path / "test_batch"))
    assert np.array_equal(held.images.numpy(), images[2]) and held.labels.tolist() == [1] * 4


def test_parquet_of_datasets(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = grey_levels(6, 6, 6, 3)
    rows = [{"bytes": picture(image), "path": f"{k}.png"} for k, image in enumerate(images)]
    features = {"label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    labels = [0, 1, 2, 1, 0, 2]

    def write(name, part, **more):
        columns = {"image": rows[part], "label": labels[part], "caption": ["x"] * len(rows[part]), **more}
        parquet.write_table(arrow.table(columns).replace_schema_metadata(about), tmp_path / name)

    write("train-00000-of-00002.parquet", slice(0, 4))
    write("train-00001-of-00002.parquet", slice(4, 6))
    pool = load_source("folder", str(tmp_path))
    check(pool, 6, (3, 6, 6))
    assert np.array_equal(pool.images.numpy(), images.transpose(0, 3, 1, 2))
    assert pool.labels.tolist() == labels and pool.class_names == ("cat", "dog", "emu")
    assert counts(pool)["skipped"] == {"column caption": 1}
    assert len(load_source("array", str(tmp_path / "train-00000-of-00002.parquet"))) == 4
    write("test-00000-of-00001.parquet", slice(0, 1))
    assert "held_out" in refusal(tmp_path)
    write("two.parquet", slice(0, 2), other=rows[:2])
    assert "columns image, other" in refusal(tmp_path / "two.parquet")
    assert len(load_source("array", str(tmp_path / "two.parquet"), skip_unreadable=True)) == 2


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", fail)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "pip install" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.pt", "x.tar", "x.txt", "x.png"])
def test_other_files_are_no_image_set(tmp_path, name):
    (tmp_path / name).write_bytes(picture(grey_levels(4, 4)))
    assert "folder or .zip of pictures" in refusal(tmp_path / name)
