"""Which flows leave as log events."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from services.flows.columns import Array, Columns, length
from services.flows.facets import DROPPED


class Wanted(StrEnum):
    """Which flows are sent as log events."""

    NONE = "none"
    DROPS = "drops"
    POLICED = "policed"
    ALL = "all"

    def rows(self, columns: Columns) -> Array:
        """Indices of the rows that are wanted."""
        match self:
            case Wanted.NONE:
                return np.zeros(0, np.intp)
            case Wanted.DROPS:
                return np.flatnonzero(columns["verdict"] == DROPPED)
            case Wanted.POLICED:
                return np.flatnonzero((columns["verdict"] == DROPPED) | (columns["policy"] != 0))
            case _:
                return np.arange(length(columns))
