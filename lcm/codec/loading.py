"""A codec by its name or from its folder."""

from pathlib import Path

import torch

from lcm.codec.codec import Codec
from lcm.codec.official import RELEASES, sonar_folder
from lcm.codec.storage import NEEDED, missing_files
from lcm.errors import UserError

PACKAGED = {"mini": Path(__file__).parent / "assets" / "mini"}


def load_codec(
    name: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compile_encoder: bool = False,
) -> Codec:
    """A codec by name ("mini" is in the package; "sonar" is fetched and converted once), or from a codec's folder.

    device:          CUDA where there is one, else the CPU
    dtype:           of the matrix products: bfloat16 on a CUDA device that has it, else float32
    compile_encoder: through torch.compile, which takes its time before the first sentence; equal to 1e-5 of the largest
    Raises UserError that says which file is missing and where it was looked for.
    """
    folder = sonar_folder(str(name)) if str(name) in RELEASES else PACKAGED.get(str(name), Path(name))
    if missing := missing_files(folder):
        known = ", ".join(map(repr, (*PACKAGED, *RELEASES)))
        raise UserError(
            f"codec {str(name)!r}: no {', '.join(missing)} in {folder.resolve()}; "
            f"expected {known}, or a folder with {', '.join(NEEDED)}"
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if dtype is None:
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if bf16 else torch.float32
    return Codec(str(name), folder, device, dtype, compile_encoder)
