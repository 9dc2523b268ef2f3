"""Data of your own as a torch Dataset of images: which of four corners is bright? ``python examples/own_data.py``.

Under ``torchrun --nproc_per_node=2`` it gives the same bits.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

import counterflow as cf


class Corners(Dataset):
    """Noise with a brighter corner: image uint8 ``[1, 12, 12]`` and label, a function of the index alone."""

    def __init__(self, start, size):
        self.start, self.size = start, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.start + index)
        image = torch.randint(0, 160, (1, 12, 12), generator=generator, dtype=torch.uint8)
        label = int(torch.randint(4, (), generator=generator))
        row, column = 6 * (label // 2), 6 * (label % 2)
        image[:, row : row + 6, column : column + 6] += 40
        return image, label


def network():
    """Layers of a convolutional network; it may be cut between any two of them."""

    def convolution(inputs, outputs, stride):
        layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(convolution(1, 8, 1), convolution(8, 16, 2), convolution(16, 16, 1), pool, nn.Linear(64, 4))


if __name__ == "__main__":
    trainer = cf.Trainer(network, rule=cf.BLL(), optimizer=cf.AdamW(lr=1e-2, warmup=10), blocks=2)
    result = trainer.fit(Corners(0, 1024), Corners(1024, 256), epochs=4, validation=0.1)
    if result.is_main:
        print("held out", result.validation_accuracy, "test", result.test_accuracy, "by block", result.block_accuracy)
        print("fingerprint", result.fingerprint)
