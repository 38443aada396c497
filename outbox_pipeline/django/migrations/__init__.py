"""One module for each numbered `.sql` file of the outbox schema, called as it is."""
