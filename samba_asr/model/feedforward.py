"""What encoder and decoder blocks have in common beside their mixers."""

import torch
from torch import Tensor, nn

from samba_asr.ssm.cpu_linear import Linear


class FeedForward(nn.Sequential):
    """Pre-norm feed-forward: LayerNorm, wide linear, GELU, linear."""

    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(d_model), Linear(d_model, d_ff), nn.GELU(), nn.Dropout(dropout), Linear(d_ff, d_model)
        )


class ResidualDrop(nn.Module):
    """Dropout, and with probability drop_path an utterance loses the branch (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, dropout: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.drop_path = drop_path

    def forward(self, branch: Tensor) -> Tensor:
        """branch: (batch, time, d_model)."""
        branch = self.dropout(branch)
        if not self.training or not self.drop_path:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * keep / (1 - self.drop_path)
