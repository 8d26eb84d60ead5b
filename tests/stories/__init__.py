"""Tests over real processes, and random histories, requests and faults."""
