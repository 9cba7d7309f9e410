"""Values in, values out: no Faust, Kafka, ONNX, ClickHouse, clock, random number or environment."""
