"""From records of eight topics to rows of nine ClickHouse tables: what a record becomes, and how a batch gets there."""
