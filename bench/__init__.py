"""The measurements that bench/README.md quotes."""
