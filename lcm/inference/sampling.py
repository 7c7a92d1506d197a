"""The command-line options of how concepts are drawn, shared by generate and evaluate."""

import argparse

from lcm.models import Sampling, option

HELP = {
    "temperature": ("X", float, "Base: spread of added noise (0); Quant: of the choice among units (d: 1, c: 0.005)"),
    "top_k": ("N", int, "Quant: units to choose among (d: 3, c: 5)"),
    "guidance": ("X", float, "how far towards the context, and beyond; 1 is no guidance (diffusion: 3, d: 1, c: 1.5)"),
    "rescale": ("X", float, "diffusion: how much of guidance's larger spread is taken back, 0 to 1 (0.7)"),
    "steps": ("N", int, "diffusion: calls of the denoiser (40)"),
    "sampler": ("NAME", str, "diffusion: ddim, or dpm for DPM-Solver++ (ddim)"),
    "initial_noise": ("X", float, "diffusion: spread of the noise to start from (0.6)"),
    "epsilon_scaling": ("X", float, "diffusion, ddim: what the noise is divided by at every step (1.00045)"),
    "eta": ("X", float, "diffusion, ddim: noise added on the way, 1 as much as in training (0)"),
}
"""Metavariable, type and help of each field of Sampling but the seed."""


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", "by default what the paper uses for the model's kind")
    for name, (metavar, kind, text) in HELP.items():
        if name == "sampler":
            group.add_argument("--sampler", choices=("ddim", "dpm"), help=text)
        else:
            group.add_argument(option(name), type=kind, metavar=metavar, help=text)


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Raises UserError for a value out of range."""
    return Sampling(seed=args.seed, **{name: getattr(args, name) for name in HELP})
