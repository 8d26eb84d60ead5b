"""Run the probe: `python -m probe`."""

from probe.command import main

if __name__ == "__main__":
    main()
