import numpy as np
import pytest
import torch

from counterflow.data.augment import _tables, augment

SIZE = 64
IMAGES = torch.randint(1, 256, (SIZE, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented(indices, *, images=IMAGES, seed=1, epoch=0, padding=2, flip=True):
    indices = torch.as_tensor(indices)
    return augment(images[indices], indices, seed=seed, epoch=epoch, size=SIZE, padding=padding, flip=flip)


def naive(index, *, images, padding, flip):
    """One image, pixel by pixel."""
    top, left, mirrored = (int(table[index]) for table in _tables(1, 0, SIZE, padding, torch.device("cpu")))
    image, result = images[index], torch.zeros_like(images[index])
    channels, height, width = image.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                y = i + top - padding
                x = (width - 1 - j if flip and mirrored else j) + left - padding
                if 0 <= y < height and 0 <= x < width:
                    result[c, i, j] = image[c, y, x]
    return result


@pytest.mark.parametrize("padding", [0, 1, 2, 9])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 5, 7), (1, 1, 1), (3, 6, 1)])
def test_same_pixels_as_a_naive_loop(padding, flip, shape):
    images = torch.randint(1, 256, (SIZE, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([naive(i, images=images, padding=padding, flip=flip) for i in range(SIZE)])
    result = augmented(range(SIZE), images=images, padding=padding, flip=flip)
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)


def test_independent_of_the_batch_and_the_place_in_it():
    whole = augmented(range(SIZE))
    for indices in ([7], [3, 7, 60], [60, 7, 3], list(range(SIZE - 1, -1, -1))):
        assert torch.equal(augmented(indices), whole[indices])


def test_epochs_and_seeds_differ_and_come_back():
    first = augmented(range(SIZE))
    assert not torch.equal(first, augmented(range(SIZE), epoch=1))
    assert not torch.equal(first, augmented(range(SIZE), seed=2))
    torch.manual_seed(99)
    assert torch.equal(first, augmented(range(SIZE)))


def test_without_padding_and_flip_nothing_changes():
    assert torch.equal(augmented(range(SIZE), padding=0, flip=False), IMAGES)


def test_without_padding_an_image_is_mirrored_or_not():
    result = augmented(range(SIZE), padding=0)
    same = (result == IMAGES).flatten(1).all(1)
    mirrored = (result == IMAGES.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_reflection_is_that_of_numpy(padding):
    indices = torch.arange(SIZE)
    result = augment(IMAGES, indices, seed=1, epoch=0, size=SIZE, padding=padding, flip=True, pad="reflect")
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = torch.from_numpy(np.pad(IMAGES.numpy(), sides, mode="reflect"))
    for index, image in enumerate(padded):
        top, left, mirrored = (int(table[index]) for table in _tables(1, 0, SIZE, padding, torch.device("cpu")))
        crop = image[:, top : top + 7, left : left + 5]
        assert torch.equal(result[index], crop.flip(2) if mirrored else crop)


def test_alternating_flips_flip_every_image_in_every_second_epoch():
    def flipped(epoch, seed=1):
        indices = torch.arange(SIZE)
        result = augment(IMAGES, indices, seed=seed, epoch=epoch, size=SIZE, padding=0, flip=True, alternate=True)
        same = (result == IMAGES).flatten(1).all(1)
        assert torch.equal(~same, (result == IMAGES.flip(3)).flatten(1).all(1))
        return ~same

    first = flipped(0)
    assert 16 < int(first.sum()) < 48
    assert torch.equal(flipped(1), ~first)
    assert torch.equal(flipped(2), first)
    assert not torch.equal(flipped(0, seed=2), first)


def test_every_offset_occurs_about_equally_often_and_independently():
    top, left, mirrored = _tables(1, 0, 50_000, 2, torch.device("cpu"))
    cells = torch.bincount((top * 5 + left) * 2 + mirrored, minlength=50)
    assert len(cells) == 50
    assert bool(((cells > 850) & (cells < 1150)).all())  # 1000 expected, deviation 31
