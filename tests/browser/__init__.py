"""The pages as a reader sees them, in Debian's Chromium."""
