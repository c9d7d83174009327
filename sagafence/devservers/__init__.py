"""Postgres and Temporal from wheels, on loopback, as children of this process: for tests and demos."""
