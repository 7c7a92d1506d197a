"""Training a codec of one's own, or going on with one: `train_codec(load_settings("configs/codec/mini.yaml"))`.

    corpus → sentences → pieces → batches of one length → SonarText → cross-entropy and its companions → a codec folder

The mathematics of the start is in `analytic`; nothing outside this folder needs more than the two names above.
"""

from lcm.codec_lab.training.settings import CodecTraining, load_settings
from lcm.codec_lab.training.training import train_codec

__all__ = ["CodecTraining", "load_settings", "train_codec"]
