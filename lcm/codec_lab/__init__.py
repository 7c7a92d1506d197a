"""Training, judging and comparing codecs; nothing else in lcm imports this room.

training makes a codec (`data_prep/train_codec.py`), report judges one (`data_prep/codec_report.py`). Both use
similarity: which sentences are alike, by a codec's vectors and by a public encoder.
"""

__all__ = ["report", "similarity", "training"]
