"""Block-local learning (BLL) with lag: Figure 2 of Kappel et al., arXiv 2305.14974, as a loop in torch alone.

A network is cut into blocks k = 1..N, bottom to top. No gradient crosses a cut, only two messages per batch n. Up goes
the output a_k(n) of block k, with the natural parameters u_k(n) of its latent, [B, d_k]. Down goes its code book
b_k(n), one code per class, [C, d_k], with the labels y(n). Every block takes three actions per batch:

    T  target   take b_k from above, send b_{k-1} = g_k(b_k) down      g_k: feedback block, parameters phi_k
    F  forward  take a_{k-1} from below, send a_k = f_k(a_{k-1}) up    f_k: forward block, parameters theta_k
    L  learn    update theta_k and phi_k, each by a local loss

Block k takes the target of batch n + lag (k - 1) just before it computes batch n, and all earlier ones in a prologue.
With 3 blocks and lag 2, every message was sent in an earlier column. So a block waits only before its first batch:

    block 3  T0 T1 T2 T3 |          |          | T4 F0 L0 | T5 F1 L1 | ..
    block 2  T0 T1       |          | T2 F0 L0 | T3 F1 L1 | T4 F2 L2 | ..
    block 1              | T0 F0 L0 | T1 F1 L1 | T2 F2 L2 | T3 F3 L3 | ..
"""

import math
from collections import deque
from hashlib import sha256
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    """Five layers. The network may be cut between any two of them."""
    hidden = [nn.Sequential(nn.Linear(i, 128), nn.LayerNorm(128), nn.ReLU()) for i in (64, 128, 128, 128)]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


class Feedback(nn.Module):
    """g_k, from code book to code book: a fixed skip plus an MLP that starts at zero."""

    def __init__(self, above: int, below: int) -> None:
        super().__init__()
        skip = torch.empty(below, above)
        self.register_buffer("skip", nn.init.eye_(skip) if above == below else nn.init.orthogonal_(skip))
        last = nn.Linear(128, below, bias=False)
        self.residual = nn.Sequential(nn.Linear(above, 128), nn.ReLU(), last)
        nn.init.zeros_(last.weight)

    def forward(self, b: Tensor) -> Tensor:
        b = b @ self.skip.T + self.residual(b)
        b = b - b.mean(0)  # centred over the classes: the softmax in `learn` does not see the mean
        return b * (1.0 / b.square().sum(1).mean().clamp_min(1e-12).sqrt())


class Block(nn.Module):
    """Block pair k: forward block f_k, latent head T_k, and feedback block g_k (None at the bottom)."""

    def __init__(self, block: nn.Module, width: int, below: "Block | None", top: bool, lr: float) -> None:
        super().__init__()
        self.block, self.width, self.targets = block, width, deque()  # targets: taken from above, not yet learnt from
        self.head = nn.Identity() if top else nn.LayerNorm(width, elementwise_affine=False)
        self.feedback = Feedback(width, below.width) if below else None
        self.register_buffer("codes", None)
        self.inbox, self.down = deque(), below.inbox if below else None  # messages: from above, to the block below
        phi = list(self.feedback.parameters()) if below else []  # slower, so that the blocks below can follow
        groups = {"params": list(block.parameters()), "peak": lr}, {"params": phi, "peak": lr * 0.1}
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def target(self) -> None:  # T
        self.codes, y = self.inbox.popleft()
        self.targets.append((self.codes, y))
        if self.feedback:
            self.down.append((self.feedback(self.codes), y))

    def forward(self, a_below: Tensor, u_below: Tensor | None) -> tuple[Tensor, Tensor]:  # F
        a = self.block(a_below)
        self.u, self.u_below = self.head(a), u_below  # u_k = T_k(a_k)
        return a.detach(), self.u.detach()

    def learn(self, lr_factor: float) -> None:  # L
        (b, y), u = self.targets.popleft(), self.u.detach()
        r = u + b[y] - (u @ b.T).softmax(-1) @ b  # posterior rho_k ~ alpha_k beta_k: u + b(y) - E b(c), c ~ q(c | u)
        loss = 0.5 * (r - self.u).square().sum(-1).mean()  # theta: KL(rho_k || alpha_k) of Gaussians; gradient u - r
        if self.feedback:  # phi: -log q(y | u_{k-1}) under the codes g_k(b_k)
            loss = loss + nn.functional.cross_entropy(self.u_below @ self.feedback(b).T, y)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad()


