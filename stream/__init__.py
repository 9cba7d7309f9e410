"""What happens to an event: a pure core, the ports it needs, and the adapters behind them."""
