"""Handwritten digits that ship with scikit-learn: 1,797 images of 8 x 8 pixels, values 0..16."""

import torch

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split

TEST_SIZE = 360


def load(config: DataConfig) -> Dataset:
    """1,437 training and 360 test images, uint8 ``[M, 1, 8, 8]``; the split is the same for every run."""
    # Seconds of import, for every process that needs other data.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=TEST_SIZE, stratify=digits.target, random_state=0)
    return Dataset(Split(images[train], labels[train]), Split(images[test], labels[test]), classes=10)