def seed_stream(*name: str | int) -> None:
    """Start the random stream `name`, so that no draw depends on what was drawn before."""
    torch.manual_seed(int.from_bytes(sha256("/".join(map(str, name)).encode()).digest()[:8], "big") >> 1)


def cut(model: nn.Sequential, layers: list[int], x: Tensor, lr: float, seed: int) -> list[Block]:
    """Blocks of so many `layers` each, bottom to top."""
    blocks = []
    for k, (start, end) in enumerate(pairwise([0, *accumulate(layers)]), 1):
        width = model[:end](x[:1]).shape[1]
        seed_stream(seed, "bll", k)
        blocks.append(Block(model[start:end], width, blocks[-1] if blocks else None, k == len(layers), lr))
    return blocks


def train(blocks: list[Block], x: Tensor, y: Tensor, lag: int, epochs: int, size: int, warmup: int, seed: int) -> None:
    """The actions of all blocks, on batches of `size`. Counterflow's engine gives the same parameters, bit for bit."""
    order = []  # of the data: a function of (seed, epoch)
    for epoch in range(epochs):
        seed_stream(seed, "order", epoch)
        order += torch.randperm(len(x)).split(size)[: len(x) // size]
    blocks[-1].inbox.extend((torch.eye(blocks[-1].width), y[batch]) for batch in order)  # one-hot codes for the top
    for k in range(len(blocks), 0, -1):  # the prologue
        for _ in range(min(lag * (k - 1), len(order))):
            blocks[k - 1].target()
    for n, batch in enumerate(order):
        lr_factor = min(1.0, (n + 1) / (warmup + 1)) * 0.5 * (1.0 + math.cos(math.pi * (n / len(order))))
        message = x[batch], None
        for k, block in enumerate(blocks, 1):
            if n + lag * (k - 1) < len(order):
                block.target()
            seed_stream(seed, "forward", k, n)  # for dropout
            message = block(*message)
            block.learn(lr_factor)


def fingerprint(blocks: list[Block]) -> str:
    """sha256 over the parameters and buffers of all blocks, bottom to top."""
    digests = []
    for block in blocks:
        tensors = (*block.named_parameters(), *block.named_buffers())
        parts = (f"{name} {t.dtype} {list(t.shape)}\n".encode() + t.detach().numpy().tobytes() for name, t in tensors)
        digests.append(sha256(b"".join(parts)).digest())
    return sha256(b"".join(digests)).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)  # another number of threads rounds differently
    torch.manual_seed(0)
    y = torch.randint(10, (2500,))
    x = torch.randn(10, 64)[y] + 2 * torch.randn(2500, 64)  # ten prototypes and noise
    seed_stream(1, "model")
    blocks = cut(network(), [1, 1, 1, 2], x, lr=1e-2, seed=1)
    train(blocks, x[:2000], y[:2000], lag=2, epochs=5, size=50, warmup=10, seed=1)
    a = x[2000:]
    for k, block in enumerate(blocks, 1):  # each predicts by its own codes, and the last is the network's output
        a, u = block.eval()(a, None)
        accuracy = ((u @ block.codes.T).argmax(-1) == y[2000:]).float().mean()
        print(f"block {k}: test accuracy {accuracy:.3f}")
    print("fingerprint of the parameters:", fingerprint(blocks))
