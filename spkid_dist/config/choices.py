"""List the choices that options have, and the defaults that several of them share.

Imports nothing.

Edge rules: ``zero`` centres a window on each frame and pads with zero frames, ``edge`` repeats the first and last frame
instead, ``valid`` takes only windows that fit: T - C + 1 of an utterance of T frames, none of a shorter one.
"""

from typing import Literal

EdgeRule = Literal["zero", "edge", "valid"]
ZERO, EDGE, VALID = 0, 1, 2
EDGE_CODES = {"zero": ZERO, "edge": EDGE, "valid": VALID}  # as compiled loops take the rule

Normalization = Literal["none", "global", "utterance"]
StreamNormalization = Literal["none", "utterance"]
"""What a stream can do by itself: ``global`` is a layer of the network."""

Activation = Literal["relu", "gelu", "silu", "tanh", "leaky_relu"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"]

BestBy = Literal["loss", "accuracy", "utterances"]

DEFAULT_SHUFFLE_WINDOWS = 2**20  # in the pools of all streams together
EXPORT_FORMATS = ("safetensors", "torch_export", "onnx")
