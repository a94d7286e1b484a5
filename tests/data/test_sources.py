"""Every source gives the pixels, labels and indices that its files hold, and refuses what it cannot read."""

import hashlib
import json
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from cdmem.data import cifar10 as cifar
from cdmem.data import pixels
from cdmem.data.sources import load_source
from cdmem.errors import InputError
from cdmem.io import download
from support.pools import check, grey_levels, key_of

# the table of sources


def test_unknown_sources_are_refused_with_the_valid_ones():
    with pytest.raises(InputError, match=r"^data\.source=.*digits, cifar10, celeba, folder, array"):
        load_source("mnist")
    assert key_of("digits", download=True) == "data.download"


@pytest.mark.parametrize("source", ["cifar10", "celeba", "folder", "array"])
def test_a_source_of_files_needs_a_path_that_exists(source, tmp_path):
    assert key_of(source) == "data.path"
    assert key_of(source, str(tmp_path / "nowhere")) == "data.path"


# digits


def test_digits_span_the_grey_levels():
    from sklearn.datasets import load_digits

    pool = load_source("digits")
    check(pool, 1797, (1, 8, 8))
    original = load_digits()
    assert np.array_equal(pool.labels.numpy(), original.target)
    assert np.array_equal(np.rint(pool.images[:, 0].numpy() * (16 / 255)), original.images)
    assert pool.images.unique().tolist() == np.rint(np.arange(17) * 255 / 16).astype(int).tolist()
    assert pool.indices.tolist() == list(range(1797))
    assert pool.class_names == tuple("0123456789")
    assert key_of("digits", "somewhere") == "data.path"


# options that every source shares


def test_classes_are_kept_in_source_order_and_renumbered_as_given():
    whole, part = load_source("digits"), load_source("digits", classes=[7, "1"])
    keep = (whole.labels == 7) | (whole.labels == 1)
    assert torch.equal(part.indices, whole.indices[keep])
    assert torch.equal(part.images, whole.images[keep])
    assert torch.equal(part.labels, (whole.labels[keep] == 1).long())
    assert part.class_names == ("7", "1")
    assert part.provenance["classes"] == ["7", "1"]
    with pytest.raises(InputError, match=r"^data\.classes=ten: .* 0, 1, 2"):
        load_source("digits", classes=["ten"])
    for bad in ([10], [-1], [True], [], [1, "1"]):
        assert key_of("digits", classes=bad) == "data.classes"


def test_crop_is_centred_and_comes_before_the_resize(tmp_path):
    images = grey_levels(3, 10, 8, 3)
    np.save(tmp_path / "x.npy", images)
    path = str(tmp_path / "x.npy")
    cropped = load_source("array", path, crop=4).images.numpy()
    assert np.array_equal(cropped, images[:, 3:7, 2:6].transpose(0, 3, 1, 2))
    both = load_source("array", path, crop=4, resolution=2)
    check(both, 3, (3, 2, 2))
    expected = Image.fromarray(images[0, 3:7, 2:6]).resize((2, 2), Image.Resampling.BICUBIC)
    assert np.array_equal(both.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert both.provenance["crop"] == 4
    assert both.provenance["resolution"] == 2
    for options in ({"crop": 9}, {"crop": 0}, {"resolution": 0}):
        assert key_of("array", path, **options) == f"data.{next(iter(options))}"


def test_resize_antialiases_and_does_not_stretch(tmp_path):
    stripes = np.zeros((1, 16, 32), np.uint8)
    stripes[:, :, ::2] = 255
    stripes[:, :, :8] = stripes[:, :, 24:] = 7  # outside the centred square
    np.save(tmp_path / "x.npy", stripes)
    small = load_source("array", str(tmp_path / "x.npy"), resolution=4).images
    assert small.shape == (1, 1, 4, 4)
    # Picking every fourth pixel would give 0 or 255; the mean is 127.5 away from the border.
    assert (small[..., 1:-1].double() - 127.5).abs().max() < 10


def test_grayscale_is_rec_601_luma(tmp_path):
    images = grey_levels(5, 6, 6, 3)
    np.save(tmp_path / "x.npy", images)
    pool = load_source("array", str(tmp_path / "x.npy"), grayscale=True)
    check(pool, 5, (1, 6, 6))
    luma = images @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pool.images[:, 0].numpy() - luma).max() <= 0.51  # rounding, and 16-bit weights
    assert torch.equal(load_source("digits", grayscale=True).images, load_source("digits").images)


