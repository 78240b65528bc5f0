"""gr-localize without GNU Radio: features, models, engine, encoders and sinks in plain Python.

Nothing below this package imports gnuradio or pmt.
"""

__version__ = "0.1.0"
