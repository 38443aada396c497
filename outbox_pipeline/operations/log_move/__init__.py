"""Move the event log to a new table while events are delivered and read: look first, copy, make a last pass, exchange.

Invariant: at the exchange the new table holds exactly the rows of the log, no batch is open that has some, and no
insert that is still on its way can land in either.
"""
