"""Measurements that the documentation quotes, each a program to run again."""
