"""What the stories share."""

from tests.stories.test_life import empty_openmeter, tell

__all__ = ["empty_openmeter", "tell"]
