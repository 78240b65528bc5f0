"""From feature frames to a fix: windows, one model's answer, and the threads that keep both apart."""
