"""Seeds for images and other [B, C, H, W] activations. They have no batch norm, so samples stay independent."""

from __future__ import annotations

import math

from torch import Tensor, nn

from esper.kasmina.blueprints.seed_modules import bottleneck_width, zeroed


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with at most C/4 groups, so that each group has four or more channels (if C is at least 4).

    Source: Wu and He, arXiv:1803.08494.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels)


def scaled_group_norm(channels: int) -> nn.Module:
    """s = scale * GN(x) + shift, per channel; scale and shift start at 0."""
    return zeroed(group_norm(channels))


class SqueezeExcite(nn.Module):
    """s = x * tanh(W2 relu(W1 mean_HW(x))), one factor per channel and sample.

    Source: Hu et al., arXiv:1709.01507; esper uses tanh instead of the paper's sigmoid, so that s = 0 for W2 = 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = bottleneck_width(channels)
        self.gate = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), zeroed(nn.Linear(width, channels)), nn.Tanh())

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gate_BC: Tensor = self.gate(x_BCHW.mean(dim=(2, 3)))
        return x_BCHW * gate_BC[:, :, None, None]


def depthwise_separable(channels: int) -> nn.Module:
    """s = conv1x1(relu(depthwise3x3(GN(x)))). Source: Howard et al., MobileNets, arXiv:1704.04861."""
    return nn.Sequential(
        group_norm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.ReLU(),
        zeroed(nn.Conv2d(channels, channels, 1)),
    )


def bottleneck(channels: int) -> nn.Module:
    """s = conv1x1(relu(conv3x3(relu(conv1x1(GN(x)))))), with C/4 channels inside. Source: He et al., arXiv:1512.03385,
    fig. 5; esper uses only one norm.
    """
    width = bottleneck_width(channels)
    return nn.Sequential(
        group_norm(channels),
        nn.Conv2d(channels, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        zeroed(nn.Conv2d(width, channels, 1)),
    )


def conv3(channels: int) -> nn.Module:
    """s = conv3x3(relu(GN(x))), one layer. Source: pre-activation, He et al., arXiv:1603.05027."""
    return nn.Sequential(group_norm(channels), nn.ReLU(), zeroed(nn.Conv2d(channels, channels, 3, padding=1)))


def conv_block(channels: int) -> nn.Module:
    """s = conv3x3(relu(GN(conv3x3(relu(GN(x)))))), two layers. Source: pre-activation, He et al., arXiv:1603.05027,
    fig. 4 (e); esper uses GroupNorm.
    """
    return nn.Sequential(group_norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), conv3(channels))


def inverted_bottleneck(channels: int) -> nn.Module:
    """s = conv1x1(relu(depthwise3x3(relu(conv1x1(GN(x)))))), with 4C channels inside. Source: Sandler et al.,
    MobileNetV2, arXiv:1801.04381; esper uses only one norm, and ReLU instead of ReLU6.
    """
    width = 4 * channels
    return nn.Sequential(
        group_norm(channels),
        nn.Conv2d(channels, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.ReLU(),
        zeroed(nn.Conv2d(width, channels, 1)),
    )
