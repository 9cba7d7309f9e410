"""From records of ten topics to rows of eleven ClickHouse tables: what a record becomes, and how a batch gets there."""
