"""Tests of what is billed, and where it goes."""
