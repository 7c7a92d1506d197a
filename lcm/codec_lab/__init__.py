"""Training, judging and comparing codecs; nothing else in lcm imports this room.

training makes a codec (`data_prep/train_codec.py`), report judges one (`data_prep/codec_report.py`).
"""

__all__ = ["report", "similarity", "training"]
