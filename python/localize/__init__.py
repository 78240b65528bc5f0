"""GNU Radio blocks that turn SDR streams into transmitter positions. `from gnuradio import localize`."""
