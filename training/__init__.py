"""Offline: history in, a released bundle of ONNX models out. The only place where torch is imported."""
