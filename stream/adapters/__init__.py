"""The outside world behind the ports: Faust, Kafka, RocksDB, ONNX, ClickHouse, the model registry, metrics."""
