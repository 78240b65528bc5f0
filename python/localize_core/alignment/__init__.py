"""Time: clocks fitted to time stamps, resampling, and many streams brought onto one grid."""
