"""Measures of a codec: what comes back, what noise does to it, and what its space knows about sentences.

    judged = judge(load_codec("mini"), read_sentences(["heldout.txt"]), ReportOptions())
    write(judged, Path("report"))                  # results.json, report.html, sentences.parquet

Read judging first, then sentences (what is judged), decoding and space (the measures), and writing (the results).
"""

from lcm.codec_lab.report.judging import Judged, ReportOptions, judge
from lcm.codec_lab.report.sentences import Sentence, read_sentences
from lcm.codec_lab.report.writing import read_results, write

__all__ = ["Judged", "ReportOptions", "Sentence", "judge", "read_results", "read_sentences", "write"]
