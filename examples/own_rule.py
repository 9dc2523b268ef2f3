"""A rule of your own: every block learns the labels with a linear classifier. ``python examples/own_rule.py``.

Under ``torchrun --nproc_per_node=4`` it gives the same bits.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import counterflow as cf


class Readout(cf.LocalRule):
    def __init__(self, block, smoothing=0.0):  # block is a cf.BlockContext
        super().__init__()
        self.block = block.module
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(block.shape).numel(), block.classes))
        self.classifier = nn.Identity() if block.is_top else classifier
        self.smoothing = smoothing
        self.optimizer = block.optimizer(self.parameters())

    def forward_message(self, message):  # a_k from a_{k-1}
        self.a = self.block(message[0])
        return (self.a.detach(),)

    def update(self, part, message, target):  # the target is what came from above: labels
        (labels,) = target
        logits = self.classifier(self.a)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        self.optimizer.backward_and_step(loss, part)
        return {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == labels).float().mean()}

    def predict(self, message, target):
        a = self.block(message[0])
        return (a,), cf.Prediction.of(self.classifier(a))  # labels and scores


def network():
    hidden = [nn.Sequential(nn.Linear(128 if k else 64, 128), nn.LayerNorm(128), nn.ReLU()) for k in range(4)]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


if __name__ == "__main__":
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float() / 16
    rule = cf.PerBlock(Readout, smoothing=0.1)
    trainer = cf.Trainer(network, rule=rule, optimizer=cf.AdamW(lr=1e-2, warmup=20), blocks=4)
    result = trainer.fit((x[:1440], y[:1440]), (x[1440:], y[1440:]), epochs=5)
    if result.is_main:
        print("test accuracy", result.test_accuracy, "by block", result.block_accuracy)
        print("fingerprint", result.fingerprint)
