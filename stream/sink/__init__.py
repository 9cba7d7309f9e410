"""From records of six topics to rows of seven ClickHouse tables: what a record becomes, and how a batch gets there."""
