"""An outbox on several hosts whose links are cut: network namespaces on one kernel, without loss and latency."""
