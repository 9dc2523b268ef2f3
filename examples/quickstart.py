"""A network of your own in four blocks, on one process or several: ``python examples/quickstart.py``.

Under ``torchrun --nproc_per_node=4`` it gives the same bits, as it does on the processes that ``--ranks 4`` starts.
"""

import sys

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn, tensor

import counterflow as cf


def layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


def network() -> nn.Sequential:
    """The entries are the points between which the network may be cut."""
    return nn.Sequential(layer(64, 128), layer(128, 128), layer(128, 128), layer(128, 128), nn.Linear(128, 10))


def main() -> None:
    digits = load_digits()
    x, y = tensor(digits.data / 16).float(), tensor(digits.target)
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
    trainer = cf.Trainer(network, rule=cf.BLL(), optimizer=cf.AdamW(lr=1e-2, warmup=20), blocks=4, lag=2, seed=1)
    result = trainer.fit((x, y), (x_test, y_test), epochs=5, validation=0.1, callbacks=[cf.ProgressDisplay()])
    if result.is_main:
        print("test accuracy", result.test_accuracy, "by block", result.block_accuracy)
        model = network()
        model.load_state_dict(result.state_dict())
        model.eval()
        print("the weights alone give", (model(x_test).argmax(1) == y_test).double().mean().item())
        print("fingerprint", result.fingerprint)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ranks"]:
        cf.spawn(main, ranks=int(sys.argv[2]))
    else:
        main()
