"""From records of seven topics to rows of eight ClickHouse tables: what a record becomes, and how a batch gets there."""
