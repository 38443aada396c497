"""Tests of whole commands, each with its processes on a home of its own."""
