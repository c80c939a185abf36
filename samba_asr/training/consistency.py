"""Consistency between two masked views of the same recordings (CR-CTC: Yao et al., arXiv 2410.05101, ICLR 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.ssm.padding import valid_mask

VIEWS = 2


def consistency_loss(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Return half the sum of both directions' Kullback-Leibler divergences between the views, over all states.

    Each view learns from the other as it stands: no gradient goes through targets.
    log_probs: (2 * batch, states, vocab_size), the first view of each utterance and then the second of each; lengths:
    (2 * batch,) int64, states, the same for both views. Raises ValueError where they are not.
    """
    if len(lengths) % VIEWS or not torch.equal(*lengths.chunk(VIEWS)):
        raise ValueError(f"lengths ({lengths.tolist()}) must be those of one view and then of the other, the same")
    views = log_probs * valid_mask(lengths, log_probs.shape[1]).unsqueeze(2)
    targets = torch.cat(views.detach().chunk(VIEWS)[::-1])
    return 0.5 * F.kl_div(views, targets, reduction="sum", log_target=True)
