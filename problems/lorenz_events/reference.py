"""The probabilities of the events by a million direct simulations: ``python problems/lorenz_events/reference.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from data import counted

SIMULATIONS, SEED = 1_000_000, 11

if __name__ == "__main__":
    torch.set_num_threads(1)
    shares, _ = counted(SIMULATIONS, seed=SEED)
    found = {"simulations": SIMULATIONS, "seed": SEED, **shares}
    Path(__file__).with_name("reference.json").write_text(json.dumps(found, indent=1) + "\n")
