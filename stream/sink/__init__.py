"""From records of five topics to rows of six ClickHouse tables: what a record becomes, and how a batch gets there."""
