"""Tests of how the service runs."""
