"""A critic: what tells one network's segmentation maps from another's while both train (WGAN)."""

from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU below zero


class Critic(nn.Module):
    """Three strided convolutions to one score for each image: (N, channels, H, W) -> (N,).

    Without batch norm, as WGAN-GP asks (arXiv 1704.00028, section 4): its penalty is on each image's own
    gradient, and batch norm would mix the images.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * width, 1, 3, padding=1, bias=False),  # only differences of scores count
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mean score over the image's places."""
        return self.layers(x).mean((1, 2, 3))
