"""Describe the network, and compute the sizes that follow: parameters, operations, bytes.

Arithmetic alone.
"""

from dataclasses import dataclass
from itertools import pairwise

from spkid_dist.config.choices import Activation, Normalization

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What describes the network, by the names of `train.opts`; the defaults are the classic network."""

    input_dim: int
    in_frames: int
    num_spks: int
    hsize: int = 100
    num_layers: int = 3
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    normalize: Normalization = "none"

    @property
    def in_features(self) -> int:
        """C*D, the values of a window."""
        return self.input_dim * self.in_frames

    @property
    def widths(self) -> list[int]:
        """The layers' widths, from the inputs to the speakers."""
        return [self.in_features, *[self.hsize] * self.num_layers, self.num_spks]

    @property
    def num_parameters(self) -> int:
        """Values that are learnt: weights and biases, and two per hidden unit for batch normalisation."""
        normalised = 2 * self.hsize * self.num_layers if self.batch_norm else 0
        return normalised + sum((before + 1) * after for before, after in pairwise(self.widths))

    @property
    def flops_per_window(self) -> int:
        """Operations of a training step's matrix products, per window.

        A product of B x n by n x m is 2Bnm operations. There are three per layer: the output, and the gradients of weights and
        of inputs; nobody needs the latter of the first layer.
        """
        weights = [before * after for before, after in pairwise(self.widths)]
        return 6 * sum(weights) - 2 * weights[0]

    @property
    def gradient_bytes(self) -> int:
        """What the ranks exchange in a step."""
        return FLOAT_BYTES * self.num_parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and the two moments of Adam."""
        return 3 * FLOAT_BYTES * self.num_parameters
