"""The registry of releases, its signatures, and the ONNX sessions that run what it holds."""
