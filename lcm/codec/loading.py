"""`load_codec`: a codec by name or from a folder."""

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
    """Open a codec by name ("mini" is in the package; "sonar" is fetched and converted once) or from its folder.

    device:          default: CUDA where there is a GPU, else the CPU
    dtype:           precision of matrix products (default: bfloat16 on a CUDA device that has it, else float32)
    compile_encoder: use torch.compile, which delays the first sentence; vectors agree to 1e-5 of the largest number
    Raises UserError naming the missing files and the place where they should be. Weights are loaded later.
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
