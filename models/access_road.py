#!/usr/bin/env python3
"""Write the channel data set of a simulated site: an access road, and one receiver on a mast beside its end.

One receiver hears how strong an emitter is, and on a road strength says where. The road runs 2.4 km from the mast,
east and then bending north; vehicles carry transmitters of one type, in lanes and on the verge. Levels fall by
30 dB a decade, and trees and banks shadow by 3 dB, correlated over about 60 m: the same for every vehicle
at a place, so that it can be learned.

    python models/access_road.py access_road.npz

How a model is trained on it stands in access_road.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from localize_core.simulation.blocks import Purpose
from localize_core.simulation.fields import SmoothField

SEED = 7
PLACES = 1200
LENGTH_M = 2400.0
BEND_RADIUS_M = 3000.0
LANES_SIGMA_M = 5.0
RECEIVER_ENU_M = (-40.0, 25.0, 12.0)
SNR_AT_1KM_DB = 25.0
PATH_LOSS_EXPONENT = 3.0
SHADOWING_DB, SHADOWING_LENGTH_M = 3.0, 60.0


def access_road() -> dict[str, np.ndarray]:
    """Arrays of the data set; every emitter is heard by its one straight path."""
    rng = np.random.default_rng(SEED)
    along_m = rng.uniform(0.0, LENGTH_M, PLACES)
    turn = along_m / BEND_RADIUS_M
    across_m = rng.normal(0.0, LANES_SIGMA_M, PLACES)
    places = np.column_stack(
        [
            BEND_RADIUS_M * np.sin(turn) - across_m * np.sin(turn),
            BEND_RADIUS_M * (1.0 - np.cos(turn)) + across_m * np.cos(turn),
            np.full(PLACES, 1.5),
        ]
    )
    distance_m = np.linalg.norm(places - np.array(RECEIVER_ENU_M), axis=1)
    shadowing = SmoothField(SEED, Purpose.SHADOWING, 0, 2)
    level_db = SNR_AT_1KM_DB - 10.0 * PATH_LOSS_EXPONENT * np.log10(distance_m / 1000.0)
    level_db += SHADOWING_DB * shadowing(places[:, :2] / SHADOWING_LENGTH_M)
    noise_gain = 1e-6
    return {
        "receivers_enu_m": np.array([RECEIVER_ENU_M]),
        "transmitters_enu_m": places,
        "tap_gain": (noise_gain * 10.0 ** (level_db / 20.0))[:, None, None].astype(np.complex64),
        "tap_delay_ns": np.zeros((PLACES, 1, 1), np.float32),
        "noise_gain": np.float32(noise_gain),
        "frequency_hz": np.float64(433.92e6),
        "origin_wgs84": np.array([47.05, 8.30, 450.0]),
        "receiver_names": np.array(["Gate"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="data set to write, .npz")
    np.savez_compressed(parser.parse_args().file, **access_road())


if __name__ == "__main__":
    main()
