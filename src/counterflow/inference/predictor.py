"""A trained network as one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalisation(nn.Module):
    """Images with mean 0 and deviation 1 in every channel of the training data.

    Images ``[B, C, H, W]``, uint8 or float of the same scale, become float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """``mean`` and ``std`` of each channel are in units of the uint8 values."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean[:, None, None]) / self.std[:, None, None]


class Predictor(nn.Module):
    """Network with what stands before and after it: inputs as the data set has them become scores ``[B, C]``.

    Of sequences, scores are ``[B, T, C]``. The greatest score is at the predicted class.
    """

    def __init__(
        self,
        network: nn.Sequential,
        readout: nn.Module,
        normalisation: nn.Module,
        class_names: Sequence[str],
        input_shape: Sequence[int],
        dtype: torch.dtype,
        tokens_per_byte: float | None = None,
        tokenizer: bytes | None = None,
    ) -> None:
        """
        Args:
            network: The network, or the layers of it up to an early exit.
            readout: From the network's output to scores.
            normalisation: From inputs of the data set to those of the network.
            class_names: A name for each class.
            input_shape: Shape of one sample of the inputs.
            dtype: Type of the inputs in the data set.
            tokens_per_byte: Of the test text; None where the inputs are no text.
            tokenizer: Content of the tokenizer's file; None where tokens are bytes, and where the inputs are no text.
        """
        super().__init__()
        self.network = network
        self.readout = readout
        self.normalisation = normalisation
        self.class_names = tuple(class_names)
        self.input_shape = tuple(input_shape)
        self.dtype = dtype
        self.tokens_per_byte = tokens_per_byte
        self.tokenizer = tokenizer

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.readout(self.network(self.normalisation(inputs)))
        return scores

    def example(self, samples: int) -> Tensor:
        """Inputs of zeros: ``[samples, *input_shape]``."""
        return torch.zeros(samples, *self.input_shape, dtype=self.dtype)

    def random_inputs(self, samples: int) -> Tensor:
        """Inputs with any values that the data set could have, the same ones in every call."""
        shape, generator = (samples, *self.input_shape), torch.Generator().manual_seed(0)
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator)
        values = 256 if self.dtype == torch.uint8 else len(self.class_names)
        return torch.randint(values, shape, generator=generator).to(self.dtype)
