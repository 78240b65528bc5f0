"""Whether a station's clocks, coordinates and geometry can be what its file says, told from what it receives."""
