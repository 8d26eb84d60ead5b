"""Tests of the service, the script and the stand-ins."""
