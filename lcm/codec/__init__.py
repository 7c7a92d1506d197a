"""Text ↔ sentences ↔ vectors: `Splitter` cuts a text into sentences, a `Codec` encodes and decodes them.

    codec = load_codec("mini")
    vectors = codec.encode(["The sea was calm."])        # (1, codec.dim)
    codec.decode(vectors)                                # ["The sea was calm."]

A codec is a folder; `Codec.save` writes one. Read codec first, then architecture (the network), search (decoding),
text (splitter and tokenizer; sat is another splitter) and storage. official fetches and converts SONAR's own weights;
sonar_space alone imports its libraries. Nothing here knows shards or concept models.
"""

from lcm.codec.codec import Codec, Languages, Progress, load_codec
from lcm.codec.official import LANGUAGES, RELEASES, convert
from lcm.codec.sonar_space import SonarSpeech
from lcm.codec.text import Splitter, Tokenizer

__all__ = [
    "LANGUAGES",
    "RELEASES",
    "Codec",
    "Languages",
    "Progress",
    "SonarSpeech",
    "Splitter",
    "Tokenizer",
    "architecture",
    "command",
    "convert",
    "load_codec",
    "storage",
    "text",
]
