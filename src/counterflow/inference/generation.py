"""Generation of text by a trained language model, token by token."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from counterflow.inference.predictor import Predictor
from counterflow.models.gpt import Cache, DecoderLayer
from counterflow.models.head import Head


class Decoder:
    """Scores of the next token. What was computed for the tokens before stays in a cache of keys and values."""

    def __init__(self, predictor: Predictor) -> None:
        """Raises ``ValueError`` if the network is no language model."""
        self._modules = list(_steps(nn.Sequential(*predictor.network, predictor.readout)))
        if not any(isinstance(module, DecoderLayer) for module in self._modules) or predictor.tokens_per_byte is None:
            raise ValueError("the network is no language model, allowed is one of model=gpt that was trained on text")
        (self._length,) = predictor.input_shape
        self._caches: list[Cache | None] = [None] * len(self._modules)

    @torch.inference_mode()
    def scores(self, tokens: Tensor) -> Tensor:
        """Scores ``[C]`` of the token after ``tokens``, int64 ``[T]``: all of a prompt, and from then on each new one.

        Attention reaches back over as many tokens as a window of training has.
        """
        x: Tensor = tokens[None]
        for number, module in enumerate(self._modules):
            if isinstance(module, DecoderLayer):
                x, cache = module.extended(x, self._caches[number])
                last = slice(1 - self._length if self._length > 1 else cache.keys.shape[2], None)
                self._caches[number] = Cache(cache.keys[:, :, last], cache.values[:, :, last], cache.tokens)
            else:
                x = module(x)
        return x[0, -1]


def _steps(module: nn.Module) -> Iterator[nn.Module]:
    """Modules in their order, each either a decoder layer or one that looks at each position by itself."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _steps(child)
    elif isinstance(module, Head):
        yield from module.layers
        yield module.norm
    else:
        yield module


def generate(
    predictor: Predictor, prompt: Tensor, most: int, *, temperature: float, top_k: int | None, seed: int
) -> Iterator[int]:
    """Tokens after ``prompt``, int64 ``[T]``, which is not empty.

    Args:
        predictor: A language model.
        prompt: Tokens before.
        most: Number of tokens.
        temperature: Scores are divided by it; 0 takes the most likely token.
        top_k: Draw among so many of the most likely tokens; None is all.
        seed: Of the draws.

    Raises:
        ValueError: ``predictor`` is no language model.
    """
    return _drawn(Decoder(predictor), prompt, most, temperature, top_k, torch.Generator().manual_seed(seed))


def _drawn(
    decoder: Decoder, tokens: Tensor, most: int, temperature: float, top_k: int | None, generator: torch.Generator
) -> Iterator[int]:
    for _ in range(most):
        scores = decoder.scores(tokens).float()
        if temperature == 0:
            token = int(scores.argmax())
        else:
            kept = scores.topk(min(top_k or len(scores), len(scores)))
            drawn = torch.multinomial((kept.values / temperature).softmax(0), 1, generator=generator)
            token = int(kept.indices[drawn])
        yield token
        tokens = torch.tensor([token])
