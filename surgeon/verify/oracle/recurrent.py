"""Recurrent networks of ReLUs for the oracle: h_t = relu(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Relu = Callable[[Tensor], Tensor]


def relu_cell(
    relu: Relu,
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step, as torch.rnn_relu_cell: x [N, I], h [N, H] -> [N, H]."""
    return relu(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def relu_rnn(
    relu: Relu,
    x: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """As torch.rnn_relu, in evaluation mode: x [time, N, I] and hx [layers × ways, N, H] -> states, last ones.

    `params` holds the parameters of each layer and way in turn; the second way goes back in time.
    """
    x = x.transpose(0, 1) if batch_first else x
    count, ways = 4 if has_biases else 2, 2 if bidirectional else 1
    last = []
    for layer in range(num_layers):
        outputs = []
        for way in range(ways):
            place = layer * ways + way
            weights, h, states = params[place * count : (place + 1) * count], hx[place], []
            for step in x.flip(0) if way else x:
                h = relu_cell(relu, step, h, *weights)
                states.append(h)
            last.append(h)
            outputs.append(torch.stack(states[::-1] if way else states))
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, torch.stack(last)
