"""The gr-localize command: one module per subcommand, each with a click command named `command`."""
