import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from counterflow.config import DataConfig
from counterflow.data import load
from tests.helpers.data import assert_refused

HEIGHT, WIDTH = 5, 7
CLASSES = ("ant", "bee", "cow")


def config(root):
    return DataConfig(name="image_folder", root=str(root))


@pytest.fixture(params=[1, 3])
def images(request):
    """``{split: {class: uint8 [M, H, W, C]}}``; the second class has no test image."""
    generator = np.random.default_rng(0)
    sizes = {"train": {"ant": 3, "bee": 2, "cow": 4}, "test": {"ant": 1, "cow": 2}}
    return {
        split: {
            name: generator.integers(256, size=(size, HEIGHT, WIDTH, request.param), dtype=np.uint8)
            for name, size in classes.items()
        }
        for split, classes in sizes.items()
    }


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)


def tree(root, images):
    for split, classes in images.items():
        for name, stack in classes.items():
            for i, pixels in enumerate(stack):
                save(root / split / name / f"{i}.png", pixels)


def arrays(images):
    return {
        f"{split}_{kind}": array
        for split, classes in images.items()
        for kind, array in (
            ("images", np.concatenate(list(classes.values()))),
            ("labels", np.repeat([CLASSES.index(name) for name in classes], [len(s) for s in classes.values()])),
        )
    }


def check(dataset, images):
    expected = arrays(images)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        assert torch.equal(split.inputs, torch.from_numpy(expected[f"{name}_images"]).permute(0, 3, 1, 2))
        assert split.inputs.is_contiguous()
        assert split.labels.tolist() == expected[f"{name}_labels"].tolist()
    assert dataset.classes == 3


def test_folders(tmp_path, images):
    tree(tmp_path, images)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    before = sorted(tmp_path.rglob("*"))
    check(load(config(tmp_path)), images)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_are_in_torchvisions_order(tmp_path, images):
    tree(tmp_path, images)
    for name in ("10.PNG", "9.png", "z/1.png", "a/b/2.png", "ä.png"):
        save(tmp_path / "train" / "bee" / name, np.full_like(images["train"]["ant"][0], len(name)))
    expected = ImageFolder(str(tmp_path / "train"))
    found = load(DataConfig(name="image_folder", root=str(tmp_path), workers=1)).train
    names = [str(tmp_path / found.inputs.name(i)) for i in range(len(found))]
    assert list(zip(names, found.labels.tolist(), strict=True)) == expected.samples


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "png"])
def test_formats(tmp_path, images, suffix):
    tree(tmp_path, images)
    path = tmp_path / "train" / "bee" / "1.png"
    path.unlink()
    pixels = images["train"]["bee"][1]
    save(path.with_suffix(f".{suffix}"), pixels)
    check(load(config(tmp_path)), images)


@pytest.mark.parametrize("file", ["train/ant/0.png", "train/cow/3.png", "test/cow/1.png"])
def test_truncated_image(tmp_path, images, file):
    tree(tmp_path, images)
    path = tmp_path / file
    for data in (b"", b"not an image", path.read_bytes()[:-30]):
        path.write_bytes(data)
        assert_refused(config(tmp_path), f"{file} cannot be read: ")


@pytest.mark.parametrize("file", ["train/bee/0.png", "train/cow/3.png", "test/cow/1.png"])
@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH + 1), (WIDTH, HEIGHT), (1, HEIGHT * WIDTH)])
def test_images_of_different_sizes(tmp_path, images, file, height, width):
    tree(tmp_path, images)
    channels = images["train"]["ant"].shape[-1]
    save(tmp_path / file, np.zeros((height, width, channels), dtype=np.uint8))
    assert_refused(
        config(tmp_path),
        f"{file} has height, width and channels {[height, width, channels]}: "
        f"must be {[HEIGHT, WIDTH, channels]}, those of train/ant/0.png",
    )


def test_grey_and_colour_together(tmp_path, images):
    tree(tmp_path, images)
    channels = images["train"]["ant"].shape[-1]
    save(tmp_path / "test/ant/0.png", np.zeros((HEIGHT, WIDTH, 4 - channels), dtype=np.uint8))
    assert_refused(
        config(tmp_path), f"test/ant/0.png has height, width and channels {[HEIGHT, WIDTH, 4 - channels]}: must be "
    )


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "I;16"])
def test_other_pixels_than_grey_and_rgb(tmp_path, images, mode):
    tree(tmp_path, images)
    Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path / "train/cow/0.png")
    assert_refused(config(tmp_path), f"train/cow/0.png has pixels of mode {mode}: must be L (grey) or RGB")


def test_class_without_training_images(tmp_path, images):
    tree(tmp_path, images)
    save(tmp_path / "test/dog/0.png", images["test"]["ant"][0])
    assert_refused(config(tmp_path), "test/dog is a class that train/ does not have")


