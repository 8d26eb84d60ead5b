"""Start the service under gunicorn: `python -m service`, or from elsewhere `python PATH/service`.

gunicorn looks for its settings in the current directory, and without them listens on every
address with another worker, and says nothing of it.
"""

import os
import sys
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent


def main() -> None:
    """Become gunicorn, with gunicorn.conf.py and app.py of this house; options win over those."""
    os.chdir(HOUSE)
    if not os.environ.get("WEB_CONCURRENCY"):
        os.environ.pop("WEB_CONCURRENCY", None)  # empty is not set, which gunicorn takes amiss
    found = ["--config", str(HOUSE / "gunicorn.conf.py"), "--chdir", str(HOUSE)]
    command = [sys.executable, "-m", "gunicorn", *found, *sys.argv[1:], "app:create_app()"]
    os.execv(sys.executable, command)  # noqa: S606 - it takes our place, and our process id


if __name__ == "__main__":
    main()
