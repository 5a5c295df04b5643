"""Dropout that is cheap on a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014); on a CPU its random numbers are bytes, eight from one draw.

    torch draws one number an element, one thread for all: a tenth to a fifth of a training step of this
    package's models. With bytes the probability is a multiple of 1/256 (0.2 becomes 0.1992); what is kept is
    divided by the share that is really kept. Elsewhere, and for probabilities too near to 0 or 1 for a byte,
    this is torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of (…) while training."""
        dropped = round(256 * self.p)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < 256:
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept.to(x.dtype) * (256 / (256 - dropped)))
