"""Training and judging codecs; nothing else in lcm imports this room.

    train_codec(CodecTraining.load("configs/codec/mini.yaml"))             # data_prep/train_codec.py
    judged = judge(load_codec("mini"), read_sentences(["heldout.txt"]), ReportOptions())
    write(judged, Path("report"))                                          # data_prep/codec_report.py

To follow a training, read training (the whole run, and the ablation of the terms), then settings, corpus and batches
(the data), start and analytic (the initial weights, and what protects them), module and terms (one step). To follow a
report, read judging, then sentences (what is judged), decoding and space (the measures), and writing (the results).
"""

__all__ = ["decoding", "judging", "sentences", "settings", "training", "writing"]
