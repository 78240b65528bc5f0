"""Feature frames out of complex samples: log-mel spectrogram, cross-correlation, sample quality."""
