"""What puts events in: the HTTP collector, files, the simulator, the catalog."""
