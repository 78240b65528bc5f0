"""Emitters, propagation and receivers on paper: IQ whose truth is known."""
