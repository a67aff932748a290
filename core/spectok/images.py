"""Images in and out: files, grids and uint8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spectok.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image
