"""Compare both sides over a window of days, and repair what differs.

`compare` only looks; `repair` sends differing batches again by the protocol of any delivery and puts untracked events
back. A batch that is whole is never touched.
"""
