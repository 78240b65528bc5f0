"""Labelled windows: features whose truth is known, for training, calibration and evaluation."""
