"""Live receivers: their streams' way into the station, their clocks, and their comings and goings."""
