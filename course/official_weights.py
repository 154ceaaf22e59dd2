"""The official DroNet weights: fetched once, checked, kept in the cache of the machine.

They are the Robotics and Perception Group's (University of Zurich), under the MIT licence, from
https://github.com/uzh-rpg/rpg_public_dronet.
"""

import os
from pathlib import Path

import pooch

URL = "https://raw.githubusercontent.com/uzh-rpg/rpg_public_dronet/master/model/model_weights.h5"
SHA256 = "7e9ddfaeb96e86fd874891ad3a691fb2f83e3a59dedbbe8a21b4ca63d35b090c"
_NAME, _CACHE = "dronet_model_weights.h5", "keras-torch-parity"


def at_hand() -> bool:
    """Tell whether ``official_weights`` needs no download: ``DRONET_H5`` is set, or the file is in the cache."""
    return bool(os.environ.get("DRONET_H5")) or (pooch.os_cache(_CACHE) / _NAME).is_file()


def official_weights() -> Path:
    """Return the path of the official weight file, a Keras 2 HDF5 file for 200 x 200 grey images.

    It is the file named by the environment variable ``DRONET_H5``, if that is set, or else downloaded (1.4 MB) into
    the cache of the user, unless it is there already.

    Raises:
        ValueError: If the file cannot be had, or its SHA-256 is not that of the published file.
    """
    given = os.environ.get("DRONET_H5")
    try:
        if not given:
            return Path(pooch.retrieve(URL, SHA256, _NAME, pooch.os_cache(_CACHE), progressbar=True))
        found = pooch.file_hash(given)
    except (OSError, ValueError) as error:
        raise ValueError(f"{given or URL} cannot be had: {error}") from error
    if found != SHA256:
        raise ValueError(f"{given} is another file: its SHA-256 is {found}, not {SHA256}")
    return Path(given)
