"""Filters of Lorenz-96 with and without the model, on more truths than the problem's own run.

    python benchmarks/lorenz96.py --seeds 3 --samples 16 --seed 0    # what lorenz96.json holds

The settings, truths and scores are those of ``problems/lorenz96_filter``; the published errors of DAPPER 1.7.1 stand beside
ours in its README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sciddiff.bench.catalog import definition


def main() -> None:
    """Score every method and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    rows = definition("lorenz96_filter").table(seeds=asked.seeds, samples=asked.samples, seed=asked.seed)
    about = {
        "seeds": asked.seeds,
        "samples": asked.samples,
        "seed": asked.seed,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
    asked.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})


if __name__ == "__main__":
    main()
