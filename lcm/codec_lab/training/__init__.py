"""Training a codec, new or existing: `train_codec(load_settings("configs/codec/mini.yaml"))`.

    corpus → sentences → pieces → batches of one length → SonarText → cross-entropy and other terms → a codec folder

Read training (the whole run), then settings, then corpus, pieces and batches (the data), start and analytic (the
initial weights), module and terms (one step). rounding and teacher belong to single terms; ablation compares terms.
"""

from lcm.codec_lab.training.settings import CodecTraining, load_settings
from lcm.codec_lab.training.training import train_codec

__all__ = ["CodecTraining", "load_settings", "train_codec"]
