"""The statements by which the event log gets another table: what stands there, its copy, and the exchange of names.

The new table is named by the run that fills it, and each run gives it another name first. Invariant: a statement of an
earlier run that comes late, whichever it is, finds no table of the name it has.
"""