def test_folder_without_classes_or_images(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    assert_refused(config(tmp_path), f"Couldn't find any class folder in {tmp_path / 'train'}")
    (tmp_path / "train" / "ant").mkdir()
    assert_refused(config(tmp_path), "train/ant holds no image (.jpg, .jpeg, .png,")


WANTED = (
    "must hold train/ and test/ with a folder for each class, or one .npz file, or the .npy files train_images, "
    "train_labels, test_images, test_labels; holds "
)


def test_other_roots(tmp_path, images):
    assert_refused(config(tmp_path / "nowhere"), "nowhere: is not there")
    assert_refused(config(tmp_path), f"{WANTED}neither")
    tree(tmp_path, {"train": images["train"]})
    assert_refused(config(tmp_path), f"{WANTED}train/")
    tree(tmp_path, images)
    np.savez(tmp_path / "a.npz", **arrays(images))
    assert_refused(config(tmp_path), f"{WANTED}train/, test/, a.npz")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a", "b"):
        np.savez(other / f"{name}.npz", **arrays(images))
    assert_refused(config(other), f"{WANTED}a.npz, b.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", ">i8"])
def test_npz(tmp_path, images, save, dtype):
    content = arrays(images)
    for name in ("train_labels", "test_labels"):
        content[name] = content[name].astype(dtype)
    save(tmp_path / "any name.npz", **content, more=np.zeros(3))
    check(load(config(tmp_path)), images)


def test_root_that_is_the_npz_itself(tmp_path, images):
    tree(tmp_path, images)  # beside it, so that the folder alone would be refused
    np.savez(tmp_path / "mine.npz", **arrays(images))
    check(load(config(tmp_path / "mine.npz")), images)


def test_root_that_is_another_file(tmp_path, images):
    other = tmp_path / "mine.csv"
    other.write_text("1,2")
    assert_refused(config(other), "mine.csv: must be a folder or an .npz file")
    damaged = tmp_path / "mine.npz"
    damaged.write_text("1,2")
    assert_refused(config(damaged), "mine.npz cannot be read: ")
    np.savez(damaged, train_images=arrays(images)["train_images"])
    assert_refused(config(damaged), "mine.npz has no train_labels: must have train_images, ")


def test_npz_of_grey_images_without_channels(tmp_path, images):
    content = arrays(images)
    for name in ("train_images", "test_images"):
        content[name] = content[name][..., 0]
    np.savez(tmp_path / "a.npz", **content)
    check(load(config(tmp_path)), {s: {c: stack[..., :1] for c, stack in d.items()} for s, d in images.items()})


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_npz_without_an_array(tmp_path, images, name):
    content = arrays(images)
    del content[name]
    np.savez(tmp_path / "a.npz", **content)
    assert_refused(
        config(tmp_path), f"a.npz has no {name}: must have train_images, train_labels, test_images, test_labels"
    )


def test_npz_that_would_run_code(tmp_path, images):
    np.savez(tmp_path / "a.npz", **{**arrays(images), "test_labels": np.array([print], dtype=object)})
    assert_refused(config(tmp_path), "a.npz cannot be read: Object arrays cannot be loaded when allow_pickle=False")


def test_damaged_npz(tmp_path, images):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(images))
    whole = path.read_bytes()
    np.save(tmp_path / "b.npy", np.zeros(3))
    pixel = whole.index(arrays(images)["train_images"].tobytes())
    changed = whole[:pixel] + bytes([whole[pixel] ^ 1]) + whole[pixel + 1 :]
    for data in (b"", b"not a file of numpy's", whole[:-1], whole[:100], changed, (tmp_path / "b.npy").read_bytes()):
        path.write_bytes(data)
        assert_refused(config(tmp_path), "a.npz cannot be read: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((2, 4, 4))}, "train_images=float64 [2, 4, 4, 1]: must be uint8 [M, H, W] or"),
        ({"test_images": np.zeros((2, 4), dtype=np.uint8)}, "test_images=uint8 [2, 4]: must be uint8 [M, H, W] or"),
        ({"test_images": np.zeros((2, 3, 4, 4), dtype=np.uint8)}, "[2, 3, 4, 4]: must be uint8 [M, H, W] or"),
        ({"test_labels": np.zeros(3)}, "test_labels=float64 [3]: must be whole numbers [3]"),
        ({"test_labels": np.zeros(3, dtype=bool)}, "test_labels=bool [3]: must be whole numbers [3]"),
        ({"test_labels": np.zeros(2, dtype=int)}, "test_labels=int64 [2]: must be whole numbers [3]"),
        ({"train_labels": np.zeros((9, 1), dtype=int)}, "train_labels=int64 [9, 1]: must be whole numbers [9]"),
        ({"test_labels": np.array([0, 3, 0])}, "test_labels has class 3: must be one of train_labels"),
        ({"test_labels": np.array([0, -1, 0])}, "test_labels has class -1: must be one of train_labels"),
        ({"train_labels": np.arange(9) - 1, "test_labels": np.zeros(3, dtype=int)}, "train has label -1: must be 0..7"),
        (
            {"train_images": np.zeros((0, 4, 4), dtype=np.uint8), "train_labels": np.zeros(0, dtype=int)},
            "must not be empty",
        ),
        (
            {"test_images": np.zeros((1, 4, 4), dtype=np.uint8), "test_labels": np.zeros(1, dtype=int)},
            "shape of test inputs=[1, 4, 4]: must be ",
        ),
    ],
)
def test_other_arrays(tmp_path, images, changes, message):
    np.savez(tmp_path / "a.npz", **{**arrays(images), **changes})
    assert_refused(config(tmp_path), message)
