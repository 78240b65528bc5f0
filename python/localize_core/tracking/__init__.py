"""Fixes over time as tracks: where emitters are, how fast they go, and how sure that is."""
