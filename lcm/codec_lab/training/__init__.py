"""Training a codec, new or existing: `train_codec(CodecTraining.load("configs/codec/mini.yaml"))`.

    corpus → sentences → pieces → batches of one length → SonarText → cross-entropy and other terms → a codec folder

Read training (the whole run), then settings, then corpus and batches (the data), start and analytic (the initial
weights), module, terms and updates (one step). ablation compares the terms.
"""

from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.training import train_codec

__all__ = ["CodecTraining", "train_codec"]
