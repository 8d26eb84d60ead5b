"""The measurements behind the README's figures."""
