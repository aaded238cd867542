"""Print whose the variance of the platform's post-session reports is, by re-simulation.

    python benchmarks/calibrate_platform.py [key=value ...]

Keys are those of `data.platform` (users=300 seed=3 variant=confounded), and sessions=N for the number
of sessions that are simulated again. The defaults' figures stand in the docstring of `amrs.platform`.
"""

import sys

import torch
from omegaconf import OmegaConf

from amrs.config.platform import PlatformConfig
from amrs.platform import draw_platform
from amrs.platform.calibration import nested_shares


def main(arguments: list[str]) -> None:
    """Simulate a log, then its sessions again and again."""
    asked = OmegaConf.from_dotlist(arguments)
    sessions = int(asked.pop("sessions", 1500))
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PlatformConfig), asked))
    assert isinstance(config, PlatformConfig)
    platform, log = draw_platform(config)
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(len(platform.user_S), generator=generator)[:sessions]
    shares = nested_shares(platform, rows)
    print(f"{len(log)} sessions of {config.users} listeners; {len(rows)} of them simulated again")
    print(f"{'':10}" + "".join(f"{part:>11}" for part in shares["valence"]))
    for signal, share in shares.items():
        print(f"{signal:10}" + "".join(f"{value:11.3f}" for value in share.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