# cifar10


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Five small batches of four records each, with the table of checksums to match."""
    table, records = {}, grey_levels(5, 4, cifar.RECORD)
    records[:, :, 0] %= 10
    for name, batch in zip(cifar.MD5, records, strict=True):
        (tmp_path / name).write_bytes(batch.tobytes())
        table[name] = hashlib.md5(batch.tobytes()).hexdigest()
    (tmp_path / "test_batch.bin").write_bytes(records[0].tobytes())
    monkeypatch.setattr(cifar, "MD5", table)
    return tmp_path, records.reshape(20, -1)


def test_cifar_reads_the_five_batches_in_order(batches):
    folder, records = batches
    pool = load_source("cifar10", str(folder))
    check(pool, 20, (3, 32, 32))
    assert np.array_equal(pool.images.numpy(), records[:, 1:].reshape(20, 3, 32, 32))
    assert np.array_equal(pool.labels.numpy(), records[:, 0])
    assert pool.indices.tolist() == list(range(20))
    assert pool.class_names[3] == "cat"
    assert str(folder) not in json.dumps(pool.provenance)
    some = load_source("cifar10", str(folder), classes=[int(records[6, 0])])
    assert 6 in some.indices.tolist()


def test_cifar_for_python_gives_the_same_images(batches, tmp_path, monkeypatch):
    folder, records = batches
    inner = tmp_path / "py" / cifar.PYTHON_FOLDER
    inner.mkdir(parents=True)
    table = {}
    for name, part in zip(cifar.PYTHON_MD5, np.split(records, 5)):
        content = pickle.dumps({b"labels": part[:, 0].tolist(), b"data": part[:, 1:]}, 2)
        (inner / name).write_bytes(content)
        table[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(cifar, "PYTHON_MD5", table)
    binary = load_source("cifar10", str(folder))
    for place in (inner, inner.parent):
        pool = load_source("cifar10", str(place))
        assert torch.equal(pool.images, binary.images) and torch.equal(pool.labels, binary.labels)
        assert pool.class_names == cifar.CLASSES
    (inner / "data_batch_3").write_bytes(pickle.dumps({b"labels": []}, 2))
    with pytest.raises(InputError, match=r"^data\.path=data_batch_3: MD5"):
        load_source("cifar10", str(inner))


def test_cifar_may_lie_in_the_official_sub_folder(batches):
    folder, _ = batches
    inner = folder / "root" / cifar.FOLDER
    inner.mkdir(parents=True)
    for name in cifar.MD5:
        (folder / name).rename(inner / name)
    assert len(load_source("cifar10", str(folder / "root"))) == 20
    assert key_of("cifar10", str(folder)) == "data.path"


def test_cifar_refuses_altered_and_missing_batches(batches):
    folder, _ = batches
    content = bytearray((folder / "data_batch_4.bin").read_bytes())
    content[100] ^= 1
    (folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"^data\.path=data_batch_4.bin: MD5"):
        load_source("cifar10", str(folder))
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_1.bin \.\. data_batch_5.bin"):
        load_source("cifar10", str(folder))


@pytest.fixture
def server(batches, monkeypatch):
    """The official address: an HTTP server with the batches as its archive, and what it was asked for."""
    folder, _ = batches
    place, asked = folder / "server", []
    place.mkdir()
    with tarfile.open(place / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name in cifar.MD5:
            tar.add(folder / name, f"{cifar.FOLDER}/{name}")
    content = (place / "cifar-10-binary.tar.gz").read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{http.server_port}/cifar-10-binary.tar.gz")
        monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
        monkeypatch.setattr(download, "CHUNK", len(content) // 25)
        yield asked
        http.shutdown()


def test_cifar_downloads_only_what_is_missing_and_reads_it(batches, server, capsys):
    folder, records = batches
    load_source("cifar10", str(folder), download=True)
    assert not server
    pool = load_source("cifar10", str(folder / "fresh"), download=True)
    assert np.array_equal(pool.labels.numpy(), records[:, 0]) and len(server) == 1
    said = capsys.readouterr().err
    assert "\r" not in said and len(said.splitlines()) == 10 and said.startswith("CIFAR-10:  10 %")
    # An archive that is there is unpacked again, not fetched.
    (folder / "fresh" / cifar.FOLDER / "data_batch_2.bin").unlink()
    assert len(load_source("cifar10", str(folder / "fresh"), download=True)) == 20 and len(server) == 1


@pytest.mark.parametrize(
    ("name", "value", "problem"), [("URL", "x", "Connection|404|refused"), ("ARCHIVE_MD5", "0", "MD5")]
)
def test_a_failed_download_is_one_line_and_leaves_no_archive(batches, server, monkeypatch, name, value, problem):
    monkeypatch.setattr(cifar, name, f"{cifar.URL}.{value}" if name == "URL" else value)
    place = batches[0] / "new"
    with pytest.raises(InputError, match=rf"^data\.download=.*{problem}"):
        load_source("cifar10", str(place), download=True)
    assert not list(place.iterdir())


# celeba


@pytest.fixture
def faces(tmp_path):
    (tmp_path / "img_align_celeba").mkdir()
    lines = []
    for number, part in ((3, 0), (1, 0), (2, 1), (12, 0), (5, 2)):
        picture = np.full((218, 178, 3), 10 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / "img_align_celeba" / f"{number:06d}.jpg", quality=95)
        lines.append(f"{number:06d}.jpg {part}")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_reads_the_training_part_by_file_name(faces):
    pool = load_source("celeba", str(faces), crop=160, resolution=8, grayscale=True)
    check(pool, 3, (1, 8, 8))
    assert pool.indices.tolist() == [0, 2, 11]
    assert pool.class_names == ()
    for image, number in zip(pool.images, (1, 3, 12)):
        assert (image.double() - 10 * number).abs().max() <= 2
    check(load_source("celeba", str(faces), resolution=8), 3, (3, 8, 8))
    assert key_of("celeba", str(faces), resolution=8, classes=[0]) == "data.classes"


def test_celeba_refuses_full_size_and_broken_layouts(faces):
    partition = faces / "list_eval_partition.txt"
    assert key_of("celeba", str(faces)) == "data.resolution"
    good = partition.read_text()
    for bad in (good + "../../secret.jpg 0\n", good + "000099.jpg 0\n", "000001.jpg 1\n", ""):
        partition.write_text(bad)
        assert key_of("celeba", str(faces), resolution=8) == "data.path"
    partition.unlink()
    with pytest.raises(InputError, match=r"img_align_celeba/.*list_eval_partition.txt"):
        load_source("celeba", str(faces), resolution=8)


# folder


def save(path, array, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **more)


def test_folder_sorts_by_relative_path_and_names_classes(tmp_path):
    images = {name: grey_levels(6, 6, 3) for name in ("dog/b.png", "cat/z/a.bmp", "cat/b.webp", "dog/A.PNG")}
    for name, image in images.items():
        save(tmp_path / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    save(tmp_path / ".thumbnails" / "x.png", grey_levels(2, 2, 3))
    pool = load_source("folder", str(tmp_path))
    check(pool, 4, (3, 6, 6))
    assert pool.class_names == ("cat", "dog")
    assert pool.labels.tolist() == [0, 0, 1, 1]
    order = ["cat/b.webp", "cat/z/a.bmp", "dog/A.PNG", "dog/b.png"]
    assert np.array_equal(pool.images.numpy(), np.stack([images[k].transpose(2, 0, 1) for k in order]))
    assert str(tmp_path) not in json.dumps(pool.provenance)


def test_folder_reads_grey_among_transparent_images_as_rgb(tmp_path):
    grey = grey_levels(5, 5)
    save(tmp_path / "a.png", grey)
    clear = grey_levels(5, 5, 4)
    clear[..., 3] = 0
    save(tmp_path / "b.png", clear)
    rgb = load_source("folder", str(tmp_path)).images
    assert np.array_equal(rgb[0].numpy(), np.stack([grey] * 3))
    assert (rgb[1] == 255).all()  # what cannot be seen is not learnt
    assert np.array_equal(load_source("folder", str(tmp_path), grayscale=True).images[0, 0].numpy(), grey)


def test_folder_refuses_different_sizes_unless_made_equal(tmp_path):
    save(tmp_path / "a.jpg", grey_levels(8, 8, 3))
    save(tmp_path / "b.jpg", grey_levels(9, 12, 3))
    assert key_of("folder", str(tmp_path)) == "data.resolution"
    check(load_source("folder", str(tmp_path), resolution=4), 2, (3, 4, 4))
    check(load_source("folder", str(tmp_path), crop=8), 2, (3, 8, 8))


def test_folder_refuses_links_that_leave_it(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    save(inside / "a.png", grey_levels(4, 4, 3))
    save(outside / "secret.png", grey_levels(4, 4, 3))
    (inside / "b.png").symlink_to(inside / "a.png")
    assert len(load_source("folder", str(inside))) == 2
    for target, name in ((outside / "secret.png", "c.png"), (outside, "d"), (tmp_path / "gone", "e.png")):
        link = inside / name
        link.symlink_to(target)
        assert key_of("folder", str(inside)) == "data.path"
        link.unlink()


def test_folder_refuses_what_it_cannot_decode(tmp_path, monkeypatch):
    assert key_of("folder", str(tmp_path)) == "data.path"
    file = tmp_path / "a.png"
    file.write_bytes(b"not a picture")
    assert key_of("folder", str(tmp_path)) == "data.path"
    save(file, grey_levels(32, 32, 3))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert key_of("folder", str(tmp_path)) == "data.path"
    save(file, grey_levels(4, 4).astype(np.uint16) * 256)
    with pytest.raises(InputError, match="8 bits"):
        load_source("folder", str(tmp_path))
    save(file, grey_levels(32, 32, 3))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        load_source("folder", str(tmp_path))
    monkeypatch.setattr(pixels, "MAX_PIXELS", 2000)
    assert len(load_source("folder", str(tmp_path))) == 1
    for limit in (400, 800):  # Pillow's own error, and its warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match="too large"):
            load_source("folder", str(tmp_path))
