"""Kafka: its clients, what is read whole, what is sent."""
