"""The front door: the command line and everything that runs Clickwake on one machine."""
