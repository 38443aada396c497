"""Numbered migrations of the log in ClickHouse: the statements of each in one `.sql` file."""
