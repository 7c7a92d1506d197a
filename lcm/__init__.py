"""Train Large Concept Models: language models that predict the next sentence as a vector.

import lcm
model = lcm.load("runs/mine")
print(model.generate("It was a bright cold day in April.", max_sentences=3).text)
print(model.generate("It was a bright cold day.", sampling=lcm.Sampling(seed=1, guidance=2.0)).text)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm.inference import LCM
    from lcm.models import Sampling

__all__ = ["Sampling", "load"]
__version__ = "0.1.0"


def load(folder: str | Path, device: str | None = None) -> LCM:
    """A trained model beside its codec: `.generate(text, max_sentences=…)`, `.model`, `.codec`."""
    from lcm.inference import load as load_lcm  # torch takes a second to import: only who loads a model pays

    return load_lcm(folder, device)


def __getattr__(name: str) -> Any:
    if name == "Sampling":
        from lcm.models import Sampling

        return Sampling
    raise AttributeError(f"module 'lcm' has no attribute '{name}'")
