"""The HTTP collector: takes events as Segment's SDKs send them, answers once Kafka has acknowledged them."""
